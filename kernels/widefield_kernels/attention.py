"""Attention with keys that are their own values, query rows in blocks.

    out = softmax(q x') x            the scale is in q; exact for any block of rows

Shapes   q: (queries, width), x: (tokens, width), out: (queries, width).
Numbers  the precision of the inputs; give it float64 and it gives the truth. Memory: rows * tokens scores at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def attend_reference(q: NDArray[Any], x: NDArray[Any], *, rows: int = 1024) -> NDArray[Any]:
    """Row by row the softmax is complete, so blocks need no running state."""
    out = np.empty_like(q)
    for start in range(0, len(q), rows):
        scores = q[start : start + rows] @ x.T
        scores -= scores.max(axis=1, keepdims=True)
        np.exp(scores, out=scores)
        out[start : start + rows] = (scores @ x) / scores.sum(axis=1, keepdims=True)
    return out
