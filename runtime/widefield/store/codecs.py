"""Pixels to bytes and back, a tile at a time. imagecodecs is imported on the first call."""

from __future__ import annotations

from functools import cache
from types import ModuleType

import numpy as np

from widefield.errors import MissingBackend
from widefield.store.box import Pixels, scratch
from widefield.store.pngfile import png_pieces


@cache
def _imagecodecs() -> ModuleType:
    try:
        import imagecodecs
    except ModuleNotFoundError as cause:
        raise MissingBackend("storing tiles needs imagecodecs: pip install imagecodecs") from cause
    return imagecodecs


def encode(codec: str, pixels: Pixels, quality: int) -> bytes:
    """Any uint8 array to bytes; (h, w, 3) for the picture codecs. `quality` counts for jpeg."""
    lib = _imagecodecs()
    pixels = np.ascontiguousarray(pixels)
    match codec:
        case "jpeg":
            data = lib.jpeg8_encode(pixels, level=quality, subsampling="420")
        case "png":
            data = b"".join(png_pieces(pixels.shape[1], pixels.shape[0], [pixels]))
        case "jpegxl":
            data = lib.jpegxl_encode(pixels, lossless=True, effort=1, numthreads=1)
        case "deflate":
            data = lib.deflate_encode(pixels, level=1, raw=False)
        case "zstd":
            data = lib.zstd_encode(pixels, level=1)
        case _:
            raise ValueError(f"no codec {codec!r}")
    return bytes(data)


def decode(codec: str, data: bytes, shape: tuple[int, ...]) -> Pixels:
    """The array of `shape` that `encode` was given (jpeg: nearly)."""
    lib = _imagecodecs()
    match codec:
        case "jpeg":
            pixels = lib.jpeg8_decode(data)
        case "png":
            pixels = lib.png_decode(data)
        case "jpegxl":
            pixels = lib.jpegxl_decode(data, numthreads=1)
        case "deflate":
            pixels = np.frombuffer(lib.deflate_decode(data, raw=False, out=int(np.prod(shape))), np.uint8)
        case "zstd":
            pixels = np.frombuffer(lib.zstd_decode(data, out=int(np.prod(shape))), np.uint8)
        case _:
            raise ValueError(f"no codec {codec!r}")
    return np.asarray(pixels, np.uint8).reshape(shape)


def difference(pixels: Pixels) -> Pixels:
    """Each pixel less its left neighbour, modulo 256: TIFF's predictor 2. In this thread's scratch memory."""
    pixels = np.ascontiguousarray(pixels)
    out = scratch("difference", pixels.size).reshape(pixels.shape)
    out[:, 0] = pixels[:, 0]
    np.subtract(pixels[:, 1:], pixels[:, :-1], out=out[:, 1:])
    return out


def accumulate(pixels: Pixels) -> Pixels:
    """The inverse of `difference`."""
    return np.asarray(_imagecodecs().delta_decode(np.ascontiguousarray(pixels), axis=1), np.uint8)
