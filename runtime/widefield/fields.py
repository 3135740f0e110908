"""Fields that are computed where they are read. What is dear to compute is kept in a `Memo`, which they share.

Noise       unit normal numbers, counted by (seed, level, step, channel, y, x)
Noised      keep * clean + noise * n: where a run of the denoiser begins
Resized     pixels at another size, by the same cubic everywhere
Coded       what a decoder or an encoder makes of another field, tile by tile
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator

import numpy as np
from numpy.typing import NDArray

from widefield.coder import TileCoder
from widefield.field import Field
from widefield.geometry import Region
from widefield.memo import Memo
from widefield.tiles import Source
from widefield_kernels.noise import Draw, normal_reference

Array = NDArray[np.float32]


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

    Pixel y of the result lies at (y + 1/2) (height of the parent) / height - 1/2 in the parent; beyond its edge the
    parent goes on as its last pixel. Enlarging only. Source: R. G. Keys, Cubic convolution interpolation, 1981.
    """

    def __init__(self, parent: Source, height: int, width: int) -> None:
        if height < parent.height or width < parent.width:
            raise ValueError(
                f"a field of {parent.height} x {parent.width} can only be enlarged, not to {height} x {width}"
            )
        self.parent = parent
        self.channels, self.height, self.width = parent.channels, height, width

    def needs(self, region: Region) -> Region:
        """What of the parent a region is made from."""
        (y0, y1), (x0, x1) = (
            (int(np.min(taps)), int(np.max(taps)) + 1)
            for taps in (
                _taps(region.y0, region.y1, self.height, self.parent.height)[0],
                _taps(region.x0, region.x1, self.width, self.parent.width)[0],
            )
        )
        return Region(y0, x0, y1, x1)

    def _fill(self, out: Array, region: Region) -> None:
        ys, down = _taps(region.y0, region.y1, self.height, self.parent.height)
        xs, across = _taps(region.x0, region.x1, self.width, self.parent.width)
        part = self.needs(region)
        found = np.clip(self.parent.read(part), -1.0, 1.0)
        rows = np.zeros((self.channels, region.height, part.width), np.float32)
        out[...] = 0
        for k in range(4):
            rows += found[:, ys[:, k] - part.y0] * down[:, k, None]
        for k in range(4):
            out += rows[:, :, xs[:, k] - part.x0] * across[:, k]
        np.clip(out, -1.0, 1.0, out=out)


def _taps(start: int, stop: int, size: int, of: int) -> tuple[NDArray[np.int64], Array]:
    """(which four pixels of a line of `of`, their weights) for pixels start..stop of one of `size`; (n, 4) each."""
    twice = (2 * np.arange(start, stop, dtype=np.int64) + 1) * of - size  # 2 size times the position, in integers
    first, rest = np.divmod(twice, 2 * size)
    t = (rest / (2 * size)).astype(np.float64)[:, None]
    d = np.abs(t - np.arange(-1, 3))
    near, far = (1.5 * d - 2.5) * d * d + 1.0, ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0
    weights = np.where(d <= 1.0, near, np.where(d < 2.0, far, 0.0))
    return np.clip(first[:, None] + np.arange(-1, 3), 0, of - 1), weights.astype(np.float32)


class Coded(Field):
    """Tiles of a coder, kept in a memo. `open_coder` is called when a tile is first asked for, once.

    Tiles lie on the grid of the coder's tile from the field's corner, so a tile is the same whoever asks for it.
    """

    def __init__(
        self, name: Hashable, shape: tuple[int, int, int], scale: int, tile: tuple[int, int],
        open_coder: Callable[[], TileCoder], memo: Memo,
    ) -> None:  # fmt: skip
        self.name, self.scale, self.tile, self.memo = name, scale, tile, memo
        self.channels, self.height, self.width = shape
        self._open_coder = open_coder
        self._coder: TileCoder | None = None
        self._opening = threading.Lock()

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

    def _fill(self, out: Array, region: Region) -> None:
        for tile in self.tiles(region):
            key = self.name, tile
            values = self.memo.fetch([key], self._make)[key]
            place = tile.scaled(self.scale)
            part = place.clipped(region)
            from_values = part.shifted(-place.y0, -place.x0).slices
            out[:, *part.shifted(-region.y0, -region.x0).slices] = values[:, *from_values]

    def _make(self, keys: list[Hashable]) -> Iterator[tuple[Hashable, Array]]:
        for key in keys:
            yield key, self.coder([key[1]])[0]  # type: ignore[index]

    def close(self) -> None:
        """Give the coder's engines back."""
        with self._opening:
            if self._coder is not None:
                self._coder.close()
                self._coder = None
