"""What every engine promises, and the one door to the backends."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from widefield.engine.heap import return_freed_memory
from widefield.errors import BadBundle, BadRequest, MissingBackend

Array = NDArray[np.float32]
Precision = Literal["f32", "bf16", "f16"]
BACKENDS = ("auto", "ort", "openvino", "torch", "trt")
EXTRAS = {"onnxruntime": "onnxruntime", "openvino": "openvino", "torch": "torch", "onnx": "torch", "tensorrt": "trt",
          "cupy": "gpu"}  # fmt: skip
PRECISIONS: Mapping[str, tuple[Precision, ...]] = {
    "ort": ("f32",), "openvino": ("f32", "bf16"), "torch": ("f32", "bf16", "f16"), "trt": ("f32", "bf16", "f16"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """`threads` is for one call; `workers` is how many calls may run at once. `precision` narrower than "f32" is
    guarded: what overflows is computed again in float32. `device` is "cpu" or "cuda:N"; `plugin` is a library of ONNX
    Runtime that holds its CUDA execution provider.

    `keeps`: activations are kept from one run to the next, for every graph that is open. That saves ONNX Runtime a
    fifth of the time; OpenVINO gives them back only where it is told to `release`. For graphs that are always run with
    the same shapes.
    """

    backend: str = "auto"
    precision: Precision = "f32"
    threads: int = 1
    workers: int = 1
    keeps: bool = False
    device: str = "cpu"
    plugin: Path | None = None

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def gpu(self) -> int:
        """Its number."""
        return int(self.device.partition(":")[2])

    def resolved(self) -> EngineOptions:
        """With "auto" decided: on a CPU OpenVINO where it is installed (the faster one), else ONNX Runtime; on a GPU
        TensorRT, else torch, else ONNX Runtime."""
        device = check_device(self.device)
        order = (
            (("tensorrt", "trt"), ("tensorrt_rtx_bindings", "trt"), ("torch", "torch"))
            if device != "cpu"
            else (("openvino", "openvino"),)
        )
        backend = self.backend
        if backend == "auto":
            backend = next((name for module, name in order if importlib.util.find_spec(module)), "ort")
        if backend not in BACKENDS:
            raise BadRequest(f"no engine {backend!r}; there are {', '.join(BACKENDS)}")
        if backend == "openvino" and device != "cpu":
            raise BadRequest(
                f"engine openvino runs on the CPU, {device} was asked for; take --engine trt, torch or ort"
            )
        if backend == "trt" and device == "cpu":
            raise BadRequest("engine trt runs on a GPU; add --device cuda:0")
        if self.precision not in PRECISIONS[backend]:
            raise BadRequest(_unable(backend, self.precision))
        return replace(self, backend=backend, device=device)


def check_device(text: str) -> str:
    """ "cpu" or "cuda:N"; "cuda" is the first. BadRequest for anything else."""
    device = "cuda:0" if text == "cuda" else text
    kind, _, number = device.partition(":")
    if device != "cpu" and not (kind == "cuda" and number.isdecimal()):
        raise BadRequest(f"no device {text!r}; wanted cpu or cuda:N")
    return device


def _unable(backend: str, precision: str) -> str:
    if precision not in PRECISIONS["torch"]:
        return f"no precision {precision!r}; there are {', '.join(PRECISIONS['torch'])}"
    if backend == "ort":
        return f"engine ort runs in float32 only; take --engine openvino for bf16, torch or trt for {precision}"
    return f"engine {backend} does not run in {precision}; it runs in {', '.join(PRECISIONS[backend])}"


class Engine(ABC):
    """Owns weights and a context, never a feed or a result. `run` may be called from `workers` threads at once."""

    name: str
    redone = 0  # runs that overflowed and were made again in float32

    @abstractmethod
    def run(self, feeds: Mapping[str, Array], into: Mapping[str, Array]) -> None:
        """Fill `into`. Every array is C-contiguous float32 with the shape the engine was opened for."""

    def release(self) -> None:  # noqa: B027 -- a backend that keeps nothing has nothing to do
        """Give the activations back until the next run, while nothing runs."""

    @abstractmethod
    def close(self) -> None:
        """Give the weights and the context back; calling it twice is harmless."""


def open_engine(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    parameters: Mapping[str, Array],
    options: EngineOptions,
) -> Engine:
    """An engine for one graph: `shapes` fixes every input, `parameters` fills the graph's frozen sites."""
    options = options.resolved()
    backend = _backend("ort on a GPU" if options.backend == "ort" and options.on_gpu else options.backend)
    if not path.is_file():
        raise BadBundle(f"{path} is missing; copy or export the bundle again")
    return_freed_memory()
    engine: Engine = backend(path, shapes, parameters, options)
    if options.precision == "f32":
        return engine
    from widefield.engine.guard import Guarded

    wide = replace(options, precision="f32")
    return Guarded(engine, lambda: open_engine(path, shapes, parameters, wide))


def _backend(name: str) -> Any:
    """An engine's class, imported now. MissingBackend names the extra of a library that is not there."""
    with importing(name):
        match name:
            case "openvino":
                from widefield.engine.openvino_engine import OpenVinoEngine

                return OpenVinoEngine
            case "torch":
                from widefield.engine.torch_engine import TorchEngine

                return TorchEngine
            case "trt":
                from widefield.engine.trt import TrtEngine

                return TrtEngine
            case "ort on a GPU":
                from widefield.engine.ort_cuda import OrtCudaEngine

                return OrtCudaEngine
            case _:
                from widefield.engine.ort import OrtEngine

                return OrtEngine


@contextmanager
def importing(engine: str) -> Iterator[None]:
    """What is imported here is an engine's: MissingBackend names the extra of a library that is not there."""
    try:
        yield
    except ModuleNotFoundError as cause:
        if cause.name not in EXTRAS:
            raise
        name = engine.split()[0]
        extra = name if cause.name == "onnx" else EXTRAS[cause.name]
        raise MissingBackend(f"engine {name} needs {cause.name}; pip install 'widefield[{extra}]'") from cause
