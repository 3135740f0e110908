"""Any part of a picture at any size, in bands, so that memory is what is answered and a few tiles."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np

from widefield.geometry import Region
from widefield.serve.resize import Axis, resized
from widefield.serve.served import Served
from widefield.store.box import Pixels

BAND = 256  # rows of the result that are made at once


@dataclass(frozen=True, slots=True)
class View:
    """A region of the picture, in its pixels, shown in height x width."""

    region: Region
    height: int
    width: int

    @property
    def ratio(self) -> float:
        """Pixels of the picture in one that is shown, along the axis that has fewer."""
        return min(self.region.height / self.height, self.region.width / self.width)


def as_tile(picture: Served, view: View) -> tuple[int, int, int] | None:
    """(level, row, column) of the tile that a view is; None for any other."""
    pyramid, region = picture.pyramid, view.region
    for level in range(pyramid.deepest + 1):
        span = pyramid.tile_px << level
        row, column = region.y0 // span, region.x0 // span
        whole = Region(row * span, column * span, (row + 1) * span, (column + 1) * span)
        if region == whole.clipped(Region(0, 0, pyramid.height_px, pyramid.width_px)):
            box = pyramid.box(level, row, column)
            if (box.height, box.width) == (view.height, view.width):
                return level, row, column
    return None


async def rendered(picture: Served, view: View) -> Pixels:
    """(height, width, 3) uint8. What the tiles raise passes through."""
    level = picture.source_level(view.ratio)
    high, wide = picture.pyramid.size(level)
    over, region = 1 << level, view.region
    down = Axis(high, region.y0 / over, region.height / over, view.height)
    across = Axis(wide, region.x0 / over, region.width / over, view.width)
    x0, x1 = across.needs(0, view.width)
    out = np.empty((view.height, view.width, 3), np.uint8)
    tiles: dict[tuple[int, int], Pixels] = {}
    for first in range(0, view.height, BAND):
        rows = first, min(first + BAND, view.height)
        y0, y1 = down.needs(*rows)
        needed = Region(y0, x0, y1, x1)
        await _fetch(picture, level, needed, tiles)
        part = _joined(picture, level, needed, tiles)
        out[rows[0] : rows[1]] = await asyncio.to_thread(resized, part, (y0, x0), down, across, rows)
    return out


async def _fetch(picture: Served, level: int, region: Region, tiles: dict[tuple[int, int], Pixels]) -> None:
    """Have the tiles under a region, and no others."""
    wanted = picture.pyramid.tiles(region)
    for place in [place for place in tiles if place not in wanted]:
        del tiles[place]
    new = [place for place in wanted if place not in tiles]
    found = await asyncio.gather(*(picture.pixels(level, *place) for place in new))
    tiles.update(zip(new, found, strict=True))


def _joined(picture: Served, level: int, region: Region, tiles: dict[tuple[int, int], Pixels]) -> Pixels:
    """A region of a level's pixels, of its tiles."""
    out = np.empty((region.height, region.width, 3), np.uint8)
    for (row, column), pixels in tiles.items():
        place = picture.pyramid.box(level, row, column)
        part = place.clipped(region)
        inside, there = part.shifted(-place.y0, -place.x0), part.shifted(-region.y0, -region.x0)
        out[there.slices] = pixels[inside.slices]
    return out
