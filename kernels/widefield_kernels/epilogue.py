"""From a decoder's output to pixels, and to the next level of the picture's pyramid.

    u8   = clamp(round_half_to_even((x + 1) * 127.5), 0, 255)            NaN is counted, never hidden: it becomes 0
    half = (u8[2y, 2x] + u8[2y, 2x+1] + u8[2y+1, 2x] + u8[2y+1, 2x+1] + 2) >> 2

Shapes   x: (channels, rows, columns), or with `channels_last` (rows, columns, channels), floating, in [-1, 1];
         u8: (rows, columns, channels) uint8; half: (ceil(rows/2), ceil(columns/2), channels) uint8, where an odd edge
         counts its last row or column twice.
Numbers  float32 inside, one rounding. half comes of the rounded pixels, in integers: what the stores make of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def to_pixels_reference(
    x: NDArray[Any], out: Pixels | None = None, *, channels_last: bool = False
) -> tuple[Pixels, int]:
    """(pixels, how many values were not a number). `out` may be a view of a larger picture."""
    x = np.moveaxis(x, -1, 0) if channels_last else x
    channels, rows, columns = x.shape
    out = np.empty((rows, columns, channels), np.uint8) if out is None else out
    bad = 0
    for channel, (plane, not_numbers) in enumerate(_rounded(x)):
        out[:, :, channel] = plane
        bad += not_numbers
    return out, bad


def _rounded(x: NDArray[Any]) -> Iterator[tuple[Pixels, int]]:
    """Of every channel, (its pixels, how many values were not a number)."""
    scaled = np.empty(x.shape[1:], np.float32)
    for channel in x:
        np.add(channel, np.float32(1.0), out=scaled, dtype=np.float32)
        np.multiply(scaled, np.float32(127.5), out=scaled)
        np.rint(scaled, out=scaled)
        np.clip(scaled, 0.0, 255.0, out=scaled)
        bad = 0
        if np.isnan(scaled.max(initial=0.0)):
            bad = int(np.isnan(scaled).sum())
            np.nan_to_num(scaled, copy=False)
        yield scaled.astype(np.uint8), bad


def halve_reference(pixels: Pixels, out: Pixels | None = None) -> Pixels:
    """The mean of every 2 x 2 box, rounded half up. `out` may be a view of a larger picture."""
    rows, columns, _ = pixels.shape
    wide = np.pad(pixels, ((0, rows % 2), (0, columns % 2), (0, 0)), mode="edge").astype(np.uint16)
    pairs = wide[0::2] + wide[1::2]
    half = (pairs[:, 0::2] + pairs[:, 1::2] + 2) >> 2
    if out is None:
        return half.astype(np.uint8)
    out[...] = half
    return out


def to_levels_reference(
    x: NDArray[Any], out: Pixels | None = None, half: Pixels | None = None, *, channels_last: bool = False
) -> tuple[Pixels, Pixels, int]:
    """(pixels, the same at half the size, how many values were not a number), halved while channels are apart: that
    takes half the time of halving interleaved ones. `out` and `half` may be views of larger pictures."""
    x = np.moveaxis(x, -1, 0) if channels_last else x
    channels, rows, columns = x.shape
    out = np.empty((rows, columns, channels), np.uint8) if out is None else out
    half = np.empty((-(-rows // 2), -(-columns // 2), channels), np.uint8) if half is None else half
    bad = 0
    for channel, (plane, not_numbers) in enumerate(_rounded(x)):
        out[:, :, channel] = plane
        half[:, :, channel] = _halved_plane(plane)
        bad += not_numbers
    return out, half, bad


def _halved_plane(plane: Pixels) -> NDArray[np.uint16]:
    """The mean of every 2 x 2 box of one channel: two neighbours are the two bytes of a word."""
    rows, columns = plane.shape
    if rows % 2 or columns % 2:
        plane = np.pad(plane, ((0, rows % 2), (0, columns % 2)), mode="edge")
    words = plane.view(np.uint16)
    pairs = words & np.uint16(255)
    words = words >> np.uint16(8)
    pairs += words
    sums = pairs[0::2] + pairs[1::2]
    sums += np.uint16(2)
    sums >>= np.uint16(2)
    return sums
