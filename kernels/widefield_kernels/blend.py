"""Blend the overlapping windows that cover a region, and take the sampler's step on the result, in one pass.

    m       = sum_j w_j sum_k w_k m_jk   over the windows that cover a cell: j along y, k along x
    w_i     = v_i / sum v                over the windows along the same axis that cover the cell
    v       = min(2i + 1, 2n - 2i - 1)   a tent over the window's n cells, i counted from its origin
    x'      = a x + b m + c n + d h      n: the noise of these coordinates; h: what the step before kept
    kept    = keep_x x + keep_m m        h of the step after

Where two windows overlap by half or less, tents fade one into the other evenly, as gently as can be: windows that drew
unlike detail show where weights change fast, and across an overlap of a quarter a Hann window changes 1.8 times as fast
halfway. v is a whole number. As windows form a grid, a weight is a product of two that need the grid alone. Weights add
up to one to rounding: within 1e-6 where 64 windows along either axis cover a cell. Where a single one does, its weight
is exactly one, and this is the sampler's plain step. x, n and h are not read where their coefficients are 0.

Shapes   windows: (windows of the region, channels, rows, columns of a window); all else: (channels, rows, columns) of
         the region. float32 inside, or float64 if the windows are; one rounding on the way out. Memory: two regions.
Source   Bar-Tal et al., MultiDiffusion, ICML 2023, with weights that are not all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from widefield_kernels.noise import Draw, normal_reference
from widefield_kernels.windows import Axis, WindowGrid

Array = NDArray[Any]

AXIS = ("last", "count", "window", "stride", "shift")
COLUMN_NUMBERS = ("x0", "columns", "last_x", "window_x", "stride_x", "shift_x")  # what a column is the sum of
COEFFICIENTS = ("a", "b", "c", "d", "keep_x", "keep_m")


@dataclass(frozen=True, slots=True)
class Row:
    """The coefficients of one step. As it stands it blends and does nothing else."""

    a: float = 0.0
    b: float = 1.0
    c: float = 0.0
    d: float = 0.0
    keep_x: float = 0.0
    keep_m: float = 0.0

    def check(self, *, x: bool, draw: bool, history: bool, kept: bool) -> None:
        """ValueError where a coefficient has nothing to multiply or to write to; the four say what was given."""
        for name, needed, given in (
            ("x", self.a != 0.0 or self.keep_x != 0.0, x),
            ("draw", self.c != 0.0, draw),
            ("history", self.d != 0.0, history),
            ("kept", self.keep_x != 0.0 or self.keep_m != 0.0, kept),
        ):
            if needed and not given:
                raise ValueError(f"{self} needs {name}, which was not given; give it, or set its coefficient to zero")


BLEND = Row()


class Span(NamedTuple):
    """What one window along an axis gives to a run of cells."""

    cells: slice  # of the run
    inside: slice  # of the window
    weight: Array  # of each of these cells, normalised


def tent_reference(window: int, kind: type = np.float32) -> Array:
    """(window,) weights, not yet normalised: positive, and the same from both ends."""
    i = np.arange(window)
    return np.minimum(2 * i + 1, 2 * (window - i) - 1).astype(kind)


def spans_reference(axis: Axis, low: int, high: int, kind: type = np.float32) -> Iterator[Span]:
    """The windows that cover the cells [low, high), in rising order, with weights that add up to one at each cell."""
    tent = tent_reference(axis.window, kind)
    total: Array = np.zeros(high - low, kind)
    found: list[tuple[slice, slice]] = []
    for k in axis.cover(low, high):
        origin = axis.origin(k)
        first, end = max(origin, low), min(origin + axis.window, high)
        found.append((slice(first - low, end - low), slice(first - origin, end - origin)))
        total[found[-1][0]] += tent[found[-1][1]]
    for cells, inside in found:
        yield Span(cells, inside, tent[inside] / total[cells])


def blend_reference(
    grid: WindowGrid,
    region: tuple[int, int, int, int],
    windows: Sequence[Array] | Array,
    row: Row = BLEND,
    *,
    x: Array | None = None,
    draw: Draw | None = None,
    history: Array | None = None,
    out: Array | None = None,
    kept: Array | None = None,
) -> Array:
    """x' of the region, in `out` if it is given (which may be `x`), else in the windows' dtype; fills `kept` if it is.

    `windows` are those of `grid.windows(region)`, in that order, as one array or one for each. ValueError where they
    are too few or too many or of another size, or where `row` needs what is not given.
    """
    row.check(x=x is not None, draw=draw is not None, history=history is not None, kept=kept is not None)
    m = gather_reference(grid, region, windows)
    kind = m.dtype.type
    fresh = m * kind(row.b)
    if x is not None and row.a != 0.0:
        fresh = kind(row.a) * x.astype(kind, copy=False) + fresh
    if draw is not None and row.c != 0.0:
        fresh += kind(row.c) * normal_reference(*draw, len(m), region).astype(kind, copy=False)
    if history is not None and row.d != 0.0:
        fresh += kind(row.d) * history.astype(kind, copy=False)
    if kept is not None and (row.keep_x != 0.0 or row.keep_m != 0.0):
        m *= kind(row.keep_m)
        if x is not None and row.keep_x != 0.0:
            m = kind(row.keep_x) * x.astype(kind, copy=False) + m
        kept[...] = m
    if out is None:
        out = np.empty(fresh.shape, windows[0].dtype)
    out[...] = fresh
    return out


def gather_reference(grid: WindowGrid, region: tuple[int, int, int, int], windows: Sequence[Array] | Array) -> Array:
    """m of the region: float64 from float64 windows, else float32."""
    y0, x0, y1, x1 = region
    down, across = grid.cover(region)
    wanted = (windows[0].shape[0], *grid.window) if len(windows) else grid.window
    if len(windows) != len(down) * len(across) or any(window.shape != wanted for window in windows):
        shapes = sorted({tuple(window.shape) for window in windows})
        raise ValueError(
            f"{len(windows)} windows of {shapes} for the region {tuple(region)}; wanted {len(down) * len(across)}, "
            f"each (channels, {grid.window[0]}, {grid.window[1]}); give those of grid.windows(region), in its order"
        )
    kind = np.float64 if windows[0].dtype == np.float64 else np.float32
    m = np.zeros((wanted[0], y1 - y0, x1 - x0), kind)
    spans = list(spans_reference(grid.columns, x0, x1, kind))
    for j, y in enumerate(spans_reference(grid.rows, y0, y1, kind)):
        line = np.zeros((wanted[0], len(y.weight), x1 - x0), kind)
        for k, x in enumerate(spans):
            line[:, :, x.cells] += x.weight * windows[j * len(spans) + k][:, y.inside, x.inside]
        line *= y.weight[:, None]
        m[:, y.cells] += line
    return m


def launch_numbers(
    grid: WindowGrid, region: tuple[int, int, int, int], channels: int, row: Row, draw: Draw | None
) -> dict[str, int | float]:
    """What the kernel is given beside pointers and strides, by its own names: the same for every launcher.

    ValueError for a region outside the picture, or noise that the counter cannot hold.
    """
    y0, x0, y1, x1 = region
    down, across = grid.cover(region)
    seed, level, step = draw or Draw(0, 0, 0)
    Draw(seed, level, step).check()
    where = {"y0": y0, "x0": x0, "channels": channels, "rows": y1 - y0, "columns": x1 - x0}
    axes = {
        f"{name}_{at}": getattr(axis, name) for at, axis in (("y", grid.rows), ("x", grid.columns)) for name in AXIS
    }
    slots = {"first_y": down.start, "first_x": across.start, "across": len(across)}
    coefficients = {name: float(getattr(row, name)) for name in COEFFICIENTS}
    return {**where, **axes, **slots, "seed": seed, "level_step": level << 16 | step, **coefficients}


def is_aligned(numbers: Mapping[str, int | float], strides: Iterable[int]) -> bool:
    """Whether the kernel that is compiled for columns in eights may run; addresses must then be multiples of 16."""
    return all(numbers[name] % 8 == 0 for name in COLUMN_NUMBERS) and all(stride % 8 == 0 for stride in strides)
