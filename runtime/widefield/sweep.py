"""The stage sweep: site after site, run the next stage over a set of tiles, measure over their cores, freeze, go on.

Over all tiles ("planes") the result is exact: the untiled decode to float rounding. Over stratified squares it is
sampled, with standard errors; the first stages of a sampled sweep still run over all tiles where that costs less.
What lives between two stages is held in memory or, past the limit, in scratch files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from widefield.attend import Attention
from widefield.bundle import Bundle, Component, GraphSpec, SiteSpec
from widefield.calibration import Calibration, calibrated, even
from widefield.engine import EngineOptions, open_engine
from widefield.held import Held, Planes, Squares
from widefield.keys import chosen_tokens, keys_error, some_queries, tokens_of
from widefield.sampling import exact_tiles, stages, stratified_cells
from widefield.scratch import Scratch
from widefield.summary import Summary
from widefield.tiles import Source, input_shapes, size_in_cells
from widefield_kernels.norm import freeze_reference, merge_reference

Array = NDArray[np.float32]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """`batch` squares a call; `held_nbytes` may stay in memory between stages; the rest goes to files in `folder`."""

    batch: int
    held_nbytes: int
    folder: Path
    engine: EngineOptions = field(default_factory=EngineOptions)


def measure(
    bundle: Bundle,
    component: Component,
    source: Source,
    method: Literal["exact", "sampled"],
    options: SweepOptions,
    *,
    cells: int | None = None,
    seed: int = 0,
    keys: int | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Measure a picture's summary. It depends on the source, the seed, the number of cells and of keys alone."""
    size = size_in_cells(component, source)
    scratch = Scratch(options.held_nbytes, options.folder)
    on_planes, count, keys = stages(component, *size, method, cells, keys)
    planes = Planes(component, source, size, exact_tiles(*size), scratch) if on_planes else None
    squares = None
    if on_planes < len(component.sites):
        squares = Squares(component, source, size, stratified_cells(*size, count, seed), scratch, planes)
    sweep = _Sweep(bundle, component, planes, squares, on_planes, options, seed, keys, progress)
    try:
        summary = sweep.run()
    finally:
        sweep.close()
    about = {
        "method": method, "component": component.name, "bundle": bundle.digest, "seed": str(seed),
        "stages_on_planes": str(on_planes), "tile": f"{planes.rows}x{planes.columns}" if planes else "none",
        "squares": str(len(squares.tiles) if squares else 0),
        "keys": "all" if keys is None else str(keys),
    }  # fmt: skip
    return replace(summary, about=about)


