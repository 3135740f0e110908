"""ONNX Runtime on a GPU, with a fake of it that records: what it is told, and that it may not fall back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from device.fakes import FakeGpu
from widefield.engine import EngineOptions, open_engine, ort_cuda
from widefield.errors import MissingBackend
from widefield.model import EMBEDDED

CUDA = EngineOptions("ort", device="cuda:1")
ATTENTION = EMBEDDED / "attention.onnx"


class FakeBinding:
    def __init__(self, log: list) -> None:
        self.log = log

    def bind_input(self, name, kind, number, dtype, shape, address):
        self.log.append(("input", name, kind, number, tuple(shape), address))

    def bind_output(self, name, kind, number, dtype, shape, address):
        self.log.append(("output", name, kind, number, tuple(shape), address))


class FakeSession:
    given = "CUDAExecutionProvider"
    refusal = ""  # what is said to who wants CUDA graphs

    def __init__(self, path, settings, providers=None) -> None:
        if self.refusal and providers[0][1].get("enable_cuda_graph") == "1":
            raise ort_cuda.onnxruntime.capi.onnxruntime_pybind11_state.Fail(self.refusal)
        self.log: list = [("open", providers)]

    def get_providers(self):
        return [self.given, "CPUExecutionProvider"]

    def io_binding(self):
        return FakeBinding(self.log)

    def run_with_iobinding(self, binding, options):
        names = ("disable_synchronize_execution_providers", "gpu_graph_id")
        self.log.append(("run", *map(options.get_run_config_entry, names)))


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(ort_cuda.onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ort_cuda.onnxruntime, "InferenceSession", FakeSession)
    return FakeGpu()


def test_inputs_and_outputs_are_bound_once_and_copied_around_the_run(fake):
    shapes = {"query": (5, 96), "keys": (7, 96)}
    engine = ort_cuda.OrtCudaEngine(ATTENTION, shapes, {}, CUDA, gpu=fake, limit_nbytes=1 << 30)
    feeds = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    into = {"result": np.zeros((5, 96), np.float32)}
    for _ in range(2):
        engine.run(feeds, into)
    log = engine._session.log
    ((_, about),) = log[0][1]
    assert about["device_id"] == "1" and about["user_compute_stream"] == str(engine.stream.ptr)
    assert about["gpu_mem_limit"] == str(1 << 30) and about["use_tf32"] == "0" and about["enable_cuda_graph"] == "1"
    kinds = [entry[0] for entry in log]
    assert kinds == ["open", "input", "input", "output", "run", "run"]
    assert all(entry[2:4] == ("cuda", 1) for entry in log[1:4]) and log[-2:] == [("run", "1", "1")] * 2
    on_stream = [entry for entry in fake.log if entry[0] in ("upload", "download", "synchronize")]
    assert [entry[0] for entry in on_stream] == ["upload", "upload", "download", "synchronize"] * 2
    assert {entry[-1] for entry in on_stream} == {engine.stream}


def test_what_is_queued_is_not_recorded_and_runs_between_what_its_stream_has(fake):
    """Recorded runs keep the host waiting, and have the addresses of those from the host."""
    shapes = {"query": (5, 96), "keys": (7, 96)}
    engine = ort_cuda.OrtCudaEngine(ATTENTION, shapes, {}, CUDA, gpu=fake)
    stream, made = fake.stream(), fake.empty((5, 96), np.float32)
    feeds = {name: fake.empty(shape, np.float32) for name, shape in shapes.items()}
    fake.log.clear()
    engine.enqueue(stream, feeds, {"result": made})
    assert engine._session.log[-1] == ("run", "1", "-1")
    assert [(entry[0], entry[2] if entry[0] == "record" else entry[1]) for entry in fake.log] == [
        ("record", stream), ("wait", engine.stream), ("record", engine.stream), ("wait", stream)
    ]  # fmt: skip


def test_a_graph_that_cannot_be_recorded_runs_as_it_is(fake, monkeypatch):
    said = "This session cannot use the graph capture feature as requested by the user as all compute graph nodes ..."
    monkeypatch.setattr(FakeSession, "refusal", said)
    engine = ort_cuda.OrtCudaEngine(ATTENTION, {}, {}, CUDA, gpu=fake)
    ((_, about),) = engine._session.log[0][1]
    assert "enable_cuda_graph" not in about


def test_another_refusal_stays_one(fake, monkeypatch):
    monkeypatch.setattr(FakeSession, "refusal", "no such file")
    with pytest.raises(ort_cuda.onnxruntime.capi.onnxruntime_pybind11_state.Fail, match="no such file"):
        ort_cuda.OrtCudaEngine(ATTENTION, {}, {}, CUDA, gpu=fake)


def test_falling_back_to_the_cpu_raises(fake, monkeypatch):
    monkeypatch.setattr(FakeSession, "given", "CPUExecutionProvider")
    with pytest.raises(MissingBackend, match="fell back to CPUExecutionProvider") as fault:
        ort_cuda.OrtCudaEngine(ATTENTION, {}, {}, CUDA, gpu=fake)
    assert "\n" not in str(fault.value)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in ort_cuda.onnxruntime.get_available_providers(), reason="onnxruntime has CUDA"
)
def test_without_a_cuda_provider_it_is_one_line():
    with pytest.raises(MissingBackend, match=r"pip install 'onnxruntime-gpu\[cuda,cudnn\]'") as fault:
        open_engine(ATTENTION, {}, {}, CUDA)
    assert "\n" not in str(fault.value)


def test_a_plugin_that_is_not_there_is_one_line(tmp_path):
    options = EngineOptions("ort", device="cuda:0", plugin=tmp_path / "none.so")
    with pytest.raises(MissingBackend, match=r"none\.so is not there"):
        open_engine(ATTENTION, {}, {}, options)


def test_a_plugin_that_is_none_is_one_line(tmp_path):
    Path(tmp_path / "odd.so").write_bytes(b"not a library")
    with pytest.raises(MissingBackend, match=r"odd\.so does not load"):
        open_engine(ATTENTION, {}, {}, EngineOptions("ort", device="cuda:0", plugin=tmp_path / "odd.so"))
