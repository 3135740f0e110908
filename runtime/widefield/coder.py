"""Run a component's fused graphs on tiles: interior ones without masks, border ones with, attention in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widefield.bundle import Bundle, Component, GraphSpec
from widefield.certificate import Certifier, certified_tiles, is_certified
from widefield.coder_engines import CoderEngines, Kind
from widefield.engine import EngineOptions
from widefield.geometry import Region
from widefield.summary import Summary
from widefield.tiles import Source, core, gather, inside, interior_tiles, is_border, size_in_cells

Array = NDArray[np.float32]
# Masks cost ONNX Runtime a tenth of a tile; opening and warming graphs without them costs each worker about a tile.
# OpenVINO loses a fiftieth, less than the memory is worth.
FEWEST_INTERIOR = {"ort": 64, "openvino": None, "torch": 64, "trt": 64}
NEVER = 1 << 62  # interior tiles from which on graphs without masks are opened: a cone has few, and masks cost 3 %


def has_interior(
    component: Component, tile: tuple[int, int], height: int, width: int, backend: str, fewest: int | None = None
) -> bool:
    """Whether tiles that need no masks run through graphs without: a function of sizes and the engine alone.
    `fewest`: instead of the engine's own number of such tiles."""
    fewest = FEWEST_INTERIOR[backend] if fewest is None else fewest
    return fewest is not None and interior_tiles(component, tile, height, width) >= fewest


@dataclass(frozen=True, slots=True, eq=False)
class PixelTile:
    """A tile that is pixels already, (rows, columns, channels) uint8, and at half the size."""

    pixels: NDArray[np.uint8]
    half: NDArray[np.uint8]


class TileCoder:
    """Tiles of one shape in, arrays (batch, channels, rows, columns) out. Safe to call from `engine.workers` threads.

    `certify=False` where nobody will ask for a certificate: then no tile takes the longer way. `engines` are shared
    with coders of other pictures of the same summary, and outlive this one; without them it opens and closes its own.
    """

    def __init__(
        self,
        bundle: Bundle,
        component: Component,
        source: Source,
        summary: Summary,
        tile: tuple[int, int],
        batch: int,
        options: EngineOptions,
        *,
        interior_from: int | None = None,
        certify: bool = True,
        engines: CoderEngines | None = None,
    ) -> None:
        self.component, self.source, self.summary = component, source, summary
        self.tile, self.batch, self.options = tile, batch, options
        self.engines = engines or CoderEngines(bundle, component, summary, tile, batch, options)
        self._owns = engines is None
        self.height, self.width = size_in_cells(component, source)
        self.certifier = Certifier(component, summary, self.height, self.width)
        self._certifies = certify and any(site.kind == "norm" for site in component.sites)
        backend = options.resolved().backend
        self._has_interior = has_interior(component, tile, self.height, self.width, backend, interior_from)
        self.engine_seconds = 0.0
        self.calls = 0
        self.again = 0  # batches of a coder's own that overflowed and were made again
        self._lock = threading.Lock()

    @property
    def redone(self) -> int:
        """Calls that overflowed in half precision and were made again in float32."""
        return self.engines.redone + self.again

    def kind(self, tile: Region) -> Kind:
        """Which graphs a tile runs through: a function of its place and the picture's size."""
        if self._certifies and is_certified(tile, self.height, self.width):
            return "certified"
        if self._has_interior and not is_border(self.component, tile, self.height, self.width):
            return "interior"
        return "border"

    def open_next(self) -> bool:
        """Open a graph that the whole picture will need and nobody has opened; False where all are open or opening."""
        kinds: list[Kind] = ["border"]
        if self._has_interior:
            kinds.append("interior")
        if self._certifies and certified_tiles(self.tile, self.height, self.width):
            kinds.append("certified")
        return self.engines.open_next(kinds)

    def __call__(self, tiles: Sequence[Region], kept: Sequence[Region] | None = None) -> Array:
        """Up to `batch` tiles of one kind; a short batch is filled up and cut again.

        `kept` is the part of each tile that the picture takes (default: what lies in the picture), which is what a
        certificate counts.
        """
        if kept is None:
            kept = [tile.clipped(Region(0, 0, self.height, self.width)) for tile in tiles]
        kind = self.kind(tiles[0])
        with self.engines.holding(kind):
            return self._decode(kind, tiles, kept)

    def stream(
        self, batches: Iterable[list[Region]], keep: Callable[[Region], Region]
    ) -> Iterator[tuple[list[Region], list[Region], Any]]:
        """(tiles, the part of each that is kept, what was made of each) of batches of tiles of one kind: arrays of
        floats, or where a coder makes pixels itself, PixelTiles."""
        for tiles in batches:
            kept = [keep(tile) for tile in tiles]
            yield tiles, kept, self(tiles, kept)

    def _decode(self, kind: Kind, tiles: Sequence[Region], kept: Sequence[Region]) -> Array:
        full = [*tiles, *[tiles[-1]] * (self.batch - len(tiles))]
        values: dict[str, Array] = {self.component.input: gather(self.component, self.source, full)}
        if kind != "interior":
            values["inside"] = inside(self.component, full, self.height, self.width)
        if kind == "certified":
            values["core"] = core(self.component, full, [*kept, *[kept[-1]] * (self.batch - len(kept))])
        graphs: tuple[GraphSpec, ...] = getattr(self.component, kind)
        statistics: dict[str, Array] = {}
        for index, graph in enumerate(graphs):
            if index > 0:
                self._attend(index - 1, values)
            made = self._run(kind, graph, values)
            statistics |= {name: x for name, x in made.items() if name.startswith("site.")}
            values |= made
            wanted = {name for later in graphs[index + 1 :] for name in later.inputs}
            wanted |= {self.component.output, *(site.query for site in self.component.attentions[index:])}
            values = {name: x for name, x in values.items() if name in wanted}
        for index, part in enumerate(kept if statistics else ()):
            self.certifier.add(part, {name: x[index] for name, x in statistics.items()})
        return values[self.component.output][: len(tiles)]

    def _run(self, kind: Kind, graph: GraphSpec, values: Mapping[str, Array]) -> dict[str, Array]:
        engine = self.engines.engine(kind, graph)
        made: dict[str, Array] = {}
        for name in graph.outputs:
            if name.startswith("site."):
                _, index, what = name.split(".")
                groups = 1 if what == "count" else self.component.sites[int(index)].groups
                made[name] = np.empty((self.batch, groups), np.float32)
            else:
                made[name] = np.empty(self.component.values[name].shape(self.batch, *self.tile), np.float32)
        with self.engines.turns:
            started = time.perf_counter()
            engine.run({name: values[name] for name in graph.inputs}, made)
            self._count(time.perf_counter() - started)
        return made

    def _attend(self, index: int, values: dict[str, Array]) -> None:
        site = self.component.attentions[index]
        attention = self.engines.attention(site.result)
        with self.engines.turns:
            started = time.perf_counter()
            values[site.result] = attention(values.pop(site.query))
            self._count(time.perf_counter() - started)

    def _count(self, seconds: float) -> None:
        with self._lock:
            self.engine_seconds += seconds
            self.calls += 1

    def close(self) -> None:
        """Give every engine of its own back; calling it twice is harmless."""
        if self._owns:
            self.engines.close()
