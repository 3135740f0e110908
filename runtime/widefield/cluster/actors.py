"""The same on Ray: an actor on every core or GPU, each a worker as any other, started again when it dies.

Ray starts and restarts processes, and nothing else: what is done, and who is at what, is on disk as ever (join.py). So
the driver may die, too; the same command starts another one, which goes on. Actors are named alike each time, so that
one which is started again takes up its own task at once, and not a lease later. Machines share a file system, on which
paths mean the same everywhere, and have widefield installed.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from widefield.cluster.join import Joined, Run
from widefield.cluster.place import remote_url
from widefield.cluster.work import Talk
from widefield.errors import BadRequest, MissingBackend, WidefieldError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from widefield.drawn import DrawnPicture
    from widefield.picture import Picture

LOOK_SECONDS = 2.0
LAST_SECONDS = 20.0  # for those that are still at something when the picture is finished


class Sendable(Protocol):
    """An order that can be pickled: commands/together.py."""

    @property
    def out(self) -> Path: ...
    @property
    def latents(self) -> Path | None: ...
    @property
    def keywords(self) -> Mapping[str, Any]: ...
    def picture(self) -> Picture | DrawnPicture: ...
    def join(self, **more: Any) -> Joined: ...


def carry_out(order: Any, talk: Talk | None = None) -> list[Joined]:
    """Have an order carried out by as many actors as the cluster has room for; what each of them did.

    Joins the cluster that RAY_ADDRESS names, or one on this machine, or starts one here. MissingBackend without Ray.
    """
    if (url := remote_url(order.out)) is not None:
        raise BadRequest(
            f"{url} with --cluster ray; wanted a folder that all machines see, or --cluster claims on each; name one"
        )
    options = dict(order.keywords)
    options.setdefault("workers", 1)  # an actor has a core of its own
    order = replace(order, keywords=options)
    with order.picture() as picture:  # decided, or refused, before anything is started
        run = Run(picture, order.out, picture.options, order.latents)
    try:
        with _cluster() as ray:
            return _followed(ray, _started(ray, order), run, talk)
    finally:
        run.store.close()
        if run.finished():
            run.clean()


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as cause:
        raise MissingBackend("--cluster ray needs ray; pip install 'widefield[cluster]'") from cause
    return ray


@contextmanager
def _cluster() -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody unless somebody asks for it
    ray = _ray()
    ours = not ray.is_initialized()
    if ours:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


def _started(ray: Any, order: Any) -> list[Any]:
    """A call to each actor, which ends when the picture is finished."""
    gpu = str(order.keywords.get("device", "cpu")).startswith("cuda")
    cores = int(order.keywords["workers"])
    room = ray.cluster_resources()
    count = max(1, int(room.get("GPU", 0) if gpu else room.get("CPU", 1) // cores))

    class Helper:
        def work(self, order: Any, name: str) -> Joined:
            joined: Joined = order.join(worker=name)
            return joined

    actor = ray.remote(num_cpus=cores, num_gpus=1 if gpu else 0, max_restarts=-1, max_task_retries=-1)(Helper)
    here = socket.gethostname()
    return [actor.remote().work.remote(order, f"ray-{here}-{number}") for number in range(count)]


def _followed(ray: Any, calls: list[Any], run: Run, talk: Talk | None) -> list[Joined]:
    """Wait until the picture is finished, which the first to be ready says, and a little for the others."""
    ready: list[Any] = []
    while not ready:
        ready, _ = ray.wait(calls, timeout=LOOK_SECONDS)
        if talk is not None:
            done = run.store.done(0)
            talk("tiles", int(done.sum()), done.size)
    found = _results(ray, ready)
    others = [call for call in calls if call not in ready]
    late, _ = ray.wait(others, num_returns=len(others), timeout=LAST_SECONDS) if others else ([], [])
    return found + _results(ray, late)


def _results(ray: Any, calls: list[Any]) -> list[Joined]:
    try:
        found: list[Joined] = ray.get(calls)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, WidefieldError):
            raise error.cause from None
        raise
    return found
