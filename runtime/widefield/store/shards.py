"""One Zarr shard: its chunks spooled as they come, the shard written whole when the last is there.

    journal   a record a chunk, appended: length uint32, index uint32, crc32c uint32 of (length, index, chunk), chunk
    shard     the chunks in row-major order, then (offset, length) uint64 of each, then crc32c uint32 of that index

Little-endian. A journal ends where its first record does not fit its checksum: what a crash tore is cut off and made
again. The shard does not depend on the order of arrival, so equal pictures have equal files. Chunks outside of the
array have offset and length 2**64 - 1. Source: Zarr v3, sharding-indexed codec 1.0, index_location "end".
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt

from widefield.errors import MissingBackend, StoreError
from widefield.store.faults import pwrite_all

_RECORD = struct.Struct("<III")
ABSENT = 2**64 - 1
Index = npt.NDArray[np.uint64]  # (chunks, 2): offset, length


@cache
def _crc32c_module() -> ModuleType:
    try:
        import google_crc32c
    except ModuleNotFoundError as cause:
        raise MissingBackend(".zarr needs google-crc32c, which zarr brings: pip install zarr") from cause
    return google_crc32c


def crc32c(data: bytes, start: int = 0) -> int:
    """Castagnoli's CRC of `data`, going on from `start`."""
    value: int = _crc32c_module().extend(start, data)
    return value


class Journal:
    """The chunks of one unfinished shard. `chunks`: how many fit the shard; `wanted`: how many lie in the array.

    Its owner calls it from one thread at a time; `lock` is there for that.
    """

    def __init__(self, path: Path, chunks: int, wanted: int, *, writable: bool) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.index: Index = np.full((chunks, 2), ABSENT, np.uint64)
        self._wanted = wanted
        self._end = 0
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY, 0o644)
        self.replay()
        if writable:
            os.ftruncate(self._fd, self._end)

    def replay(self) -> None:
        """Take in whole records past the last one known."""
        while True:
            header = os.pread(self._fd, _RECORD.size, self._end)
            if len(header) < _RECORD.size:
                return
            length, chunk, crc = _RECORD.unpack(header)
            data = os.pread(self._fd, length, self._end + _RECORD.size)
            if len(data) < length or chunk >= len(self.index) or crc != crc32c(data, crc32c(header[:8])):
                return
            self._take(chunk, length)

    def append(self, chunk: int, data: bytes) -> None:
        """Spool a chunk; when this returns, a kill cannot lose it. A later one of the same number replaces it."""
        header = _RECORD.pack(len(data), chunk, 0)
        header = _RECORD.pack(len(data), chunk, crc32c(data, crc32c(header[:8])))
        pwrite_all(self._fd, header + data, self._end)
        self._take(chunk, len(data))

    def _take(self, chunk: int, length: int) -> None:
        self.index[chunk] = self._end + _RECORD.size, length
        self._end += _RECORD.size + length

    @property
    def full(self) -> bool:
        return int((self.index[:, 0] != ABSENT).sum()) == self._wanted

    def fetch(self, chunk: int) -> bytes | None:
        """A chunk's bytes; None when it has not come."""
        offset, length = (int(value) for value in self.index[chunk])
        return None if offset == ABSENT else os.pread(self._fd, length, offset)

    def assemble(self, shard: Path, staging: Path) -> None:
        """Write the shard and put it in its place. Holds one chunk in memory."""
        write_shard(staging, len(self.index), self.fetch)
        staging.replace(shard)

    def close(self, *, delete: bool = False) -> None:
        """Let go of the file, or `delete` it once its chunks are in a shard."""
        os.close(self._fd)
        if delete:
            self.path.unlink(missing_ok=True)


def write_shard(path: Path, chunks: int, fetch: Callable[[int], bytes | None]) -> None:
    """Write a shard of what `fetch` gives for each chunk's number, one at a time; None for one outside of the array."""
    index: Index = np.full((chunks, 2), ABSENT, np.uint64)
    position = 0
    with path.open("wb", buffering=0) as file:
        fd = file.fileno()
        for chunk in range(chunks):
            data = fetch(chunk)
            if data is not None:
                pwrite_all(fd, data, position)
                index[chunk] = position, len(data)
                position += len(data)
        table = index.astype("<u8").tobytes()
        pwrite_all(fd, table + struct.pack("<I", crc32c(table)), position)


def fetch_from_shard(shard: Path, chunks: int, chunk: int) -> bytes | None:
    """One chunk of a finished shard; None when the shard or the chunk does not exist."""
    try:
        fd = os.open(shard, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        index_at = os.fstat(fd).st_size - 4 - 16 * chunks
        entry = os.pread(fd, 16, index_at + 16 * chunk) if index_at >= 0 else b""
        offset, length = struct.unpack("<QQ", entry) if len(entry) == 16 else (0, 1)
        if offset == ABSENT:
            return None
        if offset + length > index_at:
            raise StoreError(f"{shard} is damaged: its index points outside of it; wanted a whole shard; start again")
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)
