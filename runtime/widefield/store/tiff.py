"""`.tif`: one BigTIFF that opens in other people's readers while it is being written, and is its own journal.

A tile is appended, then its byte count is set, then its offset; until then the offset is that of one blank tile which
all missing tiles share. So resuming is reading the tables, and what a crash leaves behind the last offset is not seen.
A tile is never shorter than the blank one (zeros follow it): a reader may meet the new count with the old offset.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np

from widefield.errors import StoreError
from widefield.store import codecs
from widefield.store.base import Marks, Store
from widefield.store.box import Pixels
from widefield.store.faults import pwrite_all
from widefield.store.sidecar import Sidecar
from widefield.store.spec import Level, StoreSpec, checked, foreign, level_sizes, spec_from_json
from widefield.store.tiff_layout import PREDICTED, TiffLayout, description, plan_tiff

_CHUNK = 1 << 16  # table entries handled at a time
# Of tiles, after which the kernel is asked to write them, since all at the end would be waited for, and to drop those
# two such parts before, which are written by now: else a large file's pages are always new ones, which cost twice.
_FLUSH_NBYTES = 16 << 20


class TiffStore(Store):
    """A BigTIFF with every table at its head and tiles behind, in any order."""

    codecs = ("jpeg", "deflate", "zstd", "jpegxl")
    lossless = "deflate"  # the one that libvips' wheel reads too

    @classmethod
    def found(cls, path: Path) -> StoreSpec | None:
        if not path.exists():
            return None
        if not path.is_file():
            raise foreign(path)
        with path.open("rb", buffering=0) as file:
            fd = file.fileno()
            size = os.fstat(fd).st_size
            text = description(lambda nbytes, at: os.pread(fd, nbytes, at), size)
            if text is None:
                raise foreign(path)
            spec = checked(spec_from_json(text, path), path, cls.codecs, cls.lossless)
            layout = _layout(spec)
            head = os.pread(fd, len(layout.head), 0)
        if size <= layout.data_at or layout.still(head) != layout.still(layout.head):
            raise StoreError(
                f"the head of {path} is damaged: {size} bytes found, some of them not ours; wanted the directories "
                f"of a {spec.width_px}x{spec.height_px} picture; move the file away and start again"
            )
        return spec

    @classmethod
    def create(cls, path: Path, spec: StoreSpec, sidecar: Sidecar) -> None:
        layout = _layout(spec)
        blank = _blank(spec)
        staging = sidecar.staging()
        with staging.open("wb", buffering=0) as file:
            fd = file.fileno()
            pwrite_all(fd, layout.head, 0)
            for level, table in zip(_levels(spec), layout.tables, strict=True):
                tiles = level.rows * level.columns
                _fill(fd, table.offsets_at, tiles, np.uint64(layout.data_at))
                _fill(fd, table.counts_at, tiles, np.uint32(len(blank)))
            pwrite_all(fd, blank, layout.data_at)
        staging.replace(path)

    @classmethod
    def delete(cls, path: Path, sidecar: Sidecar) -> None:
        path.unlink()

    def __init__(self, path: Path, spec: StoreSpec, sidecar: Sidecar | None) -> None:
        self._layout = _layout(spec)
        self._fd = os.open(path, os.O_RDONLY if sidecar is None else os.O_RDWR)
        self._blank_nbytes = 0 if sidecar is None else len(_blank(spec))
        self._appending = threading.Lock()
        self._end = _even(os.fstat(self._fd).st_size)
        self._flushed = self._end // _FLUSH_NBYTES * _FLUSH_NBYTES
        self._open(path, spec, _levels(spec), sidecar)

    def encode(self, level: int, row: int, column: int, pixels: Pixels) -> bytes:
        tile = self.spec.tile_px
        inside = self.clipped(level, row, column, pixels)
        height, width, _ = inside.shape
        if (height, width) != (tile, tile):
            inside = np.pad(inside, ((0, tile - height), (0, tile - width), (0, 0)), mode="edge")
        return _encoded(self.spec, inside).ljust(self._blank_nbytes, b"\0")

    def _decode(self, level: int, row: int, column: int, data: bytes) -> Pixels:
        tile = self.spec.tile_px
        height, width = self.tile_shape(level, row, column)
        pixels = codecs.decode(self.spec.codec, data, (tile, tile, 3))
        if self.spec.codec in PREDICTED:
            pixels = codecs.accumulate(pixels)
        return np.ascontiguousarray(pixels[:height, :width])

    def _commit(self, level: int, row: int, column: int, data: bytes) -> None:
        with self._appending:
            start, self._end = self._end, self._end + _even(len(data))
            low, self._flushed = self._flushed, start - start % _FLUSH_NBYTES
            high = self._flushed
        if low < high:
            since = max(0, low - 2 * _FLUSH_NBYTES)
            os.posix_fadvise(self._fd, since, high - since, os.POSIX_FADV_DONTNEED)
        table, index = self._layout.tables[level], row * self.levels[level].columns + column
        pwrite_all(self._fd, data, start)
        pwrite_all(self._fd, len(data).to_bytes(4, "little"), table.counts_at + 4 * index)
        pwrite_all(self._fd, start.to_bytes(8, "little"), table.offsets_at + 8 * index)

    def _fetch(self, level: int, row: int, column: int) -> bytes | None:
        table, index = self._layout.tables[level], row * self.levels[level].columns + column
        offset = int.from_bytes(os.pread(self._fd, 8, table.offsets_at + 8 * index), "little")
        if offset == self._layout.data_at:
            return None
        count = int.from_bytes(os.pread(self._fd, 4, table.counts_at + 4 * index), "little")
        data = os.pread(self._fd, count, offset)
        if len(data) < count:
            raise self._truncated()
        return data

    def _scan(self, level: int) -> Marks:
        it, table = self.levels[level], self._layout.tables[level]
        size = os.fstat(self._fd).st_size
        marks = np.empty(it.rows * it.columns, np.bool_)
        for index in range(0, marks.size, _CHUNK):
            some = min(_CHUNK, marks.size - index)
            offsets = np.frombuffer(os.pread(self._fd, 8 * some, table.offsets_at + 8 * index), "<u8")
            counts = np.frombuffer(os.pread(self._fd, 4 * some, table.counts_at + 4 * index), "<u4")
            made = offsets != self._layout.data_at
            if (offsets < self._layout.data_at).any() or ((offsets + counts)[made] > size).any():
                raise self._truncated()
            marks[index : index + some] = made
        return marks.reshape(it.rows, it.columns)

    def _truncated(self) -> StoreError:
        return StoreError(f"{self.path} is damaged: a tile lies outside of it; wanted a whole file; start it again")

    def _seal(self) -> None:
        os.fsync(self._fd)

    def _let_go(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _levels(spec: StoreSpec) -> tuple[Level, ...]:
    return level_sizes(spec.width_px, spec.height_px, spec.tile_px)


def _layout(spec: StoreSpec) -> TiffLayout:
    return plan_tiff(spec, _levels(spec))


def _even(nbytes: int) -> int:
    return nbytes + nbytes % 2


def _encoded(spec: StoreSpec, tile: Pixels) -> bytes:
    return codecs.encode(spec.codec, codecs.difference(tile) if spec.codec in PREDICTED else tile, spec.quality)


def _blank(spec: StoreSpec) -> bytes:
    return _encoded(spec, np.zeros((spec.tile_px, spec.tile_px, 3), np.uint8))


def _fill(fd: int, position: int, entries: int, value: np.uint64 | np.uint32) -> None:
    values = np.full(min(_CHUNK, entries), value).data.cast("B")
    for index in range(0, entries, _CHUNK):
        some = min(_CHUNK, entries - index)
        pwrite_all(fd, values[: some * value.nbytes], position + index * value.nbytes)
