"""What a tile reads: its part of the input with margins, and which of it lies inside the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from widefield.bundle import Component, GraphSpec
from widefield.geometry import Region

Array = NDArray[np.float32]


class Source(Protocol):
    """A component's input: (channels, height, width); zeros outside the picture."""

    @property
    def channels(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    def read(self, region: Region) -> Array: ...


def size_in_cells(component: Component, source: Source) -> tuple[int, int]:
    """(height, width) of the picture in latent cells."""
    return source.height // component.input_scale, source.width // component.input_scale


def gather(component: Component, source: Source, tiles: Sequence[Region], margin: int | None = None) -> Array:
    """(batch, channels, rows, columns) of equal tiles, in cells, with the component's margin (or `margin`) around."""
    scale = component.input_scale
    margin = component.margin_cells if margin is None else margin
    first = tiles[0].grown(margin).scaled(scale)
    out = np.empty((len(tiles), source.channels, first.height, first.width), np.float32)
    for index, tile in enumerate(tiles):
        out[index] = source.read(tile.grown(margin).scaled(scale))
    return out


def graph_margin(component: Component, graph: GraphSpec) -> int:
    """Cells around a tile that a graph's masks cover."""
    return component.margin_cells if graph.mask_cells is None else graph.mask_cells


def inside(component: Component, tiles: Sequence[Region], height: int, width: int, margin: int | None = None) -> Array:
    """(batch, 1, rows, columns), 1 where a cell of the tile or its margin lies in the picture, else 0."""
    margin = component.margin_cells if margin is None else margin
    picture = Region(0, 0, height, width)
    first = tiles[0].grown(margin)
    out = np.zeros((len(tiles), 1, first.height, first.width), np.float32)
    for index, tile in enumerate(tiles):
        reach = tile.grown(margin)
        ys, xs = reach.clipped(picture).shifted(-reach.y0, -reach.x0).slices
        out[index, 0, ys, xs] = 1.0
    return out


def core(component: Component, tiles: Sequence[Region], kept: Sequence[Region]) -> Array:
    """(batch, 1, rows, columns), 1 where a cell belongs to the part of the tile that the picture takes, else 0."""
    first = tiles[0].grown(component.margin_cells)
    out = np.zeros((len(tiles), 1, first.height, first.width), np.float32)
    for index, (tile, part) in enumerate(zip(tiles, kept, strict=True)):
        reach = tile.grown(component.margin_cells)
        out[index, 0, *part.shifted(-reach.y0, -reach.x0).slices] = 1.0
    return out


def is_border(component: Component, tile: Region, height: int, width: int) -> bool:
    """Whether the tile's margin leaves the picture, so that its graph needs masks."""
    return not tile.grown(component.margin_cells).within(Region(0, 0, height, width))


def interior_tiles(component: Component, tile: tuple[int, int], height: int, width: int) -> int:
    """How many tiles of a grid need no masks."""
    inner = [
        (side - component.margin_cells) // step - -(-component.margin_cells // step)
        for side, step in zip((height, width), tile, strict=True)
    ]
    return max(0, inner[0]) * max(0, inner[1])


def input_shapes(
    component: Component, graph: GraphSpec, batch: int, rows: int, columns: int
) -> dict[str, tuple[int, ...]]:
    """Shapes of a graph's inputs, its masks included, for a batch of tiles of rows x columns cells."""
    margin = 2 * graph_margin(component, graph)
    shapes: dict[str, tuple[int, ...]] = {}
    for name in graph.inputs:
        if name in ("inside", "core"):
            shapes[name] = (batch, 1, rows + margin, columns + margin)
        else:
            value = component.values[name]
            value = value if graph.margins is None else replace(value, margin=graph.margins[name])
            shapes[name] = value.shape(batch, rows, columns)
    return shapes


Shapes = Mapping[str, tuple[int, ...]]
