"""The stage sweep: site after site, run the next stage over a set of tiles, measure over their cores, freeze, go on.

Over all tiles the result is exact: the untiled decode to float rounding. Over stratified squares it is sampled, with
standard errors. What lives between two stages is held in memory or, past the limit, in scratch files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from widefield.attend import Attention
from widefield.bundle import Bundle, Component, GraphSpec, SiteSpec
from widefield.engine import EngineOptions, open_engine
from widefield.geometry import Region
from widefield.sampling import default_cells, exact_tiles, spread_tokens, stratified_cells
from widefield.scratch import HeldArray, Scratch
from widefield.summary import Summary
from widefield.tiles import Source, gather, input_shapes, inside, output_shapes, size_in_cells
from widefield_kernels.norm import freeze_reference, merge_reference, standard_errors

Array = NDArray[np.float32]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """`batch` tiles a call; `held_nbytes` may stay in memory between stages; the rest goes to files in `folder`."""

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
    height, width = size_in_cells(component, source)
    if method == "exact":
        tiles = exact_tiles(height, width)
    else:
        cells = default_cells(height, width) if cells is None else cells
        tiles = stratified_cells(height, width, cells, seed)
        keys = component.keys if keys is None else keys
    sweep = _Sweep(bundle, component, source, tiles, options, seed, keys, progress)
    try:
        summary = sweep.run()
    finally:
        sweep.close()
    about = {
        "method": method, "component": component.name, "bundle": bundle.digest, "seed": str(seed),
        "tiles": str(len(tiles)), "tile": f"{tiles[0].height}x{tiles[0].width}",
        "keys": "all" if keys is None else str(keys),
    }  # fmt: skip
    return Summary(summary.arrays, summary.moments, about)


class _Sweep:
    def __init__(
        self,
        bundle: Bundle,
        component: Component,
        source: Source,
        tiles: Sequence[Region],
        options: SweepOptions,
        seed: int,
        keys: int | None,
        progress: Progress | None,
    ) -> None:
        self.bundle, self.component, self.source, self.tiles = bundle, component, source, tiles
        self.options, self.seed, self.limit_keys, self.progress = options, seed, keys, progress
        # Many small graphs, each for a short time: ONNX Runtime opens one in milliseconds, OpenVINO in a tenth of a
        # second. And so no summary depends on the engine.
        self.engine = replace(options.engine, backend="ort", precision="f32")
        self.height, self.width = size_in_cells(component, source)
        self.rows, self.columns = tiles[0].height, tiles[0].width
        self.scratch = Scratch(options.held_nbytes, options.folder)
        self.held: dict[str, HeldArray] = {}
        self.arrays: dict[str, Array] = {}
        self.moments: dict[str, NDArray[np.float64]] = {}
        self.pool = ThreadPoolExecutor(options.engine.workers)
        picture = Region(0, 0, self.height, self.width)
        self.inside_cells = np.array([tile.clipped(picture).area for tile in tiles], np.float64)
        self.fraction = min(1.0, self.inside_cells.sum() / (self.height * self.width))

    def run(self) -> Summary:
        sites = self.component.sites
        for index, graph in enumerate(self.component.sweep[: len(sites)]):  # the last stage only makes the picture
            site = sites[index]
            self._freeze(site, self._stage(graph, site))
            self._forget(index)
            if self.progress is not None:
                self.progress(index + 1, len(sites))
        return Summary(self.arrays, self.moments)

    def close(self) -> None:
        self.pool.shutdown()
        for held in self.held.values():
            self.scratch.release(held)
        self.held.clear()

    def _batches(self) -> list[tuple[int, int]]:
        step = self.options.batch
        return [(start, min(start + step, len(self.tiles))) for start in range(0, len(self.tiles), step)]

    def _stage(self, graph: GraphSpec, site: SiteSpec) -> dict[str, NDArray[np.float32]]:
        """Run one stage over all tiles; its outputs are held, the site's partial statistics returned."""
        batch = min(self.options.batch, len(self.tiles))
        statistics = {
            name: np.empty((len(self.tiles), *shape), np.float32)
            for name, shape in self._statistic_shapes(site).items()
        }
        for name, shape in output_shapes(
            self.component, self._values(graph), len(self.tiles), self.rows, self.columns
        ).items():
            self.held[name] = self.scratch.hold(shape)
        parameters = Summary(self.arrays, {}).parameters(graph)
        shapes = input_shapes(self.component, graph.inputs, batch, self.rows, self.columns)
        engine = open_engine(self.bundle.file(graph.file), shapes, parameters, self.engine)

        def run(span: tuple[int, int]) -> None:
            start, stop = span
            tiles = [self.tiles[min(i, len(self.tiles) - 1)] for i in range(start, start + batch)]  # a full batch
            feeds = {name: self._feed(name, start, stop, tiles) for name in graph.inputs}
            into = {name: self.held[name].target(start, stop) for name in self._values(graph)}
            into |= {name: array[start:stop] for name, array in statistics.items()}
            full = {name: self._padded(array, batch) for name, array in into.items()}
            engine.run({name: self._padded(x, batch) for name, x in feeds.items()}, full)
            for name, array in into.items():
                if full[name] is not array:
                    array[...] = full[name][: stop - start]
                if name in self.held:
                    self.held[name].store(start, array)

        try:
            list(self.pool.map(run, self._batches()))
        finally:
            engine.close()
        return statistics

    def _padded(self, array: Array, batch: int) -> Array:
        """The array itself, or for the last, short batch a copy filled up with its last tile."""
        if len(array) == batch:
            return array
        return np.concatenate([array, np.repeat(array[-1:], batch - len(array), 0)])

    def _values(self, graph: GraphSpec) -> list[str]:
        return [name for name in graph.outputs if not name.startswith("site.")]

    def _statistic_shapes(self, site: SiteSpec) -> dict[str, tuple[int, ...]]:
        match site.kind:
            case "norm":
                return {f"site.{site.index}.mean": (site.groups,), f"site.{site.index}.m2": (site.groups,)}
            case "attention":
                return {f"site.{site.index}.tokens": (self.rows * self.columns * site.scale**2, site.width)}
            case _:
                return {f"site.{site.index}.sum": site.shape}

    def _feed(self, name: str, start: int, stop: int, tiles: Sequence[Region]) -> Array:
        if name == "inside":
            return inside(self.component, tiles[: stop - start], self.height, self.width)
        if name == self.component.input:
            return gather(self.component, self.source, tiles[: stop - start])
        return self.held[name].load(start, stop)

    def _freeze(self, site: SiteSpec, found: dict[str, NDArray[np.float32]]) -> None:
        parts = {name.rsplit(".", 1)[1]: array for name, array in found.items()}
        match site.kind:
            case "norm":
                self._freeze_norm(site, parts["mean"].astype(np.float64), parts["m2"].astype(np.float64))
            case "attention":
                found.clear()  # so that the tokens go as soon as the keys are chosen
                self._freeze_attention(site, parts.pop("tokens"))
            case _:
                total = parts["sum"].astype(np.float64).sum(0) / self.fraction
                self.arrays[f"{site.result}.state"] = total.astype(np.float32)

    def _freeze_norm(self, site: SiteSpec, mean: NDArray[np.float64], m2: NDArray[np.float64]) -> None:
        count = self.inside_cells * site.scale**2 * (site.channels // site.groups)
        whole = merge_reference(count, mean, m2)
        of_mean, of_variance = standard_errors(count, mean, m2, self.fraction)
        gamma, beta = (self.bundle.weight(self.component.name, name) for name in (site.gamma, site.beta))
        scale, shift = freeze_reference(whole, gamma, beta, site.eps)
        self.arrays[f"{site.result}.scale"], self.arrays[f"{site.result}.shift"] = scale, shift
        self.moments |= {
            f"{site.result}.mean": whole.mean, f"{site.result}.variance": whole.variance,
            f"{site.result}.mean_error": of_mean, f"{site.result}.variance_error": of_variance,
        }  # fmt: skip

    def _freeze_attention(self, site: SiteSpec, tokens: NDArray[np.float32]) -> None:
        """Keep the tokens that lie inside the picture, or a stratified part of them; then attend for every tile."""
        kept = self._inside_picture(site, tokens)
        del tokens
        if self.limit_keys is not None and self.limit_keys < len(kept):
            kept = kept[spread_tokens(1, len(kept), self.limit_keys, self.seed)]
        self.arrays[f"{site.result}.keys"] = np.ascontiguousarray(kept)
        attention = Attention(self.bundle.file(self.bundle.manifest["attention"]), kept, self.engine)
        query = self.held[site.query]
        result = self.scratch.hold(query.shape)
        self.held[site.result] = result

        def run(span: tuple[int, int]) -> None:
            start, stop = span
            target = result.target(start, stop)
            target[...] = attention(query.load(start, stop))
            result.store(start, target)

        try:
            list(self.pool.map(run, self._batches()))
        finally:
            attention.close()

    def _inside_picture(self, site: SiteSpec, tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, width): the tokens of every tile whose cells lie in the picture; the same memory where all do."""
        picture = Region(0, 0, self.height, self.width)
        if all(tile.within(picture) for tile in self.tiles):
            return tokens.reshape(-1, site.width)
        core = np.zeros((len(self.tiles), self.rows * site.scale, self.columns * site.scale), np.bool_)
        for mask, tile in zip(core, self.tiles, strict=True):
            mask[tile.clipped(picture).shifted(-tile.y0, -tile.x0).scaled(site.scale).slices] = True
        return tokens[core.reshape(len(self.tiles), -1)]

    def _forget(self, index: int) -> None:
        """Release what no later stage reads."""
        sites = self.component.sites
        wanted = {name for graph in self.component.sweep[index + 1 :] for name in graph.inputs}
        wanted |= {site.query for site in sites[index + 1 :] if site.kind == "attention"}
        for name in [name for name in self.held if name not in wanted]:
            self.scratch.release(self.held.pop(name))
