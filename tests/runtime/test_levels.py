"""Levels of a cascade: whole windows, doubling, and what was asked at the end."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from widefield.errors import BadRequest
from widefield.levels import drawn_sizes, enlarged_px, enlarged_sizes, make_levels
from widefield.schedule import COLUMNS, Schedule

windows = st.sampled_from([(32, 32), (24, 40), (128, 128)])
SCHEDULE = Schedule("flow", {n: np.zeros((n, len(COLUMNS))) for n in range(1, 41)}, dict.fromkeys(range(1, 41), 1.0))


@given(st.integers(1, 600_000), st.integers(1, 600_000), windows)
def test_levels_double_from_a_window_to_the_picture(height, width, window):
    sizes = drawn_sizes(height, width, 8, window)
    assert (sizes[-1].height, sizes[-1].width) == (max(-(-height // 8), window[0]), max(-(-width // 8), window[1]))
    for small, large in itertools.pairwise(sizes):
        assert 1 < large.ratio <= 2
        assert (small.height, small.width) == (
            math.ceil(large.height / large.ratio), math.ceil(large.width / large.ratio)
        )  # fmt: skip
    assert all(size.ratio == 2 for size in sizes[2:])
    assert all(size.height >= window[0] and size.width >= window[1] for size in sizes)
    assert sizes[0].ratio == 1 and (sizes[0].height == window[0] or sizes[0].width == window[1])


def test_the_largest_picture_has_twelve_levels():
    sizes = drawn_sizes(524_288, 524_288, 8, (32, 32))
    assert (sizes[0].height, sizes[-1].height, len(sizes)) == (32, 65_536, 12)


@given(st.integers(1, 5000), st.integers(1, 5000), st.fractions(Fraction(61, 60), 100, max_denominator=60), windows)
def test_an_enlarged_picture_ends_at_its_size_and_begins_at_its_own(height, width, times, window):
    sizes = enlarged_sizes(height, width, times, 8, window)
    rows, columns = enlarged_px(height, width, times)
    assert (sizes[0].height, sizes[0].width) == (-(-height // 8), -(-width // 8))
    assert sizes[-1].height == max(-(-rows // 8), window[0]) and sizes[-1].width == max(-(-columns // 8), window[1])
    assert math.prod(size.ratio for size in sizes) == times
    assert all(1 < size.ratio <= 2 for size in sizes[1:])
    for small, large in itertools.pairwise(sizes[1:]):
        assert small.height * 2 >= large.height and small.width * 2 >= large.width


def test_the_last_numbers_hold_for_all_levels_after():
    sizes = drawn_sizes(2048, 2048, 8, (32, 32))
    levels = make_levels(sizes, SCHEDULE, steps=(12, 2), strengths=(0.6, 0.4), phases=(3, 1))
    assert [(level.strength, level.phases) for level in levels] == [(1.0, 3), (0.6, 1), (0.4, 1), (0.4, 1)]
    assert [level.index for level in levels] == [0, 1, 2, 3]
    assert [level.count for level in levels] == [12, 4, 5, 5]
    assert [len(SCHEDULE.run(level.count, level.strength).steps) for level in levels] == [12, 2, 2, 2]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"steps": (0,)}, "wanted 1 or more"),
        ({"steps": (41,)}, "not in the tables"),
        ({"phases": (0,)}, "wanted 1 or more"),
        ({"strengths": (1.5,)}, "wanted each from 0"),
        ({"strengths": (float("nan"),)}, "wanted each from 0"),
        ({"anchor": -0.1}, "wanted from 0"),
        ({"anchor": float("nan")}, "wanted from 0"),
    ],
)
def test_nonsense_is_refused(asked, said):
    sizes = drawn_sizes(2048, 2048, 8, (32, 32))
    with pytest.raises(BadRequest, match=said):
        make_levels(sizes, SCHEDULE, **{"steps": (4,), "strengths": (1.0,), "phases": (1,), **asked})


@pytest.mark.parametrize("size", [(0, 100), (100, -1)])
def test_a_picture_without_pixels_is_refused(size):
    with pytest.raises(BadRequest, match="no pixels"):
        drawn_sizes(*size, 8, (32, 32))
    with pytest.raises(BadRequest, match="no pixels"):
        enlarged_sizes(*size, Fraction(3), 8, (32, 32))


@pytest.mark.parametrize("times", [Fraction(1), Fraction(1, 2), Fraction(1 << 17)])
def test_only_larger_pictures_are_made(times):
    with pytest.raises(BadRequest, match="wanted above 1"):
        enlarged_sizes(100, 100, times, 8, (32, 32))
