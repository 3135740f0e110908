"""What a sweep keeps between two stages, for one set of tiles.

Planes      every tile of the picture, each value once and without margins; read anywhere, zeros outside the picture.
Squares     tiles that are measured alone: each value with all its margins. What they did not make themselves (their
            first stages ran on planes) they read from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from widefield.bundle import Component, GraphSpec, ValueSpec
from widefield.geometry import Region
from widefield.scratch import HeldArray, Scratch
from widefield.tiles import Source, gather, graph_margin, inside

Array = NDArray[np.float32]
WHOLE = (0, 0)


class Held:
    """Values by name, an entry a tile. `inside_cells`: how many cells of each tile lie in the picture; `fraction`: how
    much of the picture all of them are."""

    def __init__(
        self, component: Component, source: Source, size: tuple[int, int], tiles: Sequence[Region], scratch: Scratch
    ) -> None:
        self.component, self.source, self.tiles, self.scratch = component, source, tiles, scratch
        self.height, self.width = size
        self.rows, self.columns = tiles[0].height, tiles[0].width
        self.picture = Region(0, 0, self.height, self.width)
        self.inside_cells = np.array([tile.clipped(self.picture).area for tile in tiles], np.float64)
        self.fraction = min(1.0, float(self.inside_cells.sum()) / self.picture.area)
        self._arrays: dict[str, HeldArray] = {}

    def spec(self, name: str) -> ValueSpec:
        """The value as this set keeps it."""
        return self.component.values[name]

    def shape(self, name: str, count: int) -> tuple[int, ...]:
        """Of `count` tiles' entries."""
        return self.spec(name).shape(count, self.rows, self.columns)

    def hold(self, name: str) -> None:
        """Make room for a value, of every tile."""
        self._arrays[name] = self.scratch.hold(self.shape(name, len(self.tiles)))

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def __getitem__(self, name: str) -> HeldArray:
        return self._arrays[name]

    def feed(self, graph: GraphSpec, name: str, start: int, stop: int) -> Array:
        """What `graph` reads for tiles start..stop: their input, their mask or a held value."""
        tiles = self.tiles[start:stop]
        if name == "inside":
            return inside(self.component, tiles, self.height, self.width, graph_margin(self.component, graph))
        if name == self.component.input:
            cells = None if graph.margins is None else graph.margins[name][0] // self.component.input_scale
            return gather(self.component, self.source, tiles, cells)
        return self._value(graph, name, start, stop)

    def _value(self, graph: GraphSpec, name: str, start: int, stop: int) -> Array:
        return self._arrays[name].load(start, stop)

    def forget(self, wanted: set[str]) -> None:
        """Release what is not wanted any more."""
        for name in [name for name in self._arrays if name not in wanted]:
            self.scratch.release(self._arrays.pop(name))


class Planes(Held):
    """Tiles are a grid, row by row, that covers the picture from its corner."""

    def spec(self, name: str) -> ValueSpec:
        return replace(self.component.values[name], margin=WHOLE)

    def _value(self, graph: GraphSpec, name: str, start: int, stop: int) -> Array:
        margin = WHOLE if graph.margins is None else graph.margins[name]
        if margin == WHOLE:
            return self._arrays[name].load(start, stop)
        return np.concatenate([self.read(name, tile, margin) for tile in self.tiles[start:stop]])

    def read(self, name: str, region: Region, margin: tuple[int, int]) -> Array:
        """(1, ...) the value over a region of cells and `margin` pixels of its own around it."""
        spec = self.spec(name)
        scale = spec.scale or 1
        outer, inner = folded(spec)
        wanted = region.scaled(scale).grown(*margin)
        there = wanted.clipped(self.picture.scaled(scale))
        out = np.zeros((outer, wanted.height, wanted.width, inner), np.float32)
        for index, tile in self._tiles_under(there, scale):
            part = tile.clipped(there)
            rows, columns = part.shifted(-tile.y0, -tile.x0).slices
            lines = self._arrays[name].load_rows(index, outer, tile.height, rows.start, rows.stop)
            to_rows, to_columns = part.shifted(-wanted.y0, -wanted.x0).slices
            out[:, to_rows, to_columns] = lines.reshape(outer, part.height, tile.width, inner)[:, :, columns]
        return out.reshape(replace(spec, margin=margin).shape(1, region.height, region.width))

    def _tiles_under(self, part: Region, scale: int) -> Iterator[tuple[int, Region]]:
        """(index, pixels) of the tiles that a region of pixels lies on."""
        if not part:
            return
        rows, columns = self.rows * scale, self.columns * scale
        across = -(-self.width // self.columns)
        for y in range(part.y0 // rows, -(-part.y1 // rows)):
            for x in range(part.x0 // columns, -(-part.x1 // columns)):
                yield y * across + x, Region(y * rows, x * columns, (y + 1) * rows, (x + 1) * columns)


class Squares(Held):
    """Tiles anywhere in the picture, none of which knows of another."""

    def __init__(
        self,
        component: Component,
        source: Source,
        size: tuple[int, int],
        tiles: Sequence[Region],
        scratch: Scratch,
        planes: Planes | None,
    ) -> None:
        super().__init__(component, source, size, tiles, scratch)
        self.planes = planes

    def _value(self, graph: GraphSpec, name: str, start: int, stop: int) -> Array:
        if name in self or self.planes is None:
            return super()._value(graph, name, start, stop)
        margin = self.component.values[name].margin
        return np.concatenate([self.planes.read(name, tile, margin) for tile in self.tiles[start:stop]])


def folded(spec: ValueSpec) -> tuple[int, int]:
    """(outer, inner): a value is an array (outer, rows, columns, inner), whatever its axes are called."""
    spatial = [i for i, axis in enumerate(spec.axes) if axis in ("rows", "columns", "cells")]
    before, after = spec.axes[: spatial[0]], spec.axes[spatial[-1] + 1 :]
    outer, inner = (math.prod(axis for axis in axes if isinstance(axis, int)) for axes in (before, after))
    return outer, inner
