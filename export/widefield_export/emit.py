"""Walk a segment's operations with margins, masks and frozen sites; a backend does each operation.

The walk is written once: the ONNX backend writes graphs with it, the torch backend runs it and is the oracle of the
tests. At the picture's border the original pads every convolution's input with zeros, so a border tile multiplies that
input by a mask of what lies inside; an interior tile has no masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from widefield_export.program import Axis, Layout, Margin, Op, Program, Site
from widefield_export.segments import Segment, cells_around

INSIDE = "inside"  # 1 where a cell lies in the picture
CORE = "core"  # 1 where it lies in the picture and in the tile, its margin left out
MASK_LAYOUT: Layout = (Axis("batch", 1), Axis("plain", 1), Axis("rows", 1), Axis("columns", 1))
WHOLE: Margin = (0, 0)


class Backend(Protocol):
    """Operations over handles of the backend's own kind; `extent` is a count of pixels, an int or a handle."""

    def extent(self, x: Any, axis: int, scale: int, margin: int) -> Any: ...
    def grown(self, cells: Any, scale: int, margin: int) -> Any: ...
    def crop(self, x: Any, axes: Sequence[int], low: int, high: int) -> Any: ...
    def reshape(self, x: Any, shape: Sequence[Any]) -> Any: ...
    def run(self, op: Op, args: Sequence[Any]) -> Any: ...
    def multiply(self, x: Any, y: Any) -> Any: ...
    def upsample(self, x: Any, factor: int) -> Any: ...
    def parameter(self, name: str, layout: Layout) -> Any: ...
    def affine(self, x: Any, scale: Any, shift: Any) -> Any: ...
    def every(self, x: Any, step: int) -> Any: ...
    def thin(self, x: Any, step: int, channels: int) -> Any: ...
    def norm_partial(self, x: Any, mask: Any, groups: int, channels: int) -> tuple[Any, Any, Any]: ...


