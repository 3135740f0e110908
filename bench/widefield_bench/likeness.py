"""How like two sets of pictures are, without any network: spectrum, colours, patches.

    slope      of log2 radial power of the light against log2 frequency, from 4 cycles a picture to half of the finest
    fine       log10 of the mean power over the last octave: how much detail there is
    colours    half the sum of |p - q| over 8 x 8 x 8 bins of two sets' joint histograms: 0 alike, 1 nothing in common
    patches    root mean square, over the 63 waves of 8 x 8 squares, of the differences of two sets' log10 mean energies

Shapes   a set is a sequence of pictures (side, side, 3), float in [0, 1], sides alike and multiples of 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.floating[Any]]
LIGHT = np.array((0.2126, 0.7152, 0.0722))
BINS = 8
LEAST = 1e-12  # power, so that an even picture has a logarithm


def light(picture: Picture) -> NDArray[np.float64]:
    """(side, side): how bright."""
    return np.asarray(picture @ LIGHT, np.float64)


def radial_power(picture: Picture) -> NDArray[np.float64]:
    """Mean power at 0, 1, ..., side / 2 cycles a picture; the edges are faded out, as no picture is periodic."""
    values = light(picture)
    side = len(values)
    fade = np.hanning(side + 2)[1:-1]
    values = (values - values.mean()) * np.outer(fade, fade)
    power = np.abs(np.fft.fft2(values)) ** 2 / side**2
    cycles = np.fft.fftfreq(side, 1 / side)
    ring = np.rint(np.hypot(cycles[:, None], cycles[None])).astype(int).ravel()
    sums, counts = (np.bincount(ring, w, minlength=side) for w in (power.ravel(), None))
    return np.asarray(sums[: side // 2 + 1] / counts[: side // 2 + 1])


def slope(picture: Picture) -> float:
    """As above; about -3 for a fractal landscape."""
    power = radial_power(picture)
    cycles = np.arange(4, len(power) // 2 + 1)
    return float(np.polyfit(np.log2(cycles), np.log2(power[cycles] + LEAST), 1)[0])


def fine(picture: Picture) -> float:
    """As above."""
    power = radial_power(picture)
    return float(np.log10(power[len(power) // 2 :].mean() + LEAST))


def colours(pictures: Sequence[Picture]) -> NDArray[np.float64]:
    """The joint histogram, (BINS**3,), of sum 1."""
    bins = [np.minimum((p * BINS).astype(int), BINS - 1) @ (BINS**2, BINS, 1) for p in pictures]
    counts = np.bincount(np.concatenate([b.ravel() for b in bins]), minlength=BINS**3)
    return np.asarray(counts / counts.sum())


def waves() -> NDArray[np.float64]:
    """The orthonormal cosine transform of eight numbers, (8, 8)."""
    k, x = np.mgrid[0:8, 0:8]
    return np.asarray(np.cos(np.pi * (2 * x + 1) * k / 16) * np.where(k == 0, np.sqrt(1 / 8), np.sqrt(2 / 8)))


def patches(pictures: Sequence[Picture]) -> NDArray[np.float64]:
    """log10 mean energy of the waves of 8 x 8 squares of light, (63,): all but the even one."""
    energy = np.zeros((8, 8))
    for picture in pictures:
        values = light(picture)
        squares = values.reshape(len(values) // 8, 8, -1, 8).transpose(0, 2, 1, 3)
        energy += ((waves() @ squares @ waves().T) ** 2).mean((0, 1))
    return np.asarray(np.log10(energy.ravel()[1:] / len(pictures) + LEAST))


def likeness(found: Sequence[Picture], wanted: Sequence[Picture]) -> dict[str, float]:
    """Numbers of `found`, and how far it is from `wanted`."""
    return {
        "slope": float(np.mean([slope(p) for p in found])),
        "slope_off": float(np.mean([slope(p) for p in found]) - np.mean([slope(p) for p in wanted])),
        "fine_off": float(np.mean([fine(p) for p in found]) - np.mean([fine(p) for p in wanted])),
        "colours": float(np.abs(colours(found) - colours(wanted)).sum() / 2),
        "patches": float(np.sqrt(np.mean((patches(found) - patches(wanted)) ** 2))),
    }
