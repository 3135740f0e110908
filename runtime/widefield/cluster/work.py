"""Tasks in stages, and the worker that walks through them: each stage is done before the next one begins.

A task is idempotent: it commits its result in one step, and whoever does it again commits the same bytes. Where a stage
has no task left to claim, a worker does not wait for a slow one without end: after a lease it makes the oldest task
that is not done a second time, beside it; whoever is first ends the stage.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from widefield.cluster.claims import BESIDE, Claims

Talk = Callable[[str, int, int], None]
Opened = Callable[[], Callable[[str], None]]
SHORTEST_NAP, LONGEST_NAP = 0.05, 2.0  # seconds between two looks at what others do;
NAP_SHARE = 0.05  # of what was waited already: little is lost by looking late, and few look often


@dataclass(frozen=True, slots=True)
class Task:
    """`name` is its own in the whole run; `done` looks at the disk."""

    name: str
    done: Callable[[], bool]


def no_files(_: str) -> Sequence[Path]:
    """Of a task that reads, or writes, none."""
    return ()


@dataclass(frozen=True, slots=True)
class Stage:
    """Tasks that any worker may do in any order, once the stages before are done. `opened` gives, as a context, what
    does a task: engines are opened once for all of them.

    `reads` and `writes` are files of a task by its name: those that others wrote, where they are there, and its own, in
    the order in which they are committed. `decides`: others might write it otherwise, so the first one's counts.
    """

    name: str
    tasks: Sequence[Task]
    opened: Callable[[], AbstractContextManager[Callable[[str], None]]]
    reads: Callable[[str], Iterable[Path]] = no_files
    writes: Callable[[str], Iterable[Path]] = no_files
    decides: bool = False


class Worker:
    """`over` says that the whole picture is finished. `made` counts the tasks that this one did, by stage."""

    def __init__(self, claims: Claims, over: Callable[[], bool], talk: Talk | None = None) -> None:
        self._claims, self._over, self._talk = claims, over, talk
        self.made: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.beside = 0

    def walk(self, stage: Stage) -> bool:
        """Help until a stage is done; whether there is still a picture to work on."""
        started = time.perf_counter()
        try:
            return self._walk(stage)
        finally:
            took = time.perf_counter() - started
            self.seconds[stage.name] = self.seconds.get(stage.name, 0.0) + took  # a level's summary may be met twice

    def _walk(self, stage: Stage) -> bool:
        undone = self._rotated([task for task in stage.tasks if not task.done()])
        if not undone or self._over():
            return not self._over()
        with ExitStack() as engines:
            opened = cache(lambda: engines.enter_context(stage.opened()))  # by the first task that this worker does
            idle_since = time.perf_counter()
            while undone and not self._over():
                self._tell(stage, len(undone))
                if self._do_one(stage, undone, opened):
                    idle_since = time.perf_counter()
                else:
                    idle = time.perf_counter() - idle_since
                    time.sleep(min(max(SHORTEST_NAP, idle * NAP_SHARE), LONGEST_NAP))
        return not self._over()

    def _rotated(self, tasks: list[Task]) -> list[Task]:
        """Beginning elsewhere than others do, so that few want the same task and neighbours go to one."""
        start = zlib.crc32(self._claims.worker.encode()) % max(1, len(tasks))
        return tasks[start:] + tasks[:start]

    def _do_one(self, stage: Stage, undone: list[Task], opened: Opened) -> bool:
        """Do one task, or find some done; False where there was nothing to do but wait."""
        found = self._claims.look()
        for task in list(undone):
            if task.done():
                undone.remove(task)
            elif self._claims.free(task.name, found) and self._claims.take(task.name, found):
                return self._made(stage, task, undone, opened)
        if not undone:
            return True
        slow = [task for task in undone if task.name in found]
        slow.sort(key=lambda task: -self._claims.age(task.name, found))
        for task in slow:
            second = task.name + BESIDE
            patient = self._claims.age(task.name, found) <= self._claims.lease_seconds
            if not patient and self._claims.free(second, found) and self._claims.take(second, found):
                self.beside += 1
                return self._made(stage, task, undone, opened)
        return False

    def _made(self, stage: Stage, task: Task, undone: list[Task], opened: Opened) -> bool:
        """Do a task that is claimed, unless it was done meanwhile."""
        try:
            if not task.done():
                opened()(task.name)
                self.made[stage.name] = self.made.get(stage.name, 0) + 1
            undone.remove(task)
        finally:
            self._claims.leave()
        return True

    def _tell(self, stage: Stage, left: int) -> None:
        if self._talk is not None:
            self._talk(stage.name, len(stage.tasks) - left, len(stage.tasks))
