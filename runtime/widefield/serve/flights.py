"""Work that many ask for and that is done once. Everything here happens in the event loop, but for the work itself.

A flight is begun by the first who asks for a key; whoever asks meanwhile waits for the same one. When the last of them
goes away it is taken from the queue, or told to stop (`cancelled` turns true). The queue is bounded: `Busy` says so at
once. Among those that wait, the most urgent goes first, then the oldest.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from widefield.errors import Cancelled

Result = TypeVar("Result")
Make = Callable[[Callable[[], bool]], Result]


class Busy(Exception):
    """The queue is full: come again later."""


@dataclass(order=True)
class _Flight(Generic[Result]):
    urgency: int
    number: int
    key: Hashable = field(compare=False)
    make: Make[Result] = field(compare=False)
    landed: asyncio.Future[Result] = field(compare=False)
    waiters: int = field(default=1, compare=False)  # whoever booked it: it may begin at once, and look
    begun: bool = field(default=False, compare=False)

    def cancelled(self) -> bool:
        """Whether nobody waits any more; asked from the thread that works."""
        return self.waiters == 0


class Flights(Generic[Result]):
    """At most `threads` at work and `waiting` in the queue."""

    def __init__(self, threads: int, waiting: int, name: str) -> None:
        self.threads, self.waiting, self.name = threads, waiting, name
        self.flying = self.joined = self.begun = self.dropped = 0
        self._known: dict[Hashable, _Flight[Result]] = {}
        self._queue: list[_Flight[Result]] = []
        self._numbers = itertools.count()
        self._pool = ThreadPoolExecutor(threads, name)

    @property
    def queued(self) -> int:
        """How many wait for a thread."""
        return len(self._queue)

    async def fetch(self, key: Hashable, make: Make[Result], urgency: int = 0) -> Result:
        """What `make(cancelled)` gives, called in a thread, or the same call's for another who asked for `key`.

        `make` may raise Cancelled once `cancelled()` is true. Raises Busy, and whatever `make` raises.
        """
        while True:
            flight = self._known.get(key)
            if flight is None:
                flight = self._book(key, make, urgency)
            else:
                self.joined += 1
                flight.waiters += 1
            try:
                return await asyncio.shield(flight.landed)
            except Cancelled:  # the others had gone, and it stopped as we came: begin anew
                continue
            finally:
                flight.waiters -= 1
                if not flight.waiters and not flight.begun:
                    self._drop(flight)

    def _book(self, key: Hashable, make: Make[Result], urgency: int) -> _Flight[Result]:
        if self.flying >= self.threads and len(self._queue) >= self.waiting:
            raise Busy
        landed: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        flight = self._known[key] = _Flight(urgency, next(self._numbers), key, make, landed)
        heapq.heappush(self._queue, flight)
        self._board()
        return flight

    def _board(self) -> None:
        while self._queue and self.flying < self.threads:
            flight = heapq.heappop(self._queue)
            flight.begun = True
            self.flying += 1
            self.begun += 1
            work = asyncio.get_running_loop().run_in_executor(self._pool, flight.make, flight.cancelled)
            work.add_done_callback(lambda done, flight=flight: self._land(flight, done))  # type: ignore[misc]

    def _land(self, flight: _Flight[Result], done: asyncio.Future[Result]) -> None:
        self.flying -= 1
        self._known.pop(flight.key, None)
        if done.cancelled():
            flight.landed.cancel()
        elif (error := done.exception()) is not None:
            self.dropped += isinstance(error, Cancelled)
            flight.landed.set_exception(error)
            flight.landed.exception()  # read, so that nobody is told that nobody did
        else:
            flight.landed.set_result(done.result())
        self._board()

    def _drop(self, flight: _Flight[Result]) -> None:
        """Take it from the queue."""
        self._known.pop(flight.key, None)
        self._queue.remove(flight)
        heapq.heapify(self._queue)
        self.dropped += 1

    def close(self) -> None:
        """Stop what is at work, and wait for it."""
        for flight in self._known.values():
            flight.waiters = 0
        self._pool.shutdown(cancel_futures=True)
