"""One interface for every form of a stored picture; abstract here, final in tiff.py, omezarr.py, dzi.py and png.py."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from widefield.errors import StoreError
from widefield.store.box import Pixels
from widefield.store.faults import explained, reason, replace_file
from widefield.store.hashes import HASHES, MANIFEST, TileHashes, provenance_path
from widefield.store.manifest import seal
from widefield.store.sidecar import Sidecar
from widefield.store.spec import Level, StoreSpec

Marks = npt.NDArray[np.bool_]
_UINT8 = np.dtype(np.uint8)


class Store(ABC):
    """A pyramid of tiles on disk. Tiles come in any order, from any thread; (level, row, column) names one.

    `sidecar` is None in a store opened for reading. `bytes_written` counts what this process encoded. A tile that
    `done` shows survives `kill -9`; it may not survive a power cut, since nothing is synced before `finish`.
    """

    codecs: ClassVar[tuple[str, ...]]  # what the form takes, its default first
    lossless: ClassVar[str]

    @abstractmethod
    def __init__(self, path: Path, spec: StoreSpec, sidecar: Sidecar | None) -> None:
        """Open what `create` put at `path`: to write with a sidecar, to read without."""

    def _open(self, path: Path, spec: StoreSpec, levels: tuple[Level, ...], sidecar: Sidecar | None) -> None:
        """Every form's `__init__` ends with this, when `_scan` works."""
        self.path = path
        self.spec = spec
        self.levels = levels
        self.sidecar = sidecar
        self.bytes_written = 0
        self._done: list[Marks] = []
        self._counting = threading.Lock()
        self._finished = False
        self._feeders: list[Callable[[], None]] = []
        self._hashes: TileHashes | None = None
        with explained(path):
            self._done = [self._scan(level) for level in range(len(levels))]

    # What a form must do before it is open.

    @classmethod
    @abstractmethod
    def found(cls, path: Path) -> StoreSpec | None:
        """The spec of what is at `path`; None where nothing is. StoreError for a foreign or damaged one."""

    @classmethod
    @abstractmethod
    def create(cls, path: Path, spec: StoreSpec, sidecar: Sidecar) -> None:
        """Put an empty picture at `path`, at once. Memory does not depend on its size."""

    @classmethod
    @abstractmethod
    def delete(cls, path: Path, sidecar: Sidecar) -> None:
        """Remove the picture at `path`, which is ours, at once; a folder goes into `sidecar`, to be emptied there."""

    @classmethod  # noqa: B027
    def check(cls, spec: StoreSpec, path: Path) -> None:
        """StoreError for a spec that the form cannot hold."""

    # What a form must do. `_scan` runs once on opening to write, and at every `done` on opening to read.

    @abstractmethod
    def encode(self, level: int, row: int, column: int, pixels: Pixels) -> bytes:
        """One tile as it will lie in the store. Releases the interpreter's lock; touches no file."""

    @abstractmethod
    def _commit(self, level: int, row: int, column: int, data: bytes) -> None:
        """Put `data` where readers find it, all of it or none."""

    @abstractmethod
    def _fetch(self, level: int, row: int, column: int) -> bytes | None:
        """What `_commit` put there; None when there is nothing yet."""

    @abstractmethod
    def _decode(self, level: int, row: int, column: int, data: bytes) -> Pixels:
        """The pixels of `encode`, clipped to the picture."""

    @abstractmethod
    def _scan(self, level: int) -> Marks:
        """Which tiles of `level` the disk has."""

    def _seal(self) -> None:  # noqa: B027
        """Every tile is there: make what only a finished picture has."""

    def _let_go(self) -> None:  # noqa: B027
        """Close every file."""

    # What callers use.

    def write(self, level: int, row: int, column: int, pixels: Pixels) -> None:
        """Encode one tile and commit it. `pixels`: uint8 (h, w, 3), clipped at the picture's edge or full."""
        self.commit(level, row, column, self.encode(level, row, column, pixels))

    def commit(self, level: int, row: int, column: int, data: bytes) -> None:
        """Commit what `encode` gave: when this returns, `done` shows the tile and `kill -9` cannot lose it."""
        if self.sidecar is None:
            raise StoreError(f"{self.path} was opened for reading; wanted to write; use create_or_resume")
        if self._finished:
            raise StoreError(f"{self.path} is finished; wanted one to write to; it has all of its tiles")
        try:
            self._known().put(level, row, column, data)  # first: a tile that is there has its hash
            self._commit(level, row, column, data)
        except OSError as error:
            raise StoreError(reason(error, self.path)) from error
        self._done[level][row, column] = True
        with self._counting:
            self.bytes_written += len(data)

    def read(self, level: int, row: int, column: int) -> Pixels:
        """One tile, decoded: uint8 (h, w, 3), clipped to the picture. StoreError when not made yet, or damaged."""
        return self.decoded(level, row, column, self.read_encoded(level, row, column))

    def decoded(self, level: int, row: int, column: int, data: bytes) -> Pixels:
        """The same of what `read_encoded` gave."""
        try:
            return self._decode(level, row, column, data)
        except (RuntimeError, ValueError) as error:  # a codec's own errors are RuntimeErrors
            raise StoreError(
                f"tile {row},{column} of level {level} in {self.path} is damaged ({error}); wanted a {self.spec.codec} "
                "tile; write the picture again"
            ) from error

    def read_encoded(self, level: int, row: int, column: int) -> bytes:
        """One tile as it lies in the store, for a server to pass on. StoreError when it is not made yet.

        A form may store full tiles (.tif, .zarr): past the picture's edge they hold padding.
        """
        self.tile_shape(level, row, column)
        with explained(self.path):
            data = self._fetch(level, row, column)
        if data is None:
            raise StoreError(
                f"{self.path} has no tile {row},{column} at level {level} yet; wanted one; go on with the run"
            )
        return data

    def done(self, level: int) -> Marks:
        """Which tiles are committed: bool (rows, columns), the caller's own copy."""
        if self.sidecar is not None:
            return self._done[level].copy()
        with explained(self.path):
            return self._scan(level)

    def complete(self) -> bool:
        """Whether every tile of every level is committed."""
        return all(bool(self.done(level).all()) for level in range(len(self.levels)))

    def finish(self) -> None:
        """Seal a complete picture and remove its sidecar; nothing more can be written. Again does nothing."""
        if self.sidecar is None or self._finished:
            return
        if not self.complete():
            raise StoreError(f"{self.path} still lacks tiles; wanted all of them; go on with the run")
        with explained(self.path):
            self._seal()
            self._tell(self.sidecar)
            self._finished = True
            self.sidecar.remove()

    def _known(self) -> TileHashes:
        """What every tile was when it was written; made when the first one is."""
        if self._hashes is None:
            with self._counting:
                if self._hashes is None:  # still: threads come here together
                    file = provenance_path(self.path) / HASHES
                    self._hashes = TileHashes(file, self.spec, self.levels, writable=True)
        return self._hashes

    def _tell(self, sidecar: Sidecar) -> None:
        """Write the manifest."""
        manifest = seal(self._known(), self.spec, self.levels, self.read_encoded)
        replace_file(provenance_path(self.path) / MANIFEST, manifest, sidecar.staging())

    def close(self) -> None:
        """Finish if every tile is there, leave a state to resume from if not, and close the files.

        Whoever feeds the store from threads of its own is told to stop first.
        """
        while self._feeders:
            self._feeders.pop()()
        if self.sidecar is not None and not self._finished and self.complete():
            self.finish()
        with explained(self.path):
            self._let_go()
            if self._hashes is not None:
                self._hashes.close()
        if self.sidecar is not None:
            self.sidecar.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def before_close(self, stop: Callable[[], None]) -> None:
        """Have `stop` called before the files are closed: by threads that write, which must not outlive them."""
        self._feeders.append(stop)

    def tile_shape(self, level: int, row: int, column: int) -> tuple[int, int]:
        """(height, width) of a tile, clipped to the picture. IndexError outside the grid."""
        if not 0 <= level < len(self.levels):
            raise IndexError(f"{self.path} has levels 0 to {len(self.levels) - 1}, got {level}")
        it = self.levels[level]
        if not (0 <= row < it.rows and 0 <= column < it.columns):
            raise IndexError(f"level {level} of {self.path} has {it.rows} x {it.columns} tiles, got {row},{column}")
        tile = self.spec.tile_px
        return min(tile, it.height_px - row * tile), min(tile, it.width_px - column * tile)

    def clipped(self, level: int, row: int, column: int, pixels: Pixels) -> Pixels:
        """The part of `pixels` that is in the picture. ValueError when they are of another shape or type."""
        height, width = self.tile_shape(level, row, column)
        tile = self.spec.tile_px
        if pixels.dtype != _UINT8 or pixels.shape not in ((height, width, 3), (tile, tile, 3)):
            raise ValueError(
                f"tile {row},{column} of level {level} is uint8 ({height}, {width}, 3) or ({tile}, {tile}, 3), "
                f"got {pixels.dtype} {pixels.shape}"
            )
        return pixels[:height, :width]
