"""Group statistics from disjoint parts of a picture, and the frozen affine map that they become.

    moments    n = samples      m = sum x / n               M2 = sum (x - m)^2          of a channel, over a tile's core
    merge      N = sum n_i      mean = sum n_i m_i / N      M2 = sum M2_i + sum n_i (m_i - mean)^2   (Chan et al., 1983)
    freeze     scale = gamma / sqrt(M2 / N + eps)           shift = beta - mean scale
    apply      y = f(x scale + shift) + residual            f(z) = z / (1 + exp(-z)), SiLU, or z itself

The between-part term is what pooled variances forget; without it a picture that is half dark and half bright gets the
variance of neither. nn.GroupNorm divides by N (biased), and so do we. The core of a tile is what it alone covers: its
margins are some other tile's core, and counted there.

Shapes   x, residual, y: (tiles, channels, rows, columns), or with `channels_last` (tiles, rows, columns, channels).
         partials: (parts, 3, channels), count, mean and M2 of a channel in a part; parts are tiles or pieces of them.
         n: (parts,), m and M2: (parts, groups); gamma, beta, scale, shift: (channels,).
Numbers  merging is in float64; scale and shift are rounded once, to float32. Moments and apply keep the precision of x,
         float32 at least, and round once on the way out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Core = tuple[int, int, int, int]  # top, bottom, left, right: rows [top, bottom) and columns [left, right) of a tile


@dataclass(frozen=True, slots=True)
class Moments:
    """Of each group: how many samples, their mean, and the sum of squared distances from it."""

    count: Float64
    mean: Float64
    m2: Float64

    @property
    def variance(self) -> Float64:
        """Biased, as nn.GroupNorm takes it."""
        return self.m2 / self.count


def moments_reference(x: NDArray[Any], core: Core | None = None, *, channels_last: bool = False) -> NDArray[Any]:
    """Partials (tiles, 3, channels) of every channel over the core, in the precision of x, float32 at least."""
    x = np.moveaxis(x, -1, 1) if channels_last else x
    top, bottom, left, right = core or (0, x.shape[2], 0, x.shape[3])
    inner = x[:, :, top:bottom, left:right].astype(np.result_type(x.dtype, np.float32), copy=False)
    out = np.empty((len(x), 3, x.shape[1]), inner.dtype)
    out[:, 0] = inner.shape[2] * inner.shape[3]
    inner.mean((2, 3), out=out[:, 1])
    for tile in range(len(x)):  # a tile at a time: the distances take as much memory as what they are taken of
        distance = inner[tile] - out[tile, 1, :, None, None]
        np.square(distance, out=distance).sum((1, 2), out=out[tile, 2])
    return out


def merge_partials_reference(partials: NDArray[Any], groups: int) -> Moments:
    """Moments of each group of channels from partials (parts, 3, channels) of disjoint parts, in any order."""
    parts, _, channels = partials.shape
    wide = partials.astype(np.float64).reshape(parts, 3, groups, channels // groups)
    count, mean, m2 = (wide[:, k].swapaxes(1, 2).reshape(-1, groups) for k in range(3))
    return merge_reference(count[:, 0], mean, m2)


def apply_reference(
    x: NDArray[Any],
    scale: NDArray[Any],
    shift: NDArray[Any],
    residual: NDArray[Any] | None = None,
    *,
    silu: bool = True,
    channels_last: bool = False,
) -> NDArray[Any]:
    """f(x scale + shift) + residual, in the precision of x; give it float64 and it gives the truth."""
    wide = np.result_type(x.dtype, np.float32)
    per_channel = (slice(None),) if channels_last else (slice(None), None, None)
    y = np.asarray(x.astype(wide) * scale.astype(wide)[per_channel] + shift.astype(wide)[per_channel])
    if silu:
        with np.errstate(over="ignore"):  # exp(100) is infinity, and -100 / infinity the right answer
            y /= 1 + np.exp(-y)
    if residual is not None:
        y += residual
    return y.astype(x.dtype, copy=False)


def merge_reference(count: Float64, mean: Float64, m2: Float64) -> Moments:
    """Merge parts along the first axis; parts with no samples count for nothing."""
    count = np.asarray(count, np.float64)[:, None]
    total = count.sum(0)
    merged = (count * mean).sum(0) / total
    squares = np.where(count > 0, m2, 0.0).sum(0) + (count * (mean - merged) ** 2).sum(0)
    return Moments(np.broadcast_to(total, merged.shape).copy(), merged, squares)


def standard_errors(count: Float64, mean: Float64, m2: Float64, fraction: float) -> tuple[Float64, Float64]:
    """(of the mean, of the variance), each (groups,), from how much equal parts differ among themselves.

    `fraction` of the whole was seen, which shrinks both by sqrt(1 - fraction). The parts are stratified, so treating
    them as drawn at random overstates the errors: they are bounds more than estimates (Cochran, 1977, chapter 5).
    """
    parts = len(count)
    if parts < 2 or fraction >= 1.0:
        zero = np.zeros(mean.shape[1])
        return zero, zero
    whole = merge_reference(count, mean, m2)
    weight = np.asarray(count, np.float64)[:, None] / np.mean(count)
    spread = m2 / np.maximum(np.asarray(count, np.float64)[:, None], 1.0) + (mean - whole.mean) ** 2
    shrink = (1.0 - fraction) / (parts * (parts - 1.0))
    of_mean = np.sqrt(shrink * ((weight * (mean - whole.mean)) ** 2).sum(0))
    of_variance = np.sqrt(shrink * ((weight * (spread - whole.variance)) ** 2).sum(0))
    return of_mean, of_variance


def freeze_reference(
    moments: Moments, gamma: NDArray[np.float32], beta: NDArray[np.float32], eps: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(scale, shift) of every channel: group_norm(x) = x * scale + shift once the statistics are frozen."""
    repeats = len(gamma) // len(moments.mean)
    scale = gamma.astype(np.float64) * np.repeat(1.0 / np.sqrt(moments.variance + eps), repeats)
    shift = beta.astype(np.float64) - np.repeat(moments.mean, repeats) * scale
    return scale.astype(np.float32), shift.astype(np.float32)
