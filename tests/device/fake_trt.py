"""TensorRT as far as running an engine goes, on a FakeGpu: what an engine computes, ONNX Runtime computes.

A built engine is the skeleton itself. The context refuses what TensorRT would do wrong without a word: a tensor without
an address, a block that is too small, another context at work in the same block.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from device.fakes import FakeGpu
from widefield.engine.trt_graph import Skeleton

FOLDER = "session.model_external_initializers_file_folder_path"
BLOCK_NBYTES = 5000


class FakeTrt:
    """The module. `plans` are what engines were loaded from; `refuses`: no engine runs."""

    __name__, __version__ = "tensorrt", "11.9.0"
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="ours")

    class ILogger:
        """Says nothing."""

        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu
        self.plans: list[Any] = []
        self.built: list[str] = []
        self.refuses = False
        self.at_work = threading.Lock()

    def Runtime(self, logger: Any) -> SimpleNamespace:
        """With the one method that is used."""
        return SimpleNamespace(deserialize_cuda_engine=self._load)

    def _load(self, plan: Any) -> FakeEngine | None:
        self.plans.append(plan)
        folder, _, model = bytes(plan).partition(b"\n")
        return FakeEngine(self, folder.decode(), model) if model else None

    def build(self, trt: Any, skeleton: Skeleton, **_: Any) -> tuple[memoryview, bytes]:
        """In the place of build_engine."""
        self.built.append(skeleton.path.name)
        return memoryview(str(skeleton.path.parent).encode() + b"\n" + skeleton.model), b""


class FakeEngine:
    """One graph."""

    def __init__(self, trt: FakeTrt, folder: str, model: bytes) -> None:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.add_session_config_entry(FOLDER, folder)
        self.trt = trt
        self.session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]
        shapes = {value.name: tuple(value.shape) for value in self.session.get_inputs()}
        made = self.session.run(self.outputs, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
        self.shapes = shapes | {name: x.shape for name, x in zip(self.outputs, made, strict=True)}
        self.device_memory_size_v2 = BLOCK_NBYTES + len(self.inputs)
        self.num_io_tensors = len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, index: int) -> str:
        """Of an input or a result."""
        return [*self.inputs, *self.outputs][index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """All of them are fixed."""
        return self.shapes[name]

    def create_execution_context(self, strategy: str) -> FakeContext:
        """That brings no memory."""
        assert strategy == "ours"
        return FakeContext(self)


class FakeContext:
    """Runs the engine where it was told that its tensors are."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.gpu = engine, engine.trt.gpu
        self.addresses: dict[str, int] = {}
        self.block = (0, 0)

    def set_tensor_address(self, name: str, address: int) -> None:
        """Of an input or a result."""
        self.addresses[name] = address

    def set_device_memory(self, address: int, nbytes: int) -> None:
        """What it computes in."""
        self.block = address, nbytes

    def execute_async_v3(self, stream: int) -> bool:
        """Computes now, or when what is recorded is launched."""
        engine = self.engine
        assert self.block[1] >= engine.device_memory_size_v2 and self.gpu.arrays[self.block[0]].nbytes == self.block[1]
        assert self.addresses.keys() >= {*engine.inputs, *engine.outputs}
        if engine.trt.refuses:
            return False
        arrays = {name: self.gpu.arrays[address] for name, address in self.addresses.items()}
        self.gpu.does(lambda: self._compute(arrays))
        if self.gpu.recording is None:
            self.gpu.log.append(("enqueue", self.gpu.streams[stream]))
        return True

    def _compute(self, arrays: dict[str, np.ndarray]) -> None:
        engine = self.engine
        assert engine.trt.at_work.acquire(blocking=False), "two engines at once in one block"
        try:
            feeds = {name: np.array(arrays[name]) for name in engine.inputs}
            for name, made in zip(engine.outputs, engine.session.run(engine.outputs, feeds), strict=True):
                arrays[name][...] = made
        finally:
            engine.trt.at_work.release()
