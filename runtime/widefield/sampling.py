"""Which tiles a summary is measured on. Both sets are fixed by the picture's size, the seed and N, never a budget."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from widefield.bundle import Component, evaluate
from widefield.geometry import Region

SWEEP_TILE = 32  # cells; of the exact set
CELL = 4  # cells; the side of a sampled one


def exact_tiles(height: int, width: int) -> list[Region]:
    """Every cell once: a grid of SWEEP_TILE squares, those at the far edges reaching past the picture."""
    rows, columns = min(SWEEP_TILE, height), min(SWEEP_TILE, width)
    return [Region(y, x, y + rows, x + columns) for y in range(0, height, rows) for x in range(0, width, columns)]


def default_cells(height: int, width: int) -> int:
    """N for a picture of height x width cells: a quarter of its side, within 96 and 1024.

    The error falls with N whatever the picture's size, so a larger picture needs a smaller part of itself; and it is N
    that counts, not the squares' size. Calibrated (calibration.py), on a mosaic of photographs of 4 Mpx and with an
    autoencoder trained on photographs, 64 squares of 4 x 4 held 52.6 to 56.2 dB and at most 9 of 255 over four seeds,
    96 of them 53.8 to 57.6 dB and 8 over three, for 1.2 and 1.9 CPU seconds; counted alike, 128 of them 52.1 to 55.9 dB
    and 11, for 2.4. (With the embedded one, 64 held 57.8 to 59.5 dB and 3.)
    """
    return max(96, min(1024, math.isqrt(height * width) // 4))


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


def _jittered(
    side: int, strata: int, which: NDArray[np.int64], draws: NDArray[np.uint64], size: int = CELL
) -> NDArray[np.int64]:
    start, stop = which * side // strata, (which + 1) * side // strata
    room = (stop - start - size + 1).astype(np.uint64)
    return start + (draws % room).astype(np.int64)


def stages(
    component: Component, height: int, width: int, method: str, cells: int | None = None, keys: int | None = None
) -> tuple[int, int, int | None]:
    """(how many of the first stages run over all tiles, N, keys of an attention or None for all) of a sweep."""
    if method == "exact":
        return len(component.sites), 0, None
    count = default_cells(height, width) if cells is None else cells
    keys = component.keys if keys is None else keys
    return plane_stages(component, height, width, count, keys), count, keys


def plane_stages(component: Component, height: int, width: int, count: int, keys: int) -> int:
    """How many of the first stages are cheaper over all tiles of the picture than over `count` squares.

    Early stages have the widest margins: a square of 8 cells of an SD decoder reads 44 x 44 latents. Once a stage runs
    over squares so do all after it. Counted in multiplications, so a function of the size, N and the bundle alone.
    """
    tiles = -(-height // SWEEP_TILE) * -(-width // SWEEP_TILE)
    side = min(SWEEP_TILE, height), min(SWEEP_TILE, width)
    planes, squares = [0], [0]
    for index, site in enumerate(component.sites):
        attending = [0, 0]
        if site.kind == "attention":
            query = component.values[site.query]
            whole = height * width * site.scale**2
            attending = [4 * n * keys * site.width for n in (whole, count * query.positions(CELL, CELL))]
        planes.append(planes[-1] + tiles * evaluate(component.planes[index].flops, *side) + attending[0])
        squares.append(squares[-1] + count * evaluate(component.squares[index].flops, CELL, CELL) + attending[1])
    costs = [plane + squares[-1] - square for plane, square in zip(planes, squares, strict=True)]
    return costs.index(min(costs))


def spread_places(height: int, width: int, keep: int, seed: int) -> NDArray[np.int64]:
    """Indices, ascending, into height x width places in rows: about `keep` of them, one in each of equal strata."""
    if keep >= height * width:
        return np.arange(height * width)
    rows = max(1, min(height, round(math.sqrt(keep * height / width))))
    columns = max(1, min(width, round(keep / rows)))
    draws = np.random.Philox(key=seed + 1).random_raw(2 * rows * columns)
    ys = _jittered(height, rows, np.repeat(np.arange(rows), columns), draws[0::2], 1)
    xs = _jittered(width, columns, np.tile(np.arange(columns), rows), draws[1::2], 1)
    return np.sort(ys * width + xs)


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
