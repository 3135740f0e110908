"""How much each measured square counts, so that what they read adds up to what the picture holds.

    w = 1 + X (X'X + R)^-1 (N x - X'1)      N squares; X (N, p): ones, then of each square's input the mean and the mean
                                            square in every channel, standardised; x (p,): the same of the whole picture
    e = z - X (X'X + R)^-1 X'z              what the input does not explain of a statistic z of the squares
    s = sqrt((1 - f) / (N (N - p)) sum (w e)^2)      the standard error of its mean; f is the part of the picture seen

Where the draw has too many bright squares, or busy ones, each of them counts less. One set of weights serves every
site, because what statistics differ by from square to square is mostly in the input already. R is a ridge, against
weights far from one. J.-C. Deville, C.-E. Sarndal, Calibration estimators in survey sampling, 1992.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from widefield.bundle import Component
from widefield.geometry import Region
from widefield.held import Squares
from widefield.sampling import exact_tiles
from widefield.tiles import Source
from widefield_kernels.norm import merge_reference

Float64 = NDArray[np.float64]
RIDGE = 4.0  # squares
LEAST_WEIGHT = 0.1  # negative ones could make a variance negative
LARGEST_CELLS = 1 << 20  # of a picture whose input is read for this: 8192 x 8192 px


@dataclass(frozen=True)
class Calibration:
    """Of N parts: `weights` (N,), one on average; `design` (N, p), X above; `fraction`, f above."""

    weights: Float64
    design: Float64
    fraction: float

    def standard_errors(self, count: Float64, mean: Float64, m2: Float64) -> tuple[Float64, Float64]:
        """(of the mean, of the variance), each (groups,), of parts with `count` (N,) samples, `mean` and `m2`.

        The parts are stratified, so treating them as drawn at random overstates the errors.
        """
        parts = len(count)
        if parts <= self.design.shape[1] or self.fraction >= 1.0:
            zero = np.zeros(mean.shape[1])
            return zero, zero
        whole = merge_reference(count * self.weights, mean, m2 * self.weights[:, None])
        apart = mean - whole.mean
        spread = m2 / np.maximum(count[:, None], 1.0) + apart**2 - whole.variance
        weight = (self.weights * count / np.mean(self.weights * count))[:, None]
        shrink = (1.0 - self.fraction) / (parts * (parts - self.design.shape[1]))
        errors = [np.sqrt(shrink * ((weight * self._unexplained(z)) ** 2).sum(0)) for z in (apart, spread)]
        return errors[0], errors[1]

    def _unexplained(self, z: Float64) -> Float64:
        return z - self.design @ np.linalg.solve(_gram(self.design), self.design.T @ z)


def even(parts: int, fraction: float) -> Calibration:
    """Every part counts alike."""
    return Calibration(np.ones(parts), np.ones((parts, 1)), fraction)


def calibrated(component: Component, squares: Squares) -> Calibration:
    """Of a picture's squares; even where its input is pixels or too large to be read for this, and for few squares."""
    cells = squares.picture.area
    few = len(squares.tiles) < 2 * (1 + 2 * squares.source.channels)
    if component.input_scale != 1 or cells > LARGEST_CELLS or few:
        return even(len(squares.tiles), squares.fraction)
    tiles = [tile.clipped(squares.picture) for tile in exact_tiles(squares.height, squares.width)]
    areas = np.array([tile.area for tile in tiles], np.float64)
    whole = areas @ _moments(tiles, squares.source) / cells
    return _calibration(_moments(squares.tiles, squares.source), whole, squares.fraction)


def _calibration(found: Float64, whole: Float64, fraction: float) -> Calibration:
    """From moments of each square (N, p) and of the picture (p,)."""
    deviation = found.std(0)
    varies = deviation > 1e-9 * np.abs(found).max(0, initial=1e-30)
    standard = (found - whole)[:, varies] / deviation[varies]
    design = np.concatenate([np.ones((len(found), 1)), standard], 1)
    missing = -design.sum(0)
    missing[0] = 0.0  # the picture's own means are zero after standardising, and N is right already
    weights = np.maximum(LEAST_WEIGHT, 1.0 + design @ np.linalg.solve(_gram(design), missing))
    return Calibration(weights / weights.mean(), design, fraction)


def _gram(design: Float64) -> Float64:
    ridge = RIDGE * np.eye(design.shape[1])
    ridge[0, 0] = 0.0
    return design.T @ design + ridge


def _moments(regions: Iterable[Region], source: Source) -> Float64:
    """(regions, 2 channels): mean and mean square of every channel."""
    rows = []
    for region in regions:
        values = source.read(region).astype(np.float64).reshape(source.channels, -1)
        rows.append(np.concatenate([values.mean(1), (values**2).mean(1)]))
    return np.array(rows)
