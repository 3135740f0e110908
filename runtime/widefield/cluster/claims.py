"""Who is at what. A claim says that somebody is; its beat, which changes while they live, that they still are.

    claim-TASK.0, claim-TASK.1, ...    whoever creates the next number has the task

A claim is stale when its beat did not change for a lease, by the clock of the one who watches it; then the next number
may be created, by one of all who try. So nothing compares clocks of two machines, and nothing but create-if-absent
decides. Claims only spare work: two who make the same shard make the same bytes, and each is committed whole.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from widefield.cluster.board import Board, Gone
from widefield.errors import StoreError

PREFIX = "claim-"
BESIDE = "+"  # after a task's name: a second worker at it


@dataclass
class _Seen:
    beat: bytes
    since: float  # when this beat was first seen
    first: float  # when this claim was


class Claims:
    """Of one worker. `worker` is a name that nobody else has, or that it had before it died: then its own old claims
    are stale at once. Thread-safe."""

    def __init__(
        self, board: Board, worker: str, lease_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.worker, self.lease_seconds = worker, lease_seconds
        self._board, self._clock = board, clock
        self._held: dict[str, int] = {}  # file name: beat
        self._seen: dict[str, _Seen] = {}
        self._lock = threading.Lock()

    def look(self) -> dict[str, str]:
        """The claims that there are, the newest of every task; what is stale is remembered from look to look."""
        newest: dict[str, tuple[int, str]] = {}
        for name in self._board.names(PREFIX):
            task, _, number = name.removeprefix(PREFIX).rpartition(".")
            newest[task] = max(newest.get(task, (-1, "")), (int(number), name))
        now, found = self._clock(), {task: name for task, (_, name) in newest.items()}
        for name in found.values():
            beat = self._board.get(name) or b""
            seen = self._seen.get(name)
            if seen is None:
                self._seen[name] = _Seen(beat, now, now)
            elif seen.beat != beat:
                seen.beat, seen.since = beat, now
        for name in self._seen.keys() - set(found.values()):
            del self._seen[name]
        return found

    def free(self, task: str, found: dict[str, str]) -> bool:
        """Whether nobody alive is at a task, by the last look."""
        return task not in found or self._stale(found[task])

    def _stale(self, name: str) -> bool:
        seen = self._seen[name]
        if self._clock() - seen.since > self.lease_seconds:
            return True
        return name not in self._held and _worker(seen.beat) == self.worker

    def age(self, task: str, found: dict[str, str]) -> float:
        """For how long a task's claim has been seen, in seconds."""
        return self._clock() - self._seen[found[task]].first

    def take(self, task: str, found: dict[str, str]) -> bool:
        """Claim a task that is free; whether nobody was quicker."""
        number = int(found[task].rpartition(".")[2]) + 1 if task in found else 0
        name = f"{PREFIX}{task}.{number}"
        with self._lock:
            if not self._board.create(name, self._beat(0)):
                return False
            self._held[name] = 0
            return True

    def beat(self) -> None:
        """Renew what is held."""
        with self._lock:
            for name in self._held:
                self._held[name] += 1
                self._board.put(name, self._beat(self._held[name]))

    def leave(self) -> None:
        """Let go of what is held, done or not."""
        with self._lock:
            while self._held:
                self._board.drop(self._held.popitem()[0])

    def _beat(self, count: int) -> bytes:
        about = {"worker": self.worker, "host": socket.gethostname(), "pid": os.getpid(), "beat": count}
        return json.dumps(about).encode()


def _worker(beat: bytes) -> str | None:
    try:
        return str(json.loads(beat)["worker"])
    except (ValueError, KeyError):
        return None


class Heart:
    """Renews claims, from a thread of its own, until it is stopped."""

    def __init__(self, claims: Claims) -> None:
        self._claims, self._over = claims, threading.Event()
        self._thread = threading.Thread(target=self._run, name="claims", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._claims.lease_seconds / 4):
            try:
                self._claims.beat()
            except Gone:
                return  # the picture is finished
            except (OSError, StoreError):
                continue  # a shared disk, or a bucket, that does not answer; the next beat may get through
