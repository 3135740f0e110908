"""A drawn picture, made tile by tile where somebody looks, and kept on disk.

A level of the pyramid that the picture draws is read from it; one between two of these is the next finer one halved, so
viewers are told to do without it (`levels`), which costs them nothing and saves half the work. Where a tile comes from
does not change it: disk, memory or the model, alone or beside others, it has the same bytes.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

from widefield.drawn import DrawnPicture
from widefield.errors import BadRequest
from widefield.serve.desk import Desk
from widefield.serve.flights import Flights
from widefield.serve.pyramid import Pyramid
from widefield.serve.served import Served, named
from widefield.serve.tile_cache import TileCache
from widefield.store import codecs
from widefield.store.box import Pixels, box

TILE_PX, QUALITY = 512, 90
MOST_TILE_PX = 1 << 21  # that one tile may be halved from: long pictures have a large smallest level
MOST_REGION_PX = 1 << 21


class LazyPicture(Served):
    """`desk` lends it memory and engines, `cache` keeps its tiles. BadRequest for what cannot be seen as a whole."""

    form, quality, most_px = "jpeg", QUALITY, MOST_REGION_PX

    def __init__(self, drawn: DrawnPicture, desk: Desk, cache: TileCache, flights: Flights[bytes]) -> None:
        generation = drawn.generation
        height, width = generation.size_px
        self.drawn, self.desk, self.cache, self.flights = drawn, desk, cache, flights
        self.pyramid = Pyramid(width, height, TILE_PX)
        self._drawn_levels = drawn_levels(drawn)
        self._check_shape()
        self.levels = tuple(sorted({*self._drawn_levels, *range(max(self._drawn_levels), self.pyramid.deepest + 1)}))
        engine = drawn.options.engine_options(workers=drawn.options.side_by_side)
        self.id = named("drawn", generation.digest(-1, engine), TILE_PX, QUALITY)
        self.name = generation.prompt or "untitled"
        size = f"{width}x{height}"
        self.about = {"kind": "drawn", "prompt": generation.prompt, "seed": str(generation.seed), "size": size}
        self.made = self.units = 0
        self.drawing: set[tuple[int, int, int]] = set()

    def _check_shape(self) -> None:
        whole = self.pyramid.size(max(self._drawn_levels))
        if math.prod(whole) > MOST_TILE_PX:
            raise BadRequest(
                f"{self.pyramid.width_px} x {self.pyramid.height_px} px is too long to be looked at as a whole: its "
                f"smallest level is {whole[1]} x {whole[0]} px; wanted sides that differ less; choose another size"
            )

    async def tile(self, level: int, row: int, column: int) -> bytes:
        self.pyramid.box(level, row, column)
        kept = await asyncio.to_thread(self.cache.get, self.id, level, row, column)
        if kept is not None:
            return kept
        make = partial(self._kept_or_made, level, row, column)
        return await self.flights.fetch((self.id, level, row, column), make, -level)

    async def pixels(self, level: int, row: int, column: int) -> Pixels:
        region = self.pyramid.box(level, row, column)
        data = await self.tile(level, row, column)
        return await asyncio.to_thread(codecs.decode, "jpeg", data, (region.height, region.width, 3))

    def source_level(self, ratio: float) -> int:
        """Enlarged up to twice, as the viewer does: a level in between would be drawn from four times as much."""
        return max((level for level in self.levels if 1 << level <= 2 * ratio), default=0)

    def _kept_or_made(self, level: int, row: int, column: int, cancelled: Callable[[], bool]) -> bytes:
        """In a thread. Another flight may have landed while this one was being booked."""
        kept = self.cache.get(self.id, level, row, column)
        if kept is not None:
            return kept
        self.drawing.add((level, row, column))
        try:
            with self.desk.lent(self, cancelled):
                pixels = self._drawn_pixels(level, row, column, cancelled)
        finally:
            self.drawing.discard((level, row, column))
        data = codecs.encode("jpeg", pixels, QUALITY)
        self.made += 1
        self.cache.put(self.id, level, row, column, data)
        return data

    def _drawn_pixels(self, level: int, row: int, column: int, cancelled: Callable[[], bool]) -> Pixels:
        source = max(drawn for drawn in self._drawn_levels if drawn <= level)
        halvings = level - source
        picture = self.drawn.level(self._drawn_levels[source])
        height, width, _ = picture.shape
        region = self.pyramid.box(level, row, column).scaled(1 << halvings)
        region = replace(region, y1=min(region.y1, height), x1=min(region.x1, width))
        pixels = picture.read(region, progress=self._count, cancelled=cancelled)
        for _ in range(halvings):
            pixels = box(pixels)
        return pixels

    def _count(self, _: int) -> None:
        self.units += 1

    def state(self) -> dict[str, Any]:
        return {
            "busy": bool(self.drawing), "drawing": len(self.drawing), "waiting": self.flights.queued,
            "made": self.made, "units": self.units,
        }  # fmt: skip

    async def close(self) -> None:
        await asyncio.to_thread(self.desk.clear, self)


def drawn_levels(picture: DrawnPicture) -> dict[int, int]:
    """Which level of the pyramid each level of the picture is; those that are no power of two smaller are none."""
    found, over = {0: picture.levels - 1}, Fraction(1)
    for index in range(picture.levels - 1, 0, -1):
        over *= picture.generation.levels[index].size.ratio
        if over.denominator == 1 and over.numerator & (over.numerator - 1) == 0:
            found[over.numerator.bit_length() - 1] = index - 1
    return found
