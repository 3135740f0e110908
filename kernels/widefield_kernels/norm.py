"""Group statistics from disjoint parts of a picture, and the frozen affine map that they become.

    merge      N = sum n_i      mean = sum n_i m_i / N      M2 = sum M2_i + sum n_i (m_i - mean)^2   (Chan et al., 1983)
    freeze     scale = gamma / sqrt(M2 / N + eps)           shift = beta - mean scale

The between-part term is what pooled variances forget; without it a picture that is half dark and half bright gets the
variance of neither. nn.GroupNorm divides by N (biased), and so do we.

Shapes   n: (parts,), m and M2: (parts, groups); gamma, beta, scale, shift: (channels,).
Numbers  float64 throughout; scale and shift are rounded once, to float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


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
