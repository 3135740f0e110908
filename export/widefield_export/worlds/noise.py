"""Noise that is a pure function of (seed, octave, position): band-limited, without a lattice that shows.

    octave(p)     = T[R(a) p / spacing * TEXELS / SAMPLES + b],   T periodic, isotropic, unit deviation
    waves(p, t)   = Re z / |z|^0.7,   z = sum_corners w(p - c) exp(2 pi i (WAVES (p - c).t + hash(c)))

T is a table of ring-filtered white noise, read bilinearly; a and b are drawn from (seed, octave). `waves` are stripes
across the unit direction t, which may turn from place to place: gullies across a slope, dunes across a wind.

Shapes   rows (h,), columns (w,): absolute lattice indices; warps (h, w), in lattice cells; results (h, w).
Units    an octave's wavelength is SAMPLES lattice cells; a wave's WAVE_CELLS / WAVES of them.
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
Index = NDArray[np.int64]

TABLE_PX = 512
TEXELS = 6.0  # of the table, a wavelength
SAMPLES = 4.0  # lattice cells a wavelength
CHANNELS = 12  # independent noises in the table
WAVES = 2.0  # a cell
WAVE_CELLS = 9.0  # lattice cells from one corner of `waves` to the next


@cache
def table() -> Field:
    """CHANNELS periodic noises of one octave, (CHANNELS, TABLE_PX ** 2)."""
    rng = np.random.Generator(np.random.Philox(key=0x57F))
    ky, kx = np.fft.fftfreq(TABLE_PX)[:, None], np.fft.rfftfreq(TABLE_PX)[None]
    octaves = np.log2(np.maximum(np.hypot(ky, kx), 1e-9) * TEXELS)
    ring = np.exp(-0.5 * (octaves / 0.45) ** 2)
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((CHANNELS, TABLE_PX, TABLE_PX))) * ring)
    unit = noise / noise.std(axis=(1, 2), keepdims=True)
    return np.asarray(unit.reshape(CHANNELS, -1), np.float32)


@lru_cache(maxsize=4096)
def _placing(seed: int, octave: int, stream: int) -> tuple[float, float, float]:
    """An angle and an offset in texels for one octave of one seed."""
    rng = np.random.default_rng([seed, octave + 64, stream])
    angle, *offset = rng.random(3)
    return float(angle * 2 * np.pi), float(offset[0] * TABLE_PX), float(offset[1] * TABLE_PX)


def turned(angle: float, rows: Index, columns: Index, scale: float, period: float) -> tuple[Field, Field]:
    """Lattice indices turned by `angle` and scaled; each product is reduced by `period` before it is rounded."""
    c, s = np.cos(angle) * scale, np.sin(angle) * scale
    v = np.mod(c * rows, period)[:, None] + np.mod(-s * columns, period)[None]
    u = np.mod(s * rows, period)[:, None] + np.mod(c * columns, period)[None]
    return v.astype(np.float32), u.astype(np.float32)


def octave_noise(
    seed: int, octave: int, rows: Index, columns: Index, channels: int, warp: Field | None = None, stream: int = 0
) -> Field:
    """`channels` independent octaves, (channels, h, w), at lattice points moved by `warp` (2, h, w)."""
    angle, dv, du = _placing(seed, octave, stream)
    scale = TEXELS / SAMPLES
    v, u = turned(angle, rows, columns, scale, TABLE_PX)
    v += np.float32(dv)
    u += np.float32(du)
    if warp is not None:
        c, s = np.float32(np.cos(angle) * scale), np.float32(np.sin(angle) * scale)
        v += c * warp[0] - s * warp[1]
        u += s * warp[0] + c * warp[1]
    return _bilinear(v, u, channels)


def _bilinear(v: Field, u: Field, channels: int) -> Field:
    """The table's first channels at texel positions, periodic."""
    top, left = np.floor(v), np.floor(u)
    v, u = v - top, u - left
    mask = TABLE_PX - 1
    y, x = top.astype(np.int64), left.astype(np.int64)
    y0, y1 = (y & mask) * TABLE_PX, ((y + 1) & mask) * TABLE_PX
    x0, x1 = x & mask, (x + 1) & mask
    where = (y0 + x0, y0 + x1, y1 + x0, y1 + x1)
    weights = ((1 - v) * (1 - u), (1 - v) * u, v * (1 - u), v * u)
    out = np.empty((channels, *v.shape), np.float32)
    for channel, values in enumerate(table()[:channels]):
        total = values.take(where[0]) * weights[0]
        for index, weight in zip(where[1:], weights[1:], strict=True):
            total += values.take(index) * weight
        out[channel] = total
    return out


def hash_unit(seed: int, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Field:
    """A uniform number in [0, 1) for every pair of indices: three rounds of multiply and shift on 32 bits."""
    x = (rows.astype(np.uint32) * np.uint32(0x9E3779B1)) ^ (columns.astype(np.uint32) * np.uint32(0x85EBCA77))
    x = x + np.uint32(seed & 0xFFFFFFFF)
    for multiplier in (0x7FEB352D, 0x846CA68B, 0x9E3779B1):
        x = (x ^ (x >> np.uint32(15))) * np.uint32(multiplier)
    return (x >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def waves(seed: int, octave: int, rows: Index, columns: Index, along: Field, skew: float = 0.0) -> Field:
    """Stripes whose phase grows along the unit vectors `along` (2, h, w), in [-1, 1]; `skew` steepens one side."""
    angle, dv, du = _placing(seed, octave, 1)
    v, u = turned(angle, rows, columns, 1 / WAVE_CELLS, 2.0**15)
    v, u = v + np.float32(dv), u + np.float32(du)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    tv, tu = c * along[0] - s * along[1], s * along[0] + c * along[1]
    top, left = np.floor(v), np.floor(u)
    y, x = top.astype(np.int64) & 0xFFFF, left.astype(np.int64) & 0xFFFF
    v, u = v - top, u - left
    wv, wu = v * v * (3 - 2 * v), u * u * (3 - 2 * u)
    real, imaginary = np.zeros_like(v), np.zeros_like(v)
    for a in (0, 1):
        for b in (0, 1):
            weight = (wv if a else 1 - wv) * (wu if b else 1 - wu)
            turns = WAVES * ((v - a) * tv + (u - b) * tu) + hash_unit(seed * 31 + octave, y + a, x + b)
            phase = np.float32(2 * np.pi) * turns
            real += weight * np.cos(phase)
            imaginary += weight * np.sin(phase)
    size = np.sqrt(real * real + imaginary * imaginary) + np.float32(0.05)
    if skew:
        return np.asarray(np.cos(np.arctan2(imaginary, real) + np.float32(skew) * imaginary / size), np.float32)
    return np.asarray(real / size ** np.float32(0.7), np.float32)
