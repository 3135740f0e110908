"""The model of seconds by size: it finds what it was made of, and says how far off it is."""

import pytest

import widefield
from widefield.options import run_options
from widefield_bench.scaling import Line, Model, check, fit, fit_line, project


def row(flops, measure_flops, seconds=None):
    made = 0.4 + measure_flops / 90e9, 1.1 + flops / 150e9
    return {"size_px": 1, "flops": flops, "measure_flops": measure_flops, "measure_cpu_seconds": made[0],
            "stream_cpu_seconds": made[1], "cpu_seconds": sum(made) if seconds is None else seconds}  # fmt: skip


ROWS = [row(300e9, 119e9), row(580e9, 112e9), row(2330e9, 124e9)]


def test_it_finds_what_the_rows_were_made_of():
    model = fit(ROWS, 1.9)
    assert model.measure.fixed == pytest.approx(0.4) and model.measure.rate == pytest.approx(90e9)
    assert model.stream.fixed == pytest.approx(1.1) and model.stream.rate == pytest.approx(150e9)
    far = row(9300e9, 250e9)
    found = check(model, far)
    assert found["off"] == pytest.approx(0, abs=1e-3) and found["within"]


@pytest.mark.parametrize(("times", "within"), [(1.1, True), (1.2, False), (0.8, False)])
def test_a_size_that_was_not_fitted_is_compared(times, within):
    far = row(9300e9, 250e9)
    assert check(fit(ROWS, 1.9), {**far, "cpu_seconds": far["cpu_seconds"] * times})["within"] is within


def test_nothing_takes_less_than_no_time():
    assert fit_line([1.0, 2.0], [1.0, 3.0]).fixed == 0
    flat = fit_line([1.0, 2.0], [3.0, 2.0])
    assert flat.rate == float("inf") and 2 < flat.fixed < 3
    with pytest.raises(ValueError, match="two sizes"):
        fit_line([1.0], [1.0])


def test_machines_share_the_tiles_and_not_the_summary():
    model = Model(Line(1.0, 100e9), Line(2.0, 150e9), 1.0)
    bundle, options = widefield.open().bundle, run_options({"memory": "2GiB", "engine": "ort"})
    one, many = project(model, bundle, options, machines=(1, 64))
    assert one["size_px"] == 524_288 and one["written_gb"] == pytest.approx(101, abs=2)
    fixed = 1 + 996e9 / 100e9 + 2
    assert many["projected_seconds"] == pytest.approx(fixed + (one["projected_seconds"] - fixed) / 64, rel=0.01)
    assert many["projected_machine_hours"] >= one["projected_machine_hours"]
    assert one["planned_mib"] <= 2048
