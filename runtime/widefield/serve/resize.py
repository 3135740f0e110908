"""A line of pixels at another length, by a tent as wide as a pixel of the result, or of the line where that is larger.

    out[y] = sum_i w_i(y) a[i] / sum_i w_i(y),   w_i(y) = max(0, 1 - |i + 1/2 - c| / s),
    c = start + (y + 1/2) length / size,  s = max(1, length / size)

Both axes alike, one after the other. Beyond its end the line goes on as its last pixel. At its own size it is itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from widefield.store.box import Pixels

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Axis:
    """start..start + length of a line of `of` pixels, made `size` pixels."""

    of: int
    start: float
    length: float
    size: int

    def taps(self, first: int, last: int) -> tuple[NDArray[np.int64], Floats]:
        """(which pixels of the line, their weights) for pixels first..last of the result; (last - first, n) each."""
        ratio = self.length / self.size
        support = max(1.0, ratio)
        centres = self.start + (np.arange(first, last) + 0.5) * ratio
        places = np.floor(centres - support).astype(np.int64)[:, None] + np.arange(math.ceil(2 * support) + 1)
        weights = np.maximum(0.0, 1.0 - np.abs(places + 0.5 - centres[:, None]) / support)
        weights /= weights.sum(1, keepdims=True)
        return np.clip(places, 0, self.of - 1), weights.astype(np.float32)

    def needs(self, first: int, last: int) -> tuple[int, int]:
        """Which of the line pixels first..last are made from."""
        places, _ = self.taps(first, last)
        return int(places.min()), int(places.max()) + 1


def resized(part: Pixels, corner: tuple[int, int], down: Axis, across: Axis, rows: tuple[int, int]) -> Pixels:
    """Rows of the result from `part`, whose first pixel is at `corner` (row, column); (rows, across.size, 3) uint8."""
    ys, down_weights = down.taps(*rows)
    xs, across_weights = across.taps(0, across.size)
    narrow = _mixed(part, ys - corner[0], down_weights)
    out = _mixed(narrow.transpose(1, 0, 2), xs - corner[1], across_weights).transpose(1, 0, 2)
    return np.asarray(np.clip(np.floor(out + 0.5), 0, 255), np.uint8)


def _mixed(a: Pixels | Floats, places: NDArray[np.int64], weights: Floats) -> Floats:
    """sum_k weights[:, k] a[places[:, k]] along the first axis."""
    out = np.zeros((len(places), *a.shape[1:]), np.float32)
    for k in range(places.shape[1]):
        out += a[places[:, k]] * weights[:, k, None, None]
    return out
