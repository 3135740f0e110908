"""Save a picture: plan, open the store, measure or read the summary, stream what is missing, say what was done."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from widefield import __version__
from widefield.buffers import STORE_TILE_PX
from widefield.certificate import NOTHING, Certificate
from widefield.cluster.place import remote_url
from widefield.coder import TileCoder
from widefield.errors import BadRequest, StoreError
from widefield.job import DecodeJob, Talk
from widefield.options import RunOptions
from widefield.plan import Plan
from widefield.provenance.signing import check_signer, sign_finished
from widefield.render import Progress, stream
from widefield.store import PyramidWriter, Store, StoreSpec, create_or_resume, default_codec, open_store


@dataclass(frozen=True, slots=True)
class Saved:
    """What a save did. `size_px` is (width, height). `engine_share` is the part of the workers' time that engines ran
    while tiles were made, `engine_share_of_run` of all of it, with measuring, opening and closing; `redone` the calls
    of an engine that overflowed in half precision and were made again in float32."""

    path: Path
    size_px: tuple[int, int]
    plan: Plan
    tiles_made: int
    tiles_found: int
    seconds: float
    measure_seconds: float
    engine_share: float
    bytes_written: int
    certificate: Certificate
    summary: Path | None
    redone: int = 0
    engine_share_of_run: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "size_px": list(self.size_px),
            "tile_cells": list(self.plan.tile),
            "store_tiles_made": self.tiles_made,
            "store_tiles_found": self.tiles_found,
            "seconds": round(self.seconds, 3),
            "measure_seconds": round(self.measure_seconds, 3),
            "engine_share": round(self.engine_share, 4),
            "engine_share_of_run": round(self.engine_share_of_run, 4),
            "calls_redone": self.redone,
            "bytes_written": self.bytes_written,
            "summary": None if self.summary is None else str(self.summary),
            "certificate": self.certificate.as_dict(),
        }


def save(
    job: DecodeJob,
    path: Path,
    options: RunOptions,
    *,
    progress: Callable[[Progress], None] | None = None,
    talk: Talk | None = None,
) -> Saved:
    """Write all of a picture, going on where an earlier, equal save stopped. Picture.save says the rest."""
    started = time.perf_counter()
    if (url := remote_url(path)) is not None:
        raise BadRequest(f"{url} is no path on a disk; wanted one, or many processes; add --cluster claims")
    check_signer(options.sign_cert, options.sign_key)
    options = as_before(path, options)
    plan = job.plan(options)
    store = create_or_resume(path, store_spec(job, path, plan, options), overwrite=options.overwrite)
    made = _Streamed()
    with writing(store) as writer:
        _stream_missing(job, store, writer, options, plan, made, progress, talk)
    sign_finished(path, options.sign_cert, options.sign_key)
    beside = summary_path(path)
    found = store.levels[0].rows * store.levels[0].columns - made.tiles
    seconds = time.perf_counter() - started
    share_of_run = made.engine_seconds / (plan.workers * seconds) if made.tiles else 1.0
    return Saved(
        path, (job.shape[1], job.shape[0]), plan, made.tiles, found, seconds,
        made.measure_seconds, made.engine_share, writer.bytes_written, made.certificate,
        beside if beside.is_file() else None, made.redone, share_of_run,
    )  # fmt: skip


@contextlib.contextmanager
def writing(store: Store) -> Iterator[PyramidWriter]:
    """A writer of a store's tiles. Both are closed after, also when it fails, so that this process, too, may go on."""
    try:
        writer = PyramidWriter(store, threads=1)
        try:
            yield writer
            writer.close()
        except BaseException:
            writer.abort()
            raise
        store.close()
    except BaseException:
        with contextlib.suppress(StoreError):
            store.close()
        raise


@dataclass
class _Streamed:
    tiles: int = 0
    measure_seconds: float = 0.0
    engine_share: float = 1.0
    engine_seconds: float = 0.0
    redone: int = 0
    certificate: Certificate = NOTHING


def _stream_missing(
    job: DecodeJob,
    store: Store,
    writer: PyramidWriter,
    options: RunOptions,
    plan: Plan,
    made: _Streamed,
    progress: Callable[[Progress], None] | None,
    talk: Talk | None,
) -> None:
    """Make the tiles that the store lacks; what was done is noted in `made`."""
    missing = np.zeros((store.levels[0].rows, store.levels[0].columns), np.bool_)
    for index in writer.missing():
        missing[index] = True
    made.tiles = int(missing.sum())
    if not made.tiles:
        return
    started = time.perf_counter()
    summary = job.kept_summary(summary_path(store.path), options, plan, talk)
    made.measure_seconds = time.perf_counter() - started
    coder: TileCoder = job.coder(summary, plan, options.engine_options(plan.workers, plan.threads, keeps=plan.keeps))
    try:
        started = time.perf_counter()
        stream(coder, job.grid(plan), missing, writer.put, workers=plan.workers, progress=progress)
        seconds = time.perf_counter() - started
    finally:
        coder.close()
    made.engine_share = coder.engine_seconds / max(1e-9, plan.workers * seconds)
    made.engine_seconds = summary.engine_seconds + coder.engine_seconds
    made.redone = coder.redone
    made.certificate = coder.certifier.certificate()


def store_spec(job: DecodeJob, path: Path, plan: Plan, options: RunOptions) -> StoreSpec:
    """What the store records: its fingerprint is of everything that determines the pixels, the summary's request
    instead of the summary, so that it is known before anything is measured."""
    height, width, _ = job.shape
    codec = options.codec
    if codec in ("auto", "lossless"):
        codec = default_codec(path, lossless=codec == "lossless")
    determinants = {
        **job.summary_request(options, plan),
        "tile": f"{plan.tile[0]}x{plan.tile[1]}",
        "engine": options.engine_options().backend,
        "precision": options.precision,
    }
    about = {"software": f"widefield {__version__}", "bundle_name": job.bundle.name, **determinants}
    about |= job.origin(options)
    fingerprint = hashlib.sha256(json.dumps(determinants, sort_keys=True).encode()).hexdigest()
    return StoreSpec(
        width, height, fingerprint, codec, options.quality, STORE_TILE_PX, about, shard_px=options.shard_px
    )


def summary_path(path: Path) -> Path:
    """Where a picture's summary lies: beside it."""
    return path.with_name(f"{path.stem}.summary.safetensors")


def as_before(path: Path, options: RunOptions) -> RunOptions:
    """A resumed run keeps the tile grid and the engine that the store was begun with, unless told otherwise."""
    if options.overwrite or not path.exists():
        return options
    try:
        with open_store(path) as store:
            before = store.spec.metadata
    except StoreError:
        return options  # create_or_resume says what is wrong with it
    if options.tile is None and "tile" in before:
        options = replace(options, tile=cast(Any, tuple(int(n) for n in before["tile"].split("x"))))
    if options.engine == "auto" and "engine" in before:
        options = replace(options, engine=before["engine"])
    return options
