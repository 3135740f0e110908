"""What a decode costs in numbers that no load of the machine can move: FLOPs, bytes, engine calls, allocations.

    python -m widefield_bench.counts -o bench/results        after a change that is meant to cost more, and says why

plans   of the embedded decoder at three sizes, on ONNX Runtime, two workers, 2 GiB: FLOPs, bytes planned and written
run     a decode of 40 x 56 latents with one worker to a .tif: calls by kind of work, bytes written, and what Python and
        numpy held at most (tracemalloc). Tests hold all of them to what is kept in bench/results/counts.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import widefield
from widefield.buffers import PlanRequest
from widefield.plan import make_plan
from widefield_bench import results
from widefield_bench.common import about, table
from widefield_bench.watch import watching

SIDES_PX = (1024, 4096, 524_288)
CELLS = (40, 56)
FEW_PERCENT = 1.03  # bytes of JPEG and of Python's own objects differ a little between versions of libraries
COUNTED = ("calls", "flops", "flops_over_untiled", "measure_flops", "planned_nbytes", "nbytes", "held_nbytes")
ROUGH = ("nbytes", "held_nbytes")


def counts() -> list[dict[str, Any]]:
    """Rows of counts, each with a name."""
    return [*(_planned(side) for side in SIDES_PX), *_run()]


def worse(kept: Sequence[results.Row], found: Sequence[results.Row]) -> list[str]:
    """What costs more than was kept, a line each; also what is not there any more."""
    lines = []
    by_name = {row["name"]: row for row in found}
    for row in kept:
        mine = by_name.get(row["name"], {})
        for what in COUNTED:
            if what in row and what not in mine:
                lines.append(f"{row['name']}: nothing was counted of {what}; {row[what]:,} is kept")
            elif what in row and mine[what] > row[what] * (FEW_PERCENT if what in ROUGH else 1):
                lines.append(f"{row['name']}: {what} is {mine[what]:,}; {row[what]:,} is kept")
    return lines


def _planned(side_px: int) -> dict[str, Any]:
    bundle = widefield.open().bundle
    cells = side_px // bundle.scale
    plan = make_plan(bundle, bundle.decoder, cells, cells, PlanRequest(2 << 30, cores=2, backend="ort"))
    return {
        "name": f"plan, {side_px} px",
        "flops": plan.flops,
        "flops_over_untiled": round(plan.overhead, 4),
        "measure_flops": plan.measure_flops,
        "planned_nbytes": plan.peak_nbytes(),
    }


def _run() -> list[dict[str, Any]]:
    rows, columns = CELLS
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32) / 16
    model = widefield.open()
    waves = [np.sin((k + 1) * y + x) + np.cos(x - k * y) for k in range(model.bundle.latent_channels)]
    options: dict[str, Any] = {"engine": "ort", "workers": 1, "summary": "exact", "tile": (16, 16)}
    with tempfile.TemporaryDirectory() as folder:
        model.decode(np.stack(waves), **options).save(Path(folder) / "warm.tif")  # what is imported is not counted
        with watching() as watch:
            tracemalloc.start()
            saved = model.decode(np.stack(waves), **options).save(Path(folder) / "picture.tif")
            _, held = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    calls = [
        {"name": f"run, {phase}, {kind}", "calls": count}
        for (phase, kind), count in sorted(watch.calls.items())
        if phase == "stream"
    ]
    return [*calls, {"name": "run", "nbytes": saved.bytes_written, "held_nbytes": held}]


def main(argv: Sequence[str] | None = None) -> int:
    """Count; a table, and JSON where asked. Exit 1 where it is worse than what is kept and nothing is to be written."""
    parser = argparse.ArgumentParser(prog="python -m widefield_bench.counts", description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, help="folder for counts.json")
    options = parser.parse_args(argv)
    found, head = counts(), about()
    print(table(found, ("name", *COUNTED)))
    if options.output is not None:
        results.write(options.output / "counts.json", [{**row, "about": head} for row in found])
        return 0
    lines = worse(results.read(results.FOLDER / "counts.json"), found)
    print("\n".join(lines), file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
