"""OpenVINO on the CPU: the same ONNX file, in float32 or bfloat16, one stream a worker."""

from __future__ import annotations

import queue
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from widefield.engine.base import Array, Engine, EngineOptions
from widefield.errors import BadBundle


class OpenVinoEngine(Engine):
    """One compiled model; each of `workers` requests runs in one thread at a time."""

    name = "openvino"

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[int, ...]],
        parameters: Mapping[str, Array],
        options: EngineOptions,
    ) -> None:
        core = _core()
        try:
            model = _read(core, path, parameters)
            model.reshape({name: list(shape) for name, shape in shapes.items()})
        except RuntimeError as cause:
            raise BadBundle(f"{path} does not load: {str(cause).splitlines()[-1]}; export again") from cause
        self._compiled: Any = core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": options.precision,
                "INFERENCE_NUM_THREADS": options.threads * options.workers,
                "NUM_STREAMS": options.workers,
                "ENABLE_CPU_PINNING": False,
            },
        )
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(options.workers):
            self._requests.put(self._compiled.create_infer_request())

    def run(self, feeds: Mapping[str, Array], into: Mapping[str, Array]) -> None:
        if self._compiled is None:
            raise ValueError("the engine was closed")
        request = self._requests.get()
        try:
            for name, x in feeds.items():
                request.set_tensor(name, openvino.Tensor(x, shared_memory=True))
            for name, x in into.items():
                request.set_tensor(name, openvino.Tensor(x, shared_memory=True))
            request.start_async()  # on the stream's thread; `infer` of a single stream runs on the caller's, and keeps
            request.wait()  # activations for every caller
        finally:
            self._requests.put(request)

    def release(self) -> None:
        if self._compiled is not None:
            self._compiled.release_memory()

    def close(self) -> None:
        self._compiled = None
        while not self._requests.empty():
            self._requests.get()


@cache
def _core() -> openvino.Core:
    """The process's one core, which is never closed.

    Loading its CPU plugin gives the calling thread a stack for signals, which closing frees. Closed in another thread,
    as engines are, it would leave the first one with memory that is gone: the next signal, a Ctrl-C, is a crash.
    """
    return openvino.Core()


def _read(core: openvino.Core, path: Path, parameters: Mapping[str, Array]) -> Any:
    """The model with its frozen sites filled in: each is a constant of that name, to be replaced before compiling."""
    model = core.read_model(path)
    for op in model.get_ops():
        if op.get_type_name() == "Constant" and op.get_friendly_name() in parameters:
            value = np.ascontiguousarray(parameters[op.get_friendly_name()])
            constant = openvino.opset13.constant(value)
            for target in op.output(0).get_target_inputs():
                target.replace_source_output(constant.output(0))
    return openvino.Model(sorted(model.get_results(), key=_turn), model.get_parameters(), path.stem)


def _turn(result: Any) -> tuple[bool, int]:
    """Statistics first, site by site. OpenVINO computes results one after the other, each with all it needs: the last
    value first would keep every value between for the statistics that follow, twice the memory."""
    name = result.input_value(0).get_any_name()
    return (False, int(name.split(".")[1])) if name.startswith("site.") else (True, 0)
