"""Everything that `widefield bench` measures, section by section, as rows.

decode      ours and the peers, at every size, in turns (widefield_bench.decode); quality: how near untiled they are
split       where ours spends its threads' time (widefield_bench.watch)
ceiling     the machine's product and copy; roofline: parts of a decode under them (widefield_bench.roofline)
scaling     a model of CPU seconds by size, from ours in float32, the largest size left out and predicted; projection:
            from it, the largest picture there can be (widefield_bench.scaling)
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from widefield_bench import results
from widefield_bench.common import about
from widefield_bench.decode import OURS, side_by_side
from widefield_bench.decode_run import CHECKPOINT, DecodeCase, run_case
from widefield_bench.latents import photographs, repeated
from widefield_bench.peers import PEERS
from widefield_bench.results import Row

SECTIONS = ("decode", "split", "roofline", "scaling")
SIZES_PX, QUICK_PX = (1024, 1536, 2048, 3072, 4096), (512, 768, 1024)
UNTILED_UP_TO_PX = (
    2048  # what decodes in one piece takes minutes beyond: its attention grows with the square of the area
)


@dataclass(frozen=True, slots=True)
class Suite:
    """What to measure. `limit` is the memory that any run may take; `timeout_s` the time."""

    bundle: str | None = None
    latents: str | None = None
    checkpoint: str = str(CHECKPOINT)
    sizes_px: tuple[int, ...] = SIZES_PX
    whose: tuple[str, ...] = ()
    rounds: int = 1
    threads: int = 2
    memory: str = "2GiB"
    limit: str = "8GiB"
    timeout_s: float = 900.0
    untiled_up_to_px: int = UNTILED_UP_TO_PX
    sections: tuple[str, ...] = SECTIONS
    quick: bool = False

    def ways(self) -> tuple[str, ...]:
        """Whose decodes: those asked for, or everybody's who is installed."""
        ours = [who for who in OURS if importlib.util.find_spec("openvino") or who.startswith("ort")]
        return self.whose or (*PEERS, *ours)


def run(suite: Suite, path: Path) -> list[dict[str, Any]]:
    """Measure, and keep the rows in the file at `path` as they come, with those of earlier runs."""
    head = about()
    rows = results.read(path)
    for name, work in WORK.items():
        if name in suite.sections:
            for found in work(suite, rows):
                rows = results.merged(rows, [{**found, "about": head}])
                results.write(path, rows)
    return rows


def _decode(suite: Suite, _: Sequence[Row]) -> Iterator[dict[str, Any]]:
    lost: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in suite.sizes_px:
            print(f"{size} x {size}", file=sys.stderr)
            whole = size <= suite.untiled_up_to_px
            whose = [who for who in suite.ways() if who in OURS or who == "tiled" or whole]
            asked = [who for who in whose if who not in lost]
            base = _case(suite, size, Path(folder))
            made = side_by_side(
                base, asked, rounds=suite.rounds, check_against_untiled=whole and "untiled" in asked,
                timeout_s=suite.timeout_s,
            )  # fmt: skip
            for who in set(whose) - set(asked):
                made.append({"who": who, "failed": f"not tried: failed at {lost[who]} px"})
            for row in made:
                if "failed" in row:
                    lost.setdefault(row["who"], size)
                checked: dict[str, Any] = {
                    name: row.pop(name) for name in ("psnr_db", "largest_difference") if name in row
                }
                yield {"section": "decode", "size_px": size, "threads": suite.threads, "limit": suite.limit, **row}
                if checked:
                    yield {"section": "quality", "size_px": size, "who": row["who"], **checked}


def _case(suite: Suite, size: int, folder: Path) -> DecodeCase:
    import widefield.model

    cells = size // widefield.model.open(suite.bundle).bundle.scale
    if suite.latents is None:
        latents = photographs(cells, folder, suite.bundle)
    else:
        latents = repeated(np.load(suite.latents), cells, folder / f"given{cells}.npy")
    return DecodeCase(
        "", str(latents), suite.threads, suite.checkpoint, suite.bundle, suite.memory, limit=suite.limit
    )  # fmt: skip


def _split(suite: Suite, _: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Of each of ours, at the size in the middle."""
    size = sorted(suite.sizes_px)[len(suite.sizes_px) // 2]
    with tempfile.TemporaryDirectory() as folder:
        base = _case(suite, size, Path(folder))
        for who in suite.ways():
            if who in OURS:
                made = run_case(replace(base, who=who, watch=True), timeout_s=suite.timeout_s)
                kept = ("failed", "seconds", "workers", "split")
                found = {name: made[name] for name in kept if name in made}
                yield {"section": "split", "size_px": size, "threads": suite.threads, "who": who, **found}


def _roofline(suite: Suite, _: Sequence[Row]) -> Iterator[dict[str, Any]]:
    from widefield_bench.roofline import ceilings, measured

    small = {"side": 256, "copy_nbytes": 1 << 24, "repeats": 3} if suite.quick else {}
    limits = ceilings(suite.threads, **small)
    yield {"section": "ceiling", "name": "ceilings", **limits}
    for row in measured(suite.threads, limits, **({"side": 64, "repeats": 3} if suite.quick else {})):
        yield {"section": "roofline", **row}


def _scaling(suite: Suite, rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """From the decodes that are in the file, of whoever of ours has most sizes in float32."""
    import widefield.model
    from widefield.options import run_options
    from widefield_bench.scaling import check, fit, project

    by_who = {who: _fittable(rows, who) for who in ("openvino f32", "ort f32")}
    who, mine = max(by_who.items(), key=lambda entry: len(entry[1]))
    if len(mine) < 3:
        print(f"scaling wants three sizes, found {len(mine)}; decode more", file=sys.stderr)
        return
    cores = max((r for r in mine if results.quiet(r)), key=lambda r: r["size_px"], default=None)
    model = fit(mine[:-1], suite.threads if cores is None else cores["cpu_seconds"] / cores["seconds"])
    lines = {
        "measure_fixed_seconds": round(model.measure.fixed, 3), "measure_gflops": _gflops(model.measure.rate),
        "cores_used": round(model.cores, 3),
        "stream_fixed_seconds": round(model.stream.fixed, 3), "stream_gflops": _gflops(model.stream.rate),
    }  # fmt: skip
    sizes = [row["size_px"] for row in mine[:-1]]
    yield {"section": "scaling", "name": "model", "by": who, "fitted_px": sizes, **lines, **check(model, mine[-1])}
    options = run_options({"memory": suite.memory, "engine": who.partition(" ")[0]})
    for row in project(model, widefield.model.open(suite.bundle).bundle, options):
        yield {"section": "projection", "by": who, **row}


def _fittable(rows: Sequence[Row], who: str) -> list[Row]:
    """By size; those with a sampled summary where there are enough, for they are what large pictures are like."""
    mine = [row for row in results.section(rows, "decode") if row["who"] == who and "failed" not in row]
    mine.sort(key=lambda row: int(row["size_px"]))
    sampled = [row for row in mine if row["method"] == "sampled"]
    return sampled if len(sampled) >= 3 else mine


def _gflops(rate: float) -> float | None:
    """None where seconds did not grow with the work."""
    return None if rate == float("inf") else round(rate / 1e9, 2)


WORK: dict[str, Callable[[Suite, Sequence[Row]], Iterator[dict[str, Any]]]] = {
    "decode": _decode,
    "split": _split,
    "roofline": _roofline,
    "scaling": _scaling,
}
