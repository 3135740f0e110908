"""A picture on disk, as a run wrote it or is writing it. What it stores as a viewer wants it is passed on as it lies.

Tiles of a .tif are full squares also at the picture's edge, and levels end at one tile: those at the edge are cut, and
smaller levels halved, here. Tiles that a run has not made yet are Missing; `preview` shows what there is of them.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from widefield.errors import StoreError
from widefield.serve.flights import Flights
from widefield.serve.pyramid import Pyramid
from widefield.serve.served import Missing, Served, named
from widefield.store import Store, codecs, open_store
from widefield.store.base import Marks
from widefield.store.box import Pixels, box

Result = TypeVar("Result")
THREADS, WAITING = 4, 512
MOST_REGION_PX = 3840 * 2160
PREVIEW_PX = 1024
LOOKED_BELOW = 3  # levels under a tile that is not there yet, of which a preview is made: 64 tiles


class StoredPicture(Served):
    """A .tif, .zarr or .dzi, on a disk or, `opened` already, elsewhere; it is closed here. StoreError for what is none
    of ours, or has one level alone."""

    def __init__(self, path: Path, waiting: int = WAITING, opened: Store | None = None) -> None:
        self.store = opened or open_store(path)
        spec = self.store.spec
        if path.suffix.lower() == ".png":
            self.store.close()
            raise StoreError(f"{path} has no pyramid; wanted a .tif, .zarr or .dzi; write it as one of these")
        self.pyramid = Pyramid(spec.width_px, spec.height_px, spec.tile_px)
        self.form, self.quality = ("jpeg", spec.quality) if spec.codec == "jpeg" else ("png", 100)
        self.name, self.most_px, self.about = path.name, MOST_REGION_PX, {"kind": "stored"}
        self.levels = tuple(range(self.pyramid.deepest + 1))
        self.id = named("stored", spec.to_json())
        self._passes = path.suffix.lower() == ".dzi" or spec.codec == "jpeg"
        self._clipped = path.suffix.lower() == ".dzi"
        self._flights: Flights[bytes] = Flights(THREADS, waiting, "stored")
        self._decoding: Flights[Pixels] = Flights(THREADS, waiting, "decoding")
        self._done = [self.store.done(level) for level in range(len(self.store.levels))]

    @property
    def flights(self) -> Flights[bytes]:
        """Where its tiles are read."""
        return self._flights

    async def tile(self, level: int, row: int, column: int) -> bytes:
        self.pyramid.box(level, row, column)
        return await self._flights.fetch((level, row, column), lambda _: self._tile(level, row, column), -level)

    async def pixels(self, level: int, row: int, column: int) -> Pixels:
        self.pyramid.box(level, row, column)
        return await self._decoding.fetch((level, row, column), lambda _: self._pixels(level, row, column))

    def _tile(self, level: int, row: int, column: int) -> bytes:
        region, tile = self.pyramid.box(level, row, column), self.pyramid.tile_px
        full = (region.height, region.width) == (tile, tile)
        if self._passes and level < len(self.store.levels) and (full or self._clipped):
            return self._made(lambda: self.store.read_encoded(level, row, column), level, row, column)
        return codecs.encode(self.form, self._pixels(level, row, column), self.quality)

    def _pixels(self, level: int, row: int, column: int) -> Pixels:
        smallest = len(self.store.levels) - 1
        pixels = self._made(lambda: self.store.read(min(level, smallest), row, column), level, row, column)
        for _ in range(level - smallest):
            pixels = box(pixels)
        return pixels

    def _made(self, read: Callable[[], Result], level: int, row: int, column: int) -> Result:
        """What `read` gives. Missing, where the tile was never seen; one that was and is damaged stays a StoreError."""
        try:
            return read()
        except StoreError as fault:
            if not self._done[min(level, len(self._done) - 1)][row, column]:
                raise Missing(f"tile {row},{column} of level {level} is not made yet") from fault
            raise

    # What a run has made since.

    @property
    def complete(self) -> bool:
        """Whether every tile was there when we looked last."""
        return all(marks.all() for marks in self._done)

    def look(self) -> list[tuple[int, int, int]]:
        """Look again; (level, row, column) of the tiles that are new."""
        new = []
        for level, before in enumerate(self._done):
            if before.all():
                continue
            now: Marks = self.store.done(level)
            new += [(level, int(row), int(column)) for row, column in np.argwhere(now & ~before)]
            self._done[level] = now
        return new

    def state(self) -> dict[str, Any]:
        done = sum(int(marks.sum()) for marks in self._done)
        total = sum(marks.size for marks in self._done)
        return {"busy": done < total, "done": done, "total": total}

    def marks(self) -> dict[str, str]:
        """Which tiles were there when we looked last: by level, a bit each, row by row, in base64."""
        packed = [np.packbits(marks.reshape(-1)).tobytes() for marks in self._done]
        return {str(level): base64.b64encode(bits).decode() for level, bits in enumerate(packed)}

    async def preview(self) -> bytes:
        """All of the picture, small, with what there is of it: a jpeg. Missing before the first tile."""
        version = sum(int(marks.sum()) for marks in self._done)
        return await self._flights.fetch(("preview", version), lambda _: self._preview())

    def _preview(self) -> bytes:
        stored, pyramid = range(len(self.store.levels)), self.pyramid
        level = next((k for k in stored if max(pyramid.size(k)) <= PREVIEW_PX), stored[-1])
        height, width = pyramid.size(level)
        whole, seen = np.full((height, width, 3), 24, np.uint8), False
        for row, column in np.ndindex(*pyramid.grid(level)):
            part = self._what_there_is(level, row, column, LOOKED_BELOW)
            if part is not None:
                whole[pyramid.box(level, row, column).slices] = part
                seen = True
        if not seen:
            raise Missing("nothing is made yet")
        return codecs.encode("jpeg", whole, 80)

    def _what_there_is(self, level: int, row: int, column: int, below: int) -> Pixels | None:
        """A tile, put together of finer ones where it is not there; grey where they are not either."""
        if self._done[level][row, column]:
            return self.store.read(level, row, column)
        if not below or not level:
            return None
        region, half = self.pyramid.box(level, row, column), self.pyramid.tile_px // 2
        out, seen = np.full((region.height, region.width, 3), 24, np.uint8), False
        rows, columns = self.pyramid.grid(level - 1)
        for down, across in np.ndindex(2, 2):
            if 2 * row + down < rows and 2 * column + across < columns:
                part = self._what_there_is(level - 1, 2 * row + down, 2 * column + across, below - 1)
                if part is not None:
                    small = box(part)
                    y, x = down * half, across * half
                    out[y : y + small.shape[0], x : x + small.shape[1]] = small
                    seen = True
        return out if seen else None

    async def close(self) -> None:
        self._flights.close()
        self._decoding.close()
        self.store.close()
