"""Help with a picture until it is finished: what every process of a run does, whoever comes first.

What is decided once is decided by whoever is first, and in a file: the tile grid, the engine and all else that the
picture's record holds (the store's own metadata), each summary, and what every task made.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from widefield.cluster.claims import Claims, Heart
from widefield.cluster.decoding import Shards
from widefield.cluster.drawing import Levels
from widefield.cluster.files import SUMMARY
from widefield.cluster.place import Folder, Place, remote_url
from widefield.cluster.seal import seal_picture
from widefield.cluster.work import Stage, Talk, Worker
from widefield.drawn import DrawnJob, DrawnPicture
from widefield.errors import BadRequest, WidefieldError
from widefield.job import DecodeJob
from widefield.options import RunOptions, changed_options
from widefield.picture import Picture
from widefield.plan import Plan
from widefield.provenance.signing import check_signer, sign_finished
from widefield.save import as_before, store_spec, summary_path
from widefield.store.faults import explained
from widefield.store.omezarr import ZarrStore
from widefield.store.opening import open_store
from widefield.store.spec import StoreSpec, agree, checked

LEASE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Joined:
    """What one worker did for a picture, which is finished now. `made`: tasks by stage, `beside`: second tries,
    `stage_seconds`: how long each stage took it, waiting for others included."""

    path: str
    size_px: tuple[int, int]
    plan: Plan
    worker: str
    made: dict[str, int]
    beside: int
    stage_seconds: dict[str, float]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "size_px": list(self.size_px),
            "tile_cells": list(self.plan.tile),
            "worker": self.worker,
            "tasks_made": sum(self.made.values()),
            "shards_made": self.made.get("shards", 0),
            "second_tries": self.beside,
            "tasks": dict(self.made),
            "stage_seconds": {name: round(seconds, 3) for name, seconds in self.stage_seconds.items()},
            "seconds": round(self.seconds, 3),
        }


def join(
    picture: Picture | DrawnPicture,
    path: Path | str,
    *,
    lease_seconds: float = LEASE_SECONDS,
    worker: str | None = None,
    latents: Path | None = None,
    talk: Talk | None = None,
    **changes: Any,
) -> Joined:
    """Work on a picture together with all others who do, until it is finished.

    `worker` names this one; of two with the same name only one is alive. `latents`, of a drawn picture, are kept there.
    `changes` are as of the picture's `save`: the same for all workers, but for what they may use (memory, workers).
    BadRequest for what many cannot do; StoreError where another picture is; OverBudget.
    """
    started = time.perf_counter()
    run = Run(picture, Path(path), replace(picture.options, **changed_options(changes)), latents)
    claims = Claims(run.board, worker or _name(), lease_seconds)
    helper = Worker(claims, run.finished, talk)
    with closing(run.place):
        _help(run, helper, claims, talk)
    height, width, _ = picture.shape
    seconds = time.perf_counter() - started
    return Joined(
        run.place.name, (width, height), run.plan, claims.worker, helper.made, helper.beside, helper.seconds, seconds
    )


def _help(run: Run, helper: Worker, claims: Claims, talk: Talk | None) -> None:
    """From stage to stage, until the picture is finished."""
    try:
        with Heart(claims), closing(run.store):
            for stage in () if run.finished() else run.stages(talk):
                if not helper.walk(stage):
                    break
    except (WidefieldError, OSError):
        if not run.finished():  # or others finished it, and took away what we looked at
            raise
    finally:
        if run.finished():
            run.clean()
        elif run.board.path.exists():
            claims.leave()


def _name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


class Run:
    """A picture that is being made: what was decided, and where everything is. Whoever opens it first decides.

    BadRequest for what many cannot do; StoreError where another picture is; OverBudget.
    """

    def __init__(self, picture: Picture | DrawnPicture, path: Path, options: RunOptions, latents: Path | None) -> None:
        if path.suffix.lower() != ".zarr" or options.overwrite:
            wrong = "--overwrite" if options.overwrite else f"{path.suffix or 'no suffix'}"
            raise BadRequest(
                f"{path}: {wrong} with --cluster; wanted a .zarr, which many can write, and not to replace what others "
                "may be writing; write to a new .zarr, and make a .tif of it with widefield finalize"
            )
        check_signer(options.sign_cert, options.sign_key)
        self.picture, self.latents = picture, latents
        self.place = _place(path, options, latents)
        self.path = self.place.path
        try:
            self._open(options)
        except BaseException:
            self.place.close()
            raise

    def _open(self, options: RunOptions) -> None:
        with explained(self.path):
            self.job, self.options, self.plan, spec = self._decided(options)
            self.board = self.place.board(spec.fingerprint)
        store = open_store(self.path)
        assert isinstance(store, ZarrStore)
        self.store = store

    def _decided(self, options: RunOptions) -> tuple[DecodeJob, RunOptions, Plan, StoreSpec]:
        """The plan, by whoever lays out the store first."""
        if not self.place.look():
            self.place.lay_out(self._planned(options)[3])
        job, options, plan, spec = self._planned(options)
        found = ZarrStore.found(self.path)
        assert found is not None
        agree(found, spec, self.path)
        return job, options, plan, found

    def _planned(self, options: RunOptions) -> tuple[DecodeJob, RunOptions, Plan, StoreSpec]:
        options = as_before(self.path, options)
        picture = self.picture
        job: DecodeJob
        if isinstance(picture, DrawnPicture):
            job = DrawnJob.beside(self.path, picture.generation, options)
        else:
            job = picture.job
        plan = job.plan(options)
        spec = store_spec(job, self.path, plan, options)
        return job, options, plan, checked(spec, self.path, ZarrStore.codecs, ZarrStore.lossless)

    def finished(self) -> bool:
        """Whether the picture has its manifest."""
        return self.place.finished()

    def stages(self, talk: Talk | None) -> Iterator[Stage]:
        """All there is to do, in order."""
        yield from map(self.place.shared, self._stages(talk))

    def _stages(self, talk: Talk | None) -> Iterator[Stage]:
        if isinstance(self.job, DrawnJob):
            yield from Levels(self.job.drawing(self.options), self.board).stages()
        shards = Shards(self.job, self.store, self.plan, self.options, self.board)
        yield from shards.stages(talk)
        yield seal_picture(shards, self.finished, self._before_seal)

    def _before_seal(self) -> None:
        """What a finished picture has beside it."""
        summary = self.board.path / SUMMARY
        if summary.is_file():
            with self.board.room() as room:
                shutil.copyfile(summary, room / SUMMARY)
                (room / SUMMARY).replace(summary_path(self.path))
        if self.latents is not None and isinstance(self.job, DrawnJob) and not self.latents.exists():
            self.job.drawing(self.options).keep(self.latents, overwrite=False)

    def clean(self) -> None:
        """Sign it, where asked to, and take away what only an unfinished picture needs."""
        sign_finished(self.path, self.options.sign_cert, self.options.sign_key)
        self.place.clean()
        if isinstance(self.job, DrawnJob):
            self.job.drawing(self.options).remove()


def _place(path: Path, options: RunOptions, latents: Path | None) -> Place:
    url = remote_url(path)
    if url is None:
        return Folder(path)
    if latents is not None or options.sign_cert is not None:
        what = "--save-latents" if latents is not None else "--sign-cert"
        raise BadRequest(f"{what} with {url}; wanted a picture alone there; leave it out, and sign what finalize makes")
    from widefield.cluster.bucket import Bucket

    return Bucket(url, options.scratch)
