"""The levels of a picture that grows: how large each is, and how it is denoised. Numbers only; nothing runs here.

    level K    the picture: its pixels over the autoencoder's scale, rounded up, and at least one window on both sides
    level k-1  level k over 2, rounded up, as long as it is at least a window on both sides; level 0 is the last such

Level 0 is drawn from noise. Level k is level k - 1 decoded, enlarged, encoded, noised to its strength, and denoised:
`steps` is the length of the schedule, of which a strength s leaves the last int(s steps), in `phases` parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from widefield.errors import BadRequest

FACTOR = 2


@dataclass(frozen=True, slots=True)
class Level:
    """One level. Sides in latent cells; `strength` 1 starts from noise alone."""

    index: int
    height: int
    width: int
    steps: int
    strength: float
    phases: int


def level_cells(height_px: int, width_px: int, scale: int, window: tuple[int, int]) -> list[tuple[int, int]]:
    """(rows, columns) in cells of every level, the smallest first. BadRequest for a picture without pixels."""
    if height_px < 1 or width_px < 1:
        raise BadRequest(f"a picture of {width_px} x {height_px} px has no pixels; both sides must be at least 1")
    sides = [tuple(max(-(-px // scale), least) for px, least in zip((height_px, width_px), window, strict=True))]
    while all(-(-side // FACTOR) >= least for side, least in zip(sides[0], window, strict=True)):
        sides.insert(0, tuple(-(-side // FACTOR) for side in sides[0]))
    return [(rows, columns) for rows, columns in sides]


def make_levels(
    cells: Sequence[tuple[int, int]],
    *,
    steps: int,
    strengths: Sequence[float],
    phases: Sequence[int],
) -> tuple[Level, ...]:
    """Levels of those sizes. `strengths` and `phases` begin with level 0; the last of each holds for all levels after.

    Level 0 has strength 1. BadRequest for strengths outside [0, 1] and for less than one step or phase.
    """
    if steps < 1 or not strengths or not phases or min(phases) < 1:
        raise BadRequest(f"{steps} steps in {list(phases)} phases are none; wanted 1 or more of each")
    if not all(0.0 <= s <= 1.0 for s in strengths):
        raise BadRequest(f"strengths {list(strengths)}; wanted each from 0 (the parent, enlarged) to 1 (only noise)")
    return tuple(
        Level(
            index, rows, columns, steps,
            1.0 if index == 0 else strengths[min(index, len(strengths) - 1)],
            phases[min(index, len(phases) - 1)],
        )
        for index, (rows, columns) in enumerate(cells)
    )  # fmt: skip
