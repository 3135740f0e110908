"""Where a denoiser's windows lie: a grid in the absolute coordinates of one level, the same whoever asks.

    origin(k) = min(max(k stride - shift, 0), max(size - window, 0))        k = 0 .. count - 1, along each axis
    count     = ceil((size - window + shift) / stride) + 1                   1 where size <= window
    shift     is taken modulo stride, for a whole stride moves the lattice onto itself

So windows repeat every `stride` cells, the first and the last are pushed into the picture, and no two share an origin.
Each has its full size, and lies inside a picture that is at least a window; in a smaller one the only window begins at
0 and reaches beyond the end. Every cell is covered, as no two neighbouring origins are further apart than a window.

Windows are pushed inside and do not hang over, because a denoiser was trained on pictures that end where its window
does, and nothing lies beyond. The price: the last two windows along an axis may overlap in all but one row.

Units  cells of the level's latent. Rows before columns, half-open intervals.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

LARGEST = 2**30 - 1  # cells along an axis of a picture: kernels count in int32
LARGEST_WINDOW = 2**15  # cells along an axis of a window: its square is counted in int32


class Box(NamedTuple):
    """A half-open box [y0, y1) x [x0, x1)."""

    y0: int
    x0: int
    y1: int
    x1: int


@dataclass(frozen=True, slots=True)
class Axis:
    """The windows along one axis. ValueError where they would leave cells uncovered, or are too large to count."""

    size: int
    window: int
    stride: int
    shift: int = 0

    def __post_init__(self) -> None:
        if not (1 <= self.size <= LARGEST and 1 <= self.window <= LARGEST_WINDOW):
            raise ValueError(
                f"windows of {self.window} cells in {self.size}; wanted 1 to {LARGEST_WINDOW} in 1 to {LARGEST}"
            )
        if not 1 <= self.stride <= self.window:
            raise ValueError(
                f"windows of {self.window} cells every {self.stride} cells leave gaps or stand still; wanted a "
                f"stride of 1 to {self.window}"
            )
        object.__setattr__(self, "shift", self.shift % self.stride)

    @property
    def last(self) -> int:
        """The origin of the last window."""
        return max(self.size - self.window, 0)

    @property
    def count(self) -> int:
        return -(-(self.last + self.shift) // self.stride) + 1 if self.last else 1

    def origin(self, k: int) -> int:
        """The first cell of window k. IndexError for another k than 0 .. count - 1."""
        if not 0 <= k < self.count:
            raise IndexError(f"window {k} of {self.count} along this axis")
        return min(max(k * self.stride - self.shift, 0), self.last)

    def cover(self, low: int, high: int) -> range:
        """Which windows share a cell with [low, high), 0 <= low < high <= size; all of them do."""
        first = 0 if low < self.window else (low - self.window + self.shift) // self.stride + 1
        end = self.count if high > self.last else -(-(high + self.shift) // self.stride)
        return range(first, end)


@dataclass(frozen=True, slots=True)
class WindowGrid:
    """The windows of one level and phase: every pair of a window along y and a window along x. Each pair is (y, x)."""

    size: tuple[int, int]
    window: tuple[int, int]
    stride: tuple[int, int]
    shift: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shift", (self.rows.shift, self.columns.shift))

    @property
    def rows(self) -> Axis:
        return Axis(self.size[0], self.window[0], self.stride[0], self.shift[0])

    @property
    def columns(self) -> Axis:
        return Axis(self.size[1], self.window[1], self.stride[1], self.shift[1])

    @property
    def shape(self) -> tuple[int, int]:
        """How many windows down and across."""
        return self.rows.count, self.columns.count

    def phase(self, index: int) -> WindowGrid:
        """The grid of this phase: every other one is shifted by half a stride on both axes.

        A new window's centre then lies where four old ones met. Half a window is the same where windows abut (stride =
        window); where they overlap by half, it is a whole stride, and would move nothing.
        """
        if index % 2 == 0:
            return self
        (dy, dx), (sy, sx) = self.shift, self.stride
        return WindowGrid(self.size, self.window, self.stride, (dy + sy // 2, dx + sx // 2))

    def cover(self, region: tuple[int, int, int, int]) -> tuple[range, range]:
        """Which windows down and which across share a cell with the region; every pair does.

        ValueError for a region that is empty or not inside the picture.
        """
        y0, x0, y1, x1 = region
        if not (0 <= y0 < y1 <= self.size[0] and 0 <= x0 < x1 <= self.size[1]):
            raise ValueError(
                f"region {tuple(region)} of a picture of {self.size[0]} x {self.size[1]} cells; wanted a part of it "
                "that is not empty"
            )
        return self.rows.cover(y0, y1), self.columns.cover(x0, x1)

    def window_at(self, row: int, column: int) -> Box:
        """Where this window lies; distinct windows have distinct boxes. IndexError beyond `shape`."""
        y, x = self.rows.origin(row), self.columns.origin(column)
        return Box(y, x, y + self.window[0], x + self.window[1])

    def windows(self, region: tuple[int, int, int, int]) -> Iterator[Box]:
        """The windows that share a cell with the region, row by row: the order in which blending takes them."""
        down, across = self.cover(region)
        rows, columns = self.rows, self.columns
        origins = [columns.origin(k) for k in across]
        for k in down:
            y = rows.origin(k)
            for x in origins:
                yield Box(y, x, y + self.window[0], x + self.window[1])

    def reach(self, region: tuple[int, int, int, int]) -> Box:
        """What those windows read: from the first one's first cell to the last one's end, clipped to the picture."""
        down, across = self.cover(region)
        low, high = self.window_at(down[0], across[0]), self.window_at(down[-1], across[-1])
        return Box(low.y0, low.x0, min(high.y1, self.size[0]), min(high.x1, self.size[1]))
