"""What a cold read of a drawn picture computes: every window and tile in the cone under it, counted, none made.

    viewport -> decoder's tiles -> windows of the last phase -> ... -> encoder's tiles -> pixels of the level below ...

The levels whose sites are measured are computed whole. `least` is the shortest chain there could be: at every level the
windows that cover a viewport of that size, or all of the level, and neither margins nor what is measured.

`kept_nbytes` is what a memo holds of it at the end. A smaller one drops what is asked for again, at each level, so of
many levels what is computed is many times what is counted here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from widefield.cascade import Cascade
from widefield.fields import Coded, Noised
from widefield.geometry import Region
from widefield.tiles import Source
from widefield.windowed import Windowed
from widefield_kernels.windows import Box


@dataclass(frozen=True, slots=True)
class LevelCone:
    """Of one level. `windows` of all phases, `window_steps` each times its steps, guidance's second call left out;
    `kept_nbytes` of all windows and tiles."""

    index: int
    windows: int
    window_steps: int
    decodes: int
    encodes: int
    least: int
    kept_nbytes: int

    @property
    def units(self) -> int:
        """What a read's progress counts."""
        return self.window_steps + self.decodes + self.encodes


@dataclass(frozen=True, slots=True)
class Cone:
    """Of all levels, the smallest first."""

    levels: tuple[LevelCone, ...]

    @property
    def window_steps(self) -> int:
        return sum(level.window_steps for level in self.levels)

    @property
    def decodes(self) -> int:
        return sum(level.decodes for level in self.levels)

    @property
    def encodes(self) -> int:
        return sum(level.encodes for level in self.levels)

    @property
    def units(self) -> int:
        return sum(level.units for level in self.levels)

    @property
    def least(self) -> int:
        """Window-steps of the shortest chain."""
        return sum(level.least for level in self.levels)

    @property
    def kept_nbytes(self) -> int:
        """Of a memo in which nothing is computed twice."""
        return sum(level.kept_nbytes for level in self.levels)

    def as_dict(self) -> dict[str, Any]:
        return {
            "window_steps": self.window_steps,
            "decoder_tiles": self.decodes,
            "encoder_tiles": self.encodes,
            "least_window_steps": self.least,
            "over_least": round(self.window_steps / max(1, self.least), 3),
        }


def cone(cascade: Cascade, region: Region, level: int = -1) -> Cone:
    """What reading a region of pixels of a level computes. IndexError for a level that is not there."""
    top = range(len(cascade.levels))[level]
    found = []
    pixels, viewport = {region}, region
    for index in range(top, -1, -1):
        made, pixels = _level(cascade, index, pixels, viewport, measured=index <= min(top, cascade.measured_level))
        found.append(made)
        if index:
            viewport = _below(viewport, cascade.levels[index].size.ratio)
    return Cone(tuple(reversed(found)))


def _below(viewport: Region, ratio: Fraction) -> Region:
    """A viewport of the same size about the same place, one level down."""
    y, x = int(viewport.y0 / ratio), int(viewport.x0 / ratio)
    return Region(y, x, y + viewport.height, x + viewport.width)


def _level(
    cascade: Cascade, index: int, pixels: set[Region], viewport: Region, *, measured: bool
) -> tuple[LevelCone, set[Region]]:
    """(what a level computes for regions of its pixels, the regions of pixels that it needs of the level below)."""
    field = cascade.pixels[index]
    if not isinstance(field, Coded):  # given
        return LevelCone(index, 0, 0, 0, 0, 0, 0), set()
    tiles = {tile for region in pixels for tile in field.tiles(region)}
    wanted = {field.reach(tile) for tile in tiles}
    windows, steps, kept, wanted = _denoised(cascade.latents[index], wanted)
    kept += len(tiles) * field.tile_nbytes
    encoded = cascade.encoded[index]
    encodes: set[Region] = set()
    below: set[Region] = set()
    if encoded is not None:
        if measured:
            wanted = {encoded.extent}
        encodes = {tile for region in _inside(wanted, encoded.extent) for tile in encoded.tiles(region)}
        kept += len(encodes) * encoded.tile_nbytes
        enlarged = cascade.enlarged(cascade.levels[index])
        reached = {enlarged.extent} if measured else {encoded.reach(tile) for tile in encodes}
        below = {enlarged.needs(part) for part in _inside(reached, enlarged.extent)}
    cells = field.component.output_scale
    covered = Region(viewport.y0 // cells, viewport.x0 // cells, -(-viewport.y1 // cells), -(-viewport.x1 // cells))
    least = _least(cascade.latents[index], covered)
    return LevelCone(index, windows, steps, len(tiles), len(encodes), least, kept), below


def _denoised(latents: Source | None, wanted: set[Region]) -> tuple[int, int, int, set[Region]]:
    """(windows, windows times their steps, bytes of them, regions of what the first phase begins with)."""
    windows = steps = kept = 0
    while isinstance(latents, Windowed):
        boxes = {box for region in _inside(wanted, latents.extent) for box in latents.windows(region)}
        windows += len(boxes)
        steps += len(boxes) * len(latents.phase.steps)
        kept += len(boxes) * latents.window_nbytes
        wanted = {Region(*box) for box in boxes}
        latents = latents.parent
    if isinstance(latents, Noised) and latents.clean is None:
        wanted = set()
    return windows, steps, kept, wanted


def _least(latents: Source | None, covered: Region) -> int:
    """Window-steps that a region of cells takes by itself, every step once."""
    steps = 0
    boxes: Iterable[Box] = ()
    while isinstance(latents, Windowed):
        boxes = boxes or latents.windows(covered.pushed(latents.extent))
        steps += len(latents.phase.steps)
        latents = latents.parent
    return steps * len(list(boxes))


def _inside(regions: Iterable[Region], extent: Region) -> list[Region]:
    return [part for region in regions if (part := region.clipped(extent))]
