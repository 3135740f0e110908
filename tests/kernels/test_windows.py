"""The grid of windows, against a list of origins that is made by walking."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from widefield_kernels.windows import Axis, Box, WindowGrid


def walked(size: int, window: int, stride: int, shift: int) -> list[int]:
    """Origins as one would lay windows by hand: from before the picture to beyond it, pushed inside, none twice."""
    if size <= window:
        return [0]
    origins, at = [], -(shift % stride)
    while True:
        pushed = 0 if at < 0 else size - window if at > size - window else at
        if pushed not in origins:
            origins.append(pushed)
        if at + window >= size:
            return origins
        at += stride


@st.composite
def axes(draw):
    window = draw(st.integers(1, 40))
    return draw(st.integers(1, 150)), window, draw(st.integers(1, window)), draw(st.integers(-50, 90))


@given(axes(), st.data())
@example((16 + 16 - 4 + 1, 16, 12, 0), None)  # size = tile - overlap + 1, and one row more than a stride and a window
@example((16 - 4 + 1, 16, 12, 0), None)
@example((101, 25, 25, 0), None)  # a sliver: one row beyond four windows
@example((1, 1, 1, 0), None)
@example((33, 32, 32, 31), None)
def test_windows_cover_every_cell_and_cover_names_all_that_meet_a_run(case, data):
    size, window, stride, shift = case
    axis = Axis(size, window, stride, shift)
    origins = [axis.origin(k) for k in range(axis.count)]
    assert origins == walked(size, window, stride, shift) == sorted(set(origins))
    assert set(range(size)) <= {cell for origin in origins for cell in range(origin, origin + window)}
    assert size < window or all(0 <= origin <= size - window for origin in origins)
    runs = [(0, size), (0, 1), (size - 1, size)]
    if data is not None:
        low = data.draw(st.integers(0, size - 1))
        runs.append((low, data.draw(st.integers(low + 1, size))))
    for low, high in runs:
        meeting = [k for k, origin in enumerate(origins) if origin < high and origin + window > low]
        assert list(axis.cover(low, high)) == meeting


def test_windows_come_row_by_row_at_absolute_places():
    grid = WindowGrid((100, 90), (32, 30), (24, 17), (12, 5))
    whole = list(grid.windows((0, 0, 100, 90)))
    assert len(whole) == len(set(whole)) == grid.shape[0] * grid.shape[1]
    assert [box.x0 for box in whole[: grid.shape[1]]] == walked(90, 30, 17, 5)
    assert [box.y0 for box in whole[:: grid.shape[1]]] == walked(100, 32, 24, 12)
    assert all((box.y1 - box.y0, box.x1 - box.x0) == (32, 30) for box in whole)
    part = list(grid.windows((40, 50, 41, 61)))
    assert part == [b for b in whole if b.y0 < 41 and b.y1 > 40 and b.x0 < 61 and b.x1 > 50]
    assert whole[grid.shape[1] + 2] == grid.window_at(1, 2)


def test_a_picture_of_512k_is_asked_about_at_no_cost():
    grid = WindowGrid((65_536, 65_536), (32, 32), (24, 24)).phase(1)
    assert grid.shape == (2731, 2731)
    windows = list(grid.windows((40_000, 65_408, 40_128, 65_536)))
    assert len(windows) == 7 * 6
    assert windows[-1] == Box(40_116, 65_504, 40_148, 65_536) and windows[0].x0 == 65_388
    assert grid.reach((40_000, 65_408, 40_128, 65_536)) == Box(39_972, 65_388, 40_148, 65_536)


@pytest.mark.parametrize(("window", "stride"), [(32, 24), (32, 32), (32, 16), (30, 20)])
def test_an_odd_phase_puts_its_centres_where_seams_were(window, stride):
    grid = WindowGrid((1000, 1000), (window, window), (stride, stride))
    odd = grid.phase(1)
    assert grid.phase(2) == grid.phase(0) == grid and odd.phase(1) != odd
    middle = [grid.rows.origin(k) + window // 2 for k in range(5, 9)]
    between = [odd.rows.origin(k) + window // 2 for k in range(5, 10)]
    assert all((a + b) // 2 in between for a, b in itertools.pairwise(middle))


def test_a_shift_by_a_stride_is_the_same_grid():
    assert WindowGrid((90, 80), (16, 16), (12, 8), (-3, 8)) == WindowGrid((90, 80), (16, 16), (12, 8), (9, 0))


def test_a_picture_smaller_than_a_window_has_one_window_that_reaches_beyond():
    grid = WindowGrid((9, 33), (16, 16), (12, 12), (6, 6))
    assert [box.y0 for box in grid.windows((0, 0, 9, 1))] == [0]
    assert grid.reach((0, 0, 9, 33)) == Box(0, 0, 9, 33)


@pytest.mark.parametrize("numbers", [(10, 4, 5, 0), (10, 4, 0, 0), (0, 4, 4, 0), (10, 0, 1, 0), (2**30, 4, 4, 0)])
def test_gaps_and_what_cannot_be_counted_are_refused(numbers):
    with pytest.raises(ValueError, match="wanted"):
        Axis(*numbers)
    size, window, stride, shift = numbers
    with pytest.raises(ValueError, match="wanted"):
        WindowGrid((64, size), (8, window), (8, stride), (0, shift))


@pytest.mark.parametrize("region", [(0, 0, 0, 5), (-1, 0, 5, 5), (0, 0, 65, 5), (0, 6, 5, 5)])
def test_a_region_outside_the_picture_is_refused(region):
    grid = WindowGrid((64, 64), (16, 16), (12, 12))
    with pytest.raises(ValueError, match="a part of it"):
        grid.cover(region)
    with pytest.raises(IndexError, match="window 5 of 5"):
        grid.window_at(5, 0)
