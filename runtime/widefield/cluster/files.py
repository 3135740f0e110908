"""Which files a task of a picture's shards and pyramid reads and writes: what is fetched from a bucket, and sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

from widefield.cluster.board import Board
from widefield.cluster.drawing import summary_files
from widefield.drawn import DrawnJob
from widefield.geometry import Region, morton_order
from widefield.job import DecodeJob
from widefield.options import RunOptions
from widefield.plan import Plan
from widefield.store.hashes import HASHES
from widefield.store.omezarr import ZarrStore
from widefield.store.shardpart import Parts, Place

SUMMARY = "summary.safetensors"
Key = tuple[int, int, int]  # level, row and column of a shard


class Files:
    """Of one picture."""

    def __init__(self, job: DecodeJob, store: ZarrStore, plan: Plan, options: RunOptions, board: Board) -> None:
        self.job, self.store, self.plan, self.options, self.board = job, store, plan, options, board
        self.parts = Parts.of(store)

    def part_path(self, place: Place) -> Path:
        """The folder of a shard's smaller levels and hashes: a file each."""
        return self.board.path / "part-{}-{}".format(*place)

    def part(self, place: Place) -> list[Path]:
        """The files in it."""
        names = [*map(str, range(1, len(self.parts.part(place)))), HASHES]
        return [self.part_path(place) / name for name in names]

    def drawn(self, place: Place | None) -> Iterable[Path]:
        """What was drawn for a shard, or for the summary: shards of the last level's latents."""
        job = self.job
        if not isinstance(job, DrawnJob):
            return
        drawing = job.drawing(self.options)
        if place is None:
            yield from summary_files(drawing)
            if self.options.summary == "auto":
                return
        store = drawing.store(job.generation.levels[-1])
        near = Region(0, 0, *store.shape[1:]) if place is None else self._near(place)
        yield from (store.file(shard) for shard in store.shards() if shard.clipped(near))

    def _near(self, place: Place) -> Region:
        """Latents that a shard may read: those of every tile that meets it, with margins."""
        rows, columns = self.parts.tiles(place, 0)
        side, scale = self.store.spec.tile_px, self.plan.scale
        more = max(self.plan.tile) + self.job.component.margin_cells
        return Region(
            rows.start * side // scale - more, columns.start * side // scale - more,
            -(-rows.stop * side // scale) + more, -(-columns.stop * side // scale) + more,
        )  # fmt: skip

    def under(self, key: Key) -> list[Path]:
        """What a shard of a level above 0 is put together from: parts, or above these the shards of the level below."""
        level, (down, across) = key[0], self.store.extent(key)
        if level <= self.parts.depth:
            tiles = product(range(down.start, down.stop), range(across.start, across.stop))
            places = sorted({self.parts.place(level, *tile)[0] for tile in tiles})
            return [self.part_path(place) / str(level) for place in places]
        below = self.store.levels[level - 1]
        stops = min(2 * down.stop, below.rows), min(2 * across.stop, below.columns)
        spans = zip((2 * down.start, 2 * across.start), stops, self.store.shards[level - 1], strict=True)
        shards = [range(start // side, (stop - 1) // side + 1) for start, stop, side in spans]
        return [self.store.shard_path((level - 1, y, x)) for y, x in product(*shards)]

    def for_seal(self) -> Iterator[Path]:
        """The summary, the hashes that shards' makers found, and the levels whose tiles have none yet."""
        yield self.board.path / SUMMARY
        yield from (self.part_path(place) / HASHES for place in morton_order(*self.parts.count))
        for level in range(self.parts.depth + 1, len(self.store.levels)):
            yield from map(self.store.shard_path, self.shards(level))

    def shards(self, level: int) -> list[Key]:
        """Those of a level, in Morton order."""
        (rows, columns), it = self.store.shards[level], self.store.levels[level]
        return [(level, y, x) for y, x in morton_order(-(-it.rows // rows), -(-it.columns // columns))]
