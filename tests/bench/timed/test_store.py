"""A pyramid to the disk, and a tile of it back."""

import shutil

import numpy as np
import pytest

from widefield.store import PyramidWriter, StoreSpec, create_or_resume, open_store
from widefield_bench.store import TILE_PX, check, cut, dead_leaves


@pytest.fixture(scope="module")
def tiles():
    return cut(dead_leaves(768), 4)


def written(path, side_px, tiles):
    """A pyramid of `tiles`, again and again."""
    spec = StoreSpec(side_px, side_px, "be9c", codec="auto")
    with create_or_resume(path, spec) as store, PyramidWriter(store, threads=2) as writer:
        for number, (row, column) in enumerate(writer.missing()):
            writer.put(row, column, tiles[number % len(tiles)])
    return writer.bytes_written


@pytest.mark.parametrize("form", [".tif", ".zarr", ".dzi"])
def test_store(timed, tiles, full, tmp_path, form):
    check(tiles, tmp_path)
    path, side = tmp_path / f"picture{form}", 8192 if full else 1024

    def write():
        for old in tmp_path.glob("picture*"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        return written(path, side, tiles)

    assert timed(write) > side * side // 40


def test_read(benchmark, tiles, tmp_path):
    written(tmp_path / "picture.tif", 1024, tiles)
    with open_store(tmp_path / "picture.tif") as store:
        pixels = benchmark(store.read, 0, 1, 0)
    assert pixels.shape == (TILE_PX, TILE_PX, 3)
    assert np.abs(pixels.astype(int) - tiles[2]).mean() < 8
