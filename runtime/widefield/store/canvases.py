"""Ancestors that still wait for children. They live in one file of the sidecar, not in memory.

JPEG loses something each time, so an ancestor must never be rebuilt from its stored children: the exact quarter that
each child gives is put here *before* the child is committed. So after a kill

    child committed        its quarter is here, or its parent is committed and needs it no more
    child not committed    its quarter may be here; it is made again, and is the same
    parent not committed, all children are       it is made from here

The file is a row of slots, used again and again, so its pages stay in the kernel's cache and seldom reach the disk:

    slot      a header (magic, level, row, column, crc32 of these), then at 4,096 the ancestor: rows of tile_px pixels

Slots are mapped: a quarter is written where the ancestor is encoded from, and what a killed process wrote stays. Their
room on the disk is taken when they are made, so a full disk is an error there and not a signal later. At most MAPPED
slots are in memory, whatever the order in which the tiles come; the file grows with it: O(levels) in Morton order.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from widefield.store.box import Pixels

Key = tuple[int, int, int]  # level, row, column
MAPPED = 16
_HEADER = struct.Struct("<4sIIII")
_MAGIC = b"wfc2"
_PAGE = max(4096, mmap.ALLOCATIONGRANULARITY)


class Canvases:
    """The file. Every method may be called from any thread."""

    def __init__(self, path: Path, tile_px: int) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._tile, self._half = tile_px, tile_px // 2
        self._stride = _PAGE + -(-(3 * tile_px**2) // _PAGE) * _PAGE
        self._lock = threading.Lock()
        self._slots: dict[Key, int] = {}
        self._arrived: dict[Key, set[int]] = {}
        self._free: list[int] = []
        self._mapped: OrderedDict[int, tuple[Pixels, Pixels]] = OrderedDict()
        self._end = os.fstat(self._fd).st_size // self._stride
        for slot in range(self._end):
            key = self._holder(slot)
            if key is None or key in self._slots:
                self._free.append(slot)
            else:
                self._slots[key] = slot
                self._arrived[key] = set()

    def _holder(self, slot: int) -> Key | None:
        header = os.pread(self._fd, _HEADER.size, slot * self._stride)
        magic, level, row, column, crc = _HEADER.unpack(header)
        return (level, row, column) if magic == _MAGIC and crc == zlib.crc32(header[:-4]) else None

    def __iter__(self) -> Iterator[Key]:
        """The ancestors that have a slot."""
        return iter(tuple(self._slots))

    def waits(self, key: Key, quarters: int) -> bool:
        """Whether `key` still lacks some of its `quarters`."""
        return len(self._arrived.get(key, ())) < quarters

    def place(self, key: Key, quarter: int, height: int, width: int) -> Pixels:
        """Where to write a quarter, (height, width, 3). Then say that it `arrived`."""
        with self._lock:
            canvas = self._canvas(key)
        y, x = quarter // 2 * self._half, quarter % 2 * self._half
        return canvas[y : y + height, x : x + width]

    def arrived(self, key: Key, quarter: int, quarters: int) -> bool:
        """A quarter is in its place. True for the call that brings the last of `quarters`, and for that one only.

        On opening, believe it where the child is committed.
        """
        with self._lock:
            arrived = self._arrived[key]
            new = quarter not in arrived
            arrived.add(quarter)
            return new and len(arrived) == quarters

    def take(self, key: Key, height: int, width: int) -> Pixels:
        """The whole ancestor, (height, width, 3), as it lies in its slot, which is its own until `free`."""
        with self._lock:
            return self._canvas(key)[:height, :width]

    def _canvas(self, key: Key) -> Pixels:
        """The slot of an ancestor, which gets one now where it has none: (tile_px, tile_px, 3)."""
        slot = self._slots.get(key)
        if slot is None:
            if not self._free:
                os.posix_fallocate(self._fd, self._end * self._stride, self._stride)
                self._free.append(self._end)
                self._end += 1
            slot = self._free.pop()
            header = _HEADER.pack(_MAGIC, *key, 0)[:-4]
            self._map(slot)[0][:] = np.frombuffer(header + struct.pack("<I", zlib.crc32(header)), np.uint8)
            self._slots[key], self._arrived[key] = slot, set()
        return self._map(slot)[1]

    def _map(self, slot: int) -> tuple[Pixels, Pixels]:
        """A slot's header and its canvas. A mapping that is forgotten here ends when nobody uses it any more."""
        found = self._mapped.get(slot)
        if found is not None:
            self._mapped.move_to_end(slot)
            return found
        whole = np.frombuffer(mmap.mmap(self._fd, self._stride, offset=slot * self._stride), np.uint8)
        found = whole[: _HEADER.size], whole[_PAGE : _PAGE + 3 * self._tile**2].reshape(self._tile, self._tile, 3)
        self._mapped[slot] = found
        if len(self._mapped) > MAPPED:
            self._mapped.popitem(last=False)
        return found

    def free(self, key: Key) -> None:
        """The ancestor is committed: its slot may hold another."""
        if key in self._slots:
            with self._lock:
                self._free.append(self._slots.pop(key))
                del self._arrived[key]

    def close(self) -> None:
        """Close the file; what it holds stays."""
        self._mapped.clear()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
