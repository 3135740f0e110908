"""Stages of a picture whose latents are there: its summary, its shards, the pyramid above them, the seal.

    summary     by one worker; all decode with what it wrote
    shards      by all: one of level 0 is decoded whole, with the smaller levels of its part of the picture, and is
                committed after those: OUT.zarr/0/c/0/y/x says that part-y-x is there
    level k     by all: each shard of level k is put together from the parts under it, without decoding a tile; above
                the last level that parts have, from the tiles of the level below
    seal        by one: the manifest, which says that the picture is finished; then everything else is taken away

Every file is written beside its place and renamed into it, and does not depend on who wrote it: see the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from widefield.cluster.board import Board
from widefield.cluster.files import SUMMARY, Files, Key
from widefield.cluster.work import Stage, Talk, Task
from widefield.drawn import DrawnJob
from widefield.errors import StoreError
from widefield.geometry import Region, morton_order
from widefield.job import DecodeJob
from widefield.options import RunOptions
from widefield.plan import Plan
from widefield.render import Grid, stream
from widefield.store.box import Pixels, box
from widefield.store.faults import explained
from widefield.store.hashes import HASHES, provenance_path
from widefield.store.omezarr import ZarrStore
from widefield.store.shardpart import Parts, Place, ShardPart
from widefield.store.shards import fetch_from_shard, write_shard
from widefield.summary import Summary, load_summary

Run = Callable[[str], None]
NO_SUMMARY = "summary.none"


class Shards:
    """The stages. `store` is the picture, opened for reading."""

    def __init__(self, job: DecodeJob, store: ZarrStore, plan: Plan, options: RunOptions, board: Board) -> None:
        self.job, self.store, self.plan, self.options, self.board = job, store, plan, options, board
        self.parts = Parts.of(store)
        self.files = Files(job, store, plan, options, board)

    def stages(self, talk: Talk | None) -> Iterator[Stage]:
        """All but the seal."""
        yield self._summary(talk)
        yield self._level_0()
        for level in range(1, len(self.store.levels)):
            yield self._level(level)

    # The summary.

    def _summary(self, talk: Talk | None) -> Stage:
        @contextmanager
        def opened() -> Iterator[Run]:
            yield lambda _: self._measure(talk)

        return Stage(
            "summary", [Task("summary", self._is_measured)], opened,
            lambda _: self.files.drawn(None), lambda _: (self.board.path / SUMMARY,), decides=True,
        )  # fmt: skip

    def _is_measured(self) -> bool:
        return any((self.board.path / name).is_file() for name in (SUMMARY, NO_SUMMARY))

    def _measure(self, talk: Talk | None) -> None:
        with self.board.room() as room:
            self._measured(room / SUMMARY, talk)
            if (room / SUMMARY).is_file():
                self.board.publish(room / SUMMARY, SUMMARY)
            else:  # given, or there are no sites: nothing was measured that others would measure otherwise
                self.board.create(NO_SUMMARY, b"")

    def _measured(self, file: Path, talk: Talk | None) -> None:
        if isinstance(self.job, DrawnJob) and self.options.summary == "auto":  # known since its levels were drawn
            drawing = self.job.drawing(self.options)
            levels = self.job.generation.levels[self.job.generation.ground is not None :]
            stored = {level.index: drawing.store(level).source() for level in levels}
            drawing.inherited_summary(stored).save(file)
        else:
            self.job.kept_summary(file, self.options, self.plan, talk)

    def _known_summary(self) -> Summary:
        file = self.board.path / SUMMARY
        if file.is_file():
            return load_summary(file, self.job.component, self.job.bundle.digest)
        return self.job.measured(self.options, self.plan)

    # Level 0.

    def _level_0(self) -> Stage:
        places = {f"shard-{y}-{x}": (y, x) for y, x in morton_order(*self.parts.count)}
        tasks = [Task(name, partial(self._is_made, place)) for name, place in places.items()]

        @contextmanager
        def opened() -> Iterator[Run]:
            plan, options = self.plan, self.options
            engine = options.engine_options(plan.workers, plan.threads, keeps=plan.keeps)
            with closing(self.job.coder(self._known_summary(), plan, engine)) as coder:
                grid = self.job.grid(plan)
                yield lambda name: self._make(partial(stream, coder, grid), grid, places[name])

        return Stage(
            "shards", tasks, opened,
            lambda name: (self.board.path / SUMMARY, *self.files.drawn(places[name])),
            lambda name: (*self.files.part(places[name]), self.store.shard_path((0, *places[name]))),
        )  # fmt: skip

    def _is_made(self, place: Place) -> bool:
        return self.store.shard_path((0, *place)).exists() and self.files.part_path(place).exists()

    def _make(self, streamed: Callable[..., None], grid: Grid, place: Place) -> None:
        rows, columns = self.parts.tiles(place, 0)
        missing = np.zeros((self.store.levels[0].rows, self.store.levels[0].columns), np.bool_)
        missing[rows, columns] = True
        with self.board.room() as room, explained(self.store.path):
            part = ShardPart(room / "part.zarr", self.store, self.parts, place)
            with part, part.writer() as writer:

                def put(row: int, column: int, pixels: Pixels, *, half: Pixels | None) -> None:
                    writer.put(row - rows.start, column - columns.start, pixels, half=half)

                streamed(missing, put, workers=self.plan.workers, blocks=_blocks(grid, rows, columns))
            self._commit(part, room, place)

    def _commit(self, part: ShardPart, room: Path, place: Place) -> None:
        """The part first, in one rename, then the shard: who sees the shard finds its part."""
        smaller = room / "levels"
        smaller.mkdir()
        for level in range(1, len(part.levels)):
            part.shard_path((level, 0, 0)).rename(smaller / str(level))
        (provenance_path(part.path) / HASHES).rename(smaller / HASHES)
        try:
            smaller.rename(self.files.part_path(place))
        except OSError:
            if not self.files.part_path(place).exists():  # or another worker made the same before us
                raise
        self._rename(part.shard_path((0, 0, 0)), (0, *place))

    def _rename(self, file: Path, key: Key) -> None:
        target = self.store.shard_path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)

    # The levels above.

    def _level(self, level: int) -> Stage:
        keys = {"shard-{}-{}-{}".format(*key): key for key in self.files.shards(level)}
        tasks = [Task(name, self.store.shard_path(key).exists) for name, key in keys.items()]

        @contextmanager
        def opened() -> Iterator[Run]:
            yield lambda name: self._assemble(keys[name])

        return Stage(
            f"pyramid, level {level} of {len(self.store.levels) - 1}", tasks, opened,
            lambda name: self.files.under(keys[name]), lambda name: (self.store.shard_path(keys[name]),),
        )  # fmt: skip

    def _assemble(self, key: Key) -> None:
        level, (rows, columns) = key[0], self.store.shards[key[0]]
        down, across = self.store.extent(key)

        def fetch(chunk: int) -> bytes | None:
            row, column = down.start + chunk // columns, across.start + chunk % columns
            if row >= down.stop or column >= across.stop:
                return None
            if level <= self.parts.depth:
                return self._from_part(level, row, column)
            return self.store.encode(level, row, column, self._from_below(level, row, column))

        with self.board.room() as room, explained(self.store.path):
            write_shard(room / "shard", rows * columns, fetch)
            self._rename(room / "shard", key)

    def _from_part(self, level: int, row: int, column: int) -> bytes:
        place, (at_row, at_column) = self.parts.place(level, row, column)
        part = self.parts.part(place)[level]
        file = self.files.part_path(place) / str(level)
        data = fetch_from_shard(file, part.rows * part.columns, at_row * part.columns + at_column)
        if data is None:
            raise StoreError(f"{file} lacks a tile of a shard that is done; wanted all of them; start the run anew")
        return data

    def _from_below(self, level: int, row: int, column: int) -> Pixels:
        """A tile from its up to four children."""
        below = self.store.levels[level - 1]
        rows = range(2 * row, min(2 * row + 2, below.rows))
        columns = range(2 * column, min(2 * column + 2, below.columns))
        pixels = [np.concatenate([self.store.read(level - 1, r, c) for c in columns], axis=1) for r in rows]
        return box(np.concatenate(pixels))


def _blocks(grid: Grid, rows: slice, columns: slice) -> Iterator[Region]:
    """The grid's blocks that hold any of these store tiles, in Morton order."""
    side, (tall, wide) = grid.store_tile_px, grid.block
    pixels = Region(rows.start * side, columns.start * side, rows.stop * side, columns.stop * side).clipped(grid.pixels)
    tall_px, wide_px = tall * grid.scale, wide * grid.scale
    top, left = pixels.y0 // tall_px, pixels.x0 // wide_px
    for y, x in morton_order(-(-pixels.y1 // tall_px) - top, -(-pixels.x1 // wide_px) - left):
        y, x = (y + top) * tall, (x + left) * wide
        yield Region(y, x, y + tall, x + wide).clipped(grid.picture)
