"""The bench of decode runs, untimed, as a test: it checks before it times, and says what it should."""

import json

import numpy as np
import pytest

from widefield_bench import decode
from widefield_bench.decode import psnr
from widefield_bench.decode_run import DecodeCase, run_case


@pytest.mark.parametrize("who", ["tiled", "openvino f32", "openvino bf16"])
def test_a_decode_runs_in_a_process_of_its_own(tiny, latents, who):
    found = run_case(DecodeCase(who, str(latents(64, 48)), 1, str(tiny[1]), str(tiny[0]), limit="2GiB"))
    assert found["mpx"] == pytest.approx(512 * 384 / 1e6)
    assert found["seconds"] > 0 and found["cpu_seconds"] > 0


def test_the_bench_checks_then_times_and_writes(tiny, latents, tmp_path, capsys):
    status = decode.main([
        "--size", "256", "--rounds", "1", "--threads", "1", "--who", "untiled", "--who", "ort f32",
        "--bundle", str(tiny[0]), "--checkpoint", str(tiny[1]), "--latents", str(latents(32, 32)), "-o", str(tmp_path),
    ])  # fmt: skip
    assert status == 0
    written = json.loads((tmp_path / "decode.json").read_text())
    assert {"machine", "versions", "commit", "command"} <= written["about"].keys()
    ours = next(row for row in written["rows"] if row["who"] == "ort f32")
    assert ours["psnr_db"] >= 45 and ours["largest_difference"] <= 1
    assert ours["over_untiled_cpu"] > 0
    assert "ort f32" in capsys.readouterr().out


def made(who, seconds):
    return {"mpx": 1.0, "seconds": seconds, "cpu_seconds": 2 * seconds, "peak_mib": 10.0, "open_seconds": 0.1}


@pytest.fixture
def runs(monkeypatch):
    """Runs that take no process: ours twice as quick, its picture of `shade`; who is called in which order."""
    asked, shade = [], {"untiled": 100, "tiled": 104, "ort f32": 100}

    def run(case, *, timeout_s):
        asked.append((case.who, case.keep is not None))
        if case.who == "compiled":
            return {"failed": "no compiler"}
        if case.keep is not None:
            np.save(case.keep, np.full((5, 7, 3), shade[case.who], np.uint8))
        return made(case.who, 1.0 if case.who in decode.OURS else 2.0)

    monkeypatch.setattr(decode, "run_case", run)
    return asked, shade


WHOSE = ("tiled", "compiled", "untiled", "ort f32")


def test_ways_take_turns_and_ours_is_checked_first(runs):
    rows = decode.side_by_side(DecodeCase("", ""), WHOSE, rounds=2, check_against_untiled=True)
    assert runs[0] == [
        ("untiled", True), ("tiled", True), ("compiled", True), ("ort f32", True), ("ort f32", False),
        ("ort f32", False), ("untiled", False), ("tiled", False),
    ]  # fmt: skip
    by_who = {row["who"]: row for row in rows}
    assert by_who["compiled"] == {"who": "compiled", "failed": "no compiler"}
    assert by_who["ort f32"]["over_tiled_wall"] == by_who["ort f32"]["over_untiled_cpu"] == 2.0
    assert by_who["ort f32"]["psnr_db"] == 99.0 and by_who["tiled"]["largest_difference"] == 4


def test_another_picture_is_not_timed(runs):
    runs[1]["ort f32"] = 110
    with pytest.raises(ValueError, match=r"is 28.1 dB from untiled; wanted 45.0; it was not timed"):
        decode.side_by_side(DecodeCase("", ""), WHOSE, rounds=1, check_against_untiled=True)
    assert ("ort f32", False) not in runs[0]


def test_psnr_is_the_formula():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 7, 5, 3), np.uint8)
    error = np.mean((a.astype(float) - b) ** 2)
    assert psnr(a, b)[0] == pytest.approx(10 * np.log10(255**2 / error))
    assert psnr(a, a) == (float("inf"), 0)
