"""How far the frozen statistics were from the true ones, found while streaming.

Tiles at fixed, scattered places run through graphs that also give every norm's true partial statistics over a lattice
of the tile's core; at the end they are merged and compared with what the summary had frozen. A certificate from a part
of the tiles has a standard error of its own, and says it. (Measuring every tile was tried: it keeps engines from
folding the norms into convolutions, and costs 10-30 % on a CPU.)
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from widefield.bundle import Component
from widefield.geometry import Region
from widefield.summary import Summary
from widefield_kernels.norm import merge_reference, standard_errors

TILES = 64  # about so many are certified
LARGEST_SHARE = 1 / 8


def certified_tiles(tile: tuple[int, int], height: int, width: int) -> int:
    """How many tiles of a picture are certified: about TILES, but at most an eighth, and none where that is one: alone
    it knows no error."""
    wanted = min(TILES, int(-(-height // tile[0]) * -(-width // tile[1]) * LARGEST_SHARE))
    return wanted if wanted >= 2 else 0


def is_certified(tile: Region, height: int, width: int) -> bool:
    """Whether a tile is one of `certified_tiles`.

    One at a scattered place in each of equal runs of its rows of tiles, by place and size alone: the same in every run.
    """
    rows, columns = -(-height // tile.height), -(-width // tile.width)
    tiles, wanted = rows * columns, certified_tiles((tile.height, tile.width), height, width)
    if not wanted:
        return False
    index = tile.y0 // tile.height * columns + tile.x0 // tile.width
    stratum = ((index + 1) * wanted - 1) // tiles
    start, stop = (s * tiles // wanted for s in (stratum, stratum + 1))
    mixed = (stratum * 0x9E3779B1 + 0x165667B1) & 0xFFFFFFFF
    mixed = ((mixed ^ mixed >> 15) * 0xC2B2AE3D) & 0xFFFFFFFF
    return index == start + (mixed ^ mixed >> 13) % (stop - start)


@dataclass(frozen=True, slots=True)
class Certificate:
    """`mean` and `deviation`: the largest differences between frozen and true, over all groups of all norms, in
    standard deviations of the group; `error` is the largest standard error of the true means found."""

    tiles: int
    share: float
    mean: float
    deviation: float
    error: float
    site: str

    def __str__(self) -> str:
        if not self.tiles:
            return "no tile was certified in this run"
        return (
            f"frozen against true statistics on {self.tiles} tiles ({self.share:.0%} of the picture): means within "
            f"{self.mean:.2g}, deviations within {self.deviation:.2g} standard deviations, +- {self.error:.2g}"
        )

    def as_dict(self) -> dict[str, float | int | str]:
        """For --json."""
        return asdict(self)


NOTHING = Certificate(0, 0.0, 0.0, 0.0, 0.0, "none")


class Certifier:
    """Collects partial statistics from any thread."""

    def __init__(self, component: Component, summary: Summary, height: int, width: int) -> None:
        self.component, self.summary = component, summary
        self.picture = Region(0, 0, height, width)
        self._lock = threading.Lock()
        self._cells: list[int] = []
        self._parts: dict[int, list[tuple[NDArray[np.float32], ...]]] = {}

    def add(self, kept: Region, statistics: Mapping[str, NDArray[np.float32]]) -> None:
        """`site.INDEX.mean` and `.m2`, each (groups,), and `.count` (1,), of the part of a tile that is kept."""
        with self._lock:
            self._cells.append(kept.area)
            for site in self.component.sites:
                names = [f"site.{site.index}.{kind}" for kind in ("count", "mean", "m2")]
                if names[0] in statistics:
                    self._parts.setdefault(site.index, []).append(tuple(statistics[name].copy() for name in names))

    def certificate(self) -> Certificate:
        """What was found so far."""
        with self._lock:
            if not self._parts:
                return NOTHING
            share = min(1.0, sum(self._cells) / self.picture.area)
            found = [(*self._compare(index, share), index) for index in self._parts]
        mean, deviation, error = (max(row[k] for row in found) for k in range(3))
        worst = self.component.sites[max(found, key=lambda row: max(row[:2]))[3]]
        return Certificate(len(self._cells), share, mean, deviation, error, worst.origin or worst.result)

    def _compare(self, index: int, share: float) -> tuple[float, float, float]:
        site = self.component.sites[index]
        count, means, squares = (np.array(part, np.float64) for part in zip(*self._parts[index], strict=True))
        count = count[:, 0]
        true = merge_reference(count, means, squares)
        error, _ = standard_errors(count, means, squares, share)
        mean, variance = (self.summary.moments[f"{site.result}.{k}"] for k in ("mean", "variance"))
        deviation = np.sqrt(variance + site.eps)
        return (
            float(np.max(np.abs(true.mean - mean) / deviation)),
            float(np.max(np.abs(np.sqrt(true.variance + site.eps) / deviation - 1.0))),
            float(np.max(error / deviation)),
        )
