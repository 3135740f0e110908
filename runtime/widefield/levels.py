"""The levels of a picture that grows: how large each is, and how it is denoised. Numbers only; nothing runs here.

    level K    the picture: its pixels over the autoencoder's scale, rounded up, and at least one window on both sides
    level k-1  level k over `growth`, rounded up, as long as it is at least a window on both sides
    level 0    what is left over a number in [1, growth), so that its shorter side is a window's

Level 0 is drawn from noise. Level k is level k - 1 decoded, enlarged, encoded, noised to its strength, and denoised:
`count` is the length of the schedule, of which a strength s leaves the last int(s count) steps, in `phases` parts.

A picture that is enlarged N times begins with its own pixels as level 0; level 1 is N / growth^(K - 1) times that.
Pixels are enlarged from the top left corner by exactly their ratio, so what is rounded up lies beyond the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

from widefield.errors import BadRequest
from widefield.schedule import Schedule

Number = TypeVar("Number", int, float)
LARGEST_SCALE = 1 << 16
LARGEST_GROWTH = 8


@dataclass(frozen=True, slots=True)
class Size:
    """A level's sides in latent cells, and how many times the level below's its pixels are: 1 for level 0."""

    height: int
    width: int
    ratio: Fraction


@dataclass(frozen=True, slots=True)
class Level:
    """One level. `strength` 1 starts from noise alone; `anchor` is the width of anchor.py's means, 0 for none."""

    index: int
    size: Size
    count: int
    strength: float
    phases: int
    guidance: float
    anchor: float = 0.0

    @property
    def height(self) -> int:
        return self.size.height

    @property
    def width(self) -> int:
        return self.size.width

    @property
    def area(self) -> int:
        """In cells."""
        return self.height * self.width


def drawn_sizes(
    height_px: int, width_px: int, scale: int, window: tuple[int, int], growth: int = 2
) -> tuple[Size, ...]:
    """Of every level of a picture drawn from noise. BadRequest for a picture without pixels."""
    sides = [_cells(height_px, width_px, scale, window)]
    _check_growth(growth)
    while all(-(-side // growth) >= least for side, least in zip(sides[0], window, strict=True)):
        sides.insert(0, _divided(sides[0], Fraction(growth)))
    ratios = [Fraction(growth)] * (len(sides) - 1)
    rest = min(Fraction(side, least) for side, least in zip(sides[0], window, strict=True))
    if rest > 1:
        sides.insert(0, _divided(sides[0], rest))
        ratios.insert(0, rest)
    ratios.insert(0, Fraction(1))
    return tuple(Size(*side, ratio) for side, ratio in zip(sides, ratios, strict=True))


def enlarged_sizes(
    height_px: int, width_px: int, times: Fraction, scale: int, window: tuple[int, int], growth: int = 2
) -> tuple[Size, ...]:
    """Of every level of a picture of that size, enlarged `times`; level 0 is the picture itself, in whole cells.

    BadRequest for a picture without pixels, and for `times` that is not above 1 or beyond all use.
    """
    if not 1 < times <= LARGEST_SCALE:
        raise BadRequest(f"a scale of {float(times):g} was asked for; wanted above 1 and at most {LARGEST_SCALE}")
    if height_px < 1 or width_px < 1:
        raise _without_pixels(height_px, width_px)
    _check_growth(growth)
    deepest = next(k for k in range(1, 64) if growth**k >= times)
    sides = [_cells(*enlarged_px(height_px, width_px, times), scale, window)]
    for _ in range(deepest - 1):
        rows, columns = _divided(sides[0], Fraction(growth))
        sides.insert(0, (max(rows, window[0]), max(columns, window[1])))
    ground = Size(-(-height_px // scale), -(-width_px // scale), Fraction(1))
    ratios = [times / growth ** (deepest - 1)] + [Fraction(growth)] * (deepest - 1)
    return (ground, *(Size(*side, ratio) for side, ratio in zip(sides, ratios, strict=True)))


def enlarged_px(height_px: int, width_px: int, times: Fraction) -> tuple[int, int]:
    """(height, width) in pixels, each rounded to the nearest; at least 1."""
    return max(1, round(height_px * times)), max(1, round(width_px * times))


def _cells(height_px: int, width_px: int, scale: int, window: tuple[int, int]) -> tuple[int, int]:
    if height_px < 1 or width_px < 1:
        raise _without_pixels(height_px, width_px)
    return max(-(-height_px // scale), window[0]), max(-(-width_px // scale), window[1])


def _check_growth(growth: int) -> None:
    if not 2 <= growth <= LARGEST_GROWTH:
        raise BadRequest(f"levels that grow {growth} times; wanted 2 to {LARGEST_GROWTH}, mostly 2 or 4")


def _without_pixels(height_px: int, width_px: int) -> BadRequest:
    return BadRequest(f"a picture of {width_px} x {height_px} px has no pixels; both sides must be at least 1")


def _divided(sides: tuple[int, int], by: Fraction) -> tuple[int, int]:
    return math.ceil(sides[0] / by), math.ceil(sides[1] / by)


def make_levels(
    sizes: Sequence[Size],
    schedule: Schedule,
    *,
    steps: Sequence[int],
    strengths: Sequence[float],
    phases: Sequence[int],
    guidance: Sequence[float] = (1.0,),
    anchor: float = 0.0,
) -> tuple[Level, ...]:
    """Levels of those sizes. `steps`, `phases` and `guidance` begin with level 0, `strengths` with level 1, as level 0
    is drawn whole; the last of each holds for all levels after. `steps` are those that are run. `anchor` is of all but
    level 0.

    BadRequest for strengths or an anchor outside [0, 1], for less than one step or phase, and for steps of level 0
    without a table.
    """
    if not steps or not strengths or not phases or min(*steps, *phases) < 1:
        raise BadRequest(f"{list(steps)} steps in {list(phases)} phases are none; wanted 1 or more of each")
    if not all(0.0 <= s <= 1.0 for s in strengths):
        raise BadRequest(f"strengths {list(strengths)}; wanted each from 0 (the parent, enlarged) to 1 (only noise)")
    if not 0.0 <= anchor <= 1.0:
        raise BadRequest(f"anchor {anchor}; wanted from 0 (windows go their own way) to 1, a share of a window's side")
    schedule.run(steps[0])
    levels = []
    for index, size in enumerate(sizes):
        strength = strengths[min(index, len(strengths)) - 1] if index else 1.0
        count = schedule.count(_at(steps, index), strength)
        levels.append(
            Level(index, size, count, strength, _at(phases, index), _at(guidance, index), anchor if index else 0.0)
        )
    return tuple(levels)


def _at(numbers: Sequence[Number], index: int) -> Number:
    """The last one holds for all after."""
    return numbers[min(index, len(numbers) - 1)]
