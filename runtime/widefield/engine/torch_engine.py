"""PyTorch: the same ONNX file as one module; compiled by Inductor on a GPU, run as it is on a CPU.

The oracle on a GPU, and the engine where nothing but PyTorch is at hand. Images lie channels last, which is what
convolutions are quickest in; float32 means float32 (no TF32). On a GPU a graph is captured when it has run twice, and
then replayed: shapes are static, and so are the addresses of what goes in and out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from widefield.engine.base import Array, Engine, EngineOptions
from widefield.engine.graphs import read_graph
from widefield.engine.torch_graph import build_module
from widefield.errors import MissingBackend

WARM_UPS = 2


class TorchEngine(Engine):
    """One module on one device. On a CPU `workers` runs go side by side, on a GPU one after the other."""

    name = "torch"

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[int, ...]],
        parameters: Mapping[str, Array],
        options: EngineOptions,
        *,
        compiled: bool | None = None,
    ) -> None:
        self.device = find_device(options.device)
        graph = read_graph(path, parameters)
        module = build_module(graph, _all_shapes(path, graph.inputs, shapes), options.precision)
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self.threads = options.threads
        self._module: Any = _laid_out(module).to(self.device)
        if options.on_gpu if compiled is None else compiled:
            self._module = torch.compile(self._module, fullgraph=True, dynamic=False)
        self._captured = Captured(self._call) if options.on_gpu else None
        self._turns = threading.BoundedSemaphore(1 if options.on_gpu else options.workers)

    def run(self, feeds: Mapping[str, Array], into: Mapping[str, Array]) -> None:
        if self._module is None:
            raise ValueError("the engine was closed")
        with self._turns, torch.inference_mode():
            given = [_channels_last(torch.from_numpy(_writable(feeds[name])).to(self.device)) for name in self.inputs]
            for name, result in zip(self.outputs, self.compute(given), strict=True):
                torch.from_numpy(into[name]).copy_(result)

    def compute(self, given: Sequence[Tensor]) -> Sequence[Tensor]:
        """Results, on the engine's device and the caller's stream, valid until the next call."""
        return self._call(given) if self._captured is None else self._captured(given)

    def _call(self, given: Sequence[Tensor]) -> Sequence[Tensor]:
        if self.device.type == "cpu" and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        results: Sequence[Tensor] = self._module(*given)
        return results

    def close(self) -> None:
        self._module, self._captured = None, None


class Captured:
    """A function of tensors on a GPU, recorded as a CUDA graph once it has run WARM_UPS times."""

    def __init__(self, call: Callable[[Sequence[Tensor]], Sequence[Tensor]]) -> None:
        self._call = call
        self._runs = 0
        self._graph: Any = None
        self._given: list[Tensor] = []
        self._results: Sequence[Tensor] = ()

    def __call__(self, given: Sequence[Tensor]) -> Sequence[Tensor]:
        if self._graph is None:
            if self._runs < WARM_UPS:
                self._runs += 1
                return self._call(given)
            self._record(given)
        for place, value in zip(self._given, given, strict=True):
            place.copy_(value)
        self._graph.replay()
        return self._results

    def _record(self, given: Sequence[Tensor]) -> None:
        self._given = [torch.empty_like(value) for value in given]
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._results = self._call(self._given)
        self._graph = graph


def find_device(text: str) -> torch.device:
    """The device, which has to be there. MissingBackend says what is wrong with torch's CUDA."""
    device = torch.device(text)
    if device.type == "cpu":
        return device
    if not torch.version.cuda:
        raise MissingBackend(
            f"engine torch cannot use {text}: torch {torch.__version__} is built without CUDA; install one with it "
            "(pip install torch --index-url https://download.pytorch.org/whl/cu130)"
        )
    if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
        raise MissingBackend(
            f"engine torch cannot use {text}: torch sees {torch.cuda.device_count()} GPUs; `widefield doctor` says more"
        )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    return device


def _all_shapes(
    path: Path, inputs: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> Mapping[str, tuple[int, ...]]:
    lacking = [name for name in inputs if name not in shapes]
    if lacking:
        raise ValueError(f"{path}: engine torch wants the shape of every input, {', '.join(lacking)} have none")
    return shapes


def _laid_out(module: Any) -> Any:
    """Convolutions' weights, channels last."""
    for name, value in module.named_buffers(remove_duplicate=False):
        if value.ndim == 4 and value.shape[1] > 1:
            setattr(module, name, value.contiguous(memory_format=torch.channels_last))
    return module


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 and x.shape[1] > 1 else x


def _writable(x: Array) -> Array:
    """torch warns of arrays that may not be written, though nothing writes them here."""
    return x if x.flags.writeable else np.array(x)
