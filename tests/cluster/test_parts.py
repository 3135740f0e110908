"""Shards made apart, with the levels of their parts, put together: the files of one writer, whatever the sizes."""

from types import SimpleNamespace

import pytest

from store.pictures import digests, fill, picture, tile_of
from widefield.cluster.board import Board
from widefield.cluster.decoding import Shards
from widefield.cluster.seal import seal_picture
from widefield.render import Grid
from widefield.store import StoreSpec, create_or_resume, open_store
from widefield.store.hashes import provenance_path
from widefield.store.omezarr import ZarrStore
from widefield.store.shardpart import Parts
from widefield.store.spec import Level, level_sizes

SIZES = [  # width, height, tile, shard
    (701, 437, 32, 128), (300, 200, 32, 8192), (1, 500, 16, 32), (513, 129, 32, 96), (257, 640, 16, 64),
    (640, 97, 32, 32), (64, 64, 64, 64), (255, 255, 16, 112),
]  # fmt: skip


@pytest.mark.parametrize(("width", "height", "tile", "shard"), SIZES)
def test_parts_make_the_files_of_one_writer(tmp_path, width, height, tile, shard):
    image = picture(width, height)
    spec = StoreSpec(width, height, "5eed", codec="zstd", tile_px=tile, shard_px=shard, metadata={"bundle": "c0ffee"})
    with create_or_resume(tmp_path / "one.zarr", spec) as store:
        fill(store, image)
    ZarrStore.lay_out(tmp_path / "many.zarr", spec)

    def streamed(missing, put, workers, blocks):
        for row, column in zip(*missing.nonzero(), strict=True):
            put(int(row), int(column), tile_of(image, tile, row, column).copy(), half=None)

    with open_store(tmp_path / "many.zarr") as store:
        shards = Shards(None, store, SimpleNamespace(workers=1), None, Board(tmp_path / "board"))
        grid = Grid(-(-height // 8), -(-width // 8), 8, (4, 4), tile, (height, width))
        rows, columns = shards.parts.count
        for place in [(y, x) for y in range(rows) for x in range(columns)][::-1]:
            shards._make(streamed, grid, place)
            shards._make(streamed, grid, place)  # again, as two who are at it do
        for level in range(1, len(store.levels)):
            stage = shards._level(level)
            with stage.opened() as run:
                for task in reversed(stage.tasks):
                    run(task.name)
                    assert task.done()
        with seal_picture(shards, lambda: False, lambda: None).opened() as run:
            run("seal")
    assert digests(tmp_path / "many.zarr") == digests(tmp_path / "one.zarr")
    one, many = (digests(provenance_path(tmp_path / name)) for name in ("one.zarr", "many.zarr"))
    assert one == many


@pytest.mark.parametrize(("width", "height", "shard", "depth"), [
    (524_288, 524_288, 16, 4), (8_192, 8_192, 16, 4), (100_000, 300, 16, 4), (524_288, 600, 6, 1), (5_000, 7_000, 1, 0),
])  # fmt: skip
def test_every_tile_lies_on_one_part_down_to_the_depth(width, height, shard, depth):
    levels = level_sizes(width, height, 512)
    sides = min(shard, levels[0].rows), min(shard, levels[0].columns)
    parts = Parts(levels, sides, 512)
    assert parts.depth == depth
    for level in range(depth + 1):
        rows, columns = parts.count
        edge = [(y, x) for y in {0, rows // 2, rows - 1} for x in {0, columns // 2, columns - 1}]
        for place in edge:
            down, across = parts.tiles(place, level)
            it: Level = parts.part(place)[level]
            assert (it.rows, it.columns) == (down.stop - down.start, across.stop - across.start)
            for row, column in ((down.start, across.start), (down.stop - 1, across.stop - 1)):
                assert parts.place(level, row, column) == (place, (row - down.start, column - across.start))
        assert parts.tiles((rows - 1, columns - 1), level)[0].stop == levels[level].rows
