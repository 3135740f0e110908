"""How much memory a decode takes against what its plan says, each in a fresh process.

    python -m widefield_bench.memory BUNDLE LATENTS.npy --memory 512MiB --memory 2GiB --engine ort -o bench/results

Baseline  resident bytes after importing the library, the engine and the stores, and opening the bundle.
Actual    the peak of the resident set while the picture is saved, less the baseline: what the budget promises.
Planned   what the plan says, which must be no less, and not much more.
Stages    the peak during each stage of the sweep, and while streaming, so that one sees which buffer was misjudged.
`stop_after` ends a run early, after so many store tiles; by then every kind of tile should have been met.
`claims` is where one worker of `--cluster claims` makes the picture: a new .zarr of a folder, or at s3://, which the
variables of AWS tell of. There `--scratch` is the system's folder, and is on a disk or the files in it count, too.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from widefield_bench.common import about, child_environment, forget_peak, resident_nbytes, table, write_rows

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class MemoryCase:
    """One decode in its budget. None is for the plan to choose; `keys` bounds what an exact summary would keep."""

    bundle: str
    latents: str
    memory: str = "512MiB"
    engine: str = "ort"
    precision: str = "f32"
    workers: int | None = None
    summary: str = "auto"
    tile: int | None = None
    cells: int | None = None
    stop_after: int | None = None
    form: str = ".tif"
    claims: str | None = None
    shard_px: int | None = None


def measure_memory(case: MemoryCase, *, timeout_s: float = 1800) -> dict[str, Any]:
    """Run a case in a fresh process; bytes, and the plan's buffers. CalledProcessError where the run failed."""
    done = subprocess.run(
        [sys.executable, "-m", "widefield_bench.memory", "--child", json.dumps(asdict(case))],
        env=child_environment(), stdout=subprocess.PIPE, text=True, check=True, timeout=timeout_s,
    )  # fmt: skip
    return {**asdict(case), **json.loads(done.stdout.splitlines()[-1])}


class _EnoughError(Exception):
    """Stops a run that has shown what it was to show."""


def _child(case: MemoryCase) -> dict[str, Any]:
    import importlib

    import widefield.model
    import widefield.store
    from widefield.errors import OverBudget

    importlib.import_module("onnxruntime")  # attention runs on it whatever the engine
    if case.engine == "openvino":
        importlib.import_module("widefield.engine.openvino_engine")
    if case.claims is not None:
        importlib.import_module("widefield.cluster.join")
        importlib.import_module("zarr")
    if case.claims is not None and case.claims.startswith("s3://"):
        importlib.import_module("obstore.store")
    model = widefield.model.open(case.bundle)
    picture = model.decode(
        case.latents, memory=case.memory, engine=case.engine, precision=case.precision, workers=case.workers,
        summary=case.summary, cells=case.cells, tile=None if case.tile is None else (case.tile, case.tile),
        shard_px=case.shard_px,
    )  # fmt: skip
    baseline = resident_nbytes()
    forget_peak()
    try:
        plan = picture.plan()
    except OverBudget as refused:
        return {"refused": str(refused), "smallest_nbytes": refused.smallest_nbytes}
    stages: list[int] = []
    made = 0

    def peak() -> None:
        stages.append(resident_nbytes("VmHWM") - baseline)
        forget_peak()

    def progress(state: Any) -> None:
        nonlocal made
        made = state.done
        if case.stop_after is not None and made >= case.stop_after:
            raise _EnoughError

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_EnoughError):
        if case.claims is None:
            picture.save(Path(folder) / f"out{case.form}", progress=progress, talk=lambda *_: peak())
        else:
            made = _claimed(picture, case.claims, peak)
    streamed = resident_nbytes("VmHWM") - baseline
    return {
        "tile_cells": plan.tile[0],
        "plan_workers": plan.workers,
        "method": plan.method,
        "tiles_made": made,
        "budget_mib": plan.memory_nbytes // MIB,
        "baseline_mib": _mib(baseline),
        "actual_mib": _mib(max([*stages, streamed])),
        "planned_mib": _mib(plan.peak_nbytes()),
        "measure_mib": _mib(max(stages, default=0)),
        "measure_planned_mib": _mib(_planned(plan, "measure")),
        "stream_mib": _mib(streamed),
        "stream_planned_mib": _mib(_planned(plan, "stream")),
        "planned_over_actual": round(plan.peak_nbytes() / max([*stages, streamed]), 3),
        "within": max([*stages, streamed]) <= plan.peak_nbytes() <= plan.memory_nbytes,
        "stages_mib": [_mib(s) for s in stages],
        "buffers_mib": {f"{b.name} ({b.during})": _mib(b.nbytes) for b in plan.buffers if b.place == "host"},
    }


