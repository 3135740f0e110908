"""Fields refined octave by octave: each lattice is its parent, enlarged twice, plus what is new at its spacing.

    up(x)[2 i]     = (-5 x[i-2] + 35 x[i-1] + 105 x[i] - 7 x[i+1]) / 128
    up(x)[2 i + 1] = (-7 x[i-1] + 105 x[i] + 35 x[i+1] - 5 x[i+2]) / 128

Lattice points are centres of pixels, so a point has four children and none of them lies on it. The weights are the
cubic through four points, read a quarter away from the middle; applied again and again they tend to a surface with
continuous curvature, so slopes show no lattice. A lattice index is absolute: point i of spacing s lies at (i + 1/2) s.

Units    Span: lattice indices, first included, last excluded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from widefield_export.worlds.noise import Field, Index

REACH = 2  # parents that a child needs on either side


@dataclass(frozen=True, slots=True)
class Span:
    """A rectangle of one lattice: rows top..bottom and columns left..right."""

    top: int
    left: int
    bottom: int
    right: int

    def grown(self, by: int) -> Span:
        return Span(self.top - by, self.left - by, self.bottom + by, self.right + by)

    def parent(self) -> Span:
        """What `enlarge` needs to make this span."""
        return Span(
            self.top // 2 - REACH,
            self.left // 2 - REACH,
            (self.bottom - 1) // 2 + REACH + 1,
            (self.right - 1) // 2 + REACH + 1,
        )

    @property
    def rows(self) -> Index:
        return np.arange(self.top, self.bottom, dtype=np.int64)

    @property
    def columns(self) -> Index:
        return np.arange(self.left, self.right, dtype=np.int64)

    @property
    def shape(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left


def _enlarge_rows(x: Field) -> Field:
    """Twice as many rows, (c, 2 (h - 4), w): children of all but the two outermost parents on each side."""
    a, b, c, d = (np.float32(k / 128) for k in (-5, 35, 105, -7))
    out = np.empty((x.shape[0], 2 * (x.shape[1] - 4), x.shape[2]), np.float32)
    middle = c * x[:, 2:-2]
    out[:, 0::2] = middle + a * x[:, :-4] + b * x[:, 1:-3] + d * x[:, 3:-1]
    out[:, 1::2] = middle + d * x[:, 1:-3] + b * x[:, 3:-1] + a * x[:, 4:]
    return out


def enlarge(parents: Field, span: Span) -> Field:
    """The children in `span`, (c, h, w), from their parents in `span.parent()`."""
    tall = _enlarge_rows(parents)
    wide = _enlarge_rows(tall.transpose(0, 2, 1)).transpose(0, 2, 1)
    top, left = span.top % 2, span.left % 2
    height, width = span.shape
    return np.ascontiguousarray(wide[:, top : top + height, left : left + width])
