"""Images, read a region at a time as RGB: from a picture file, a store of ours, a .npy file or memory.

Shapes   uint8 (h, w, 3); regions are in pixels and lie inside the picture.
Numbers  grey becomes three equal channels; alpha is dropped, the colour under it stays as it is; 16-bit values v become
         v * 255 / 65535, rounded exactly. Colour profiles and EXIF orientation are not applied.
Memory   .png, .jpg, .webp and TIFFs that we did not write are decoded whole at the first read and then held: `nbytes`.
         Stores and .npy are read as they are needed.
"""

from __future__ import annotations

import functools
import hashlib
import math
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from widefield.errors import BadLatents, MissingBackend, StoreError, first_line
from widefield.geometry import Region
from widefield.image_heads import is_ours, jpeg_size, png_size, tiff_size, webp_size
from widefield.image_source import REMEDY, ImageSource, Pixels, is_picture, to_rgb8
from widefield.npy_file import NpyFile

__all__ = ["ImageSource", "edge_padded", "open_image", "to_rgb8"]

_TILES_HELD = 16  # decoded tiles of a store that a source keeps
_FORMS = ".png, .jpg, .webp, .tif, .zarr, .dzi or .npy"


def open_image(path_or_array: Path | NDArray[Any]) -> ImageSource:
    """Open a picture: .png .jpg .webp .tif .npy, a store of ours (.tif .zarr .dzi), or an array in memory.

    Arrays and .npy: uint8 or uint16, (height, width) or (height, width, channels). BadLatents for a missing, foreign or
    damaged file, an unfinished store, and pictures that are neither grey nor RGB.
    """
    if isinstance(path_or_array, np.ndarray):
        return _ArrayImage(path_or_array)
    path = Path(path_or_array)
    if not path.exists():
        raise BadLatents(f"{path} does not exist; wanted a picture, {_FORMS}; check the path")
    try:
        match path.suffix.lower():
            case ".png":
                return _EncodedImage(path, png_size, "png_decode")
            case ".jpg" | ".jpeg":
                return _EncodedImage(path, jpeg_size, "jpeg_decode")
            case ".webp":
                return _EncodedImage(path, webp_size, "webp_decode")
            case ".tif" | ".tiff" if not is_ours(path):
                return _EncodedImage(path, tiff_size, "tiff_decode")
            case ".tif" | ".tiff" | ".zarr" | ".dzi":
                return _StoreImage(path)
            case ".npy":
                return _NpyImage(path)
            case suffix:
                raise BadLatents(f"{path} is a {suffix or 'nameless'} file; wanted {_FORMS}; {REMEDY}")
    except OSError as cause:
        raise BadLatents(f"{path}: {cause.strerror}; wanted to read it; check that it is a readable file") from cause


def edge_padded(source: ImageSource, multiple: int) -> ImageSource:
    """`source` with height and width rounded up to `multiple` of pixels, its last row and column repeated."""
    return source if source.height % multiple == 0 == source.width % multiple else _PaddedImage(source, multiple)


class _ArrayImage(ImageSource):
    def __init__(self, array: NDArray[Any]) -> None:
        self.name = "the array"
        self._rgb = to_rgb8(array, self.name)
        self.height, self.width, _ = self._rgb.shape
        self.nbytes = 0 if np.may_share_memory(self._rgb, array) else self._rgb.nbytes

    def _pixels(self, region: Region) -> Pixels:
        return self._rgb[region.slices]

    def _content(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self._rgb).data).hexdigest()


class _FileImage(ImageSource):
    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    def _content(self) -> str:
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class _EncodedImage(_FileImage):
    """A file that is decoded whole, by imagecodecs, when the first region is read."""

    def __init__(self, path: Path, size: Callable[[IO[bytes]], tuple[int, int]], decoder: str) -> None:
        super().__init__(path)
        self._decoder = decoder
        self._deciding = threading.Lock()
        self._rgb: Pixels | None = None
        try:
            with path.open("rb") as file:
                self.height, self.width = size(file)
            if self.height < 1 or self.width < 1:
                raise ValueError(f"it is {self.height} x {self.width} px")
        except (ValueError, IndexError, struct.error) as cause:
            raise self._bad(cause) from cause
        self.nbytes = self.height * self.width * 3

    def _bad(self, cause: Exception) -> BadLatents:
        kind = self._path.suffix.lower()
        return BadLatents(
            f"{self.name} cannot be read as {kind} ({first_line(cause)}); wanted a whole grey or RGB picture; {REMEDY}"
        )

    def _pixels(self, region: Region) -> Pixels:
        with self._deciding:
            if self._rgb is None:
                self._rgb = self._decoded()
        return self._rgb[region.slices]

    def _decoded(self) -> Pixels:
        try:
            import imagecodecs
        except ModuleNotFoundError as cause:
            raise MissingBackend("reading pictures needs imagecodecs: pip install imagecodecs") from cause
        try:
            data = self._path.read_bytes()
            if self._decoder == "jpeg_decode" and b"\xff\xd9" not in data[data.rfind(b"\xff\xda") :]:
                raise ValueError("it ends before its end marker")
            values = np.asarray(getattr(imagecodecs, self._decoder)(data))
        except (RuntimeError, ValueError, IndexError, OSError) as cause:  # as its codecs report damage
            raise self._bad(cause) from cause
        if values.shape[1:] == (self.height, self.width):  # planes
            values = np.moveaxis(values, 0, -1)
        if values.shape[:2] != (self.height, self.width):
            raise self._bad(ValueError(f"it decodes to shape {values.shape}, not {self.height} x {self.width}"))
        return np.ascontiguousarray(to_rgb8(values, self.name))


