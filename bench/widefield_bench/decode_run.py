"""One decode, ours or a peer's, in a process of its own: seconds, CPU seconds, and memory above what it held, loaded.

Cores     the first `threads` that the process may use.
Counted   decode or save alone: imports, loading, exporting and torch.compile come before.
Others    the part of the machine's cores that other processes took meanwhile.
Memory    the peak of the resident set over what the process held, weights loaded. Past `limit` above that the system
          refuses memory. A run that fails, or is not done in time, says so in place of numbers.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widefield_bench.common import busy_seconds, child_environment, forget_peak, resident_nbytes
from widefield_bench.peers import PEERS, prepare
from widefield_bench.watch import watching

CHECKPOINT = Path(__file__).parents[2] / "export" / "embedded" / "vae"
TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True)
class DecodeCase:
    """One way to decode one array of latents. `keep` is where the level-0 pixels go, as .npy, for a check; `limit` is
    what a run may take in memory beside what it held when loaded, as "8GiB". `watch`: where the time goes."""

    who: str
    latents: str
    threads: int = 2
    checkpoint: str = str(CHECKPOINT)
    bundle: str | None = None
    memory: str = "2GiB"
    keep: str | None = None
    limit: str | None = None
    watch: bool = False


def run_case(case: DecodeCase, *, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Decode in a fresh process and say how that went; {"failed": why} where it did not."""
    command = [sys.executable, "-m", "widefield_bench.decode_run", json.dumps(asdict(case))]
    try:
        done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done in {timeout_s:.0f} s"}
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    if done.returncode < 0:
        return {"failed": f"ended by signal {-done.returncode}"}
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return {"failed": said[-1][:200] if said else f"exit status {done.returncode}"}


def measured(case: DecodeCase) -> dict[str, Any]:
    """Run a case in this process."""
    cores = sorted(os.sched_getaffinity(0))[: case.threads]
    os.sched_setaffinity(0, cores)
    return _peer(case) if case.who in PEERS else _ours(case)


def _bounded(case: DecodeCase) -> int:
    """Let the system refuse memory past the limit from here on, and count the peak anew; resident bytes now."""
    if case.limit is not None:
        from widefield.options import parse_nbytes

        held = resident_nbytes("VmData")
        resource.setrlimit(resource.RLIMIT_DATA, (held + parse_nbytes(case.limit), resource.RLIM_INFINITY))
    forget_peak()
    return resident_nbytes()


class _Clock:
    """Wall, CPU and others' time since it was made."""

    def __init__(self) -> None:
        self.busy, self.wall, self.cpu = busy_seconds(), time.perf_counter(), time.process_time()

    def row(self) -> dict[str, float]:
        """`seconds`, `cpu_seconds` and `others_share` until now."""
        seconds, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        others = max(0.0, busy_seconds() - self.busy - cpu)
        return {"seconds": seconds, "cpu_seconds": cpu, "others_share": others / seconds / (os.cpu_count() or 1)}


def _peer(case: DecodeCase) -> dict[str, Any]:
    loading = time.perf_counter()
    decode = prepare(case.who, case.checkpoint, np.load(case.latents).astype(np.float32), case.threads)
    loaded = time.perf_counter() - loading
    idle = _bounded(case)
    clock = _Clock()
    x = decode()
    times = clock.row()
    peak = resident_nbytes("VmHWM") - idle
    if not np.isfinite(x).all():
        raise ValueError(f"{case.who} gave values that are not numbers")
    if case.keep is not None:
        np.save(case.keep, np.clip(np.rint((x.transpose(1, 2, 0) + 1) * 127.5), 0, 255).astype(np.uint8))
    mpx = x.shape[1] * x.shape[2] / 1e6
    return {"mpx": mpx, **times, "peak_mib": peak / 2**20, "open_seconds": loaded}


def _ours(case: DecodeCase) -> dict[str, Any]:
    import importlib

    import widefield.model

    engine, _, precision = case.who.partition(" ")
    for name in {"onnxruntime", "onnxruntime" if engine == "ort" else engine}:
        importlib.import_module(name)
    loading = time.perf_counter()
    model = widefield.model.open(case.bundle)
    picture = model.decode(
        case.latents, engine=engine, precision=precision, memory=case.memory,
        codec="auto" if case.keep is None else "lossless",
    )  # fmt: skip
    loaded = time.perf_counter() - loading
    idle = _bounded(case)
    measured_cpu = 0.0

    def talk(*_: object) -> None:
        nonlocal measured_cpu
        measured_cpu = time.process_time() - clock.cpu

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.tif"
        with watching() if case.watch else contextlib.nullcontext() as watch:
            clock = _Clock()
            saved = picture.save(path, talk=talk)
            times = clock.row()
        peak = resident_nbytes("VmHWM") - idle
        if case.keep is not None:
            np.save(case.keep, _stored(path))
    mpx = picture.shape[0] * picture.shape[1] / 1e6
    plan = saved.plan
    return {
        "mpx": mpx,
        **times,
        "peak_mib": peak / 2**20,
        "measure_seconds": saved.measure_seconds,
        "measure_cpu_seconds": measured_cpu,
        "stream_seconds": times["seconds"] - saved.measure_seconds,
        "stream_cpu_seconds": times["cpu_seconds"] - measured_cpu,
        "engine_share": saved.engine_share,
        "open_seconds": loaded,
        "tile_cells": plan.tile[0],
        "workers": plan.workers,
        "method": plan.method,
        "flops": plan.flops,
        "measure_flops": plan.measure_flops,
        "flops_over_untiled": plan.overhead,
        "planned_mib": plan.peak_nbytes() / 2**20,
        "bits_per_px": saved.bytes_written * 8 / mpx / 1e6,
        **({} if watch is None else {"split": watch.rows()}),
    }


def _stored(path: Path) -> NDArray[np.uint8]:
    """All of level 0."""
    from widefield.store import open_store

    with open_store(path) as store:
        pixels = np.empty((store.spec.height_px, store.spec.width_px, 3), np.uint8)
        for (row, column), _ in np.ndenumerate(store.done(0)):
            part = store.read(0, row, column)
            y, x = row * store.spec.tile_px, column * store.spec.tile_px
            pixels[y : y + part.shape[0], x : x + part.shape[1]] = part[: len(pixels) - y, : pixels.shape[1] - x]
    return pixels


if __name__ == "__main__":
    print(json.dumps(measured(DecodeCase(**json.loads(sys.argv[1])))))
