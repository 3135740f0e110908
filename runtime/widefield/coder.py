"""Run a component's fused graphs on tiles: interior ones without masks, border ones with, attention in between."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from widefield.attend import Attention
from widefield.bundle import Bundle, Component, GraphSpec
from widefield.certificate import Certifier, is_certified
from widefield.engine import Engine, EngineOptions, open_engine
from widefield.geometry import Region
from widefield.summary import Summary
from widefield.tiles import Source, core, gather, input_shapes, inside, interior_tiles, is_border, size_in_cells

Array = NDArray[np.float32]
Kind = Literal["interior", "border", "certified"]
# A mask costs 3 % of a tile; opening and warming graphs without them costs each worker about a tile.
FEWEST_INTERIOR = 64


class TileCoder:
    """Tiles of one shape in, arrays (batch, channels, rows, columns) out. Safe to call from `engine.workers` threads.

    `certify=False` where nobody will ask for a certificate: then no tile takes the longer way.
    Engines open when a tile first needs them: a picture with few interior tiles never loads the interior graphs.
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
        interior_from: int = FEWEST_INTERIOR,
        certify: bool = True,
    ) -> None:
        self.bundle, self.component, self.source, self.summary = bundle, component, source, summary
        self.tile, self.batch, self.options = tile, batch, options
        self.height, self.width = size_in_cells(component, source)
        self.certifier = Certifier(component, summary, self.height, self.width)
        self._certifies = certify and any(site.kind == "norm" for site in component.sites)
        self._has_interior = interior_tiles(component, tile, self.height, self.width) >= interior_from
        self.engine_seconds = 0.0
        self.calls = 0
        self._engines: dict[str, Engine] = {}
        self._attention: dict[str, Attention] = {}
        self._lock = threading.Lock()
        self._running: Counter[Kind] = Counter()
        self._holds: dict[Kind, list[Engine]] = {}  # engines that may keep activations
        self._certifying = threading.Lock()  # certified graphs take the most memory: one tile at a time

    def kind(self, tile: Region) -> Kind:
        """Which graphs a tile runs through: a function of its place and the picture's size."""
        if self._certifies and is_certified(tile, self.height, self.width):
            return "certified"
        if self._has_interior and not is_border(self.component, tile, self.height, self.width):
            return "interior"
        return "border"

    def __call__(self, tiles: Sequence[Region], kept: Sequence[Region] | None = None) -> Array:
        """Up to `batch` tiles of one kind; a short batch is filled up and cut again.

        `kept` is the part of each tile that the picture takes (default: what lies in the picture), which is what a
        certificate counts.
        """
        if kept is None:
            kept = [tile.clipped(Region(0, 0, self.height, self.width)) for tile in tiles]
        kind = self.kind(tiles[0])
        with self._certifying if kind == "certified" else nullcontext(), self._holding(kind):
            return self._decode(kind, tiles, kept)

    @contextmanager
    def _holding(self, kind: Kind) -> Iterator[None]:
        """While a tile of this kind is made, kinds that nobody is making keep no activations."""
        with self._lock:
            self._running[kind] += 1
            self._release([other for other in self._holds if not self._running[other]])
        try:
            yield
        finally:
            with self._lock:
                self._running[kind] -= 1
                if kind == "certified":
                    self._release([kind])

    def _release(self, kinds: Sequence[Kind]) -> None:
        for kind in kinds:
            for engine in self._holds.pop(kind, []):
                engine.release()

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
        engine = self._engine(kind, graph)
        made: dict[str, Array] = {}
        for name in graph.outputs:
            if name.startswith("site."):
                _, index, what = name.split(".")
                groups = 1 if what == "count" else self.component.sites[int(index)].groups
                made[name] = np.empty((self.batch, groups), np.float32)
            else:
                made[name] = np.empty(self.component.values[name].shape(self.batch, *self.tile), np.float32)
        started = time.perf_counter()
        engine.run({name: values[name] for name in graph.inputs}, made)
        self._count(time.perf_counter() - started)
        return made

    def _attend(self, index: int, values: dict[str, Array]) -> None:
        site = self.component.attentions[index]
        attention = self._attention_of(site.result)
        started = time.perf_counter()
        values[site.result] = attention(values.pop(site.query))
        self._count(time.perf_counter() - started)

    def _count(self, seconds: float) -> None:
        with self._lock:
            self.engine_seconds += seconds
            self.calls += 1

    def _engine(self, kind: Kind, graph: GraphSpec) -> Engine:
        with self._lock:
            if graph.file not in self._engines:
                shapes = input_shapes(self.component, graph, self.batch, *self.tile)
                parameters = self.summary.parameters(graph)
                self._engines[graph.file] = open_engine(self.bundle.file(graph.file), shapes, parameters, self.options)
            engine = self._engines[graph.file]
            if engine not in self._holds.setdefault(kind, []):
                self._holds[kind].append(engine)
            return engine

    def _attention_of(self, result: str) -> Attention:
        with self._lock:
            if result not in self._attention:
                graph = self.bundle.file(str(self.bundle.manifest["attention"]))
                self._attention[result] = Attention(graph, self.summary.keys(result), self.options)
            return self._attention[result]

    def close(self) -> None:
        """Give every engine back; calling it twice is harmless."""
        with self._lock:
            for engine in self._engines.values():
                engine.close()
            for attention in self._attention.values():
                attention.close()
            self._engines.clear()
            self._attention.clear()
