"""Encoded tiles on disk, up to a limit, the least recently used first to go. Safe from several threads and processes.

    FOLDER/widefield-tiles                         says that the folder is ours
    FOLDER/{picture}/{level}-{row}-{column}.jpeg   a tile, put there whole by a rename
    FOLDER/{n}.{process}.part                      one on its way

What a power cut has left of a tile is noticed when it is read, and made again.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
from collections import OrderedDict
from pathlib import Path

from widefield.errors import StoreError
from widefield.store.faults import explained, pwrite_all

MARK = "widefield-tiles"
_NAME = re.compile(r"[0-9a-f]{16}/[0-9]+-[0-9]+-[0-9]+\.jpeg")
_BLOCK = 4096  # what a file takes is whole blocks


class TileCache:
    """`limit_nbytes` 0 keeps nothing. StoreError for a folder with somebody else's files, or that cannot be written."""

    def __init__(self, folder: Path, limit_nbytes: int) -> None:
        self.folder, self.limit_nbytes = folder, limit_nbytes
        self.nbytes = self.refused = 0
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        if not limit_nbytes:
            return
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / MARK).exists():
                if any(folder.iterdir()):
                    raise StoreError(
                        f"{folder} holds files that are no tiles of widefield; wanted an empty folder or one of ours; "
                        "name another with --cache"
                    )
                (folder / MARK).touch()
            self._find()

    def _find(self) -> None:
        """What an earlier process left, the oldest first."""
        for stale in self.folder.glob("*.part"):
            stale.unlink(missing_ok=True)
        found = []
        for path in self.folder.glob("*/*.jpeg"):
            name = f"{path.parent.name}/{path.name}"
            if _NAME.fullmatch(name):
                stat = path.stat()
                found.append((stat.st_mtime_ns, name, stat.st_size))
        for _, name, size in sorted(found):
            self._note(name, size)
        self._evict()

    def get(self, picture: str, level: int, row: int, column: int) -> bytes | None:
        """A tile; None where there is none, or only a part of one."""
        name = _name(picture, level, row, column)
        with self._lock:
            if name not in self._sizes:
                return None
            self._sizes.move_to_end(name)
        found = _read(self.folder / name)
        if found is None:
            with self._lock:  # it may have been evicted and put there again meanwhile
                found = _read(self.folder / name)
                if found is None:
                    self._forget(name)
        return found

    def put(self, picture: str, level: int, row: int, column: int, data: bytes) -> None:
        """Keep a tile, where the disk lets us; a full one is counted in `refused` and does no harm."""
        if len(data) > self.limit_nbytes:
            return
        name = _name(picture, level, row, column)
        path, part = self.folder / name, self.folder / f"{next(self._numbers)}.{os.getpid()}.part"
        try:
            path.parent.mkdir(exist_ok=True)
            _write(part, data)
            with self._lock:
                part.replace(path)
                self._note(name, len(data))
                self._evict()
        except OSError:
            self.refused += 1
            part.unlink(missing_ok=True)

    def _note(self, name: str, size: int) -> None:
        self._forget(name)
        self._sizes[name] = taken = -(-size // _BLOCK) * _BLOCK
        self.nbytes += taken

    def _forget(self, name: str) -> None:
        self.nbytes -= self._sizes.pop(name, 0)

    def _evict(self) -> None:
        while self.nbytes > self.limit_nbytes:
            name, taken = self._sizes.popitem(last=False)
            self.nbytes -= taken
            (self.folder / name).unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._sizes)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        pwrite_all(file.fileno(), data, 0)


def _read(path: Path) -> bytes | None:
    """A tile, whole, which is then the one that was used last; else None."""
    try:
        data = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    return data if data[:2] == b"\xff\xd8" and data[-2:] == b"\xff\xd9" else None


def _name(picture: str, level: int, row: int, column: int) -> str:
    return f"{picture}/{level}-{row}-{column}.jpeg"
