"""One shard of a .zarr's level 0 and the smaller levels of just that part, made away from the picture by one process.

    picture, level 0      | shard | shard | ...     each made by somebody else
    part of a shard       its level 0: the shard's file, byte for byte; level k: the tiles of the picture's level k that
                          lie under it, in a shard of their own

Shards are a power of two of tiles wide, so the part's tiles at level k, down to one, are whole tiles of the picture's
level k, and its edges are no edges for the box means. `depth` says how far that goes: 4 for 8192 px in tiles of 512.
Beyond it a tile lies on several shards, and is made from the tiles of the level below it, which are lossless.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from widefield.store.base import Store
from widefield.store.omezarr import ZarrStore
from widefield.store.pyramid import PyramidWriter
from widefield.store.sidecar import Sidecar
from widefield.store.spec import Level

Place = tuple[int, int]  # row and column: of a shard of level 0, or of a tile


@dataclass(frozen=True, slots=True)
class Parts:
    """How a picture's tiles lie on the shards of its level 0. `shard`: rows and columns of tiles in one."""

    levels: tuple[Level, ...]
    shard: Place
    tile_px: int

    @staticmethod
    def of(store: ZarrStore) -> Parts:
        """A picture's."""
        return Parts(store.levels, store.shards[0], store.spec.tile_px)

    @property
    def count(self) -> Place:
        """Rows and columns of shards."""
        return -(-self.levels[0].rows // self.shard[0]), -(-self.levels[0].columns // self.shard[1])

    @property
    def depth(self) -> int:
        """The last level whose tiles lie on one shard each."""
        deepest = len(self.levels) - 1
        halvings = [(side & -side).bit_length() - 1 if many > 1 else deepest for side, many in _pairs(self)]
        return min(deepest, *halvings)

    def tiles(self, place: Place, level: int) -> tuple[slice, slice]:
        """Rows and columns of tiles of the picture's level that lie on a shard; level is at most `depth`."""
        it = self.levels[level]
        spans = []
        for at, (side, many), most in zip(place, _pairs(self), (it.rows, it.columns), strict=True):
            spans.append(slice(at * side >> level, most if at == many - 1 else (at + 1) * side >> level))
        return spans[0], spans[1]

    def place(self, level: int, row: int, column: int) -> tuple[Place, Place]:
        """The shard that a tile lies on, and the tile's row and column within its part."""
        shard = (row << level) // self.shard[0], (column << level) // self.shard[1]
        rows, columns = self.tiles(shard, level)
        return shard, (row - rows.start, column - columns.start)

    def part(self, place: Place) -> tuple[Level, ...]:
        """The levels of a shard's part."""
        top, left = (at * side * self.tile_px for at, side in zip(place, self.shard, strict=True))
        levels = []
        for level in range(self.depth + 1):
            rows, columns = self.tiles(place, level)
            whole = self.levels[level]
            right, bottom = columns.stop * self.tile_px, rows.stop * self.tile_px
            levels.append(
                Level(
                    min(right, whole.width_px) - (left >> level),
                    min(bottom, whole.height_px) - (top >> level),
                    rows.stop - rows.start,
                    columns.stop - columns.start,
                )
            )
        return tuple(levels)


def _pairs(parts: Parts) -> tuple[Place, Place]:
    """(tiles in a shard, shards) down and across."""
    return (parts.shard[0], parts.count[0]), (parts.shard[1], parts.count[1])


class ShardPart(ZarrStore):
    """The part, to write to: `path` is a folder of its own. Closed complete, it has the file of each level's shard."""

    def __init__(self, path: Path, whole: Store, parts: Parts, place: Place) -> None:
        levels = parts.part(place)
        spec = replace(whole.spec, width_px=levels[0].width_px, height_px=levels[0].height_px)
        shards = [parts.shard, *((level.rows, level.columns) for level in levels[1:])]
        path.mkdir()
        self._arrange(path, spec, levels, shards, Sidecar(path))

    def writer(self) -> PyramidWriter:
        """What makes its levels of the tiles of level 0."""
        return PyramidWriter(self)
