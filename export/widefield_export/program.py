"""A local program: an autoencoder half as a chain of position-wise and convolutional operations, with its sites named.

Every value has a layout (which axis runs over rows, columns or cells of the picture, and at how many pixels a latent
cell) and a margin: a tile's value covers the tile's core times the scale, and `low` pixels before and `high` after it.
Margins are inferred backwards from the output, whose margin is zero; convolutions are then *valid*, and a value is
never computed further out than somebody needs it.

    convolution k, stride s, padding p     low' = low * s + p        high' = high * s + (k - s - p)
    nearest upsampling by r                low' = ceil(low / r)      high' = ceil(high / r)
    space to depth by r                    low' = low * r            high' = high * r
    a site's statistics                    0: they are taken over tile cores only

No torch here: a program is plain data, so it can be cut, counted and written without a framework.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Role = Literal["batch", "rows", "columns", "cells", "plain"]


@dataclass(frozen=True, slots=True)
class Axis:
    """`size` is the length of a plain axis, 1 for the batch, and the pixels a latent cell (per side) of the others."""

    role: Role
    size: int

    @property
    def spatial(self) -> bool:
        return self.role in ("rows", "columns", "cells")


Layout = tuple[Axis, ...]
Margin = tuple[int, int]


def scale_of(layout: Layout) -> int | None:
    """Pixels a latent cell, per side; None for a value that does not depend on position."""
    return next((axis.size for axis in layout if axis.spatial), None)


def channels_of(layout: Layout) -> int:
    """Elements a position: the product of the plain axes."""
    return int(np.prod([axis.size for axis in layout if axis.role == "plain"], dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Op:
    """One operation. `args` name values; what is constant is in `attrs`, arrays by their name in Program.weights."""

    kind: str
    out: str
    args: tuple[str, ...]
    layout: Layout
    attrs: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""

    def demand(self, margin: Margin) -> list[Margin]:
        """The margin that each argument needs, where the result needs `margin`."""
        low, high = margin
        match self.kind:
            case "conv":
                stride, before, after = self.attrs["stride"], self.attrs["before"], self.attrs["after"]
                return [(low * stride + before, max(0, high * stride + after))]
            case "upsample" | "depth_to_space":
                factor = self.attrs["factor"]
                return [(-(-low // factor), -(-high // factor))]
            case "upsample_conv":  # nearest 2x, then 3 x 3: one more pixel on each side, halved
                return [((low + 2) // 2, (high + 2) // 2)]
            case "space_to_depth":
                factor = self.attrs["factor"]
                return [(low * factor, high * factor)]
            case "attention":
                return [margin, (0, 0)]
            case "cell_sum":
                return [(0, 0)] * len(self.args)
            case _:
                return [margin] * len(self.args)

    def grows_to(self, args: list[Margin]) -> Margin:
        """The margin of the result, where the arguments have exactly `args`: never less than what was demanded."""
        low, high = args[0]
        match self.kind:
            case "conv":
                stride, before, after = self.attrs["stride"], self.attrs["before"], self.attrs["after"]
                return (low - before) // stride, (high - after) // stride
            case "upsample" | "depth_to_space":
                return low * self.attrs["factor"], high * self.attrs["factor"]
            case "upsample_conv":
                return 2 * low - 1, 2 * high - 1
            case "space_to_depth":
                return low // self.attrs["factor"], high // self.attrs["factor"]
            case "cell_sum":
                return 0, 0
            case _:
                return low, high


@dataclass(frozen=True, slots=True)
class Site:
    """An op that looks at the whole picture. `op` names its result; `value` names what is measured (for a linear
    attention, the sum itself). norm: `groups`, `eps`, `gamma`, `beta`; attention: `width`."""

    index: int
    kind: Literal["norm", "attention", "linear_attention"]
    op: str
    value: str
    origin: str
    attrs: Mapping[str, Any]


@dataclass
class Program:
    """A whole decoder or encoder. `ops` are in an order in which they can run."""

    name: str
    input: str
    output: str
    input_layout: Layout
    ops: list[Op]
    weights: dict[str, NDArray[np.float32]]

    def op(self, value: str) -> Op:
        return self.by_name()[value]

    def by_name(self) -> dict[str, Op]:
        return {op.out: op for op in self.ops}

    def layout(self, value: str) -> Layout:
        return self.input_layout if value == self.input else self.op(value).layout

    def layouts(self) -> dict[str, Layout]:
        return {self.input: self.input_layout, **{op.out: op.layout for op in self.ops}}

    def users(self) -> dict[str, list[Op]]:
        """The operations that read each value."""
        found: dict[str, list[Op]] = {self.input: []}
        for op in self.ops:
            found.setdefault(op.out, [])
            for arg in op.args:
                found[arg].append(op)
        return found

    def sites(self) -> list[Site]:
        """The sites in the order in which a sweep freezes them."""
        found: list[Site] = []
        for op in self.ops:
            if op.kind == "norm":
                found.append(Site(len(found), "norm", op.out, op.args[0], op.origin, op.attrs))
            elif op.kind == "attention":
                width = channels_of(op.layout)
                found.append(Site(len(found), "attention", op.out, op.args[1], op.origin, {"width": width}))
            elif op.kind == "cell_sum":
                shape = [axis.size for axis in op.layout if axis.role == "plain"]
                found.append(Site(len(found), "linear_attention", op.out, op.out, op.origin, {"shape": shape}))
        return found

    @property
    def input_scale(self) -> int:
        return scale_of(self.input_layout) or 1

    @property
    def output_scale(self) -> int:
        return scale_of(self.layout(self.output)) or 1

    def margins(self) -> dict[str, Margin]:
        """Every value's margin in its own pixels; the input's is a whole number of cells and the same on both sides."""
        need: dict[str, Margin] = {self.output: (0, 0)}
        for op in reversed(self.ops):
            if op.out not in need:
                continue
            for arg, (low, high) in zip(op.args, op.demand(need[op.out]), strict=True):
                before, after = need.get(arg, (0, 0))
                need[arg] = max(before, low), max(after, high)
        need[self.input] = self.whole_cells(need.get(self.input, (0, 0)))
        return need

    def whole_cells(self, margin: Margin) -> Margin:
        """A margin of the input, rounded up to whole cells and the same on both sides."""
        scale = self.input_scale
        cells = -(-max(margin) // scale)
        return cells * scale, cells * scale

    @property
    def margin_cells(self) -> int:
        """Latent cells around a tile that its result depends on."""
        return self.margins()[self.input][0] // self.input_scale

    def pruned(self) -> Program:
        """Without the operations that the output does not depend on."""
        alive = {self.output}
        kept: list[Op] = []
        for op in reversed(self.ops):
            if op.out in alive:
                kept.append(op)
                alive.update(op.args)
        used = {name for op in kept for name in op.attrs.values() if isinstance(name, str) and name in self.weights}
        weights = {name: array for name, array in self.weights.items() if name in used}
        return Program(self.name, self.input, self.output, self.input_layout, kept[::-1], weights)


def ancestors(program: Program, value: str) -> Iterator[Op]:
    """The ops that `value` depends on, nearest first, each once."""
    by_name, seen, pending = program.by_name(), set[str](), [value]
    while pending:
        name = pending.pop(0)
        if name in seen or name not in by_name:
            continue
        seen.add(name)
        yield by_name[name]
        pending.extend(by_name[name].args)
