"""Arrays that live in memory up to a limit, and past it in unnamed files.

Files are read and written with pread and pwrite, never mapped: mapped pages count as resident memory, and the budget
is a promise about that.
"""

from __future__ import annotations

import math
import os
import tempfile
from bisect import insort
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from widefield.errors import StoreError

Array = NDArray[np.float32]
LARGEST_WASTE = 1.5  # of a room that is used again, over what is asked for


class HeldArray:
    """(tiles, ...) float32, in memory or in a file; read and written by runs of tiles, from any thread."""

    def __init__(self, shape: tuple[int, ...], *, room: Array | None = None, folder: Path | None = None) -> None:
        """In `room`, flat and at least as large, or in a file in `folder`."""
        self.shape = shape
        self.tile_nbytes = 4 * int(np.prod(shape[1:], dtype=np.int64))
        self.room = room
        self._array: Array | None = None if room is None else room[: math.prod(shape)].reshape(shape)
        self._file: int | None = None
        self._folder = folder
        if folder is not None:
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
        self._array = self.room = None
        if self._file is not None:
            os.close(self._file)
            self._file = None


class Room(Protocol):
    """A piece of memory, or what stands for one in a plan."""

    @property
    def nbytes(self) -> int: ...


Some = TypeVar("Some", bound=Room)


class Rooms(Generic[Some]):
    """Pieces of memory that together, in use and free, have at most `limit_nbytes`. `make` gives one of a size.

    What is released is kept for arrays of about its size: memory fresh from the kernel costs more to touch first than a
    convolution takes to fill it. A plan that makes rooms of nothing learns what a run will use.
    """

    def __init__(self, limit_nbytes: int, make: Callable[[int], Some]) -> None:
        self.limit_nbytes = limit_nbytes
        self.used_nbytes = self.peak_nbytes = 0
        self._make = make
        self._free: list[Some] = []  # the smallest first

    def take(self, nbytes: int) -> Some | None:
        """A free one that is not much too large, or a new one in place of free ones; None where neither is there."""
        for index, room in enumerate(self._free):
            if nbytes <= room.nbytes <= LARGEST_WASTE * nbytes:
                return self._free.pop(index)
        while self._free and self.used_nbytes + nbytes > self.limit_nbytes:
            self.used_nbytes -= self._free.pop().nbytes
        if self.used_nbytes + nbytes > self.limit_nbytes:
            return None
        self.used_nbytes += nbytes
        self.peak_nbytes = max(self.peak_nbytes, self.used_nbytes)
        return self._make(nbytes)

    def release(self, room: Some) -> None:
        """Take it back, to give it out again."""
        insort(self._free, room, key=lambda room: room.nbytes)


class Scratch:
    """Gives out held arrays: in memory while `limit_nbytes` lasts, then in files in `folder`."""

    def __init__(self, limit_nbytes: int, folder: Path) -> None:
        self.folder = folder
        self.rooms: Rooms[Array] = Rooms(limit_nbytes, lambda nbytes: np.empty(nbytes // 4, np.float32))
        self.spilled_nbytes = 0

    def hold(self, shape: tuple[int, ...]) -> HeldArray:
        """Room for a float32 array of that shape; what it holds is not defined."""
        nbytes = 4 * math.prod(shape)
        room = self.rooms.take(nbytes)
        if room is not None:
            return HeldArray(shape, room=room)
        self.spilled_nbytes += nbytes
        return HeldArray(shape, folder=self.folder)

    def release(self, held: HeldArray) -> None:
        """Take the room back."""
        if held.room is not None:
            self.rooms.release(held.room)
        held.close()
