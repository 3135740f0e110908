"""ONNX Runtime on the CPU. A picture's frozen sites are given as initialisers, so they fold into convolutions.

The first run of a session allocates every activation by itself and learns their pattern; later runs allocate one block.
Without an arena each run's memory comes from the kernel and goes back to it. With one the block stays; what the first
run left behind is dropped, and others wait for it, so the arena holds one block a worker and nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from widefield.engine.base import Array, Engine, EngineOptions
from widefield.errors import BadBundle


class OrtEngine(Engine):
    """One session; ONNX Runtime allows concurrent runs."""

    name = "ort"

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[int, ...]],
        parameters: Mapping[str, Array],
        options: EngineOptions,
    ) -> None:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        settings.enable_cpu_mem_arena = options.keeps
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(a)) for a in parameters.values()]
        if values:
            settings.add_external_initializers(list(parameters), values)
        self._learning = threading.Lock()
        self._learned = not options.keeps
        self._session: onnxruntime.InferenceSession | None = None
        try:
            self._session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        except onnxruntime.capi.onnxruntime_pybind11_state.Fail as cause:
            raise BadBundle(f"{path} does not load: {_first_line(cause)}; export the checkpoint again") from cause
        except onnxruntime.capi.onnxruntime_pybind11_state.InvalidProtobuf as cause:
            raise BadBundle(f"{path} is no ONNX graph: {_first_line(cause)}; copy or export again") from cause

    def run(self, feeds: Mapping[str, Array], into: Mapping[str, Array]) -> None:
        if self._session is None:
            raise ValueError("the engine was closed")
        binding = self._session.io_binding()
        for name, x in feeds.items():
            binding.bind_input(name, "cpu", 0, np.float32, x.shape, x.ctypes.data)
        for name, x in into.items():
            binding.bind_output(name, "cpu", 0, np.float32, x.shape, x.ctypes.data)
        if not self._learned:
            with self._learning:
                if not self._learned:
                    self._session.run_with_iobinding(binding, _shrinking())
                    self._learned = True
                    return
        self._session.run_with_iobinding(binding)

    def close(self) -> None:
        self._session = None


def _shrinking() -> onnxruntime.RunOptions:
    """A run after which the arena is empty."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _first_line(cause: Exception) -> str:
    return str(cause).splitlines()[0]
