"""Latents, read a region at a time: from a .npy file, a .zarr array or memory.

Shapes   latents are (channels, height, width), or (1, channels, height, width) on disk; regions are in cells.
Numbers  float16, float32 or float64 on disk, of either byte order; float32 where they are read.
Memory   a read holds what it returns and at most `CHUNK_NBYTES` or one row, whichever is larger; a zarr read also the
         chunks it meets. Files are read with pread: pages of a memory map would count as ours.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widefield.errors import BadLatents, MissingBackend, first_line
from widefield.field import Field
from widefield.geometry import Region
from widefield.npy_file import CHUNK_NBYTES, SAVING, NpyFile

_ZARR_CHUNK_NBYTES = 1 << 28


class LatentSource(Field):
    """Latents of (channels, height, width) cells."""

    name: str  # what errors call it
    dtype: np.dtype[Any]

    @abstractmethod
    def digest(self) -> str:
        """SHA-256, in hex, of what they are: equal digests, equal latents."""


class StoredLatents(LatentSource):
    """In a file or in memory. BadLatents on reading when the file has shrunk or a chunk of it is damaged.

    Values are not checked: see `check_finite`.
    """

    @abstractmethod
    def _rows(self) -> Iterator[bytes]:
        """The digest of every row, from the top, and of every channel within a row."""

    def read(self, region: Region) -> NDArray[np.float32]:
        with np.errstate(over="ignore", invalid="ignore"):  # a float64 past float32 is an inf for check_finite
            return super().read(region)

    def digest(self) -> str:
        """Of shape, dtype and content. Equal latents have equal digests in every container.

        Every row of every channel is hashed (little-endian), then the hashes, row by row. Reads everything once, in
        bounded memory, on the first call.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        shape = [self.channels, self.height, self.width]
        total = hashlib.sha256(json.dumps(["latents", shape, self.dtype.name]).encode())
        for row in self._rows():
            total.update(row)
        return total.hexdigest()


def open_latents(path_or_array: Path | NDArray[Any], *, channels: int | None = None) -> LatentSource:
    """Open latents: a .npy file, a .zarr array (or a group with one array), or an array in memory.

    `channels`: how many there must be. BadLatents for a missing, truncated or foreign file and for a wrong shape or
    type; no value is read yet.
    """
    source: LatentSource
    if isinstance(path_or_array, np.ndarray):
        source = _ArrayLatents(path_or_array)
    else:
        path = Path(path_or_array)
        if not path.exists():
            raise BadLatents(f"{path} does not exist; wanted latents as .npy or .zarr; check the path")
        match path.suffix.lower():
            case ".npy" if path.is_file():
                source = _NpyLatents(path)
            case ".zarr":
                source = _ZarrLatents(path)
            case suffix:
                raise BadLatents(f"{path} is a {suffix or 'nameless'} file; wanted latents as .npy or .zarr; {SAVING}")
    if channels is not None and source.channels != channels:
        shape = source.channels, source.height, source.width
        hint = "move the channels to the front" if channels == source.width else "use the bundle they were made for"
        raise BadLatents(f"{source.name} has shape {shape}; wanted {channels} channels; {hint}")
    return source


def check_finite(values: NDArray[np.float32], where: Region, name: str = "latents") -> None:
    """BadLatents for the first NaN or infinity in `values`, float32 (channels, h, w) read at `where`.

    Two passes of min and max when all is well: about 0.1 ms a megabyte.
    """
    with np.errstate(invalid="ignore"):
        if values.size == 0 or (np.isfinite(values.min()) and np.isfinite(values.max())):
            return
    channel, row, column = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
    raise BadLatents(
        f"{name} has {values[channel, row, column]} at channel {channel}, row {where.y0 + row}, column "
        f"{where.x0 + column}; wanted finite numbers; make the latents again, in float32 if they overflowed"
    )


