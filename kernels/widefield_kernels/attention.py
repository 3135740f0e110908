"""Softmax attention to keys that come in pages: what has been seen so far is a state, and any order gives one result.

    s   = (scale q k' + c) log2 e            c: the page's constant, 0, or log(N / n) where its n keys stand for N
    m'  = max(m, max s)                      so far: the largest score,
    l'  = l 2^(m - m') + sum 2^(s - m')      the sum of weights,
    o'  = o 2^(m - m') + 2^(s - m') v        and of weighted values, not yet divided by it
    out = o / l                              and 0 where no key has any weight

One pass over the keys with a running maximum is Milakov & Gimelshein (arXiv 1805.02867); o is left undivided until the
end as in FlashAttention-2 (arXiv 2307.08691, section 3.1), so a page costs no division and going on after a page is the
same loop as going on after a block. A constant added to all scores of a page multiplies its weights by e^c.

Shapes   q: (..., queries, width); k: (..., keys, width); v: (..., keys, value width), or none where keys are their own
         values; m, l: (..., queries); o: (..., queries, value width). Leading axes of k and v broadcast to those of q.
Units    c in nats, as logsumexp; m in bits, because powers of two are cheap: logsumexp = (m + log2 l) ln 2.
Numbers  the precision of the inputs, float32 at least, one rounding on the way out: give it float64 and it gives the
         truth. m = -inf says that nothing has been seen; -inf as a constant gives a page no weight.
Memory   rows * (keys + value width) numbers beside the state: both queries and keys go in blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LOG2_E = 1.4426950408889634
ROWS, KEYS = 512, 1024  # of a block: its scores are 2 MB in float32, and stay in a cache


@dataclass(slots=True)
class State:
    """What queries have seen of the keys so far."""

    m: Array
    l: Array  # noqa: E741 (its name in every paper)
    o: Array

    @classmethod
    def empty(cls, queries: tuple[int, ...], width: int, dtype: Any = np.float32) -> Self:
        """Nothing seen, for (..., queries) queries and values of such a width."""
        return cls(np.full(queries, -np.inf, dtype), np.zeros(queries, dtype), np.zeros((*queries, width), dtype))


def attention_reference(
    q: Array, k: Array, v: Array | None = None, *, scale: float, rows: int = ROWS, keys: int = KEYS
) -> Array:
    """All keys in one page: (..., queries, value width) in the dtype of q."""
    inside = np.result_type(q.dtype, np.float32)
    state = State.empty(q.shape[:-1], (k if v is None else v).shape[-1], inside)
    page_reference(state, q, k, v, scale=scale, rows=rows, keys=keys)
    return finish_reference(state).astype(q.dtype, copy=False)


def page_reference(
    state: State,
    q: Array,
    k: Array,
    v: Array | None = None,
    *,
    scale: float,
    constant: float = 0.0,
    rows: int = ROWS,
    keys: int = KEYS,
) -> None:
    """Add a page of keys to the state, in place. A page without keys changes nothing."""
    inside, lead = state.o.dtype, q.shape[:-2]
    v = k if v is None else v
    k, v = (np.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (k, v))
    for at in np.ndindex(lead):
        for block in _blocks(q.shape[-2], rows):
            part = State(state.m[at][block], state.l[at][block], state.o[at][block])
            scaled = q[at][block].astype(inside) * inside.type(scale * LOG2_E)
            for span in _blocks(k.shape[-2], keys):
                _add(part, scaled, k[at][span].astype(inside, copy=False), v[at][span], inside.type(constant * LOG2_E))


def finish_reference(state: State) -> Array:
    """What the queries attend to: (..., queries, value width), in the precision of the state."""
    sums = state.l[..., None]
    return np.divide(state.o, sums, out=np.zeros_like(state.o), where=sums > 0)


def merge_reference(one: State, other: State) -> State:
    """What has been seen of either's keys, which must be different keys."""
    m = np.maximum(one.m, other.m)
    towards = _finite(m)
    a, b = np.exp2(one.m - towards), np.exp2(other.m - towards)
    return State(m, one.l * a + other.l * b, one.o * a[..., None] + other.o * b[..., None])


def attend_reference(q: Array, x: Array, *, rows: int = ROWS) -> Array:
    """softmax(q x') x for one head: q (queries, width), x (tokens, width); the scale is in q."""
    return attention_reference(q, x, scale=1.0, rows=rows)


def _add(state: State, scaled: Array, k: Array, v: Array, constant: Any) -> None:
    """One block of keys, into views of the state."""
    scores = scaled @ k.T
    m = np.maximum(state.m, scores.max(axis=1) + constant)
    towards = _finite(m)
    scores -= (towards - constant)[:, None]
    weights = np.exp2(scores, out=scores)
    fade = np.exp2(state.m - towards)
    state.m[:] = m
    state.l *= fade
    state.l += weights.sum(axis=1)
    state.o *= fade[:, None]
    state.o += weights @ v.astype(weights.dtype, copy=False)


def _finite(m: Array) -> Array:
    """Where nothing has any weight, -inf - -inf would not be a number."""
    return np.where(np.isneginf(m), np.zeros_like(m), m)


def _blocks(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
