"""What a picture of any size takes: a model fitted to measured sizes and their plans, and how far it was off.

    measure(size) = m0 + measure_flops(size) / m1        stream(size) = s0 + flops(size) / s1        CPU seconds
    seconds(size) = (measure + stream) / (threads * used)

flops and measure_flops are the plan's, counted, not measured: of the graphs on all tiles with their margins and of
attention, and of finding the summary. m0, s0 >= 0 are what does not grow (engines that compile, first tiles); m1, s1
are rates. Each pair is a fit of least squares of relative errors to sizes that were measured. Encoding and writing grow
with the tiles, as flops do, and are in s1. Fitted are CPU seconds, which others on the machine hardly change; `used`,
the part of its threads' time that a decode takes, is that of the largest run that nobody disturbed. Only sizes whose
summary is sampled are used: an exact one costs attention to all tokens, which large pictures never pay.

On n machines of the kind that was measured, each makes every n-th block of tiles, which share nothing but the summary:

    seconds = (measure + s0 + flops / (n s1)) / (threads * used)            machine hours = n seconds / 3600

The summary is measured once and the others wait for it. Nothing is added for the network: `stored_mb_per_s` is what all
machines together would write. A projection, and named one wherever it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LARGEST_PX = 524_288
WITHIN = 0.15  # of a size that was not fitted


@dataclass(frozen=True, slots=True)
class Line:
    """CPU seconds = fixed + work / rate."""

    fixed: float
    rate: float

    def seconds(self, work: float, machines: int = 1) -> float:
        """Of so much work, spread over machines."""
        return self.fixed + work / self.rate / machines


@dataclass(frozen=True, slots=True)
class Model:
    """As at the head of this file. Works are in FLOP; `cores` is threads times used."""

    measure: Line
    stream: Line
    cores: float

    def cpu_seconds(self, measure_flops: float, flops: float, machines: int = 1) -> float:
        """Of a picture, on the machine that takes longest."""
        return self.measure.seconds(measure_flops) + self.stream.seconds(flops, machines)


def fit_line(works: Sequence[float], seconds: Sequence[float]) -> Line:
    """The line of least squares of relative errors, its fixed part no less than 0. ValueError for fewer than 2."""
    if len(works) < 2:
        raise ValueError(f"a line needs two sizes or more, got {len(works)}")
    x, t = np.asarray(works, np.float64), np.asarray(seconds, np.float64)
    slope, fixed = np.linalg.lstsq(np.stack([x / t, 1 / t], 1), np.ones(len(t)), rcond=None)[0]
    if fixed < 0 or slope <= 0:  # on the border: through the origin, or flat
        through = float((x / t).sum() / ((x / t) ** 2).sum())
        flat = float((1 / t).sum() / ((1 / t) ** 2).sum())
        return Line(0.0, 1 / through) if slope > 0 else Line(flat, float("inf"))
    return Line(float(fixed), 1 / float(slope))


def fit(rows: Sequence[Mapping[str, Any]], cores: float) -> Model:
    """From rows of decodes: their plans' flops and what each phase took of the CPU."""
    measure = fit_line([r["measure_flops"] for r in rows], [r["measure_cpu_seconds"] for r in rows])
    return Model(measure, fit_line([r["flops"] for r in rows], [r["stream_cpu_seconds"] for r in rows]), cores)


def check(model: Model, row: Mapping[str, Any]) -> dict[str, Any]:
    """The model's CPU seconds for a size that it was not fitted to, beside what that took."""
    predicted = model.cpu_seconds(row["measure_flops"], row["flops"])
    off = predicted / row["cpu_seconds"] - 1
    return {
        "size_px": row["size_px"],
        "predicted_cpu_seconds": round(predicted, 2),
        "measured_cpu_seconds": row["cpu_seconds"],
        "off": round(off, 4),
        "within": abs(off) <= WITHIN,
    }


def project(
    model: Model, bundle: Any, options: Any, size_px: int = LARGEST_PX, machines: Sequence[int] = (1, 8, 64)
) -> list[dict[str, Any]]:
    """A row for each number of machines: seconds, machine hours, bytes, and memory on each machine, for a square."""
    from widefield.commands.plan import plan_of_size

    plan = plan_of_size(bundle, (size_px, size_px), options)
    rows = []
    for count in machines:
        seconds = model.cpu_seconds(plan.measure_flops, plan.flops, count) / model.cores
        rows.append(
            {
                "size_px": size_px,
                "machines": count,
                "projected_seconds": round(seconds),
                "projected_hours": round(seconds / 3600, 2),
                "projected_machine_hours": round(count * seconds / 3600, 1),
                "written_gb": round(plan.written_nbytes / 1e9, 1),
                "stored_mb_per_s": round(plan.written_nbytes / 1e6 / seconds, 2),
                "planned_mib": round(plan.peak_nbytes() / 2**20),
                "pflop": round((plan.flops + plan.measure_flops) / 1e15, 1),
            }
        )
    return rows
