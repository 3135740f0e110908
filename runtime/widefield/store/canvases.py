"""Ancestors that still wait for children. They live in one file of the sidecar, not in memory.

JPEG loses something each time, so an ancestor must never be rebuilt from its stored children: the exact quarter that
each child gives is written here *before* the child is committed. So after a kill

    child committed        its quarter is here, or its parent is committed and needs it no more
    child not committed    its quarter may be here; it is made again, and is the same
    parent not committed, all children are       it is made from here

The file is a row of slots, used again and again, so its pages stay in the kernel's cache and seldom reach the disk:

    slot      a header (magic, level, row, column, crc32 of these), then at 4,096 four quarters: top left, top right,
              bottom left, bottom right, each (h, w, 3) uint8, packed, in room for (tile_px / 2)**2 pixels

Memory does not depend on the order in which the tiles come; the file's size does: O(levels) slots in Morton order.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

from widefield.store.box import Pixels, scratch
from widefield.store.faults import pwrite_all

Key = tuple[int, int, int]  # level, row, column
_HEADER = struct.Struct("<4sIIII")
_MAGIC = b"wfcv"
_PAGE = 4096


class Canvases:
    """The file. Every method may be called from any thread."""

    def __init__(self, path: Path, tile_px: int) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._quarter = (tile_px // 2) ** 2 * 3
        self._stride = _PAGE + -(-4 * self._quarter // _PAGE) * _PAGE
        self._lock = threading.Lock()
        self._slots: dict[Key, int] = {}
        self._arrived: dict[Key, set[int]] = {}
        self._free: list[int] = []
        self._end = -(-os.fstat(self._fd).st_size // self._stride)
        for slot in range(self._end):
            key = self._holder(slot)
            if key is None or key in self._slots:
                self._free.append(slot)
            else:
                self._slots[key] = slot
                self._arrived[key] = set()

    def _holder(self, slot: int) -> Key | None:
        header = os.pread(self._fd, _HEADER.size, slot * self._stride)
        if len(header) < _HEADER.size:
            return None
        magic, level, row, column, crc = _HEADER.unpack(header)
        return (level, row, column) if magic == _MAGIC and crc == zlib.crc32(header[:-4]) else None

    def __iter__(self) -> Iterator[Key]:
        """The ancestors that have a slot."""
        return iter(tuple(self._slots))

    def arrived(self, key: Key, quarter: int) -> None:
        """Believe, on opening, that a quarter is here, because its child is committed."""
        self._arrived[key].add(quarter)

    def waits(self, key: Key, quarters: int) -> bool:
        """Whether `key` still lacks some of its `quarters`."""
        return len(self._arrived.get(key, ())) < quarters

    def put(self, key: Key, quarter: int, pixels: Pixels, quarters: int) -> bool:
        """Write a quarter. True for the call that brings the last of `quarters`, and for that one only."""
        slot = self._slot(key)
        pwrite_all(self._fd, pixels.data.cast("B"), slot * self._stride + _PAGE + quarter * self._quarter)
        with self._lock:
            arrived = self._arrived[key]
            new = quarter not in arrived
            arrived.add(quarter)
            return new and len(arrived) == quarters

    def _slot(self, key: Key) -> int:
        with self._lock:
            if key not in self._slots:
                slot = self._free.pop() if self._free else self._end
                header = _HEADER.pack(_MAGIC, *key, 0)[:-4]
                pwrite_all(self._fd, header + struct.pack("<I", zlib.crc32(header)), slot * self._stride)
                self._end = max(self._end, slot + 1)
                self._slots[key], self._arrived[key] = slot, set()
            return self._slots[key]

    def take(self, key: Key, height: int, width: int, tile_px: int) -> Pixels:
        """The whole ancestor, (height, width, 3), in this thread's scratch memory. Its slot stays until `free`."""
        raw = scratch("quarters", 4 * self._quarter)
        os.preadv(self._fd, [raw.data], self._slots[key] * self._stride + _PAGE)
        canvas = scratch("canvas", height * width * 3).reshape(height, width, 3)
        half = tile_px // 2
        for quarter in range(4):
            y, x = quarter // 2 * half, quarter % 2 * half
            part = canvas[y : y + half, x : x + half]
            start = quarter * self._quarter
            part[...] = raw[start : start + part.size].reshape(part.shape)
        return canvas

    def free(self, key: Key) -> None:
        """The ancestor is committed: its slot may hold another."""
        with self._lock:
            if key in self._slots:
                self._free.append(self._slots.pop(key))
                del self._arrived[key]

    def close(self) -> None:
        """Close the file; what it holds stays."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
