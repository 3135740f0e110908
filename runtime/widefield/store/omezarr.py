"""`.zarr`: OME-Zarr 0.5 on sharded Zarr v3, lossless, axes c, y, x. Chunks of one tile, shards of up to 8192 x 8192 px.

    OUT.zarr/zarr.json                 the group: OME's multiscales, our record
    OUT.zarr/{level}/zarr.json         an array (3, height, width) of uint8
    OUT.zarr/{level}/c/0/{y}/{x}       a shard, written once and whole (shards.py)
    OUT.zarr.partial/{level}-{y}-{x}.journal    the chunks of a shard that is not whole yet

Every file is byte-identical however the tiles came. The metadata is plain JSON, so zarr-python is not needed to write.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np

from widefield.errors import StoreError
from widefield.store import codecs
from widefield.store.base import Marks, Store
from widefield.store.box import Pixels, scratch
from widefield.store.ngff import array_metadata, group_metadata
from widefield.store.shards import ABSENT, Journal, fetch_from_shard
from widefield.store.sidecar import Sidecar, sidecar_path
from widefield.store.spec import Level, StoreSpec, checked, foreign, level_sizes, spec_from_record

SHARD_PX = 8192
Key = tuple[int, int, int]  # level, row and column of a shard


class ZarrStore(Store):
    """Chunks go to a journal a shard; the last one of a shard turns it into the shard."""

    codecs = ("zstd",)
    lossless = "zstd"

    @classmethod
    def found(cls, path: Path) -> StoreSpec | None:
        if not path.exists():
            return None
        try:
            group = json.loads((path / "zarr.json").read_bytes())
            record = group["attributes"]["widefield"]
        except (OSError, ValueError, KeyError, TypeError):
            raise foreign(path) from None
        return checked(spec_from_record(record, path), path, cls.codecs, cls.lossless)

    @classmethod
    def create(cls, path: Path, spec: StoreSpec, sidecar: Sidecar) -> None:
        staging = sidecar.staging()
        cls.lay_out(staging, spec)
        staging.replace(path)

    @staticmethod
    def lay_out(folder: Path, spec: StoreSpec) -> None:
        """An empty picture's metadata in a new folder, which becomes the picture when it gets its name."""
        levels = _levels(spec)
        _put_json(folder / "zarr.json", group_metadata(spec, levels))
        for index, level in enumerate(levels):
            side = _shard_tiles(spec, level)
            _put_json(folder / str(index) / "zarr.json", array_metadata(spec, level, shard_tiles=side))

    @classmethod
    def delete(cls, path: Path, sidecar: Sidecar) -> None:
        path.replace(sidecar.staging())

    def __init__(self, path: Path, spec: StoreSpec, sidecar: Sidecar | None) -> None:
        levels = _levels(spec)
        self._arrange(path, spec, levels, [_shard_found(path, spec, level) for level in range(len(levels))], sidecar)

    def _arrange(
        self,
        path: Path,
        spec: StoreSpec,
        levels: tuple[Level, ...],
        shards: list[tuple[int, int]],
        sidecar: Sidecar | None,
    ) -> None:
        """Open it with these levels, in shards of so many rows and columns of tiles."""
        self._journals: dict[Key, Journal] = {}
        self._opening = threading.Lock()
        self.shards = shards
        self._spool = sidecar_path(path)
        self._open(path, spec, levels, sidecar)

    def encode(self, level: int, row: int, column: int, pixels: Pixels) -> bytes:
        inside = self.clipped(level, row, column, pixels)
        tile = self.spec.tile_px
        chunk = scratch("chunk", 3 * tile * tile).reshape(3, tile, tile)
        height, width, _ = inside.shape
        if (height, width) != (tile, tile):
            chunk[...] = 0
        chunk[:, :height, :width] = inside.transpose(2, 0, 1)
        return codecs.encode(self.spec.codec, chunk, self.spec.quality)

    def _decode(self, level: int, row: int, column: int, data: bytes) -> Pixels:
        tile = self.spec.tile_px
        height, width = self.tile_shape(level, row, column)
        chunk = codecs.decode(self.spec.codec, data, (3, tile, tile))
        return np.ascontiguousarray(chunk[:, :height, :width].transpose(1, 2, 0))

    def _place(self, level: int, row: int, column: int) -> tuple[Key, int]:
        rows, columns = self.shards[level]
        return (level, row // rows, column // columns), row % rows * columns + column % columns

    def shard_path(self, key: Key) -> Path:
        """The file of a shard, there or not."""
        return self.path / str(key[0]) / "c" / "0" / str(key[1]) / str(key[2])

    def _spooled(self, key: Key) -> Path:
        return self._spool / "{}-{}-{}.journal".format(*key)

    def extent(self, key: Key) -> tuple[slice, slice]:
        """The rows and columns of tiles that a shard has."""
        (rows, columns), level = self.shards[key[0]], self.levels[key[0]]
        top, left = key[1] * rows, key[2] * columns
        return slice(top, min(top + rows, level.rows)), slice(left, min(left + columns, level.columns))

    def _journal(self, key: Key) -> Journal:
        rows, columns = self.shards[key[0]]
        down, across = self.extent(key)
        wanted = (down.stop - down.start) * (across.stop - across.start)
        with self._opening:
            if key not in self._journals:
                writable = self.sidecar is not None
                self._journals[key] = Journal(self._spooled(key), rows * columns, wanted, writable=writable)
            return self._journals[key]

    def _commit(self, level: int, row: int, column: int, data: bytes) -> None:
        key, chunk = self._place(level, row, column)
        if self.shard_path(key).exists():
            return  # whole already, and what is whole is the same
        journal = self._journal(key)
        with journal.lock:
            if self._journals.get(key) is not journal:
                return  # another thread's last chunk made the shard whole meanwhile
            journal.append(chunk, data)
            if journal.full:
                self._assemble(key, journal)

    def _assemble(self, key: Key, journal: Journal) -> None:
        assert self.sidecar is not None
        shard = self.shard_path(key)
        shard.parent.mkdir(parents=True, exist_ok=True)
        journal.assemble(shard, self.sidecar.staging())
        with self._opening:
            del self._journals[key]
        journal.close(delete=True)

    def _fetch(self, level: int, row: int, column: int) -> bytes | None:
        key, chunk = self._place(level, row, column)
        rows, columns = self.shards[level]
        data = fetch_from_shard(self.shard_path(key), rows * columns, chunk)
        if data is not None:
            return data
        if not self._spooled(key).exists():  # nothing yet, or whole since we looked
            return fetch_from_shard(self.shard_path(key), rows * columns, chunk)
        journal = self._journal(key)
        with journal.lock:
            if self.sidecar is None:
                journal.replay()
            return journal.fetch(chunk)

    def _scan(self, level: int) -> Marks:
        marks = np.zeros((self.levels[level].rows, self.levels[level].columns), np.bool_)
        for shard in (self.path / str(level) / "c" / "0").glob("*/*"):
            marks[self.extent((level, int(shard.parent.name), int(shard.name)))] = True
        for path in self._spool.glob(f"{level}-*.journal"):
            key = (level, *(int(part) for part in path.stem.split("-")[1:]))
            self._take_in((key[0], key[1], key[2]), path, marks)
        return marks

    def _take_in(self, key: Key, path: Path, marks: Marks) -> None:
        if self.shard_path(key).exists():
            if self.sidecar is not None:
                path.unlink()  # killed between the shard's rename and this
            return
        try:
            journal = self._journal(key)
        except FileNotFoundError:  # its writer made a shard of it since we looked
            marks[self.extent(key)] = True
            return
        with journal.lock:
            journal.replay()
            present = (journal.index[:, 0] != np.uint64(ABSENT)).reshape(self.shards[key[0]])
            down, across = self.extent(key)
            marks[down, across] = present[: down.stop - down.start, : across.stop - across.start]
            if journal.full and self.sidecar is not None:
                self._assemble(key, journal)  # killed between the last chunk and the shard

    def _let_go(self) -> None:
        with self._opening:
            while self._journals:
                self._journals.popitem()[1].close()


def _levels(spec: StoreSpec) -> tuple[Level, ...]:
    return level_sizes(spec.width_px, spec.height_px, spec.tile_px)


def _shard_tiles(spec: StoreSpec, level: Level) -> tuple[int, int]:
    most = max(1, (spec.shard_px or SHARD_PX) // spec.tile_px)
    return min(most, level.rows), min(most, level.columns)


def _shard_found(path: Path, spec: StoreSpec, level: int) -> tuple[int, int]:
    """(rows, columns) of tiles in a shard, as the array itself says."""
    document = path / str(level) / "zarr.json"
    try:
        shape = json.loads(document.read_bytes())["chunk_grid"]["configuration"]["chunk_shape"]
        rows, columns = shape[1] // spec.tile_px, shape[2] // spec.tile_px
    except (ValueError, KeyError, TypeError, IndexError):
        raise StoreError(
            f"{document} is damaged; wanted a Zarr v3 array; move the picture away and start again"
        ) from None
    return rows, columns


def _put_json(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
