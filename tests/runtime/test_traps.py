"""The traps that other tiled decoders fell into, by name. Those of statistics are in tests/kernels/test_norm.py and
test_contracts.py, those of files in tests/store/."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from widefield.bundle import ValueSpec, evaluate
from widefield.geometry import Region
from widefield.render import Grid, _tiles_meeting

SIDES = st.integers(1, 200)


@given(SIDES, SIDES, st.integers(1, 90), st.integers(1, 90), st.sampled_from([2, 4, 8, 16, 32]))
@example(65, 129, 64, 64, 8)  # a sliver last tile: one cell wide
@example(63, 1, 64, 64, 8)  # size = tile - 1
@example(64, 64, 64, 64, 8)
@example(10, 10, 90, 7, 8)  # a tile larger than the picture
@example(24 - 6 + 1, 24, 24, 24, 8)  # size = tile - overlap + 1, the case that indexed past the end
def test_every_cell_is_made_by_exactly_one_tile(height, width, rows, columns, scale):
    """No tile < stride that truncates the picture, no sliver left out, none made twice."""
    grid = Grid(height, width, scale, (rows, columns), 512)
    made = np.zeros((height, width), int)
    stored: dict[tuple[int, int], int] = {}
    for block in grid.blocks():
        for tile in grid.tiles(block):
            assert (tile.height, tile.width) == (rows, columns), "static shapes: every tile is whole"
            kept = grid.kept(tile)
            made[kept.slices] += 1
            assert not kept or grid.tile_of(kept.y0, kept.x0) == tile == grid.tile_of(kept.y1 - 1, kept.x1 - 1)
        for index, area in grid.store_tiles(block):
            stored[index] = stored.get(index, 0) + area.area
    assert (made == 1).all()
    assert sum(stored.values()) == height * width * scale**2
    assert len(stored) == -(-height * scale // 512) * -(-width * scale // 512)


@given(st.integers(0, 190), st.integers(0, 190), st.integers(1, 60), st.integers(1, 60))
def test_a_region_finds_every_tile_that_it_meets(y, x, h, w):
    grid = Grid(200, 200, 8, (20, 31), 512)
    cells = Region(y, x, min(200, y + h), min(200, x + w))
    found = set(_tiles_meeting(grid, cells))
    for row in range(cells.y0, cells.y1):
        for column in range(cells.x0, cells.x1):
            assert grid.tile_of(row, column) in found


def test_int32_indexing_past_two_billion_elements():
    """512K: regions, polynomials and shapes are Python integers all the way."""
    grid = Grid(65536, 65536, 8, (64, 64), 512)
    last = grid.tile_of(65535, 65535)
    assert last == Region(65472, 65472, 65536, 65536)
    assert last.scaled(8).y1 * grid.width * grid.scale * 3 > 2**39
    assert evaluate((2**20, 2**20, 1), 65536, 65536) > 2**51
    assert ValueSpec(("batch", 128, "rows", "columns"), 128, 8, (1, 1)).nbytes(1, 65536, 65536) > 2**46


def test_blocks_of_a_huge_picture_come_without_being_listed():
    blocks = Grid(65536, 65536, 8, (64, 64), 512).blocks()
    first = [next(blocks) for _ in range(4)]
    assert [(b.y0, b.x0) for b in first] == [(0, 0), (0, 64), (64, 0), (64, 64)], "Morton order"


def test_half_precision_variance_would_overflow_where_ours_does_not():
    """fp16 variance overflow: values of 300 have squares past 65,504."""
    from widefield_kernels.norm import merge_reference

    x = np.array([300.0, -300.0, 310.0, -310.0])
    with np.errstate(over="ignore"):
        assert np.isinf(np.float16(x.astype(np.float16).max()) ** 2)
    merged = merge_reference(np.array([4.0]), x.mean()[None, None], ((x - x.mean()) ** 2).sum()[None, None])
    assert merged.variance == pytest.approx(x.var())
