"""A GPU that computes at once, on the host, and writes down what it was told, in order; and what such a log means."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import defaultdict
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np

from widefield.errors import OverBudget
from widefield.schedule import guided, update
from widefield_kernels.attention import attend_reference
from widefield_kernels.epilogue import to_levels_reference


class FakeArray(np.ndarray):
    """A NumPy array with an address where CuPy has it."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)


class FakeGpu:
    """Gpu on the host. `log` has (what, its arguments ...) in the order of the calls; `nbytes` is what arrays
    took, all that there ever were; `alive_nbytes` what those take that are alive, at most `limit_nbytes`.

    Work that is captured is not done; it has to ask `does`. `captures`: whether it can be.
    """

    def __init__(self, capability: str = "90", *, captures: bool = True) -> None:
        self.log: list[tuple] = []
        self.capability, self.captures = capability, captures
        self.nbytes = self.alive_nbytes = self.peak_nbytes = 0
        self.limit_nbytes: int | None = None
        self.arrays: weakref.WeakValueDictionary[int, FakeArray] = weakref.WeakValueDictionary()  # by their addresses
        self.streams: dict[int, Named] = {}  # by their handles
        self.recording: list | None = None
        self._names = itertools.count()
        self._counting = threading.RLock()

    def current(self):
        return nullcontext()

    def stream(self):
        number = next(self._names)
        self.streams[0x1000 + number] = Named(f"stream {number}", ptr=0x1000 + number)
        return self.streams[0x1000 + number]

    def event(self):
        return Named(f"event {next(self._names)}", ptr=0)

    def empty(self, shape, dtype):
        found = np.full(tuple(shape), 0, dtype).view(FakeArray)
        self.nbytes += found.nbytes
        self._count(found.nbytes)
        weakref.finalize(found, self._count, -found.nbytes)
        self.arrays[found.data.ptr] = found
        self.log.append(("empty", tuple(shape), np.dtype(dtype).name))
        return found

    def limited(self, nbytes):
        """Itself, as CuPy's pool is limited: by whoever said so last."""
        self.limit_nbytes = self.limit_nbytes if nbytes is None else nbytes
        return self

    def _count(self, nbytes):
        with self._counting:
            if nbytes > 0 and self.limit_nbytes is not None and self.alive_nbytes + nbytes > self.limit_nbytes:
                raise OverBudget(f"the fake has {self.limit_nbytes - self.alive_nbytes} bytes left, not {nbytes}")
            self.alive_nbytes += nbytes
            self.peak_nbytes = max(self.peak_nbytes, self.alive_nbytes)

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

    def does(self, work):
        """Now, or when the recording is launched."""
        work() if self.recording is None else self.recording.append(work)

    def capture(self, stream, work):
        self.log.append(("capture", stream))
        self.recording = []
        try:
            return self.recording if work() and self.captures else None
        finally:
            self.recording = None

    def launch(self, graph, stream):
        self.log.append(("launch", stream))
        for work in graph:
            work()


class Named:
    """A stream or an event: known by its name."""

    def __init__(self, name: str, ptr: int) -> None:
        self.name, self.ptr = name, ptr

    def __repr__(self) -> str:
        return self.name


class FakeOps:
    """Ops on the host."""

    def __init__(self, gpu: FakeGpu, precision: str = "f32") -> None:
        self.gpu = gpu

    def keys(self, keys, stream):
        self.gpu.log.append(("keys", stream))
        return keys

    def attend(self, query, keys, out, stream):
        for one, into in zip(query, out, strict=True):
            into[...] = attend_reference(np.asarray(one), keys)
        self.gpu.log.append(("attend", stream))

    def levels(self, values, pixels, half, count, stream):
        count += to_levels_reference(np.asarray(values), pixels, half)[2]
        self.gpu.log.append(("levels", stream))

    def infinite(self, values, count, stream):
        count += np.count_nonzero(~np.isfinite(values))
        self.gpu.log.append(("infinite", stream))

    def clear(self, count, stream):
        count[...] = 0
        self.gpu.log.append(("clear", stream))

    def fill(self, x, value, stream):
        x[...] = value
        self.gpu.log.append(("fill", stream))

    def scale(self, x, factor, out, stream):
        np.multiply(x, np.float32(factor), out=out)
        self.gpu.log.append(("scale", stream))

    def guide(self, m, negative, scale, stream):
        m[...] = guided(np.array(m), np.array(negative), scale)
        self.gpu.log.append(("guide", stream))

    def step(self, step, x, m, n, history, stream):
        following, kept = update(step, np.array(x), np.array(m), np.array(n), np.array(history))
        x[...] = following
        history[...] = 0 if kept is None else kept
        self.gpu.log.append(("step", stream))


WORK = (
    "upload", "download", "enqueue", "launch", "keys", "attend", "levels", "infinite", "clear", "fill", "scale",
    "guide", "step",
)  # fmt: skip


class Late:
    """What is over, by stream and for the host, as a GPU would have it that runs every stream as late as it may."""

    def __init__(self) -> None:
        self.over: defaultdict[object, set[int]] = defaultdict(set)
        self.marks: dict[object, set[int]] = {}
        self.host: set[int] = set()

    def step(self, at: int, entry: tuple) -> set[int] | None:
        """What is surely over when the entry begins, where it is work on a stream."""
        match entry:
            case ("record", event, stream):
                self.marks[event] = set(self.over[stream])
            case ("wait", stream, event):
                self.over[stream] |= self.marks[event]
            case ("synchronize", waited):
                self.host |= self.marks[waited] if waited in self.marks else self.over[waited]
            case (str(kind), *_, stream) if kind in WORK:
                self.over[stream] |= self.host
                before = set(self.over[stream])
                self.over[stream].add(at)
                return before
        return None