class _NpyImage(_FileImage):
    nbytes = 0

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = NpyFile(path)
        shape = self._file.shape
        to_rgb8(np.empty((1, 1, *shape[2:]) if is_picture(shape) else (0,), self._file.dtype), self.name)
        self.height, self.width, self._channels = *shape[:2], math.prod(shape[2:])

    def _pixels(self, region: Region) -> Pixels:
        deep = self._channels
        box = Region(region.y0, region.x0 * deep, region.y1, region.x1 * deep)
        out = np.empty((region.height, region.width, 3), np.uint8)
        for y, values in self._file.read(0, box, self.height, self.width * deep):
            rows = values.reshape(len(values), region.width, deep)
            out[y - region.y0 : y - region.y0 + len(rows)] = to_rgb8(rows, self.name)
        return out


class _StoreImage(ImageSource):
    """A finished picture of ours, tile by tile. `nbytes`: the tiles that are kept for the next read."""

    def __init__(self, path: Path) -> None:
        from widefield.store import open_store

        self.name = str(path)
        try:
            self._store = open_store(path)
            done = self._store.done(0)
        except StoreError as cause:
            raise BadLatents(str(cause)) from cause
        if not done.all():
            raise BadLatents(
                f"{path} has {int(done.sum())} of its {done.size} tiles; wanted all of them; go on with the run that "
                "writes it"
            )
        spec = self._store.spec
        self.height, self.width = spec.height_px, spec.width_px
        self.nbytes = min(_TILES_HELD, done.size) * spec.tile_px**2 * 3
        self._tile = functools.lru_cache(maxsize=_TILES_HELD)(self._read_tile)

    def _read_tile(self, row: int, column: int) -> Pixels:
        try:
            return self._store.read(0, row, column)
        except StoreError as cause:
            raise BadLatents(str(cause)) from cause

    def _pixels(self, region: Region) -> Pixels:
        side = self._store.spec.tile_px
        out = np.empty((region.height, region.width, 3), np.uint8)
        for row in range(region.y0 // side, -(-region.y1 // side)):
            for column in range(region.x0 // side, -(-region.x1 // side)):
                tile = Region(row * side, column * side, (row + 1) * side, (column + 1) * side)
                part = region.clipped(tile)
                into, take = part.shifted(-region.y0, -region.x0), part.shifted(-tile.y0, -tile.x0)
                out[into.slices] = self._tile(row, column)[take.slices]
        return out

    def _content(self) -> str:
        spec = self._store.spec
        return f"{spec.fingerprint} {spec.codec} {spec.quality} {spec.tile_px}"


class _PaddedImage(ImageSource):
    def __init__(self, source: ImageSource, multiple: int) -> None:
        self._source, self._multiple = source, multiple
        self.name, self.nbytes = source.name, source.nbytes
        self.height, self.width = (-(-side // multiple) * multiple for side in (source.height, source.width))

    def _pixels(self, region: Region) -> Pixels:
        y0, y1 = _inside(region.y0, region.y1, self._source.height)
        x0, x1 = _inside(region.x0, region.x1, self._source.width)
        pixels = self._source.read(Region(y0, x0, y1, x1))
        below, right = region.height - (y1 - y0), region.width - (x1 - x0)
        return np.pad(pixels, ((0, below), (0, right), (0, 0)), mode="edge")

    def _content(self) -> str:
        return f"edge {self._source.digest()}"


def _inside(start: int, stop: int, side: int) -> tuple[int, int]:
    """The part of [start, stop) that is inside [0, side), and its last one where nothing is."""
    start = min(start, side - 1)
    return start, max(start + 1, min(stop, side))
