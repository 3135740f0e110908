"""Attention to fixed keys in torch: on a GPU our kernel, in the precision that was asked for; the keys stay there."""

from __future__ import annotations

from collections.abc import Mapping

import torch

import widefield.engine.torch_kernels  # noqa: F401 -- registers torch.ops.widefield
from widefield.engine.base import Array, Engine, EngineOptions
from widefield.engine.torch_engine import find_device
from widefield.engine.torch_graph import HALVES


class TorchAttention(Engine):
    """`run` takes `query` (cells, width) and gives `result`, which has its shape; `keys` were given before."""

    name = "torch"

    def __init__(self, keys: Array, options: EngineOptions) -> None:
        self.device = find_device(options.device)
        self.dtype = HALVES.get(options.precision, torch.float32)
        self.keys: torch.Tensor | None = torch.from_numpy(keys).to(self.device, self.dtype)

    def run(self, feeds: Mapping[str, Array], into: Mapping[str, Array]) -> None:
        if self.keys is None:
            raise ValueError("the engine was closed")
        query = torch.from_numpy(feeds["query"]).to(self.device, self.dtype)
        with torch.inference_mode():
            torch.from_numpy(into["result"]).copy_(torch.ops.widefield.attend(query, self.keys))

    def close(self) -> None:
        self.keys = None
