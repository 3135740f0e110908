"""A GPU that computes at once, on the host, and writes down what it was told, in order."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np


class FakeArray(np.ndarray):
    """A NumPy array with an address where CuPy has it."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)


class FakeGpu:
    """Gpu on the host. `log` has (what, its arguments ...) in the order of the calls; `nbytes` what arrays take."""

    def __init__(self, capability: str = "90") -> None:
        self.log: list[tuple] = []
        self.capability = capability
        self.nbytes = 0
        self._names = itertools.count()

    def stream(self):
        number = next(self._names)
        return Named(f"stream {number}", ptr=0x1000 + number)

    def event(self):
        return Named(f"event {next(self._names)}", ptr=0)

    def empty(self, shape, dtype):
        found = np.full(tuple(shape), 0, dtype).view(FakeArray)
        self.nbytes += found.nbytes
        self.log.append(("empty", tuple(shape), np.dtype(dtype).name))
        return found

    def pinned(self, shape, dtype):
        self.log.append(("pinned", tuple(shape), np.dtype(dtype).name))
        return np.zeros(tuple(shape), dtype)

    def upload(self, into, values, stream):
        assert into.shape == values.shape and values.flags.c_contiguous
        into[...] = values
        self.log.append(("upload", into.shape, stream))

    def download(self, into, values, stream):
        assert into.shape == values.shape
        into[...] = values
        self.log.append(("download", into.shape, stream))

    def record(self, event, stream):
        self.log.append(("record", event, stream))

    def wait(self, stream, event):
        self.log.append(("wait", stream, event))

    def synchronize(self, waited):
        self.log.append(("synchronize", waited))


class Named:
    """A stream or an event: known by its name."""

    def __init__(self, name: str, ptr: int) -> None:
        self.name, self.ptr = name, ptr

    def __repr__(self) -> str:
        return self.name
