"""What a process did: seconds of the processor, faults, switches, and calls of what makes a picture.

    seconds    since the counting began            user, system    of the processor, of all threads
    waiting    seconds in which a thread could have run and another program had the core, of all threads together
    faults     pages that the kernel had to find    switches        voluntary ones, then those by force
    tiles      that coders made, by component       windows         that were denoised
    runs       of engines                           opened          engines; `opening`: seconds of the processor
    first      runs of each engine in a worker, which find their memory, and `second` ones: seconds of the processor

Functions are replaced by counting ones in this process, once and for all: for processes that end soon.
"""

import functools
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from widefield.cluster.work import Worker
from widefield.coder import TileCoder
from widefield.denoise import Denoiser
from widefield.engine.ort import OrtEngine

NANO = 1e-9


class Counted:
    """Counts from when it is made. `stages`: the same by stage of a worker."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}
        self._calls: Counter[str] = Counter()
        self._runs: WeakKeyDictionary[OrtEngine, int] = WeakKeyDictionary()
        self._waited = 0.0  # by threads that have ended
        self._lock = threading.Lock()
        self._before(TileCoder, "__call__", lambda coder, tiles, *_: {f"tiles of {coder.component.name}": len(tiles)})
        self._before(Denoiser, "__call__", lambda _, x, *__: {"windows": len(x)})
        self._around(OrtEngine, "run", self._ran)
        self._around(OrtEngine, "__init__", self._opened)
        self._around(threading.Thread, "run", self._threaded)
        self._around(Worker, "walk", self._walked)
        self._began = self._now()

    def all(self) -> dict[str, float]:
        """Until now."""
        return _less(self._now(), self._began)

    def _now(self) -> dict[str, float]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        found = {
            "seconds": time.perf_counter(), "user": used.ru_utime, "system": used.ru_stime, "faults": used.ru_minflt,
            "voluntary": used.ru_nvcsw, "forced": used.ru_nivcsw,
        }  # fmt: skip
        with self._lock:
            alive = sum(_waited(thread) for thread in Path("/proc/self/task").iterdir())
        return {**found, "waiting": self._waited + alive, **self._calls}

    def _before(self, owner: type, name: str, told: Callable[..., dict[str, int]]) -> None:
        def counting(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
            with self._lock:
                self._calls.update(told(*arguments))
            return function(*arguments, **named)

        self._around(owner, name, counting)

    def _around(self, owner: type, name: str, counting: Callable[..., Any]) -> None:
        function = getattr(owner, name)
        setattr(owner, name, functools.wraps(function)(lambda *a, **n: counting(function, *a, **n)))

    def _opened(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        before = time.thread_time()
        function(*arguments, **named)
        with self._lock:
            self._calls.update({"opened": 1, "opening": time.thread_time() - before})

    def _ran(self, function: Callable[..., Any], engine: OrtEngine, *arguments: Any) -> None:
        before = time.thread_time()
        function(engine, *arguments)
        took = time.thread_time() - before
        with self._lock:
            number = self._runs.get(engine, 0)
            self._runs[engine] = number + 1
            self._calls.update({"runs": 1, **({("first", "second")[number]: took} if number < 2 else {})})

    def _threaded(self, function: Callable[..., Any], thread: threading.Thread) -> None:
        try:
            function(thread)
        finally:
            with self._lock:
                self._waited += _waited(Path("/proc/thread-self"))

    def _walked(self, function: Callable[..., Any], worker: Worker, stage: Any) -> bool:
        before = self._now()
        try:
            return bool(function(worker, stage))
        finally:
            took = Counter(_less(self._now(), before))
            took.update(self.stages.get(stage.name, {}))  # a stage may be walked through twice
            self.stages[stage.name] = dict(took)


def _waited(thread: Path) -> float:
    try:
        return int((thread / "schedstat").read_text().split()[1]) * NANO
    except (FileNotFoundError, ProcessLookupError):  # it ended
        return 0.0


def _less(now: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    return {name: round(value - before.get(name, 0), 3) for name, value in now.items()}


def together(each: list[dict[str, float]]) -> dict[str, float]:
    """The sum over workers; of seconds, the most."""
    names = dict.fromkeys(name for one in each for name in one)
    total = {name: round(sum(one.get(name, 0) for one in each), 3) for name in names}
    return {**total, "seconds": max(one["seconds"] for one in each)}
