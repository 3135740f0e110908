"""A read of a field that is computed: which threads do it, who hears how far it is, and how it is stopped.

What a read asks of other threads carries its `Watch` along (contextvars), so fields know nothing of who reads them.
"""

from __future__ import annotations

import contextvars
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from widefield.errors import Cancelled

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Watch:
    """One read. `progress` is called with how many units (windows, tiles) it has made so far, from any thread."""

    progress: Callable[[int], None] | None = None
    cancelled: Callable[[], bool] | None = None
    done: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self) -> None:
        if self.stopped.is_set() or (self.cancelled is not None and self.cancelled()):
            self.stopped.set()
            raise Cancelled("the read was cancelled; what is made of it may have been kept; read again")

    def count(self) -> None:
        with self._lock:
            self.done += 1
            if self.progress is not None:
                self.progress(self.done)


_watch: contextvars.ContextVar[Watch | None] = contextvars.ContextVar("watch", default=None)


@contextmanager
def watched(watch: Watch) -> Iterator[Watch]:
    """What is read within is this read. Whatever ends it, as Ctrl-C, stops what it asked of other threads."""
    token = _watch.set(watch)
    try:
        yield watch
    except BaseException:
        watch.stopped.set()
        raise
    finally:
        _watch.reset(token)


def check() -> None:
    """Raise Cancelled where the read that this is part of was stopped: before something dear is computed."""
    watch = _watch.get()
    if watch is not None:
        watch.check()


def count() -> None:
    """A unit was made."""
    watch = _watch.get()
    if watch is not None:
        watch.count()


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Runs of `size` items, the last one shorter. (itertools has it from Python 3.12 on.)"""
    rest = iter(items)
    while some := list(itertools.islice(rest, size)):
        yield some


class Threads:
    """Up to `number` threads, begun when first needed, whose work is part of the read that asked for it.

    A task may wait for tasks of other pools, never for one of its own.
    """

    def __init__(self, number: int, name: str) -> None:
        self.number, self.name = number, name
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """function(item) of each, in order; of a single one in this thread. An error is raised, the rest dropped."""
        if len(items) == 1 or self.number == 1:
            yield from map(function, items)
            return
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.number, self.name)
            pool = self._pool
        futures = [pool.submit(contextvars.copy_context().run, function, item) for item in items]
        try:
            for future in futures:
                yield future.result()
        finally:
            _drop(futures)

    def close(self) -> None:
        """End the threads; using it again begins new ones."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)
                self._pool = None


def _drop(futures: Iterable[Future[Result]]) -> None:
    for future in futures:
        future.cancel()
