"""Windows held to the level below: what of a window is coarse is taken from what it was made of.

    x' = x + G (c - x)        (G v)_i = sum_j g(i - j) v_j / sum_j g(i - j)   along both axes, j inside the window
    g(d) = exp(-d^2 / 2 s^2)

x is a denoised window, c the level below, enlarged and encoded, over the same cells. Neighbouring windows go their own
way while they are denoised, and drift apart slowly across themselves; where they fade into each other that shows as a
slope. What is finer than `s` is the window's own, and what is coarser is the same in all windows that cover a cell.

Shapes  x, c: (channels, rows, columns) float32. Equal windows give equal numbers, whatever else is computed with them.
Source  after J. Choi et al., ILVR: conditioning method for denoising diffusion probabilistic models, 2021, eq. 8, whose
        low-pass is of the whole picture, and which does it at every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Anchor:
    """For windows of one shape (rows, columns); `width` is s over a window's side."""

    window: tuple[int, int]
    width: float

    def held(self, x: Array, below: Array) -> Array:
        """x' of the formula above."""
        rows, columns = self._means
        return np.asarray(x + rows @ (below - x) @ columns.T, np.float32)

    @cached_property
    def _means(self) -> tuple[Array, Array]:
        return _mean(self.window[0], self.width), _mean(self.window[1], self.width)


def _mean(side: int, width: float) -> Array:
    """G along an axis: (side, side), of rows that add up to one."""
    distance = np.arange(side)[:, None] - np.arange(side)
    g = np.exp(-0.5 * (distance / (width * side)) ** 2)
    return np.asarray(g / g.sum(1, keepdims=True), np.float32)