class _NpyLatents(StoredLatents):
    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._file = NpyFile(path)
        self.dtype = _checked_dtype(self._file.dtype, self.name)
        self.channels, self.height, self.width = _checked_shape(self._file.shape, self.name)

    def _fill(self, out: NDArray[np.float32], region: Region) -> None:
        for channel in range(self.channels):
            for y, values in self._file.read(channel, region, self.height, self.width):
                out[channel, y - region.y0 : y - region.y0 + len(values)] = values

    def _rows(self) -> Iterator[bytes]:
        group = max(1, CHUNK_NBYTES // (self.channels * self.width * self.dtype.itemsize))
        for y0 in range(0, self.height, group):
            region = Region(y0, 0, min(y0 + group, self.height), self.width)
            hashes: list[list[bytes]] = [[] for _ in range(region.height)]
            for channel in range(self.channels):
                for y, values in self._file.read(channel, region, self.height, self.width):
                    for i, row in enumerate(_little(values)):
                        hashes[y - y0 + i].append(hashlib.sha256(row).digest())
            yield from (b"".join(row) for row in hashes)


class _ArrayLatents(StoredLatents):
    def __init__(self, array: NDArray[Any]) -> None:
        self.name = "the array"
        self.dtype = _checked_dtype(array.dtype, self.name)
        self.channels, self.height, self.width = shape = _checked_shape(array.shape, self.name)
        self._array = array.reshape(shape)

    def _fill(self, out: NDArray[np.float32], region: Region) -> None:
        rows, columns = region.slices
        out[...] = self._array[:, rows, columns]

    def _rows(self) -> Iterator[bytes]:
        for y in range(self.height):
            yield b"".join(hashlib.sha256(row).digest() for row in _little(self._array[:, y]))


class _ZarrLatents(StoredLatents):
    """A chunk is decoded whole at every read that meets it, so chunks past 256 MiB are refused."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._array = array = _zarr_array(path)
        self.dtype = _checked_dtype(np.dtype(array.dtype), self.name)
        self.channels, self.height, self.width = _checked_shape(array.shape, self.name)
        nbytes = math.prod(array.chunks) * self.dtype.itemsize
        if nbytes > _ZARR_CHUNK_NBYTES:
            raise BadLatents(
                f"{path} has chunks of {nbytes >> 20} MiB, each decoded whole; wanted at most "
                f"{_ZARR_CHUNK_NBYTES >> 20} MiB; write it again with smaller chunks, say 256 x 256 cells"
            )

    def _values(self, region: Region) -> NDArray[Any]:
        rows, columns = region.slices
        try:
            values = self._array[(0,) * (self._array.ndim - 3) + (slice(None), rows, columns)]
        except (ValueError, RuntimeError, OSError, KeyError) as cause:  # as codecs and stores report damage
            raise BadLatents(
                f"{self.name} has a damaged chunk in {region} ({first_line(cause)}); wanted all of it; write it again"
            ) from cause
        return np.asarray(values)

    def _fill(self, out: NDArray[np.float32], region: Region) -> None:
        out[...] = self._values(region)

    def _rows(self) -> Iterator[bytes]:
        """Chunk by chunk, each decoded once: rows are hashed as their pieces come, left to right."""
        tall, wide = self._array.chunks[-2:]
        for y0 in range(0, self.height, tall):
            y1 = min(y0 + tall, self.height)
            hashes = [[hashlib.sha256() for _ in range(self.channels)] for _ in range(y1 - y0)]
            for x0 in range(0, self.width, wide):
                values = _little(self._values(Region(y0, x0, y1, min(x0 + wide, self.width))))
                for y, row in enumerate(hashes):
                    for channel, piece in enumerate(row):
                        piece.update(values[channel, y])
            yield from (b"".join(piece.digest() for piece in row) for row in hashes)


def _zarr_array(path: Path) -> Any:
    try:
        import zarr
    except ModuleNotFoundError as cause:
        raise MissingBackend("reading .zarr needs zarr: pip install zarr") from cause
    try:
        found = zarr.open(str(path), mode="r")
        arrays = [found] if isinstance(found, zarr.Array) else sorted((array for _, array in found.arrays()), key=str)
    except Exception as cause:  # zarr raises whatever its metadata parser meets
        raise BadLatents(
            f"{path} is no zarr array ({first_line(cause)}); wanted one of (channels, height, width)"
        ) from cause
    if len(arrays) != 1:
        names = ", ".join(array.basename for array in arrays) or "none"
        raise BadLatents(f"{path} is a group with {len(arrays)} arrays ({names}); wanted one array; give its own path")
    return arrays[0]


def _checked_dtype(dtype: np.dtype[Any], name: str) -> np.dtype[Any]:
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        what = f"{dtype} (bfloat16?)" if dtype.itemsize == 2 else str(dtype)
        raise BadLatents(f"{name} holds {what}; wanted float16, float32 or float64; {SAVING}")
    return dtype


def _checked_shape(shape: tuple[int, ...], name: str) -> tuple[int, int, int]:
    plain = shape[1:] if len(shape) == 4 and shape[0] == 1 else shape
    if len(plain) != 3 or min(plain) < 1:
        raise BadLatents(f"{name} has shape {shape}; wanted (channels, height, width), one picture; index it first")
    return int(plain[0]), int(plain[1]), int(plain[2])


def _little(values: NDArray[Any]) -> NDArray[Any]:
    """The same values, contiguous and little-endian, as what is hashed."""
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
