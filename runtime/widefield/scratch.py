"""Arrays that live in memory up to a limit, and past it in unnamed files.

Files are read and written with pread and pwrite, never mapped: mapped pages count as resident memory, and the budget
is a promise about that.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from widefield.errors import StoreError

Array = NDArray[np.float32]


class HeldArray:
    """(tiles, ...) float32, in memory or in a file; read and written by runs of tiles, from any thread."""

    def __init__(self, shape: tuple[int, ...], *, folder: Path | None) -> None:
        self.shape = shape
        self.tile_nbytes = 4 * int(np.prod(shape[1:], dtype=np.int64))
        self._array: Array | None = None
        self._file: int | None = None
        self._folder = folder
        if folder is None:
            self._array = np.empty(shape, np.float32)
        else:
            try:
                self._file, name = tempfile.mkstemp(prefix="widefield-scratch-", dir=folder)
            except OSError as cause:
                raise self._full(cause) from cause
            Path(name).unlink()

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.tile_nbytes

    @property
    def in_memory(self) -> bool:
        return self._array is not None

    def target(self, start: int, stop: int) -> Array:
        """Where to compute tiles start..stop: the array itself, or a buffer to `store`."""
        if self._array is not None:
            return self._array[start:stop]
        return np.empty((stop - start, *self.shape[1:]), np.float32)

    def store(self, start: int, tiles: Array) -> None:
        """Keep what was computed into `target`."""
        if self._file is None:
            return
        view = tiles.data.cast("B")
        at = start * self.tile_nbytes
        try:
            while view:
                written = os.pwrite(self._file, view, at)
                at, view = at + written, view[written:]
        except OSError as cause:
            raise self._full(cause) from cause

    def _full(self, cause: OSError) -> StoreError:
        return StoreError(
            f"a scratch file in {self._folder}: {cause.strerror}; wanted {self.nbytes >> 10} KiB there; make room, "
            "raise --memory, or name another folder with --scratch"
        )

    def load(self, start: int, stop: int) -> Array:
        """Tiles start..stop."""
        if self._array is not None:
            return self._array[start:stop]
        tiles = np.empty((stop - start, *self.shape[1:]), np.float32)
        self._read(tiles, start * self.tile_nbytes)
        return tiles

    def load_rows(self, tile: int, outer: int, rows: int, start: int, stop: int) -> Array:
        """(outer, stop - start, ...) of one tile that is (outer, rows, ...): some of its rows, no others read."""
        if self._array is not None:
            view: Array = self._array[tile].reshape(outer, rows, -1)[:, start:stop]
            return view
        if (start, stop) == (0, rows):
            return self.load(tile, tile + 1).reshape(outer, rows, -1)
        row_nbytes = self.tile_nbytes // (outer * rows)
        lines = np.empty((outer, stop - start, row_nbytes // 4), np.float32)
        for index in range(outer):
            self._read(lines[index], tile * self.tile_nbytes + (index * rows + start) * row_nbytes)
        return lines

    def _read(self, into: Array, at: int) -> None:
        assert self._file is not None
        view = into.data.cast("B")
        while view:
            got = os.preadv(self._file, [view], at)
            if got == 0:
                raise OSError(f"scratch file ends at byte {at}")
            at, view = at + got, view[got:]

    def close(self) -> None:
        """Give the memory or the file back; calling it twice is harmless."""
        self._array = None
        if self._file is not None:
            os.close(self._file)
            self._file = None


class Scratch:
    """Gives out held arrays: in memory while `limit_nbytes` lasts, then in files in `folder`."""

    def __init__(self, limit_nbytes: int, folder: Path) -> None:
        self.limit_nbytes = limit_nbytes
        self.folder = folder
        self.used_nbytes = 0
        self.spilled_nbytes = 0

    def hold(self, shape: tuple[int, ...]) -> HeldArray:
        """Room for a float32 array of that shape; what it holds is not defined."""
        nbytes = 4 * int(np.prod(shape, dtype=np.int64))
        if self.used_nbytes + nbytes <= self.limit_nbytes:
            self.used_nbytes += nbytes
            return HeldArray(shape, folder=None)
        self.spilled_nbytes += nbytes
        return HeldArray(shape, folder=self.folder)

    def release(self, held: HeldArray) -> None:
        """Take the room back."""
        if held.in_memory:
            self.used_nbytes -= held.nbytes
        held.close()
