"""Fields that are computed where they are read. What is dear to compute is kept in a `Memo`, which they share.

Noise       unit normal numbers, counted by (seed, level, step, channel, y, x)
Noised      keep * clean + noise * n: where a run of the denoiser begins
Resized     pixels at another size, by the same cubic everywhere
Coded       what a decoder or an encoder makes of another field, tile by tile
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from widefield.bundle import Component
from widefield.coder import TileCoder
from widefield.field import Field
from widefield.geometry import Region
from widefield.memo import Memo
from widefield.reading import Threads, batched, check, count
from widefield.tiles import Source
from widefield_kernels.noise import Draw, normal_reference

Array = NDArray[np.float32]
MOST_PHASES = 16  # different weights of a Resized, up to which each has a pass of its own


class Noise(Field):
    """Unit normal noise of one draw."""

    def __init__(self, draw: Draw, shape: tuple[int, int, int]) -> None:
        draw.check()
        self.draw = draw
        self.channels, self.height, self.width = shape

    def _fill(self, out: Array, region: Region) -> None:
        out[...] = normal_reference(*self.draw, self.channels, (region.y0, region.x0, region.y1, region.x1))


class Noised(Field):
    """keep * clean + noise * n. Without a clean field: noise * n."""

    def __init__(self, clean: Source | None, noise: Noise, keep: float, scale: float) -> None:
        self.channels, self.height, self.width = noise.channels, noise.height, noise.width
        self.clean, self.noise, self.keep, self.scale = clean, noise, np.float32(keep), np.float32(scale)

    def _fill(self, out: Array, region: Region) -> None:
        np.multiply(self.noise.read(region), self.scale, out=out)
        if self.clean is not None and self.keep != 0.0:
            out += self.clean.read(region) * self.keep


class Resized(Field):
    """A field of pixels at (height, width), by cubic convolution with a = -1/2, clipped to [-1, 1].

    Pixel y of the result lies at (y + 1/2) / ratio - 1/2 in the parent, which goes on beyond its edge as its last
    pixel. `ratio` defaults to what makes the one's edges the other's. Enlarging only. Source: R. G. Keys, Cubic
    convolution interpolation, 1981.
    """

    def __init__(self, parent: Source, height: int, width: int, ratio: Fraction | None = None) -> None:
        self.down = Fraction(height, parent.height) if ratio is None else ratio
        self.across = Fraction(width, parent.width) if ratio is None else ratio
        if self.down < 1 or self.across < 1:
            raise ValueError(
                f"a field of {parent.height} x {parent.width} can only be enlarged, not to {height} x {width}"
            )
        self.parent = parent
        self.channels, self.height, self.width = parent.channels, height, width

    def needs(self, region: Region) -> Region:
        """What of the parent a region is made from."""
        (y0, y1), (x0, x1) = (
            (min(max(int(taps[0, 0]), 0), of - 1), min(max(int(taps[-1, 3]), 0), of - 1) + 1)
            for taps, of in (
                (_taps(region.y0, region.y1, self.down)[0], self.parent.height),
                (_taps(region.x0, region.x1, self.across)[0], self.parent.width),
            )
        )
        return Region(y0, x0, y1, x1)

    def _fill(self, out: Array, region: Region) -> None:
        part = self.needs(region)
        found = np.clip(self.parent.read(part), -1.0, 1.0)
        rows = _along(1, found, part.y0, region.y0, region.y1, self.down)
        np.clip(_along(2, rows, part.x0, region.x0, region.x1, self.across), -1.0, 1.0, out=out)


def _taps(start: int, stop: int, ratio: Fraction) -> tuple[NDArray[np.int64], Array]:
    """(which four pixels of an endless line, their weights) for pixels start..stop of it enlarged; (n, 4) each."""
    size, part = ratio.numerator, ratio.denominator
    twice = (2 * np.arange(start, stop, dtype=np.int64) + 1) * part - size  # 2 size times the position, in integers
    first, rest = np.divmod(twice, 2 * size)
    t = (rest / (2 * size)).astype(np.float64)[:, None]
    d = np.abs(t - np.arange(-1, 3))
    near, far = (1.5 * d - 2.5) * d * d + 1.0, ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0
    weights = np.where(d <= 1.0, near, np.where(d < 2.0, far, 0.0))
    return first[:, None] + np.arange(-1, 3), weights.astype(np.float32)


def _along(axis: int, values: Array, origin: int, start: int, stop: int, ratio: Fraction) -> Array:
    """Pixels start..stop of an axis enlarged; `values` begin at its pixel `origin`, and go on as their first and last.

    Weights come round after `ratio.numerator` pixels: where these are few, pixels of the same weights are a slice.
    """
    taps, weights = _taps(start, stop, ratio)
    taps -= origin
    before, after = max(0, -int(taps[0, 0])), max(0, int(taps[-1, 3]) + 1 - values.shape[axis])
    if before or after:
        values = np.pad(values, [(before, after) if at == axis else (0, 0) for at in range(3)], mode="edge")
        taps += before
    around, count, turn, step = (slice(None),) * axis, stop - start, ratio.numerator, ratio.denominator
    out = np.empty((*values.shape[:axis], count, *values.shape[axis + 1 :]), np.float32)
    for phase in range(min(turn, count) if turn <= MOST_PHASES else 1):
        some = slice(phase, None, turn) if turn <= MOST_PHASES else slice(None)
        whose, weight = taps[some], weights[some]
        total: Array | None = None
        for k in range(4):
            if turn <= MOST_PHASES:
                term = values[*around, slice(int(whose[0, k]), int(whose[-1, k]) + 1, step)] * weight[0, k]
            else:
                term = values.take(whose[:, k], axis) * weight[:, k].reshape(-1, *(1,) * (2 - axis))
            total = term if total is None else np.add(total, term, out=total)
        out[*around, some] = total
    return out


class Coded(Field):
    """Tiles of a coder, kept in a memo. `open_coder` is called when a tile is first asked for, once.

    Tiles lie on the grid of the coder's tile from the field's corner, so a tile is the same whoever asks for it.
    """

    def __init__(
        self, name: Hashable, component: Component, parent: Source, shape: tuple[int, int, int], tile: tuple[int, int],
        open_coder: Callable[[], TileCoder], memo: Memo, threads: int,
    ) -> None:  # fmt: skip
        self.name, self.component, self.parent, self.tile, self.memo = name, component, parent, tile, memo
        self.channels, self.height, self.width = shape
        self.scale = component.output_scale
        self._open_coder = open_coder
        self._coder: TileCoder | None = None
        self._opening = threading.Lock()
        self._threads = Threads(threads, f"coder-{name}")

    @property
    def coder(self) -> TileCoder:
        with self._opening:
            if self._coder is None:
                self._coder = self._open_coder()
            return self._coder

    def open(self) -> None:
        """Open the coder now, for whatever that takes."""
        _ = self.coder

    def tiles(self, region: Region) -> Iterator[Region]:
        """The tiles, in cells, that a region of the field lies on."""
        rows, columns = self.tile
        high, wide = rows * self.scale, columns * self.scale
        for y in range(region.y0 // high, -(-region.y1 // high)):
            for x in range(region.x0 // wide, -(-region.x1 // wide)):
                yield Region(y * rows, x * columns, (y + 1) * rows, (x + 1) * columns)

    def reach(self, tile: Region) -> Region:
        """What of the parent a tile is made from."""
        return tile.grown(self.component.margin_cells).scaled(self.component.input_scale)

    @property
    def tile_nbytes(self) -> int:
        """What a tile takes in the memo."""
        return 4 * self.channels * self.tile[0] * self.tile[1] * self.scale**2

    def make(self, tiles: Sequence[Region]) -> dict[Hashable, Array]:
        """Tiles by (name, tile), side by side; the memo may keep them."""
        return self.memo.fetch([(self.name, tile) for tile in tiles], self._make)

    def _fill(self, out: Array, region: Region) -> None:
        for tiles in batched(self.tiles(region), 2 * self._threads.number):
            found = self.make(tiles)
            for tile in tiles:
                place = tile.scaled(self.scale)
                part = place.clipped(region)
                values = found[self.name, tile][:, *part.shifted(-place.y0, -place.x0).slices]
                out[:, *part.shifted(-region.y0, -region.x0).slices] = values

    def _make(self, keys: list[Hashable]) -> Iterator[tuple[Hashable, Array]]:
        yield from zip(keys, self._threads.map(self._made, [key[1] for key in keys]), strict=True)  # type: ignore[index]

    def _made(self, tile: Region) -> Array:
        check()
        values: Array = self.coder([tile])[0]
        count()
        return values

    def close(self) -> None:
        """Give the coder's engines back, and the threads."""
        with self._opening:
            if self._coder is not None:
                self._coder.close()
                self._coder = None
        self._threads.close()
