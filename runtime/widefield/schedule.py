"""Samplers as tables: one row a step, one rule for all of them. The export probes diffusers' schedulers for the rows.

    model(input_scale * x, timestep) = m                          what the denoiser is asked
    x' = a x + b m + c n + h        h' = history_x x + history_m m

x is the sample, m the model's output (after guidance), n fresh noise of unit variance, h what a multistep sampler keeps
of the step before: zero where a run starts, and there a, b are first_a, first_b. One-step samplers have h = 0 always.

A run starts from noise alone, x = initial * n, or at strength s from a clean latent x0 with only the last steps left,

    x = keep * x0 + noise * n,    int(s * count) steps of `count`, as diffusers' image-to-image pipelines count them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widefield.errors import BadBundle, BadRequest

COLUMNS = (
    "timestep", "input_scale", "a", "b", "c", "history_x", "history_m", "first_a", "first_b", "keep", "noise",
)  # fmt: skip

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Step:
    """One row: the coefficients of the rule above, `c` 0 where no noise is drawn."""

    timestep: float
    input_scale: float
    a: float
    b: float
    c: float
    history_x: float
    history_m: float
    keep: float
    noise: float


@dataclass(frozen=True, slots=True)
class Run:
    """The steps of one run. `initial` is the deviation of the noise that a run from noise alone starts with."""

    steps: tuple[Step, ...]
    initial: float

    @property
    def draws_noise(self) -> bool:
        """Whether any step adds noise of its own."""
        return any(step.c != 0.0 for step in self.steps)

    @property
    def keeps_history(self) -> bool:
        """Whether any step needs what the step before it kept."""
        return any(step.history_x != 0.0 or step.history_m != 0.0 for step in self.steps)


@dataclass(frozen=True)
class Schedule:
    """A sampler's tables by their number of steps: (count, len(COLUMNS)) float64 each, and the initial deviations."""

    name: str
    tables: Mapping[int, NDArray[np.float64]]
    initial: Mapping[int, float]

    def phases(self, count: int, strength: float, phases: int) -> tuple[Run, ...]:
        """A run in as many parts of nearly equal length, none of them empty: a multistep sampler starts anew in each.

        BadRequest as `run` says, and for less than one phase.
        """
        if phases < 1:
            raise BadRequest(f"{phases} phases were asked for; wanted 1 or more; name another number")
        steps = self.run(count, strength).steps
        edges = sorted({len(steps) * k // phases for k in range(phases + 1)})
        rows = self.tables[count][count - len(steps) :]
        parts = [self._steps(rows[a:b]) for a, b in itertools.pairwise(edges)]
        return tuple(Run(part, self.initial[count]) for part in parts)

    def count(self, steps: int, strength: float) -> int:
        """The shortest run of which a strength leaves at least so many steps, or the longest there is."""
        counts = sorted(self.tables)
        return next((count for count in counts if int(count * strength) >= steps), counts[-1])

    def run(self, count: int, strength: float = 1.0) -> Run:
        """The steps of a run of `count` at a strength in [0, 1]; none where the strength leaves none.

        BadRequest for a strength outside [0, 1], and for a number of steps that the bundle has no table for.
        """
        if not (math.isfinite(strength) and 0.0 <= strength <= 1.0):
            raise BadRequest(f"strength {strength} is outside 0 to 1; wanted a share of the steps; name another")
        if count not in self.tables:
            counts = sorted(self.tables)
            raise BadRequest(
                f"{count} steps are not in the tables of {self.name}, which has {_ranges(counts)}; name one of those"
            )
        table = self.tables[count]
        return Run(self._steps(table[count - min(int(count * strength), count) :]), self.initial[count])

    @staticmethod
    def _steps(rows: NDArray[np.float64]) -> tuple[Step, ...]:
        steps = []
        for index, row in enumerate(rows):
            r = dict(zip(COLUMNS, map(float, row), strict=True))
            a, b = (r["first_a"], r["first_b"]) if index == 0 else (r["a"], r["b"])
            last = index == len(rows) - 1
            history = (0.0, 0.0) if last else (r["history_x"], r["history_m"])
            steps.append(Step(r["timestep"], r["input_scale"], a, b, r["c"], *history, r["keep"], r["noise"]))
        return tuple(steps)


def update(
    step: Step, x: Array, m: Array, n: Array | None = None, history: Array | None = None
) -> tuple[Array, Array | None]:
    """(x', h') of the rule above, in the precision of x. `n` is needed where step.c is not 0; h' is None for zero."""
    number = x.dtype.type
    following = number(step.a) * x + number(step.b) * m
    if step.c != 0.0:
        if n is None:
            raise ValueError("this step adds noise, and there is none")
        following += number(step.c) * n
    if history is not None:
        following += history
    if step.history_x == 0.0 and step.history_m == 0.0:
        return following, None
    return following, number(step.history_x) * x + number(step.history_m) * m


def guided(positive: Array, negative: Array, scale: float) -> Array:
    """Classifier-free guidance: negative + scale (positive - negative)."""
    return negative + negative.dtype.type(scale) * (positive - negative)


def parse_schedule(name: str, arrays: Mapping[str, NDArray[np.float64]]) -> Schedule:
    """A schedule from `arrays` called "COUNT", with `initial` (counts,) beside them, in rising order of counts."""
    counts = sorted(int(key) for key in arrays if key != "initial")
    tables = {count: np.asarray(arrays[str(count)], np.float64) for count in counts}
    initial = np.asarray(arrays.get("initial", ()), np.float64)
    if not counts or initial.shape != (len(counts),):
        raise BadBundle(f"schedule {name} has {len(counts)} tables and {initial.size} initial deviations; export again")
    for count, table in tables.items():
        if table.shape != (count, len(COLUMNS)) or not np.isfinite(table).all():
            raise BadBundle(f"schedule {name} has a table of shape {table.shape} for {count} steps; export again")
    return Schedule(name, tables, dict(zip(counts, map(float, initial), strict=True)))


def _ranges(counts: list[int]) -> str:
    """1 to 50, 60, 75."""
    parts: list[list[int]] = []
    for count in counts:
        if parts and parts[-1][-1] == count - 1:
            parts[-1][1:] = [count]
        else:
            parts.append([count])
    return ", ".join(" to ".join(map(str, part)) for part in parts)
