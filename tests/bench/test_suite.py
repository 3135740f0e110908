"""`widefield bench`, small: everything is measured, kept and drawn, and a second run adds to the first."""

import json

import pytest
from click.testing import CliRunner

from widefield.errors import BadRequest
from widefield_bench import results
from widefield_bench.commands import bench
from widefield_bench.roofline import ceilings, measured


def run(*arguments):
    done = CliRunner().invoke(bench, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def test_a_small_bench_measures_keeps_and_draws(tiny, tmp_path):
    pytest.importorskip("matplotlib")
    bundle, checkpoint = tiny
    common = ["--bundle", bundle, "--checkpoint", checkpoint, "--threads", 1, "-o", tmp_path]
    sizes = [part for size in (192, 256, 320) for part in ("--size", size)]
    run(*common, *sizes, "--who", "untiled", "--who", "ort f32", "--untiled-up-to", 192, "--only", "decode")
    said = run(*common, "--size", 256, "--who", "ort f32", "--only", "split", "--only", "scaling")
    rows = results.read(tmp_path / "bench.json")
    assert [row["who"] for row in results.section(rows, "decode")].count("ort f32") == 3
    (checked,) = results.section(rows, "quality")
    assert checked["who"] == "ort f32" and checked["psnr_db"] > 45
    (model,) = results.section(rows, "scaling")
    assert model["fitted_px"] == [192, 256] and model["size_px"] == 320
    assert [row["machines"] for row in results.section(rows, "projection")] == [1, 8, 64]
    (split,) = results.section(rows, "split")
    kinds = {part["kind"]: part["calls"] for part in split["split"] if part["phase"] == "stream"}
    assert kinds["encode"] == kinds["write"] >= 1 and kinds["engine"] >= 2 and kinds["tiles"] >= 1
    assert {"machine", "versions", "commit", "command"} <= model["about"].keys()
    assert "ONNX Runtime" in said.stdout and "report.html" in said.stdout.replace("\n", "")
    assert (tmp_path / "report.html").read_text().count("<svg") >= 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--who", "nobody"], "nobody is called nobody"),
        (["--bundle", "b"], "--checkpoint FOLDER"),
        (["--checkpoint", "nowhere"], "nowhere is no folder"),
    ],
)
def test_what_cannot_be_asked_is_said(arguments, said, tmp_path):
    with pytest.raises(BadRequest, match=said):
        run(*arguments, "-o", tmp_path)


def test_parts_are_under_ceilings_that_were_measured():
    limits = ceilings(1, side=64, copy_nbytes=1 << 20, repeats=2)
    assert limits["gflops"] > 0 and limits["gbps"] > 0
    rows = measured(1, limits, side=32, repeats=2)
    assert {row["by"] for row in rows} >= {"ort", "torch", "numpy"}
    for row in rows:
        assert row["ms"][0] <= row["ms"][1] <= row["ms"][2] and row["of_ceiling"] > 0
    three = next(row for row in rows if row["part"].startswith("3x3, 16 ch") and row["by"] == "torch")
    nbytes = 2 * 16 * 32 * 32 * 4 + 16 * 16 * 9 * 4
    assert three["flop_per_byte"] == pytest.approx(2 * 9 * 16 * 16 * 32 * 32 / nbytes, abs=1e-3)
    assert three["bound"] in ("matmul", "copy")


def test_json_is_one_object(tmp_path):
    results.write(tmp_path / "bench.json", [])
    said = run("--only", "scaling", "--against", "nobody", "--json", "-o", tmp_path)
    assert json.loads(said.stdout) == {"rows": []}
