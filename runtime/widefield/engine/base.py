"""What every engine promises, and the one door to the backends."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from widefield.engine.heap import return_freed_memory
from widefield.errors import BadBundle, BadRequest, MissingBackend

Array = NDArray[np.float32]
BACKENDS = ("auto", "ort", "openvino")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """`threads` is for one call; `workers` is how many calls may run at once. `precision` "bf16" needs openvino.

    `keeps`: activations are kept from one run to the next, for every graph that is open. That saves ONNX Runtime a
    fifth of the time; OpenVINO gives them back only where it is told to `release`. For graphs that are always run with
    the same shapes.
    """

    backend: str = "auto"
    precision: Literal["f32", "bf16"] = "f32"
    threads: int = 1
    workers: int = 1
    keeps: bool = False

    def resolved(self) -> EngineOptions:
        """With "auto" decided: OpenVINO where it is installed (the faster one on a CPU), else ONNX Runtime."""
        backend = self.backend
        if backend == "auto":
            backend = "openvino" if importlib.util.find_spec("openvino") else "ort"
        if backend not in BACKENDS:
            raise BadRequest(f"no engine {backend!r}; there are {', '.join(BACKENDS)}")
        if self.precision == "bf16" and backend != "openvino":
            raise BadRequest(f"engine {backend} runs in float32 only; take --engine openvino for bf16")
        return replace(self, backend=backend)


class Engine(ABC):
    """Owns weights and a context, never a feed or a result. `run` may be called from `workers` threads at once."""

    name: str

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
    try:
        match options.backend:
            case "openvino":
                from widefield.engine.openvino_engine import OpenVinoEngine as Backend
            case _:
                from widefield.engine.ort import OrtEngine as Backend  # type: ignore[assignment]
    except ModuleNotFoundError as cause:
        if cause.name not in ("onnxruntime", "openvino"):
            raise
        raise MissingBackend(
            f"engine {options.backend} needs {cause.name}; pip install 'widefield[{cause.name}]'"
        ) from cause
    if not path.is_file():
        raise BadBundle(f"{path} is missing; copy or export the bundle again")
    return_freed_memory()
    return Backend(path, shapes, parameters, options)
