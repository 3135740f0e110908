"""TensorRT on a GPU: an engine from the cache or built now, memory of ours, one stream.

Weights are the engine's, and come from the cache's file as it is mapped. What it computes in is a block that engines
share (`Arena`), for no two of them run at once; frozen sites are uploaded when a picture opens the engine. Shapes are
static, so a run with the addresses of an earlier one is a CUDA graph (`Replay`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from widefield.device.arena import Arena
from widefield.device.gpu import CupyGpu, follow
from widefield.device.replay import Replay
from widefield.engine import trt_cache
from widefield.engine.base import Array, Engine, EngineOptions
from widefield.engine.trt_bindings import bindings, check_capability, identity, make_logger
from widefield.engine.trt_build import Progress, build_engine
from widefield.engine.trt_graph import make_skeleton
from widefield.errors import WidefieldError


class TrtEngine(Engine):
    """One execution context. Runs go one after another, whatever the workers."""

    name = "trt"

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[int, ...]],
        parameters: Mapping[str, Array],
        options: EngineOptions,
        *,
        gpu: Any = None,
        arena: Arena | None = None,
        trt: Any = None,
    ) -> None:
        self.trt = trt or bindings()
        self.gpu = gpu or CupyGpu(options.gpu)
        self.arena = arena or shared_arena(options.gpu)
        frozen = {name: array.shape for name, array in parameters.items()}
        self.stream = self.arena.stream
        self._replay = Replay(self.gpu)
        with self.gpu.current():
            plan = ready_engine(self.trt, path, shapes, frozen, options.precision, self.gpu.capability)
            self._open(plan, path)
        with self.arena.turns:
            self._place(parameters)

    def _open(self, plan: Any, path: Path) -> None:
        logger = make_logger(self.trt)
        self._runtime = self.trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            said = "; ".join(logger.errors[-2:]).replace("\n", " ")
            raise WidefieldError(f"{path}: TensorRT does not load its engine ({said}); run `widefield build` again")
        self._context: Any = self._engine.create_execution_context(
            self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        self._asked = int(self._engine.device_memory_size_v2)
        self.arena.ask(self._asked)

    def _place(self, parameters: Mapping[str, Array]) -> None:
        """Frozen sites, on the GPU for good. Graphs that do not read one have no input for it."""
        count = self._engine.num_io_tensors
        names = {self._engine.get_tensor_name(index) for index in range(count)}
        self._rooms: dict[str, Any] = {}
        for name, array in parameters.items():
            if name in names:
                self.gpu.upload(self._room(name), np.ascontiguousarray(array, np.float32), self.stream)
                self._context.set_tensor_address(name, int(self._room(name).data.ptr))
        self.gpu.synchronize(self.stream)

    def enqueue(self, stream: Any, feeds: Mapping[str, Any], into: Mapping[str, Any]) -> None:
        """Compute `into` from `feeds`, float32 arrays on the GPU: after what `stream` has, and before what it gets.
        Returns at once."""
        places = {name: int(x.data.ptr) for name, x in (*feeds.items(), *into.items())}
        with self.arena.turns, self.gpu.current():
            block = self.arena.block()
            if stream is not self.stream:
                follow(self.gpu, self.stream, stream)
            taken = self._replay((*sorted(places.items()), block), self.stream, lambda: self._queue(places, block))
            if not taken:
                raise WidefieldError("TensorRT refused to run an engine; run `widefield build` again")
            if stream is not self.stream:
                follow(self.gpu, stream, self.stream)

    def _queue(self, places: Mapping[str, int], block: tuple[int, int]) -> bool:
        for name, address in places.items():
            self._context.set_tensor_address(name, address)
        self._context.set_device_memory(*block)
        return bool(self._context.execute_async_v3(int(self.stream.ptr)))

    def run(self, feeds: Mapping[str, Array], into: Mapping[str, Array]) -> None:
        if self._context is None:
            raise ValueError("the engine was closed")
        with self.arena.turns:
            for name, x in feeds.items():
                self.gpu.upload(self._room(name), np.ascontiguousarray(x), self.stream)
            given = {name: self._room(name) for name in feeds}
            self.enqueue(self.stream, given, {name: self._room(name) for name in into})
            for name, x in into.items():
                self.gpu.download(x, self._room(name), self.stream)
            self.gpu.synchronize(self.stream)

    def _room(self, name: str) -> Any:
        """Memory on the GPU for a value that comes from the host or goes there."""
        if name not in self._rooms:
            self._rooms[name] = self.gpu.empty(tuple(self._engine.get_tensor_shape(name)), np.float32)
        return self._rooms[name]

    def close(self) -> None:
        if self._context is not None:
            self.gpu.synchronize(self.stream)
            self.arena.leave(self._asked)
        self._replay.forget()
        self._rooms = {}
        self._context = self._engine = self._runtime = None


@cache
def shared_arena(number: int) -> Arena:
    """Of all engines on a GPU."""
    return Arena(CupyGpu(number))


def ready_engine(
    trt: Any,
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    frozen: Mapping[str, tuple[int, ...]],
    precision: str,
    capability: str,
    *,
    progress: Progress | None = None,
) -> Any:
    """The engine, as its file in the cache is mapped; built and put there where it is not. See `build_engine` for what
    it raises."""
    check_capability(trt, capability)
    folder = trt_cache.cache_folder()
    key = trt_cache.EngineKey(
        trt_cache.bundle_identity(path), path.name, {**shapes, **frozen}, precision, capability, identity(trt)
    )
    found = trt_cache.mapped(key.name, folder)
    if found is not None:
        return found
    timing = trt_cache.read(key.timing, folder)
    skeleton = make_skeleton(path, shapes, frozen, precision)
    plan, timing = build_engine(trt, skeleton, timing=timing, progress=progress)
    if timing:
        trt_cache.keep(key.timing, timing, folder)
    trt_cache.keep(key.name, plan, folder)
    del plan  # the builder's own copy goes before the engine is loaded
    return trt_cache.mapped(key.name, folder)