class Walk:
    """Values by name with their margin; `given` are the segment's inputs at exactly the margin that is needed.

    `margins` (default: those of the whole program) says how much that is; masks reach `mask_cells` around the tile.
    """

    def __init__(
        self,
        program: Program,
        backend: Backend,
        given: Mapping[str, Any],
        inside: Any | None,
        core: Any | None = None,
        margins: dict[str, Margin] | None = None,
    ) -> None:
        self.program, self.backend = program, backend
        self.margins = program.margins() if margins is None else margins
        self.mask_cells = program.margin_cells if margins is None else cells_around(program, margins)
        self.layouts = program.layouts()
        self.values = dict(given)
        self.inside, self.core = inside, core
        self.masks: dict[tuple[str, int, Margin], Any] = {}
        self.crops: dict[tuple[str, Margin], Any] = {}
        self.cells = self._tile_cells()

    def _tile_cells(self) -> tuple[Any, Any]:
        """The tile's rows and columns in cells, from any input that shows them."""
        if self.inside is not None:
            margin = 2 * self.mask_cells
            return tuple(self.backend.extent(self.inside, axis, 1, margin) for axis in (2, 3))
        for name, value in self.values.items():
            roles = [axis.role for axis in self.layouts[name]]
            if "rows" in roles and "columns" in roles:
                scale = self.layouts[name][roles.index("rows")].size
                margin = sum(self.margins[name])
                return tuple(
                    self.backend.extent(value, roles.index(role), scale, margin) for role in ("rows", "columns")
                )
        return 0, 0

    def run(self, segment: Segment) -> dict[str, Any]:
        """The segment's outputs."""
        for op in segment.ops:
            self.values[op.out] = self._step(op)
        return {name: self.values[name] for name in segment.outputs}

    def _step(self, op: Op) -> Any:
        need = self.margins[op.out]
        demands = op.demand(need)
        args = [self.at_margin(arg, margin) for arg, margin in zip(op.args, demands, strict=True)]
        if op.kind == "norm":
            rank = len(op.layout)
            scale, shift = (
                self.backend.parameter(f"{op.out}.{p}", channel_layout(op, rank)) for p in ("scale", "shift")
            )
            return self.backend.affine(args[0], scale, shift)
        if op.kind == "apply":
            state = self.program.op(op.args[0])
            args[0] = self.backend.parameter(f"{state.out}.state", state.layout)
        if op.kind == "reshape":
            return self.backend.reshape(args[0], self.shape(op.layout, need))
        if self.inside is not None and self._reaches_out(op):
            args[0] = self.backend.multiply(args[0], self.mask(op.args[0], demands[0]))
        result = self.backend.run(op, args)
        grown = op.grows_to(demands) if op.args else need
        return self.trimmed(result, op.layout, grown, need)

    def _reaches_out(self, op: Op) -> bool:
        return op.kind == "upsample_conv" or (op.kind == "conv" and op.attrs["kernel"] > 1)

    def at_margin(self, name: str, need: Margin) -> Any:
        """The value cropped to `need`; each crop is made once. A frozen sum has no margin and is not a value here."""
        if name not in self.values:
            return None
        have = self.margins[name]
        if have == need or not any(axis.spatial for axis in self.layouts[name]):
            return self.values[name]
        key = name, need
        if key not in self.crops:
            self.crops[key] = self.trimmed(self.values[name], self.layouts[name], have, need)
        return self.crops[key]

    def trimmed(self, x: Any, layout: Layout, have: Margin, need: Margin) -> Any:
        """The value with margin `have` cropped to `need`, flattened cells included."""
        low, high = have[0] - need[0], have[1] - need[1]
        if (low, high) == (0, 0) or not any(axis.spatial for axis in layout):
            return x
        roles = [axis.role for axis in layout]
        if "cells" not in roles:
            return self.backend.crop(x, [roles.index("rows"), roles.index("columns")], low, high)
        at = roles.index("cells")
        scale = layout[at].size
        split = (*layout[:at], Axis("rows", scale), Axis("columns", scale), *layout[at + 1 :])
        x = self.backend.reshape(x, self.shape(split, have))
        return self.backend.reshape(self.backend.crop(x, [at, at + 1], low, high), self.shape(layout, need))

    def shape(self, layout: Layout, margin: Margin) -> list[Any]:
        """A shape for reshaping to; the last dynamic axis is -1, the batch is 0 (as it was)."""
        dynamic = [i for i, axis in enumerate(layout) if axis.spatial]
        sizes: list[Any] = []
        for i, axis in enumerate(layout):
            if axis.role == "batch":
                sizes.append(0)
            elif axis.role == "plain":
                sizes.append(axis.size)
            elif i == dynamic[-1]:
                sizes.append(-1)
            else:
                cells = self.cells[0 if axis.role == "rows" else 1]
                sizes.append(self.backend.grown(cells, axis.size, sum(margin)))
        return sizes

    def mask(self, name: str, margin: Margin) -> Any:
        """1 inside the picture, 0 outside, over a value's pixels: (batch, 1, rows, columns)."""
        return self.mask_of(INSIDE, self.layouts[name], margin)

    def mask_of(self, which: str, layout: Layout, margin: Margin) -> Any:
        """`inside` or `core`, given by cells with the input's margin, over the pixels of a value."""
        scale = next(axis.size for axis in layout if axis.spatial)
        key = which, scale, margin
        if key not in self.masks:
            given = self.inside if which == INSIDE else self.core
            cells = self.mask_cells * scale
            grown = self.backend.upsample(given, scale) if scale > 1 else given
            low, high = cells - margin[0], cells - margin[1]
            self.masks[key] = self.backend.crop(grown, [2, 3], low, high) if low or high else grown
        return self.masks[key]

    def certify(self, site: Site, step: int) -> dict[str, Any]:
        """A norm's partial statistics on every `step`-th row and column of the tile, its margin masked out.

        An odd step visits every phase of the upsamplings before it, and a whole value is read once, by `thin`.
        """
        core = self.mask_of(CORE, self.layouts[site.value], self.margins[site.value])
        value = self.values[site.value]
        if step > 1:
            value = self.backend.thin(value, step, self.layouts[site.value][1].size)
            core = self.backend.every(core, step)
        elif len(self.layouts[site.value]) == 3:
            core = self.backend.reshape(core, [0, 1, -1])
        mean, m2, count = self.backend.norm_partial(value, core, site.attrs["groups"], site.attrs["channels"])
        return {"mean": mean, "m2": m2, "count": count}

    def measure(self, site: Site) -> dict[str, Any]:
        """A site's partial statistics over the core of each tile, what is outside the picture left out."""
        op = self.program.op(site.op)
        mask = self.mask(site.value if site.kind != "linear_attention" else op.args[0], WHOLE)
        if site.kind == "norm":
            core = self.at_margin(site.value, WHOLE)
            if len(op.layout) == 3:
                mask = self.backend.reshape(mask, [0, 1, -1])
            mean, m2, _ = self.backend.norm_partial(core, mask, site.attrs["groups"], site.attrs["channels"])
            return {"mean": mean, "m2": m2}
        if site.kind == "attention":
            return {"tokens": self.at_margin(site.value, WHOLE)}
        left, right = (self.at_margin(arg, WHOLE) for arg in op.args)
        flat = self.backend.reshape(mask, [0, *[1] * (len(op.layout) - 2), -1])
        return {"sum": self.backend.run(op, [self.backend.multiply(left, flat), right])}


def channel_layout(op: Op, rank: int) -> Layout:
    """(1, channels, 1, ...): a parameter for each channel of a value."""
    return (Axis("plain", 1), Axis("plain", op.attrs["channels"]), *[Axis("plain", 1)] * (rank - 2))
