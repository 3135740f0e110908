"""What a bundle's manifest says of a decoder or an encoder: its values, sites and graphs. See widefield.bundle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Polynomial = tuple[int, int, int]


def evaluate(polynomial: Polynomial, rows: int, columns: int) -> int:
    """a rc + b (r + c) + c."""
    a, b, c = polynomial
    return a * rows * columns + b * (rows + columns) + c


@dataclass(frozen=True, slots=True)
class ValueSpec:
    """A value that goes in or out of a graph. `scale` is None where it does not depend on position."""

    axes: tuple[int | str, ...]
    channels: int
    scale: int | None
    margin: tuple[int, int]

    def shape(self, batch: int, rows: int, columns: int) -> tuple[int, ...]:
        """The array's shape for a batch of tiles of rows x columns cells."""
        scale, extra = self.scale or 1, sum(self.margin)
        sides = {"batch": batch, "rows": rows * scale + extra, "columns": columns * scale + extra}
        sides["cells"] = sides["rows"] * sides["columns"]
        return tuple(axis if isinstance(axis, int) else sides[axis] for axis in self.axes)

    def positions(self, rows: int, columns: int) -> int:
        """How many of the picture's positions one tile's value covers."""
        scale, extra = self.scale or 1, sum(self.margin)
        return (rows * scale + extra) * (columns * scale + extra)

    def nbytes(self, batch: int, rows: int, columns: int) -> int:
        return 4 * math.prod(self.shape(batch, rows, columns))


@dataclass(frozen=True, slots=True)
class SiteSpec:
    """An op that looks at the whole picture."""

    index: int
    kind: Literal["norm", "attention", "linear_attention"]
    result: str
    origin: str
    scale: int
    groups: int = 0
    channels: int = 0
    eps: float = 0.0
    gamma: str = ""
    beta: str = ""
    width: int = 0
    query: str = ""
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One ONNX file. `parameters` are frozen values by shape; masked graphs also take `inside`, certified
    ones `core` too. `margins`, of a graph over planes: of its inputs; its results have none."""

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: Mapping[str, tuple[int, ...]]
    flops: Polynomial
    live_elements: tuple[Polynomial, ...]
    margins: Mapping[str, tuple[int, int]] | None = None
    mask_cells: int | None = None

    @property
    def masked(self) -> bool:
        return "inside" in self.inputs

    def peak_nbytes(self, batch: int, rows: int, columns: int) -> int:
        """Bytes of the activations alive together, at most, in float32."""
        return 4 * batch * max((evaluate(p, rows, columns) for p in self.live_elements), default=0)


@dataclass(frozen=True, slots=True)
class Component:
    """A decoder or an encoder."""

    name: str
    input: str
    output: str
    margin_cells: int
    values: Mapping[str, ValueSpec]
    sites: tuple[SiteSpec, ...]
    squares: tuple[GraphSpec, ...]
    planes: tuple[GraphSpec, ...]
    interior: tuple[GraphSpec, ...]
    border: tuple[GraphSpec, ...]
    certified: tuple[GraphSpec, ...]
    flops_per_cell: int
    keys: int

    @property
    def graphs(self) -> tuple[GraphSpec, ...]:
        return (*self.squares, *self.planes, *self.interior, *self.border, *self.certified)

    @property
    def attentions(self) -> tuple[SiteSpec, ...]:
        return tuple(site for site in self.sites if site.kind == "attention")

    @property
    def input_scale(self) -> int:
        return self.values[self.input].scale or 1

    @property
    def output_scale(self) -> int:
        return self.values[self.output].scale or 1

    @property
    def input_channels(self) -> int:
        return self.values[self.input].channels

    @property
    def output_channels(self) -> int:
        return self.values[self.output].channels

    def flops(self, rows: int, columns: int) -> int:
        """Of the fused graphs on one tile of rows x columns cells, margins included, attention left out."""
        return sum(evaluate(graph.flops, rows, columns) for graph in self.interior)
