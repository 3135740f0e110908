"""OUT.provenance/: what every tile was when it was written, so that anybody can say later which are as they were.

    tiles.sha256     a head, then 32 bytes a tile: the SHA-256 of its bytes as they lie in the store; then of each row
    manifest.json    the picture's record and a hash a level; small, so it is what gets signed (manifest.py)
    manifest.json.c2pa, preview.jpg      where somebody signs (widefield.provenance)

A tree of four floors: picture, level, row, tile. A tile's hash has its place from the start, so tiles are hashed in any
order, by any number of threads and runs, and the file is the same; it is set before its tile is committed, so a tile
that is there has its hash. Any region is checked with the hashes of its rows alone. Hashes of tiles that an older
version committed, or whose file was lost, are made from the store when the picture is finished.

    row    = SHA-256 of its tiles' hashes, left to right        level = SHA-256 of its rows' hashes, top to bottom
    picture = SHA-256 of "widefield", the record in JSON, and its levels' hashes
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from widefield.errors import StoreError
from widefield.store.faults import pwrite_all
from widefield.store.spec import Level, StoreSpec, foreign

SIZE = 32
_MAGIC = b"widefield tiles\0"
_HEAD = 64
HASHES, MANIFEST, SIGNATURE, PREVIEW = PROVENANCE = (
    "tiles.sha256", "manifest.json", "manifest.json.c2pa", "preview.jpg",
)  # fmt: skip


def provenance_path(path: Path) -> Path:
    """The folder beside the picture `path`."""
    return path.with_name(path.name + ".provenance")


def forget_provenance(path: Path) -> None:
    """Remove what is known of a picture that was there before, if we wrote it; what else lies in the folder stays."""
    folder = provenance_path(path)
    try:
        with (folder / HASHES).open("rb") as file:
            ours = file.read(len(_MAGIC)) == _MAGIC
    except (FileNotFoundError, NotADirectoryError):
        return
    if ours:
        for name in PROVENANCE:
            (folder / name).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def digest(data: bytes | memoryview) -> bytes:
    """SHA-256, the only hash here."""
    return hashlib.sha256(data).digest()


class TileHashes:
    """tiles.sha256 of one picture. To write, it is made, or what another picture left there is replaced; StoreError for
    a file that is not ours. To read, FileNotFoundError where there is none, StoreError where it is another picture's.
    """

    def __init__(self, path: Path, spec: StoreSpec, levels: Sequence[Level], *, writable: bool) -> None:
        self.path, self.levels = path, tuple(levels)
        self._tiles_at, self._rows_at = _layout(levels)
        head = (_MAGIC + digest(spec.to_json().encode())).ljust(_HEAD, b"\0")
        if writable:
            path.parent.mkdir(exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY, 0o644)
        found = os.pread(self._fd, _HEAD, 0)
        try:
            if found[: len(_MAGIC)] not in (_MAGIC, b""):
                raise foreign(path)
            if found != head or os.fstat(self._fd).st_size != self.nbytes:
                if not writable:
                    raise StoreError(f"{path} is of another picture; wanted the hashes of this one; write it again")
                os.ftruncate(self._fd, 0)
                os.ftruncate(self._fd, self.nbytes)
                pwrite_all(self._fd, head, 0)
        except BaseException:
            self.close()
            raise

    @property
    def nbytes(self) -> int:
        """Of the whole file."""
        return self._rows_at[-1] + SIZE * self.levels[-1].rows

    def put(self, level: int, row: int, column: int, tile: bytes) -> None:
        """Set a tile's hash."""
        at = self._tiles_at[level] + SIZE * (row * self.levels[level].columns + column)
        pwrite_all(self._fd, digest(tile), at)

    def put_row(self, level: int, row: int, column: int, hashes: bytes) -> None:
        """Set the hashes of tiles side by side, from `column` on, as another process found them."""
        pwrite_all(self._fd, hashes, self._tiles_at[level] + SIZE * (row * self.levels[level].columns + column))

    def row(self, level: int, row: int) -> bytes:
        """Of every tile in a row, 32 bytes each; zeros where there is none."""
        columns = self.levels[level].columns
        return os.pread(self._fd, SIZE * columns, self._tiles_at[level] + SIZE * row * columns)

    def seal_row(self, level: int, row: int) -> bytes:
        """Set the hash of a row from its tiles'; gives it."""
        found = digest(self.row(level, row))
        pwrite_all(self._fd, found, self._rows_at[level] + SIZE * row)
        return found

    def rows(self, level: int) -> bytes:
        """Of every row of a level, 32 bytes each."""
        return os.pread(self._fd, SIZE * self.levels[level].rows, self._rows_at[level])

    def close(self) -> None:
        """Close the file; again does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _layout(levels: Sequence[Level]) -> tuple[list[int], list[int]]:
    """Where each level's tiles, and each level's rows, begin."""
    position, tiles, rows = _HEAD, [], []
    for level in levels:
        tiles.append(position)
        position += SIZE * level.rows * level.columns
    for level in levels:
        rows.append(position)
        position += SIZE * level.rows
    return tiles, rows
