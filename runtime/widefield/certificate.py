"""How far the frozen statistics were from the true ones, found while streaming.

The fused graphs also give every norm's true partial statistics over a tile's core, on every fourth row and column
(Component.certified_step), which costs next to nothing. They are merged as they come, and compared at the end with what
the summary had frozen.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from widefield.bundle import Component
from widefield.geometry import Region
from widefield.summary import Summary
from widefield_kernels.norm import Moments, merge_reference

@dataclass(frozen=True, slots=True)
class Certificate:
    """`mean` and `deviation`: the largest differences, over all groups of all norms, in standard deviations."""

    tiles: int
    cells: int
    mean: float
    deviation: float
    site: str

    def __str__(self) -> str:
        if not self.tiles:
            return "nothing to certify: no tile with a norm was made in this run"
        return (
            f"frozen against true statistics on {self.tiles} tiles: means within {self.mean:.3g} and "
            f"deviations within {self.deviation:.3g} standard deviations (worst: {self.site})"
        )


class Certifier:
    """Collects partial statistics from any thread."""

    def __init__(self, component: Component, summary: Summary, height: int, width: int) -> None:
        self.component, self.summary = component, summary
        self.picture = Region(0, 0, height, width)
        self.tiles = self.cells = 0
        self._lock = threading.Lock()
        self._merged: dict[int, Moments] = {}

    def add(self, tile: Region, statistics: Mapping[str, NDArray[np.float32]]) -> None:
        """`site.INDEX.mean` and `.m2`, each (groups,), of one tile's core."""
        core = tile.clipped(self.picture)
        cells = core.area
        with self._lock:
            self.tiles += 1
            self.cells += cells
            for site in self.component.sites:
                mean = statistics.get(f"site.{site.index}.mean")
                if mean is not None:
                    self._merge(site.index, core, mean, statistics[f"site.{site.index}.m2"])

    def _merge(self, index: int, core: Region, mean: NDArray[np.float32], m2: NDArray[np.float32]) -> None:
        site, step = self.component.sites[index], self.component.certified_step
        rows, columns = (-(-side * site.scale // step) for side in (core.height, core.width))
        count = float(rows * columns * (site.channels // site.groups))
        before = self._merged.get(index)
        counts, means, squares = [count], [mean.astype(np.float64)], [m2.astype(np.float64)]
        if before is not None:
            counts, means, squares = [*counts, before.count[0]], [*means, before.mean], [*squares, before.m2]
        self._merged[index] = merge_reference(np.array(counts), np.array(means), np.array(squares))

    def certificate(self) -> Certificate:
        """What was found so far."""
        worst = (0.0, 0.0, "none")
        for index, true in self._merged.items():
            site = self.component.sites[index]
            mean, variance = (self.summary.moments[f"{site.result}.{k}"] for k in ("mean", "variance"))
            deviation = np.sqrt(variance + site.eps)
            off_mean = float(np.max(np.abs(true.mean - mean) / deviation))
            off_deviation = float(np.max(np.abs(np.sqrt(true.variance + site.eps) / deviation - 1.0)))
            if max(off_mean, off_deviation) >= max(worst[:2]):
                worst = max(worst[0], off_mean), max(worst[1], off_deviation), site.origin or site.result
            else:
                worst = max(worst[0], off_mean), max(worst[1], off_deviation), worst[2]
        return Certificate(self.tiles, self.cells, *worst)
