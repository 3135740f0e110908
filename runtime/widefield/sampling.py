"""Which tiles a summary is measured on. Both sets are fixed by the picture's size, the seed and N, never a budget."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from widefield.geometry import Region

SWEEP_TILE = 32  # cells; of the exact set
CELL = 8  # cells; the side of a sampled one


def exact_tiles(height: int, width: int) -> list[Region]:
    """Every cell once: a grid of SWEEP_TILE squares, those at the far edges reaching past the picture."""
    rows, columns = min(SWEEP_TILE, height), min(SWEEP_TILE, width)
    return [Region(y, x, y + rows, x + columns) for y in range(0, height, rows) for x in range(0, width, columns)]


def default_cells(height: int, width: int) -> int:
    """N for a picture of height x width cells: 4 sqrt(its 8 x 8 squares), within 256 and 1024.

    The error falls with N whatever the picture's size, so a larger picture needs a smaller part of itself. On a
    mosaic of photographs of 4 Mpx, 256 squares held 55.7 to 59.1 dB and 7 of 255; 128 held 54.5 to 57.4 dB and 11.
    """
    return max(256, min(1024, 4 * math.isqrt(height * width // CELL**2)))


def stratified_cells(height: int, width: int, count: int, seed: int) -> list[Region]:
    """About `count` squares of CELL x CELL cells, one at a random place in each of a grid of equal strata.

    Fewer where the picture has no room for them; never overlapping, always inside. Jittered sampling: R. L. Cook,
    Stochastic sampling in computer graphics, 1986. Raises ValueError for a picture smaller than one square.
    """
    if min(height, width) < CELL:
        raise ValueError(f"a picture of {height} x {width} cells has no room for squares of {CELL}")
    rows = max(1, min(height // CELL, round(math.sqrt(count * height / width))))
    columns = max(1, min(width // CELL, round(count / rows)))
    draws = np.random.Philox(key=seed).random_raw(2 * rows * columns)
    ys = _jittered(height, rows, np.repeat(np.arange(rows), columns), draws[0::2])
    xs = _jittered(width, columns, np.tile(np.arange(columns), rows), draws[1::2])
    return [Region(int(y), int(x), int(y) + CELL, int(x) + CELL) for y, x in zip(ys, xs, strict=True)]


def _jittered(side: int, strata: int, which: NDArray[np.int64], draws: NDArray[np.uint64]) -> NDArray[np.int64]:
    start, stop = which * side // strata, (which + 1) * side // strata
    room = (stop - start - CELL + 1).astype(np.uint64)
    return start + (draws % room).astype(np.int64)


def spread_tokens(tiles: int, per_tile: int, keep: int, seed: int) -> NDArray[np.int64]:
    """Indices into (tiles * per_tile) tokens: `keep` of them, as evenly from every tile as can be, without repeats.

    Token t of a tile is at row t // CELL of it, so runs of tokens are runs of places: one random token of each of
    equal runs is a stratified draw within the tile too.
    """
    total = tiles * per_tile
    if keep >= total:
        return np.arange(total)
    edges = np.arange(keep + 1, dtype=np.int64) * total // keep
    room = np.maximum(edges[1:] - edges[:-1], 1).astype(np.uint64)
    draws = np.random.Philox(key=seed + 1).random_raw(keep)
    places: NDArray[np.int64] = edges[:-1] + (draws % room).astype(np.int64)
    return places
