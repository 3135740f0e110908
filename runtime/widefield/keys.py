"""Which tokens an attention keeps as keys, and how much hangs on the choice."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from widefield.bundle import SiteSpec
from widefield.held import Held, Planes
from widefield.sampling import spread_places, spread_tokens
from widefield_kernels.attention import attend_reference

Array = NDArray[np.float32]


def keys_error(query: Array, keys: Array) -> float:
    """How far the mean over queries (n, width) depends on which keys were drawn, in standard deviations of the result:
    half of what it differs between the two halves of the keys. Averaging over a site's inputs can only lessen it."""
    if len(keys) < 2:
        return 0.0
    one, other = (attend_reference(query, half) for half in (keys[0::2], keys[1::2]))
    apart = np.sqrt(np.mean((one - other).mean(0, dtype=np.float64) ** 2)) / 2
    return float(apart / max(1e-12, float(np.std(one + other) / 2)))


def some_queries(held: Held, site: SiteSpec, tiles: int = 16, each: int = 64) -> Array:
    """A few from tiles everywhere."""
    chosen = np.unique(np.linspace(0, len(held.tiles) - 1, tiles).astype(int))
    found = [held[site.query].load(int(t), int(t) + 1).reshape(-1, site.width) for t in chosen]
    return np.concatenate([queries[:: max(1, len(queries) // each)] for queries in found])


def chosen_tokens(site: SiteSpec, held: Held, limit: int | None, seed: int) -> list[tuple[int, NDArray[np.int64]]]:
    """Of each tile, (index of its first key, which of its tokens become keys): all that lie in the picture, or about
    `limit` of them, spread evenly."""
    per_tile, _ = tokens_of(site, held)
    if isinstance(held, Planes):
        scale = site.scale
        height, width = held.height * scale, held.width * scale
        rows, columns = held.rows * scale, held.columns * scale
        y, x = np.divmod(spread_places(height, width, limit or height * width, seed), width)
        tile, local = y // rows * -(-width // columns) + x // columns, y % rows * columns + x % columns
    else:
        total = len(held.tiles) * per_tile
        tile, local = np.divmod(spread_tokens(1, total, limit or total, seed), per_tile)
    order = np.argsort(tile, kind="stable")
    edges = np.searchsorted(tile[order], np.arange(len(held.tiles) + 1))
    return [(int(a), local[order[a:b]]) for a, b in itertools.pairwise(edges)]


def tokens_of(site: SiteSpec, held: Held) -> tuple[int, int]:
    """(tokens, width) of a tile."""
    return held.rows * held.columns * site.scale**2, site.width