class _Sweep:
    def __init__(
        self,
        bundle: Bundle,
        component: Component,
        planes: Planes | None,
        squares: Squares | None,
        on_planes: int,
        options: SweepOptions,
        seed: int,
        keys: int | None,
        progress: Progress | None,
    ) -> None:
        self.bundle, self.component, self.options = bundle, component, options
        self.planes, self.squares, self.on_planes = planes, squares, on_planes
        self.seed, self.limit_keys, self.progress = seed, keys, progress
        # Many small graphs, each for a short time: ONNX Runtime opens one in milliseconds, OpenVINO in a tenth of a
        # second. And so no summary depends on the engine.
        self.engine = replace(options.engine, backend="ort", precision="f32", keeps=True, device="cpu")
        self.arrays: dict[str, Array] = {}
        self.moments: dict[str, NDArray[np.float64]] = {}
        self.keys_error = 0.0  # of sites after sampled attentions, in standard deviations
        self.engine_seconds: list[float] = []  # of every call, from any worker
        self.calibration = None if squares is None else calibrated(component, squares)
        self.pool = ThreadPoolExecutor(options.engine.workers)

    def run(self) -> Summary:
        sites = self.component.sites
        for site in sites:
            held, graph = self._where(site.index)
            batch = 1 if held is self.planes else min(self.options.batch, len(held.tiles))
            if site.kind == "attention":
                self._choose_keys(site, held)
            self._freeze(site, held, self._stage(graph, site, held, batch), batch)
            self._forget(site.index)
            if self.progress is not None:
                self.progress(site.index + 1, len(sites))
        return Summary(self.arrays, self.moments, engine_seconds=sum(self.engine_seconds))

    def close(self) -> None:
        self.pool.shutdown()
        for held in (self.planes, self.squares):
            if held is not None:
                held.forget(set())

    def _where(self, index: int) -> tuple[Held, GraphSpec]:
        """The tiles that a stage runs over, and its graph for them."""
        if index < self.on_planes:
            assert self.planes is not None
            return self.planes, self.component.planes[index]
        assert self.squares is not None
        return self.squares, self.component.squares[index]

    def _counting(self, held: Held) -> Calibration:
        """How much each tile of a set counts."""
        if held is self.squares and self.calibration is not None:
            return self.calibration
        return even(len(held.tiles), held.fraction)

    def _over(self, held: Held, batch: int, call: Callable[[int, int], None]) -> None:
        """Run `call(start, stop)` for all tiles, on the workers."""
        count = len(held.tiles)
        starts = range(0, count, batch)
        list(self.pool.map(call, starts, (min(start + batch, count) for start in starts)))

    @contextmanager
    def _counted(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.engine_seconds.append(time.perf_counter() - started)

    def _stage(self, graph: GraphSpec, site: SiteSpec, held: Held, batch: int) -> dict[str, Array]:
        """Run one stage over all tiles; its outputs are held, the site's partial statistics returned."""
        values = [name for name in graph.outputs if not name.startswith("site.")]
        for name in values:
            held.hold(name)
        shapes = {f"site.{site.index}.{what}": shape for what, shape in _statistics(site, held).items()}
        found = {name: np.empty((len(held.tiles), *shape), np.float32) for name, shape in shapes.items()}
        engine = open_engine(
            self.bundle.file(graph.file), input_shapes(self.component, graph, batch, held.rows, held.columns),
            Summary(self.arrays, {}).parameters(graph), self.engine,
        )  # fmt: skip

        def run(start: int, stop: int) -> None:
            feeds = {name: held.feed(graph, name, start, stop) for name in graph.inputs}
            into = {name: held[name].target(start, stop) for name in values}
            into |= {name: array[start:stop] for name, array in found.items()}
            if site.kind == "attention":
                into[f"site.{site.index}.tokens"] = np.empty((stop - start, *tokens_of(site, held)), np.float32)
            full = {name: _filled(array, batch) for name, array in into.items()}
            feeds = {name: _filled(x, batch) for name, x in feeds.items()}
            with self._counted():
                engine.run(feeds, full)
            for name, array in into.items():
                if full[name] is not array:
                    array[...] = full[name][: stop - start]
                if name in held:
                    held[name].store(start, array)
            if site.kind == "attention":
                self._keep_keys(site, start, into[f"site.{site.index}.tokens"])

        try:
            self._over(held, batch, run)
        finally:
            engine.close()
        return found

    def _freeze(self, site: SiteSpec, held: Held, found: dict[str, Array], batch: int) -> None:
        parts = {name.rsplit(".", 1)[1]: array.astype(np.float64) for name, array in found.items()}
        match site.kind:
            case "norm":
                self._freeze_norm(site, held, parts["mean"], parts["m2"])
            case "attention":
                self._attend(site, held, batch)
            case _:
                total = np.tensordot(self._counting(held).weights, parts["sum"], 1) / held.fraction
                self.arrays[f"{site.result}.state"] = total.astype(np.float32)

    def _freeze_norm(self, site: SiteSpec, held: Held, mean: NDArray[np.float64], m2: NDArray[np.float64]) -> None:
        count = held.inside_cells * site.scale**2 * (site.channels // site.groups)
        counting = self._counting(held)
        weights = counting.weights
        whole = merge_reference(count * weights, mean, m2 * weights[:, None])
        of_mean, of_variance = counting.standard_errors(count, mean, m2)
        of_mean = np.hypot(of_mean, self.keys_error * np.sqrt(whole.variance))
        of_variance = np.hypot(of_variance, 2 * self.keys_error * whole.variance)
        gamma, beta = (self.bundle.weight(self.component.name, name) for name in (site.gamma, site.beta))
        scale, shift = freeze_reference(whole, gamma, beta, site.eps)
        self.arrays[f"{site.result}.scale"], self.arrays[f"{site.result}.shift"] = scale, shift
        self.moments |= {
            f"{site.result}.mean": whole.mean, f"{site.result}.variance": whole.variance,
            f"{site.result}.mean_error": of_mean, f"{site.result}.variance_error": of_variance,
        }  # fmt: skip

    def _choose_keys(self, site: SiteSpec, held: Held) -> None:
        """Fix which tokens of which tile become keys, and make room for them."""
        self.places = chosen_tokens(site, held, self.limit_keys, self.seed)
        total = sum(len(local) for _, local in self.places)
        self.arrays[f"{site.result}.keys"] = np.empty((total, site.width), np.float32)

    def _keep_keys(self, site: SiteSpec, start: int, tokens: Array) -> None:
        keys = self.arrays[f"{site.result}.keys"]
        for (first, local), of_tile in zip(self.places[start:], tokens, strict=False):
            keys[first : first + len(local)] = of_tile[local]

    def _attend(self, site: SiteSpec, held: Held, batch: int) -> None:
        keys = self.arrays[f"{site.result}.keys"]
        attention = Attention(self.bundle.file(self.bundle.manifest["attention"]), keys, self.engine)
        held.hold(site.result)

        def run(start: int, stop: int) -> None:
            target = held[site.result].target(start, stop)
            query = held[site.query].load(start, stop)
            with self._counted():
                target[...] = attention(query)
            held[site.result].store(start, target)

        try:
            self._over(held, batch, run)
        finally:
            attention.close()
        if self.limit_keys is not None:
            self.keys_error = math.hypot(self.keys_error, keys_error(some_queries(held, site), keys))

    def _forget(self, index: int) -> None:
        """Release what no later stage reads."""
        later = range(index + 1, len(self.component.sites))
        wanted = {name for i in later for name in self._where(i)[1].inputs}
        wanted |= {site.query for site in self.component.sites[index + 1 :] if site.kind == "attention"}
        for held in (self.planes, self.squares):
            if held is not None:
                held.forget(wanted)


def _statistics(site: SiteSpec, held: Held) -> dict[str, tuple[int, ...]]:
    """The partial statistics of a site that every tile leaves, and their shapes; tokens are kept apart."""
    match site.kind:
        case "norm":
            return {"mean": (site.groups,), "m2": (site.groups,)}
        case "attention":
            return {}
        case _:
            return {"sum": site.shape}


def _filled(array: Array, batch: int) -> Array:
    """The array itself, or for the last, short batch a copy filled up with its last tile."""
    if len(array) == batch:
        return array
    return np.concatenate([array, np.repeat(array[-1:], batch - len(array), 0)])
