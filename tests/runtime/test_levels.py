"""Levels of a cascade: whole windows, doubling, and what was asked at the end."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from widefield.errors import BadRequest
from widefield.levels import level_cells, make_levels


@given(st.integers(1, 600_000), st.integers(1, 600_000), st.sampled_from([(32, 32), (24, 40), (128, 128)]))
def test_levels_double_from_about_a_window_to_the_picture(height, width, window):
    cells = level_cells(height, width, 8, window)
    assert cells[-1] == (max(-(-height // 8), window[0]), max(-(-width // 8), window[1]))
    for small, large in itertools.pairwise(cells):
        assert small == (-(-large[0] // 2), -(-large[1] // 2))
    assert all(rows >= window[0] and columns >= window[1] for rows, columns in cells)
    assert cells[0][0] < 2 * window[0] or cells[0][1] < 2 * window[1]


def test_the_largest_picture_has_twelve_levels():
    cells = level_cells(524_288, 524_288, 8, (32, 32))
    assert cells[0] == (32, 32) and cells[-1] == (65_536, 65_536) and len(cells) == 12


def test_the_last_strength_and_phases_hold_for_all_levels_after():
    levels = make_levels([(32, 32)] * 4, steps=12, strengths=(1.0, 0.6, 0.4), phases=(3, 1))
    assert [(level.strength, level.phases) for level in levels] == [(1.0, 3), (0.6, 1), (0.4, 1), (0.4, 1)]
    assert [level.index for level in levels] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"steps": 0}, "wanted 1 or more"),
        ({"phases": (0,)}, "wanted 1 or more"),
        ({"strengths": (1.0, 1.5)}, "wanted each from 0"),
        ({"strengths": (float("nan"),)}, "wanted each from 0"),
    ],
)
def test_nonsense_is_refused(asked, said):
    with pytest.raises(BadRequest, match=said):
        make_levels([(32, 32)], **{"steps": 4, "strengths": (1.0,), "phases": (1,), **asked})


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(BadRequest, match="no pixels"):
        level_cells(0, 100, 8, (32, 32))
