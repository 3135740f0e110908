"""Latents, written a tile at a time: to a .npy file, a .zarr array or memory. Whole or not at all.

Shapes   (channels, height, width) float32; regions are in cells and lie inside.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from widefield.errors import MissingBackend, StoreError
from widefield.geometry import Region
from widefield.store.faults import pwrite_all, reason

Array = NDArray[np.float32]
OURS = "widefield_latents"  # the attribute that tells our .zarr arrays from others'


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into a StoreError about `path`. Latents are not resumed, but made again."""
    try:
        yield
    except OSError as error:
        raise StoreError(reason(error, path).removesuffix(": it resumes where it stopped")) from error


class LatentSink(ABC):
    """Where latents go. Safe to write to from many threads, if no two write the same tile."""

    path: Path | None = None

    @abstractmethod
    def write(self, region: Region, values: Array) -> None:
        """Put `values`, (channels, h, w), at `region`."""


class LatentsInMemory(LatentSink):
    """An array."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.array = np.empty(shape, np.float32)

    def write(self, region: Region, values: Array) -> None:
        self.array[:, *region.slices] = values


@contextmanager
def create_latents(
    path: Path, shape: tuple[int, int, int], tile: tuple[int, int], about: Mapping[str, str], *, overwrite: bool
) -> Iterator[LatentSink]:
    """A sink for `path`, .npy or .zarr, that is there when the block ends well, and leaves nothing when it does not.

    `tile` is what is written at once, rows and columns, and `about` is recorded in a .zarr. StoreError for another
    suffix, for what exists unless `overwrite`, for what is not ours even then, and for a disk that is full: before a
    .npy is begun.
    """
    path = Path(path)
    _check(path, overwrite=overwrite)
    with explained(path):
        work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with explained(path):
            sink = _Npy(path, work, shape) if path.suffix.lower() == ".npy" else _Zarr(path, work, shape, tile, about)
        try:
            yield sink
        finally:
            sink.close()
        with explained(path):
            if path.is_dir():
                path.replace(work / "before")
            sink.made.replace(path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check(path: Path, *, overwrite: bool) -> None:
    if path.suffix.lower() not in (".npy", ".zarr"):
        raise StoreError(
            f"{path}: no latents are called {path.suffix or 'nothing'!r}; there are .npy and .zarr; end the path in one"
        )
    if not path.parent.is_dir():
        raise StoreError(f"{path.parent} is not a folder; wanted one to put {path.name} in; create it first")
    if path.exists() and not overwrite:
        raise StoreError(f"{path} exists; wanted a new path; name another one or pass --overwrite")
    if path.exists() and not (_is_ours(path) if path.suffix.lower() == ".zarr" else path.is_file()):
        raise StoreError(f"{path} exists and holds no latents of widefield; it is left as it is; name another path")


def _is_ours(path: Path) -> bool:
    try:
        return OURS in json.loads((path / "zarr.json").read_bytes())["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


class _Npy(LatentSink):
    """Tiles go to their places with pwrite; the disk's space is taken at the start."""

    def __init__(self, path: Path, work: Path, shape: tuple[int, int, int]) -> None:
        self.path, self.made, self.shape = path, work / path.name, shape
        head = io.BytesIO()
        npy.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
        self._data_at = head.tell()
        self._fd = os.open(self.made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        os.posix_fallocate(self._fd, 0, self._data_at + 4 * int(np.prod(shape, dtype=np.int64)))
        pwrite_all(self._fd, head.getvalue(), 0)

    def write(self, region: Region, values: Array) -> None:
        assert self.path is not None
        _, height, width = self.shape
        little = values.astype("<f4", copy=False)
        with explained(self.path):
            for channel, plane in enumerate(little):
                for y, row in enumerate(plane, region.y0):
                    at = self._data_at + 4 * ((channel * height + y) * width + region.x0)
                    pwrite_all(self._fd, row.tobytes(), at)

    def close(self) -> None:
        os.close(self._fd)


class _Zarr(LatentSink):
    """A Zarr v3 array whose chunks are the tiles, so no two threads meet in one."""

    def __init__(
        self, path: Path, work: Path, shape: tuple[int, int, int], tile: tuple[int, int], about: Mapping[str, str]
    ) -> None:
        self.path, self.made = path, work / path.name
        try:
            import zarr
        except ModuleNotFoundError as cause:
            raise MissingBackend("writing .zarr needs zarr: pip install zarr") from cause
        self._array: Any = zarr.create_array(
            self.made, shape=shape, chunks=(shape[0], *tile), dtype="float32", fill_value=float("nan"),
            dimension_names=("channel", "row", "column"), attributes={OURS: 1, **about},
        )  # fmt: skip

    def write(self, region: Region, values: Array) -> None:
        assert self.path is not None
        with explained(self.path):
            self._array[:, *region.slices] = values

    def close(self) -> None:
        """Every chunk is on its own already."""
