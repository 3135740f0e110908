"""The bench of drawing: its measures where the answers are known, and what it says of the embedded checkpoint."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from widefield_bench.drawing import DrawingCase, measure
from widefield_bench.looks import correlation, crossings, detail, fading, seams
from widefield_kernels.windows import WindowGrid


def noise(side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 255, (side, side, 3))


def test_correlation_is_of_the_box_mean():
    below = noise(40)
    level = below.repeat(4, 0).repeat(4, 1)
    assert correlation(level, below) == pytest.approx(1)
    assert correlation(level + noise(160, 1) - 127, below) > 0.9
    assert abs(correlation(noise(160, 2), below)) < 0.1


def test_detail_counts_what_is_finer_than_the_parent():
    y, x = np.mgrid[:128, :128]
    coarse = np.sin(2 * np.pi * (3 * x + 2 * y) / 128)[..., None].repeat(3, 2)
    fine = np.sin(2 * np.pi * 50 * x / 128)[..., None].repeat(3, 2)
    assert detail(coarse + 0.1 * fine, coarse + 0.01 * fine, 2) == pytest.approx(100, rel=0.01)
    assert detail(coarse, coarse, 2) == pytest.approx(1)


def test_windows_fade_between_the_cells_that_they_share():
    axis = WindowGrid((40, 40), (16, 16), (12, 12), (6, 6)).rows
    assert [axis.origin(k) for k in range(axis.count)] == [0, 6, 18, 24]
    assert np.flatnonzero(fading(axis)).tolist() == [*range(6, 15), *range(18, 21), *range(24, 33)]


@pytest.mark.parametrize("axis", [0, 1])
def test_seams_are_seen_whatever_the_picture_shows(axis):
    grids = [WindowGrid((64, 64), (16, 16), (12, 12), (shift, shift)) for shift in (0, 3, 6, 9)]
    where = [fading(grid.rows) for grid in grids]
    pixels = noise(512) / 20
    np.moveaxis(pixels, axis, 0)[::24] += 40  # of the picture, and oftener in one grid's overlaps than in another's
    pictures = [pixels + noise(512, 1 + seed) / 40 for seed in range(4)]
    corners = [crossings(grid, 8, axis, 512) for grid in grids]
    assert corners[1].shape == (63, 512) and corners[1].any(1).tolist() == where[1].tolist()
    for places in (where, corners):
        ratio, error = seams(pictures, places, 8, axis)
        assert ratio == pytest.approx(1, abs=3 * error) and error < 0.03
    others = [picture.copy() for picture in pictures]
    for other, grid in zip(others, grids, strict=True):
        for k in range(1, grid.rows.count):  # a step in the middle of what two windows share
            middle = (grid.rows.origin(k) + grid.rows.origin(k - 1) + 16) // 2
            np.moveaxis(other, axis, 0)[8 * middle :] += 9
    assert seams(others, where, 8, axis)[0] > 1.02 and seams(others, corners, 8, axis)[0] > 1.02
    assert seams(others, where, 8, 1 - axis)[0] == pytest.approx(1, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ["a volcanic archipelago at dawn", "clouds over the open sea"])
def test_levels_agree_bring_detail_and_show_no_seam(prompt):
    """The embedded checkpoint at 2048 x 2048; the smaller level has too few borders to judge seams by."""
    rows = measure(DrawingCase("looks", prompt=prompt))["levels"]
    print(rows)
    assert [row["size_px"] for row in rows] == [[512, 512], [2048, 2048]]
    assert all(row["correlation"] > 0.9 for row in rows)
    assert all(row["detail"] > 2 for row in rows)
    assert all(abs(seam - 1) < 0.02 for seam in (*rows[-1]["seams"], *rows[-1]["crossings"]))


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["600MiB", "1GiB"])
def test_drawing_keeps_to_its_budget(memory):
    row = measure(DrawingCase("whole", (3000, 2000), memory=memory))
    print(row)
    assert row["within"], row


@pytest.mark.slow
def test_views_keep_to_the_least_budget_and_compute_nothing_twice():
    row = measure(DrawingCase("views", (524_288, 524_288)))
    print(row)
    assert row["within"] and row["units"] <= row["counted_units"], row


def test_views_of_many_levels_keep_to_the_least_budget(drawing_bundle):
    """A tiny model, whose small arrays are all over the heap; nothing is computed again for want of memory."""
    options = {"workers": 2, "steps": [2, 1], "guidance": 1.0, "phases": 1}
    row = measure(DrawingCase("views", (16_384, 16_384), str(drawing_bundle), "the sea", options=options))
    assert row["within"] and row["units"] <= row["counted_units"], row


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A tiny random Stable Diffusion with 64 channels of latents, 4 px each: 16 bytes of latents a pixel."""
    from pipelines import save_pipeline
    from widefield_export.commands import export_bundle

    folder = tmp_path_factory.mktemp("wide")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_pipeline("SD1.5", folder / "checkpoint", channels=64)
        export_bundle(folder / "checkpoint", folder / "b.wf", asked={"windows": ["16x24"]})
    return folder / "b.wf"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_latents_larger_than_the_budget_are_drawn_within_it(wide):
    """6008 x 6000 px: 550 MiB of latents in a budget of 512."""
    size, options = (6008, 6000), {"steps": [2, 1], "guidance": 1.0, "growth": 4, "phases": 1}
    row = measure(DrawingCase("whole", size, str(wide), "the sea", memory="512MiB", options=options))
    print(row)
    assert size[0] * size[1] * 16 > 512 << 20
    assert row["within"], row


@pytest.mark.slow
def test_a_cold_viewport_of_the_largest_picture_is_what_was_counted():
    row = measure(DrawingCase("cold", (524_288, 524_288)))
    print(row)
    assert row["units"] <= row["counted_units"] and row["window_steps"] <= 3 * row["least_window_steps"]
