"""Regions, tiles and the order in which they are made. Integers in, integers out.

Units: a *cell* is one latent position; a *pixel* one picture position. Rows before columns, half-open intervals.
Everything is in absolute coordinates of the whole picture, so a tile does not know which plan it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Region:
    """A half-open box [y0, y1) x [x0, x1)."""

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def height(self) -> int:
        return self.y1 - self.y0

    @property
    def width(self) -> int:
        return self.x1 - self.x0

    @property
    def area(self) -> int:
        return self.height * self.width

    def __bool__(self) -> bool:
        return self.y1 > self.y0 and self.x1 > self.x0

    def scaled(self, factor: int) -> Region:
        """The same box in units `factor` times finer."""
        return Region(self.y0 * factor, self.x0 * factor, self.y1 * factor, self.x1 * factor)

    def clipped(self, to: Region) -> Region:
        """The part inside `to`; empty (false) where they do not meet."""
        y0, x0 = max(self.y0, to.y0), max(self.x0, to.x0)
        return Region(y0, x0, max(y0, min(self.y1, to.y1)), max(x0, min(self.x1, to.x1)))

    def pushed(self, into: Region) -> Region:
        """Moved inside of `into`, where it may leave that on two sides, and cut where it is larger."""
        y, x = max(into.y0, min(self.y0, into.y1 - self.height)), max(into.x0, min(self.x0, into.x1 - self.width))
        return Region(y, x, y + self.height, x + self.width).clipped(into)

    def grown(self, low: int, high: int | None = None) -> Region:
        """`low` more before and `high` (default: the same) more after, on both axes."""
        high = low if high is None else high
        return Region(self.y0 - low, self.x0 - low, self.y1 + high, self.x1 + high)

    def within(self, other: Region) -> bool:
        return self.y0 >= other.y0 and self.x0 >= other.x0 and self.y1 <= other.y1 and self.x1 <= other.x1

    def shifted(self, dy: int, dx: int) -> Region:
        return Region(self.y0 + dy, self.x0 + dx, self.y1 + dy, self.x1 + dx)

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.y0, self.y1), slice(self.x0, self.x1)


def morton_order(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Every (row, column) of a grid once, along the Z-order curve: y is the higher bit of each pair.

    Depth first over quadrants of the enclosing power of two; quadrants outside the grid cost nothing, so a grid of
    1024 x 1 is walked in 1024 steps. Source: G. M. Morton, 1966.
    """
    side = 1
    while side < max(rows, columns):
        side *= 2
    pending = [(0, 0, side)] if rows > 0 and columns > 0 else []
    while pending:
        y, x, side = pending.pop()
        if side == 1:
            yield y, x
            continue
        half = side // 2
        for dy, dx in ((half, half), (half, 0), (0, half), (0, 0)):  # a stack: the last one is taken first
            if y + dy < rows and x + dx < columns:
                pending.append((y + dy, x + dx, half))
