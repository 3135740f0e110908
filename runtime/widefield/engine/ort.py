"""ONNX Runtime on the CPU. A picture's frozen sites are given as initialisers, so they fold into convolutions."""

from __future__ import annotations

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
        settings.enable_cpu_mem_arena = False  # an arena keeps what its largest run needed, and grows by doubling
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(a)) for a in parameters.values()]
        if values:
            settings.add_external_initializers(list(parameters), values)
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
        self._session.run_with_iobinding(binding)

    def close(self) -> None:
        self._session = None


def _first_line(cause: Exception) -> str:
    return str(cause).splitlines()[0]
