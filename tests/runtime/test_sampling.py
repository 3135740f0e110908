"""Tile sets: cover, stratify, and depend on nothing but size, seed and N."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import widefield
from widefield.geometry import Region, morton_order
from widefield.keys import keys_error
from widefield.sampling import (
    CELL,
    default_cells,
    exact_tiles,
    plane_stages,
    spread_places,
    spread_tokens,
    stages,
    stratified_cells,
)


@given(st.integers(1, 150), st.integers(1, 150))
def test_exact_tiles_cover_every_cell_once(height, width):
    count = np.zeros((height, width), int)
    for tile in exact_tiles(height, width):
        count[tile.slices] += 1
    assert (count == 1).all()


@given(st.integers(CELL, 300), st.integers(CELL, 300), st.integers(1, 200), st.integers(0, 2**40))
def test_sampled_squares_lie_inside_and_never_overlap(height, width, count, seed):
    count_map = np.zeros((height, width), int)
    cells = stratified_cells(height, width, count, seed)
    for cell in cells:
        assert (cell.height, cell.width) == (CELL, CELL)
        assert cell.within(Region(0, 0, height, width))
        count_map[cell.slices] += 1
    assert count_map.max() == 1
    assert cells == stratified_cells(height, width, count, seed)


def test_another_seed_draws_other_squares():
    assert stratified_cells(200, 200, 50, 0) != stratified_cells(200, 200, 50, 1)


def test_every_quarter_of_a_picture_gets_its_share():
    cells = stratified_cells(256, 512, 256, seed=3)
    assert 240 <= len(cells) <= 272
    for y, x in ((0, 0), (0, 256), (128, 0), (128, 256)):
        part = Region(y, x, y + 128, x + 256)
        assert abs(sum(bool(c.clipped(part)) for c in cells) - len(cells) / 4) <= len(cells) / 16


@given(st.integers(1, 400), st.integers(1, 64), st.integers(1, 5000), st.integers(0, 9))
def test_chosen_tokens_are_distinct_and_spread(tiles, per_tile, keep, seed):
    chosen = spread_tokens(tiles, per_tile, keep, seed)
    total = tiles * per_tile
    assert len(chosen) == min(keep, total)
    assert len(np.unique(chosen)) == len(chosen)
    assert chosen.min() >= 0 and chosen.max() < total
    if 1 < keep < total:
        assert np.diff(chosen).max() <= 2 * -(-total // keep)


@pytest.mark.parametrize(
    ("height", "width", "cells"), [(64, 64, 96), (512, 512, 128), (1024, 1024, 256), (65536, 65536, 1024)]
)
def test_a_larger_picture_needs_a_smaller_part_of_itself(height, width, cells):
    assert default_cells(height, width) == cells


@given(st.integers(0, 40), st.integers(0, 40))
def test_morton_order_visits_every_tile_once_and_quadrants_whole(rows, columns):
    seen = list(morton_order(rows, columns))
    assert sorted(seen) == [(y, x) for y in range(rows) for x in range(columns)]
    key = [sum(((y >> b & 1) << 2 * b + 1) | ((x >> b & 1) << 2 * b) for b in range(8)) for y, x in seen]
    assert key == sorted(key)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 3000), st.integers(0, 9))
def test_chosen_places_are_distinct_and_about_as_many_as_asked_for(height, width, keep, seed):
    places = spread_places(height, width, keep, seed)
    assert (np.diff(places) > 0).all()
    assert places[0] >= 0 and places[-1] < height * width
    assert len(places) == height * width if keep >= height * width else len(places) <= 1.5 * keep + max(height, width)


def test_every_quarter_of_a_picture_gives_its_share_of_keys():
    y, x = np.divmod(spread_places(100, 300, 1024, seed=5), 300)
    for top in (0, 50):
        for left in (0, 150):
            here = ((y >= top) & (y < top + 50) & (x >= left) & (x < left + 150)).sum()
            assert abs(here - len(y) / 4) <= len(y) / 32


def test_early_stages_run_over_the_picture_while_that_is_cheaper():
    decoder = widefield.open().bundle.decoder
    found = [
        plane_stages(decoder, side, side, default_cells(side, side), decoder.keys) for side in (32, 256, 512, 4096)
    ]
    assert found == sorted(found, reverse=True)
    assert found[0] == len(decoder.sites) and found[1] > 0 and found[-1] == 0
    assert stages(decoder, 4096, 4096, "exact") == (len(decoder.sites), 0, None)


def test_what_hangs_on_the_choice_of_keys_shrinks_with_their_number():
    rng = np.random.default_rng(0)
    query = rng.standard_normal((500, 12)).astype(np.float32)
    keys = (rng.standard_normal((4096, 12)) * np.linspace(0.2, 2, 12)).astype(np.float32)
    few, many = keys_error(query, keys[:64]), keys_error(query, keys)
    assert 0 < 2 * many < few < 1
    assert keys_error(query, np.repeat(keys[:50], 2, 0)) == pytest.approx(0, abs=1e-6)
    assert keys_error(query, keys[:1]) == 0
