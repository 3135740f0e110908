"""A finished lossless picture into one file of another form: every tile of every level as it is, in bounded memory.

The levels are copied, not made again: a .zarr's are exact box means of what is below them, as a .tif's are before they
are encoded. So the .tif is the one that the run would have written itself. Resumable; a tile that is not as it was made
(by the picture's own hashes, where they are) is not copied.

Memory: a tile and its code for each thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from widefield.errors import StoreError
from widefield.geometry import morton_order
from widefield.store.base import Store
from widefield.store.faults import explained
from widefield.store.hashes import HASHES, MANIFEST, SIZE, TileHashes, digest, provenance_path
from widefield.store.opening import create_or_resume, default_codec, open_store

FORMS = (".tif", ".tiff")
Tile = tuple[int, int, int]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Copied:
    """`made` tiles of all levels were copied, `found` were there; `checked` says whether hashes were compared."""

    path: Path
    size_px: tuple[int, int]
    codec: str
    made: int
    found: int
    bytes_written: int
    checked: bool

    def as_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "size_px": list(self.size_px),
            "codec": self.codec,
            "tiles_made": self.made,
            "tiles_found": self.found,
            "bytes_written": self.bytes_written,
            "checked": self.checked,
        }


def copy_picture(
    source: Path | Store,
    out: Path,
    *,
    codec: str = "auto",
    quality: int = 90,
    overwrite: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
) -> Copied:
    """Copy the .zarr at `source` to the .tif at `out`. `progress(done, total)` counts tiles, from working threads.
    `source` may be opened already, and is left open.

    StoreError for a source that is not finished, not lossless or damaged, and for an output that cannot be written.
    """
    path = source.path if isinstance(source, Store) else source
    if out.suffix.lower() not in FORMS or out.resolve() == path.resolve():
        raise StoreError(f"{out}: wanted a .tif to put {path.name} into; end the path in .tif")
    with ExitStack() as opened:
        picture = source if isinstance(source, Store) else opened.enter_context(open_store(source))
        if picture.spec.codec == "jpeg":
            raise StoreError(f"{path} holds jpeg tiles; wanted lossless ones, which lose nothing more; take a .zarr")
        lacking = sum(int((~picture.done(level)).sum()) for level in range(len(picture.levels)))
        if lacking:
            raise StoreError(f"{path} lacks {lacking} tiles; wanted all of them; let its run end: start it again")
        if codec in ("auto", "lossless"):
            codec = default_codec(out, lossless=codec == "lossless")
        spec = replace(picture.spec, codec=codec, quality=quality)
        target = opened.enter_context(create_or_resume(out, spec, overwrite=overwrite))
        hashes = _hashes(opened, picture)
        copying = _Copying(picture, target, hashes, progress)
        copying.run(threads)
        made = copying.done - copying.found
        size = spec.width_px, spec.height_px
        return Copied(out, size, codec, made, copying.found, target.bytes_written, hashes is not None)


def _hashes(opened: ExitStack, picture: Store) -> TileHashes | None:
    """The picture's own, where it has been finished with them."""
    folder = provenance_path(picture.path)
    if not (folder / MANIFEST).is_file():
        return None
    with explained(picture.path):
        file = TileHashes(folder / HASHES, picture.spec, picture.levels, writable=False)
    opened.enter_context(closing(file))
    return file


class _Copying:
    def __init__(self, picture: Store, target: Store, hashes: TileHashes | None, progress: Progress | None) -> None:
        self.picture, self.target, self.hashes, self.progress = picture, target, hashes, progress
        self.total = sum(level.rows * level.columns for level in picture.levels)
        self.found = sum(int(target.done(level).sum()) for level in range(len(target.levels)))
        self.done = self.found
        self._tiles = self._missing()
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def _missing(self) -> Iterator[Tile]:
        for level, it in enumerate(self.picture.levels):
            done = self.target.done(level)
            for row, column in morton_order(it.rows, it.columns):
                if not done[row, column]:
                    yield level, row, column

    def run(self, threads: int) -> None:
        """Copy what is missing; the first error of any thread ends all."""
        with ThreadPoolExecutor(threads, "copy") as pool:
            try:
                for future in [pool.submit(self._work) for _ in range(threads)]:
                    future.result()
            finally:
                self._stopped.set()

    def _work(self) -> None:
        try:
            while not self._stopped.is_set() and (tile := self._next()) is not None:
                self._copy(tile)
        except BaseException:
            self._stopped.set()
            raise

    def _next(self) -> Tile | None:
        with self._lock:
            return next(self._tiles, None)

    def _copy(self, tile: Tile) -> None:
        data = self.picture.read_encoded(*tile)
        if self.hashes is not None:
            level, row, column = tile
            if digest(data) != self.hashes.row(level, row)[SIZE * column : SIZE * (column + 1)]:
                raise StoreError(
                    f"tile {row},{column} of level {level} in {self.picture.path} is not as it was made; wanted its "
                    "own bytes; restore it, or make the picture again"
                )
        self.target.write(*tile, self.picture.decoded(*tile, data))
        with self._lock:
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, self.total)
