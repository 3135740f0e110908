"""ONNX Runtime on a GPU: memory of ours, a stream of ours, and no falling back to the CPU behind anybody's back.

ONNX Runtime lists its CUDA provider where no GPU is, says an error into its log and computes on the CPU. So whatever a
session ends up with is looked at, and anything but CUDA raises. The provider is onnxruntime-gpu's own, or that of a
plugin library (`options.plugin`), which needs no onnxruntime-gpu: one of the same version as onnxruntime, or older.

Runs from host memory, as a denoiser's, are a CUDA graph, which ONNX Runtime records by itself where every operation is
on the GPU. It makes the host wait for each, so what is only queued (`enqueue`) is not.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from widefield.device.gpu import CupyGpu, follow
from widefield.engine.base import Array, Engine, EngineOptions
from widefield.errors import BadBundle, MissingBackend

PROVIDER = "CUDAExecutionProvider"
NO_GRAPH = "-1"


class OrtCudaEngine(Engine):
    """One session; what goes in and out lies where it lay at the first run. Runs go one after another."""

    name = "ort"

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[int, ...]],
        parameters: Mapping[str, Array],
        options: EngineOptions,
        *,
        gpu: Any = None,
        limit_nbytes: int | None = None,
    ) -> None:
        check_provider(options.plugin)
        self.gpu = gpu or CupyGpu(options.gpu)
        self.stream = self.gpu.stream()
        about = provider_options(options.gpu, int(self.stream.ptr), limit_nbytes)
        self._session: Any = open_session(path, parameters, options, about)
        self._binding = self._session.io_binding()
        self._bound: dict[str, int] = {}
        self._rooms: dict[str, Any] = {}
        self._number = options.gpu
        self._queued, self._recorded = run_options(NO_GRAPH), run_options("1")
        self._turns = threading.RLock()

    def enqueue(self, stream: Any, feeds: Mapping[str, Any], into: Mapping[str, Any]) -> None:
        """Compute `into` from `feeds`, float32 arrays on the GPU: after what `stream` has, and before what it gets."""
        with self._turns:
            follow(self.gpu, self.stream, stream)
            self._run(feeds, into, self._queued)
            follow(self.gpu, stream, self.stream)

    def _run(self, feeds: Mapping[str, Any], into: Mapping[str, Any], options: Any) -> None:
        for bind, values in ((self._binding.bind_input, feeds), (self._binding.bind_output, into)):
            for name, x in values.items():
                if self._bound.get(name) != int(x.data.ptr):
                    bind(name, "cuda", self._number, np.float32, x.shape, int(x.data.ptr))
                    self._bound[name] = int(x.data.ptr)
        self._session.run_with_iobinding(self._binding, options)

    def _room(self, name: str, shape: tuple[int, ...]) -> Any:
        """Memory on the GPU for a value that comes from the host or goes there."""
        if name not in self._rooms:
            self._rooms[name] = self.gpu.empty(shape, np.float32)
        return self._rooms[name]

    def run(self, feeds: Mapping[str, Array], into: Mapping[str, Array]) -> None:
        if self._session is None:
            raise ValueError("the engine was closed")
        with self._turns:
            for name, x in feeds.items():
                self.gpu.upload(self._room(name, x.shape), np.ascontiguousarray(x), self.stream)
            given, made = ({name: self._room(name, x.shape) for name, x in some.items()} for some in (feeds, into))
            self._run(given, made, self._recorded)
            for name, x in into.items():
                self.gpu.download(x, made[name], self.stream)
            self.gpu.synchronize(self.stream)

    def close(self) -> None:
        self._rooms = {}
        self._session = self._binding = None


def provider_options(number: int, stream: int, limit_nbytes: int | None) -> dict[str, str]:
    """As ONNX Runtime wants them: text. Its arena grows by what is asked for, and not beyond the plan's limit."""
    found = {
        "device_id": str(number),
        "user_compute_stream": str(stream),
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    return found if limit_nbytes is None else {**found, "gpu_mem_limit": str(limit_nbytes)}


def check_provider(library: Path | None) -> None:
    """MissingBackend where there is no CUDA provider to ask for."""
    if library is not None:
        _register(library)
    elif PROVIDER not in onnxruntime.get_available_providers():
        raise MissingBackend(
            f"engine ort cannot use a GPU: onnxruntime {onnxruntime.__version__} has no CUDA execution provider; "
            "pip install 'onnxruntime-gpu[cuda,cudnn]', which takes its place, or name a plugin with --ort-library"
        )


@cache
def _register(library: Path) -> None:
    """Load a plugin, once a process."""
    if not library.is_file():
        raise MissingBackend(f"{library} is not there; wanted libonnxruntime_providers_cuda.so; see `widefield doctor`")
    try:
        onnxruntime.register_execution_provider_library(PROVIDER, str(library.absolute()))
    except onnxruntime.capi.onnxruntime_pybind11_state.Fail as cause:
        raise MissingBackend(f"{library} does not load: {str(cause).splitlines()[0]}; take the version of onnxruntime "
                             f"{onnxruntime.__version__} or older, and install CUDA's libraries") from None  # fmt: skip


def run_options(graph: str) -> Any:
    """Of a run that returns at once. `graph`: the number under which it is recorded, or NO_GRAPH."""
    found = onnxruntime.RunOptions()
    found.add_run_config_entry("disable_synchronize_execution_providers", "1")
    found.add_run_config_entry("gpu_graph_id", graph)
    return found


def open_session(path: Path, parameters: Mapping[str, Array], options: EngineOptions, about: Mapping[str, str]) -> Any:
    """A session whose first provider is CUDA's, and that records CUDA graphs if the graph in `path` lets it.

    MissingBackend where ONNX Runtime gave another provider, BadBundle for what is no graph.
    """
    try:
        try:
            session = _session(path, parameters, options, {**about, "enable_cuda_graph": "1"})
        except onnxruntime.capi.onnxruntime_pybind11_state.Fail as cause:
            if "graph capture" not in str(cause):
                raise
            session = _session(path, parameters, options, about)
    except onnxruntime.capi.onnxruntime_pybind11_state.InvalidProtobuf as cause:
        raise BadBundle(f"{path} is no ONNX graph: {str(cause).splitlines()[0]}; copy or export again") from cause
    got = session.get_providers()[0]
    if got != PROVIDER:
        raise MissingBackend(
            f"ONNX Runtime fell back to {got} where {PROVIDER} was asked for: a CUDA library or the driver is not "
            "there, its log says which; pip install 'onnxruntime-gpu[cuda,cudnn]'; `widefield doctor` says more"
        )
    return session


def _session(path: Path, parameters: Mapping[str, Array], options: EngineOptions, about: Mapping[str, str]) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(a)) for a in parameters.values()]
    if values:
        settings.add_external_initializers(list(parameters), values)
    if options.plugin is None:
        return onnxruntime.InferenceSession(str(path), settings, providers=[(PROVIDER, dict(about))])
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER]
    if options.gpu >= len(devices):
        raise MissingBackend(
            f"{options.plugin} finds {len(devices)} GPUs, cuda:{options.gpu} was asked for; name one of them"
        )
    settings.add_provider_for_devices([devices[options.gpu]], dict(about))
    return onnxruntime.InferenceSession(str(path), settings)
