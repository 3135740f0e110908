"""The bench of decode runs, untimed, as a test: it checks before it times, and says what it should."""

import json

import numpy as np
import pytest

from widefield_bench import decode
from widefield_bench.decode import OURS, PEERS, DecodeCase, psnr, run_case


@pytest.mark.parametrize("who", PEERS + OURS)
def test_every_way_to_decode_runs_once(tiny, latents, benchmark, who):
    case = DecodeCase(who, str(latents(64, 64)), 1, str(tiny[1]), str(tiny[0]))
    found = benchmark.pedantic(run_case, (case,), rounds=1)
    assert found["mpx"] == pytest.approx(512 * 512 / 1e6)
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


def test_another_picture_is_not_timed(tiny, latents, tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "LEAST_DB", 1000.0)
    base = DecodeCase("", str(latents(32, 32)), 1, str(tiny[1]), str(tiny[0]))
    with pytest.raises(ValueError, match="nothing was timed"):
        decode.side_by_side(base, ["untiled", "openvino bf16"], rounds=1, check_against_untiled=True)


def test_psnr_is_the_formula():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 7, 5, 3), np.uint8)
    error = np.mean((a.astype(float) - b) ** 2)
    assert psnr(a, b)[0] == pytest.approx(10 * np.log10(255**2 / error))
    assert psnr(a, a) == (float("inf"), 0)
