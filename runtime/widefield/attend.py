"""Softmax attention between two fused graphs: blocks of queries against the frozen tokens, memory O(block)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from widefield.engine import Engine, EngineOptions, open_engine

Array = NDArray[np.float32]
SCORES_NBYTES = 1 << 20  # of one block: what stays in a core's second cache
LARGEST_SCORES_NBYTES = 16 << 20
PACKED_NBYTES = 1 << 20
FEW_ROWS = 64  # fewer of them do not pay for packing the keys, which every block does


def block_rows(tokens: int) -> int:
    """Query rows of a block, by the memory of their scores; a multiple of 16, and a function of the keys alone."""
    fit, limit = (nbytes // (4 * max(1, tokens)) for nbytes in (SCORES_NBYTES, LARGEST_SCORES_NBYTES))
    return max(16, min(max(fit, FEW_ROWS), limit) // 16 * 16)


def block_nbytes(queries: int, tokens: int) -> int:
    """What one call with so many queries allocates: the scores of a block, which become its weights in place, and what
    a product packs of the keys."""
    return 4 * min(queries, block_rows(tokens)) * tokens + PACKED_NBYTES


class Attention:
    """Attention to fixed keys (tokens, width). On a CPU it runs on ONNX Runtime, whatever the convolutions run on: its
    shapes vary. With the engine `torch` it runs there."""

    def __init__(self, graph: Path, keys: Array, options: EngineOptions) -> None:
        self.keys = np.ascontiguousarray(keys)
        self.rows = block_rows(len(keys))
        self._engine = _attending_engine(graph, self.keys, options)

    def __call__(self, query: Array) -> Array:
        """(batch, cells, width) queries to results of the same shape."""
        flat = np.ascontiguousarray(query).reshape(-1, query.shape[-1])
        out = np.empty_like(flat)
        rows = len(flat) if self._engine.name == "torch" else self.rows
        for start in range(0, len(flat), rows):
            block = slice(start, start + rows)
            self._engine.run({"query": flat[block], "keys": self.keys}, {"result": out[block]})
        return out.reshape(query.shape)

    def close(self) -> None:
        self._engine.close()


def _attending_engine(graph: Path, keys: Array, options: EngineOptions) -> Engine:
    if options.backend == "torch":
        from widefield.engine.torch_attention import TorchAttention

        return TorchAttention(keys, options)
    return open_engine(graph, {}, {}, EngineOptions("ort", "f32", options.threads, options.workers))
