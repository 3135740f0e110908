"""What a run asks of a GPU, and CuPy's answer. Arrays on the GPU are contiguous; addresses are multiples of 256 bytes.

A stream is a queue of work, an event a mark in one. Copies return at once and need pinned memory on the host for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from widefield.errors import MissingBackend, OverBudget


class Gpu(Protocol):
    """One GPU. Streams, events and arrays are of its own kind; arrays have `shape`, `dtype` and `data.ptr`."""

    def current(self) -> AbstractContextManager[Any]: ...
    def stream(self) -> Any: ...
    def event(self) -> Any: ...
    def empty(self, shape: Sequence[int], dtype: Any) -> Any: ...
    def pinned(self, shape: Sequence[int], dtype: Any) -> NDArray[Any]: ...
    def upload(self, into: Any, values: NDArray[Any], stream: Any) -> None: ...
    def download(self, into: NDArray[Any], values: Any, stream: Any) -> None: ...
    def record(self, event: Any, stream: Any) -> None: ...
    def wait(self, stream: Any, event: Any) -> None: ...
    def synchronize(self, waited: Any) -> None: ...
    def capture(self, stream: Any, work: Callable[[], bool]) -> Any: ...
    def launch(self, graph: Any, stream: Any) -> None: ...


def follow(gpu: Gpu, later: Any, earlier: Any) -> None:
    """What the stream `later` gets from now on runs after what `earlier` has by now."""
    done = gpu.event()
    gpu.record(done, earlier)
    gpu.wait(later, done)


class CupyGpu:
    """Gpu by CuPy. Its memory pool gives no more than `limit_nbytes`."""

    def __init__(self, number: int, limit_nbytes: int | None = None) -> None:
        self.cupy = find_cupy(number)
        self.number = number
        self.device = self.cupy.cuda.Device(number)
        self.device.use()
        if limit_nbytes is not None:
            self.cupy.get_default_memory_pool().set_limit(size=limit_nbytes)

    @property
    def capability(self) -> str:
        """As "90"."""
        return str(self.device.compute_capability)

    @property
    def free_nbytes(self) -> int:
        """What nobody has, now, and what CuPy's pool keeps for the next who asks."""
        with self.device:
            return int(self.cupy.cuda.runtime.memGetInfo()[0] + self.cupy.get_default_memory_pool().free_bytes())

    def current(self) -> AbstractContextManager[Any]:
        """Within, what this thread asks of CUDA, or of a library that uses it, is about this GPU."""
        return self.device  # type: ignore[no-any-return]

    def stream(self) -> Any:
        with self.device:
            return self.cupy.cuda.Stream(non_blocking=True)

    def event(self) -> Any:
        with self.device:
            return self.cupy.cuda.Event(disable_timing=True)

    def empty(self, shape: Sequence[int], dtype: Any) -> Any:
        try:
            with self.device:
                return self.cupy.empty(tuple(shape), dtype)
        except self.cupy.cuda.memory.OutOfMemoryError as cause:
            need = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            raise OverBudget(
                f"{self.device} has no {need >> 20} MiB left ({cause}); lower --tile or --batch",
                smallest_nbytes=need,
            ) from None

    def pinned(self, shape: Sequence[int], dtype: Any) -> NDArray[Any]:
        count = int(np.prod(shape, dtype=np.int64))
        with self.device:
            memory = self.cupy.cuda.alloc_pinned_memory(max(1, count * np.dtype(dtype).itemsize))
        return np.frombuffer(memory, dtype, count).reshape(tuple(shape))

    def upload(self, into: Any, values: NDArray[Any], stream: Any) -> None:
        into.set(values, stream=stream)

    def download(self, into: NDArray[Any], values: Any, stream: Any) -> None:
        values.get(stream=stream, out=into, blocking=False)

    def record(self, event: Any, stream: Any) -> None:
        event.record(stream)

    def wait(self, stream: Any, event: Any) -> None:
        stream.wait_event(event)

    def synchronize(self, waited: Any) -> None:
        waited.synchronize()

    def capture(self, stream: Any, work: Callable[[], bool]) -> Any:
        """What `work` queues on a stream, as a graph that has not run; None where it, or CUDA, refuses."""
        graph, good = None, False
        with self.device, stream:
            stream.begin_capture()
            try:
                good = work()
            finally:  # an error or not, the stream is to be a stream again
                with suppress(self.cupy.cuda.runtime.CUDARuntimeError):
                    graph = stream.end_capture()
        return graph if good else None

    def launch(self, graph: Any, stream: Any) -> None:
        graph.launch(stream)


def find_cupy(number: int) -> Any:
    """CuPy, with a GPU of that number. MissingBackend says what is not there."""
    try:
        cupy = importlib.import_module("cupy")
    except ModuleNotFoundError as cause:
        if cause.name != "cupy":
            raise
        raise MissingBackend(f"device cuda:{number} needs cupy; pip install 'widefield[gpu]'") from None
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as cause:
        raise MissingBackend(f"device cuda:{number}: CUDA says {cause}; `widefield doctor` says more") from None
    if number >= count:
        raise MissingBackend(f"device cuda:{number} was asked for, there are {count}; name one of them")
    return cupy