def _claimed(picture: Any, place: str, peak: Callable[[], None]) -> int:
    """Make it as one worker of `--cluster claims`; its shards."""
    from widefield.cluster.join import join

    def talk(what: str, *_: int) -> None:
        if what == "measuring sites":
            peak()

    made: int = join(picture, Path(place), talk=talk).as_dict()["shards_made"]
    return made


def _planned(plan: Any, during: str) -> int:
    return sum(b.nbytes for b in plan.buffers if b.place == "host" and b.during in (during, "both"))


def _mib(nbytes: int) -> float:
    return round(nbytes / MIB, 1)


COLUMNS = (
    "engine", "precision", "workers", "summary", "tile_cells", "tiles_made", "budget_mib", "planned_mib", "actual_mib",
    "planned_over_actual", "measure_mib", "measure_planned_mib", "stream_mib", "stream_planned_mib", "within",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the cases asked for: a table on stderr, JSON into a folder. Exit 1 where one left its plan."""
    defaults = MemoryCase("", "")
    parser = argparse.ArgumentParser(prog="python -m widefield_bench.memory", description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", nargs="?")
    parser.add_argument("latents", nargs="*", help=".npy files")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--memory", action="append", help=f"may be repeated ({defaults.memory})")
    parser.add_argument("--engine", action="append", help=f"may be repeated ({defaults.engine})")
    parser.add_argument("--workers", type=int, action="append", help="may be repeated (the plan's choice)")
    parser.add_argument("--summary", action="append", help=f"may be repeated ({defaults.summary})")
    parser.add_argument("--precision", default=defaults.precision, help="%(default)s")
    parser.add_argument("--tile", type=int, help="cells (the plan's choice)")
    parser.add_argument("--cells", type=int, help="of a sampled summary")
    parser.add_argument("--stop-after", type=int, help="store tiles (all of them)")
    parser.add_argument("--claims", help="where a worker of --cluster claims makes it: a new .zarr, or one at s3://")
    parser.add_argument("--shard", type=int, help="of a .zarr, pixels (8192)")
    parser.add_argument("-o", "--output", type=Path, help="folder for memory.json")
    options = parser.parse_args(argv)
    if options.child is not None:
        print(json.dumps(_child(MemoryCase(**json.loads(options.child)))))
        return 0
    if options.bundle is None or not options.latents:
        parser.error("name a bundle and latents")
    rows = []
    grid = itertools.product(
        options.latents, options.memory or [defaults.memory], options.engine or [defaults.engine],
        options.workers or [None], options.summary or [defaults.summary],
    )  # fmt: skip
    for latents, memory, engine, workers, summary in grid:
        case = MemoryCase(
            options.bundle, latents, memory, engine, options.precision, workers, summary, options.tile, options.cells,
            options.stop_after, claims=options.claims, shard_px=options.shard,
        )  # fmt: skip
        rows.append(measure_memory(case))
        print(table(rows[-1:], COLUMNS), file=sys.stderr)
    if options.output is not None:
        write_rows(options.output / "memory.json", rows, about())
    print(table(rows, COLUMNS))
    return 0 if all(row.get("within", True) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
