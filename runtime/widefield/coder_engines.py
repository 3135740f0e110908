"""The engines of a component's fused graphs, for one summary and one shape of tiles."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Literal

from widefield.attend import Attention
from widefield.bundle import Bundle, Component, GraphSpec
from widefield.engine import Engine, EngineOptions, open_engine
from widefield.summary import Summary
from widefield.tiles import input_shapes

Kind = Literal["interior", "border", "certified"]


class CoderEngines:
    """They open when a tile first needs them: a picture with few interior tiles never loads the interior graphs.

    Safe from `options.workers` threads, which may be making tiles of different pictures.
    """

    def __init__(
        self,
        bundle: Bundle,
        component: Component,
        summary: Summary,
        tile: tuple[int, int],
        batch: int,
        options: EngineOptions,
    ) -> None:
        self.bundle, self.component, self.summary = bundle, component, summary
        self.tile, self.batch, self.options = tile, batch, options
        self._engines: dict[str, Engine] = {}
        self._attention: dict[str, Attention] = {}
        self._lock = threading.Lock()
        self._running: Counter[Kind] = Counter()
        self._holds: dict[Kind, list[Engine]] = {}  # engines that may keep activations
        self.turns = threading.BoundedSemaphore(options.workers)  # for whoever runs an engine
        self._certifying = threading.Lock()  # certified graphs take the most memory: one tile at a time

    @contextmanager
    def holding(self, kind: Kind) -> Iterator[None]:
        """While a tile of this kind is made, kinds that nobody is making keep no activations."""
        with self._certifying if kind == "certified" else nullcontext():
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

    def engine(self, kind: Kind, graph: GraphSpec) -> Engine:
        """That graph's, noted as one that a tile of this kind uses."""
        with self._lock:
            if graph.file not in self._engines:
                shapes = input_shapes(self.component, graph, self.batch, *self.tile)
                parameters = self.summary.parameters(graph)
                self._engines[graph.file] = open_engine(self.bundle.file(graph.file), shapes, parameters, self.options)
            engine = self._engines[graph.file]
            if engine not in self._holds.setdefault(kind, []):
                self._holds[kind].append(engine)
            return engine

    def attention(self, result: str) -> Attention:
        """That of the site whose result is called so."""
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
