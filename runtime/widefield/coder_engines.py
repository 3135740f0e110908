"""The engines of a component's fused graphs, for one summary and one shape of tiles."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
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
        self._opening: dict[str, threading.Lock] = {}  # so that two threads open two graphs at once, and none twice
        self._attention: dict[str, Attention] = {}
        self._redone = 0
        self._lock = threading.Lock()
        self._running: Counter[Kind] = Counter()
        self._holds: dict[Kind, list[Engine]] = {}  # engines that may keep activations
        self.turns = threading.BoundedSemaphore(options.workers)  # for whoever runs an engine
        self._certifying = threading.Lock()  # certified graphs take the most memory: one tile at a time

    @contextmanager
    def holding(self, kind: Kind) -> Iterator[None]:
        """While a tile of this kind is made, kinds that nobody is making keep no activations (unless `keeps`)."""
        with self._certifying if kind == "certified" else nullcontext():
            with self._lock:
                self._running[kind] += 1
                if not self.options.keeps:
                    self._release([other for other in self._holds if not self._running[other]])
            try:
                yield
            finally:
                with self._lock:
                    self._running[kind] -= 1
                    if kind == "certified" and not self.options.keeps:
                        self._release([kind])

    def _release(self, kinds: Sequence[Kind]) -> None:
        for kind in kinds:
            for engine in self._holds.pop(kind, []):
                engine.release()

    def open_next(self, kinds: Iterable[Kind]) -> bool:
        """Open one of the graphs of these kinds that nobody has opened or is opening, the largest first; False where
        there is none. Threads that call it until then share the work."""
        graphs = [(kind, graph) for kind in kinds for graph in getattr(self.component, kind)]
        with self._lock:
            left = [(kind, graph) for kind, graph in graphs if graph.file not in self._opening]
            if not left:
                return False
            kind, graph = max(left, key=lambda entry: (len(entry[1].live_elements), entry[1].file))
            self._opening[graph.file] = threading.Lock()
        self.engine(kind, graph)
        return True

    def engine(self, kind: Kind, graph: GraphSpec) -> Engine:
        """That graph's, noted as one that a tile of this kind uses."""
        with self._lock:
            opening = self._opening.setdefault(graph.file, threading.Lock())
        with opening:
            if graph.file not in self._engines:
                self._engines[graph.file] = self._opened(kind, graph)
        with self._lock:
            engine = self._engines[graph.file]
            if engine not in self._holds.setdefault(kind, []):
                self._holds[kind].append(engine)
            return engine

    def _opened(self, kind: Kind, graph: GraphSpec) -> Engine:
        shapes = input_shapes(self.component, graph, self.batch, *self.tile)
        options = replace(self.options, workers=1) if kind == "certified" else self.options  # one tile at a time
        return open_engine(self.bundle.file(graph.file), shapes, self.summary.parameters(graph), options)

    def attention(self, result: str) -> Attention:
        """That of the site whose result is called so."""
        with self._lock:
            if result not in self._attention:
                graph = self.bundle.file(str(self.bundle.manifest["attention"]))
                self._attention[result] = Attention(graph, self.summary.keys(result), self.options)
            return self._attention[result]

    @property
    def redone(self) -> int:
        """Calls that overflowed in half precision and were made again in float32, those of closed engines too."""
        with self._lock:
            return self._redone + sum(engine.redone for engine in self._engines.values())

    def close(self) -> None:
        """Give every engine back; calling it twice is harmless."""
        with self._lock:
            self._redone += sum(engine.redone for engine in self._engines.values())
            for engine in self._engines.values():
                engine.close()
            for attention in self._attention.values():
                attention.close()
            self._engines.clear()
            self._attention.clear()
