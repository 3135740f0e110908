"""What a sweep keeps: a value of the whole picture reads the same wherever its tiles end, in memory and in a file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from widefield.bundle import ValueSpec
from widefield.geometry import Region
from widefield.held import Planes, Squares, folded
from widefield.sampling import exact_tiles
from widefield.scratch import HeldArray, Scratch

AXES = {
    "image": ("batch", 3, "rows", "columns"),
    "tokens last": ("batch", "cells", 3),
    "tokens first": ("batch", 3, "cells"),
    "two plain": ("batch", 2, 3, "rows", "columns"),
}


def planes_of(whole: np.ndarray, axes: tuple, scale: int, size: tuple[int, int], scratch: Scratch) -> Planes:
    """Cut (outer, rows, columns, inner) into the tiles of an exact sweep; what lies past the picture is rubbish."""
    spec = ValueSpec(axes, 3, scale, (7, 7))
    component = SimpleNamespace(values={"x": spec}, input="z", margin_cells=2)
    tiles = exact_tiles(*size)
    planes = Planes(component, None, size, tiles, scratch)
    planes.hold("x")
    outer, inner = folded(spec)
    rows, columns = planes.rows * scale, planes.columns * scale
    for index, tile in enumerate(tiles):
        full = np.full((outer, rows, columns, inner), 1e30, np.float32)
        inside = tile.clipped(planes.picture).scaled(scale)
        full[:, : inside.height, : inside.width] = whole[:, inside.slices[0], inside.slices[1]]
        target = planes["x"].target(index, index + 1)
        target[...] = full.reshape(target.shape)
        planes["x"].store(index, target)
    return planes


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["file", "memory"])
@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
def test_any_region_with_any_margin_is_cut_out_and_zeros_surround_the_picture(tmp_path, axes, limit):
    size, scale, margin = (37, 71), 2, (3, 5)
    outer, inner = folded(ValueSpec(axes, 3, scale, (0, 0)))
    whole = np.random.default_rng(0).standard_normal((outer, size[0] * scale, size[1] * scale, inner), np.float32)
    planes = planes_of(whole, axes, scale, size, Scratch(limit, tmp_path))
    assert planes["x"].in_memory == (limit > 0)
    padded = np.pad(whole, ((0, 0), (100, 100), (100, 100), (0, 0)))
    for region in (Region(0, 0, 32, 32), Region(30, 60, 38, 68), Region(32, 64, 64, 96), Region(5, 31, 9, 35)):
        found = planes.read("x", region, margin)
        wanted = region.scaled(scale).grown(*margin).shifted(100, 100)
        assert found.shape == ValueSpec(axes, 3, scale, margin).shape(1, region.height, region.width)
        np.testing.assert_array_equal(
            found.reshape(outer, wanted.height, wanted.width, inner), padded[:, wanted.slices[0], wanted.slices[1]]
        )


@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 6), st.integers(-9, 90), st.integers(-9, 90))
def test_a_region_reads_the_same_for_any_size(height, width, margin, y, x):
    whole = np.arange(3 * height * width, dtype=np.float32).reshape(3, height, width, 1) + 1
    planes = planes_of(whole, AXES["image"], 1, (height, width), Scratch(1 << 30, None))
    found = planes.read("x", Region(y, x, y + 8, x + 11), (margin, margin))
    ys, xs = np.arange(y - margin, y + 8 + margin), np.arange(x - margin, x + 11 + margin)
    valid = ((ys >= 0) & (ys < height))[:, None] & ((xs >= 0) & (xs < width))
    there = whole[:, np.clip(ys, 0, height - 1)][:, :, np.clip(xs, 0, width - 1), 0]
    np.testing.assert_array_equal(found[0], np.where(valid, there, 0))


def test_squares_read_what_they_did_not_make_from_the_planes(tmp_path):
    whole = np.random.default_rng(1).standard_normal((3, 40, 50, 1)).astype(np.float32)
    scratch = Scratch(1 << 30, tmp_path)
    planes = planes_of(whole, AXES["image"], 1, (40, 50), scratch)
    tiles = [Region(0, 3, 4, 7), Region(29, 44, 33, 48), Region(36, 46, 40, 50)]
    squares = Squares(planes.component, None, (40, 50), tiles, scratch, planes)
    graph = SimpleNamespace(margins=None, mask_cells=None)
    padded = np.pad(whole[..., 0], ((0, 0), (7, 7), (7, 7)))
    found = squares.feed(graph, "x", 1, 3)
    assert found.shape == (2, 3, 18, 18)
    for part, tile in zip(found, tiles[1:], strict=True):
        np.testing.assert_array_equal(part, padded[:, tile.y0 : tile.y0 + 18, tile.x0 : tile.x0 + 18])
    squares.hold("x")
    assert squares.feed(graph, "x", 0, 2).shape == (2, 3, 18, 18)
    squares.forget(set())
    planes.forget({"x"})
    assert "x" in planes and "x" not in squares


@given(st.integers(0, 4000), st.lists(st.tuples(st.booleans(), st.integers(1, 900)), max_size=40))
def test_rooms_are_used_again_and_never_shared_within_the_limit(limit, steps):
    """(take or give back, size) at random: rooms in memory stay within the limit, free ones counted in."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Scratch(limit, Path(folder))
        alive: list[tuple[HeldArray, float]] = []
        for number, (take, size) in enumerate(steps):
            if take or not alive:
                held = scratch.hold((size, 1))
                target = held.target(0, size)
                target[...] = number
                held.store(0, target)
                alive.append((held, number))
            else:
                scratch.release(alive.pop(size % len(alive))[0])
            assert scratch.rooms.used_nbytes <= limit
            assert sum(held.nbytes for held, _ in alive if held.in_memory) <= scratch.rooms.used_nbytes
            for held, value in alive:
                assert (held.load(0, held.shape[0]) == value).all()
        for held, _ in alive:
            scratch.release(held)


def test_a_released_room_serves_the_next_array_of_about_its_size(tmp_path):
    scratch = Scratch(1 << 20, tmp_path)
    first = scratch.hold((1000, 3))
    room = first.room
    scratch.release(first)
    smaller, tiny = scratch.hold((900, 3)), scratch.hold((5, 3))
    assert smaller.room is room and smaller.shape == (900, 3) and tiny.room is not room
