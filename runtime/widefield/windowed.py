"""One phase of a level: a run of steps inside each window of a grid, and the windows blended.

    x_w  = the parent over the window           then, for each step,  m = denoiser(x_w)    x_w' = the schedule's rule
    x'   = sum_w weight_w x_w                   weights of the grid, which add up to one at every cell

Noise that steps draw is that of the window's coordinates, the same in all windows that cover a cell. With as many
phases as steps this is MultiDiffusion (Bar-Tal et al., 2023); with fewer, windows go their own way for some steps, and
a region needs fewer of them. Those of a level's last phase may be held to the level below (anchor.py).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from widefield.anchor import Anchor
from widefield.denoise import Denoiser
from widefield.field import Field
from widefield.geometry import Region
from widefield.memo import Memo
from widefield.reading import batched, check, count
from widefield.schedule import Step, update
from widefield.tiles import Source
from widefield_kernels.blend import blend_reference
from widefield_kernels.noise import Draw, normal_reference
from widefield_kernels.windows import Box, WindowGrid

Array = NDArray[np.float32]
BLOCK_NBYTES = 6 << 20  # of windows that are needed at a time: as many as keep all workers busy to the end
BLOCKS = 16, 8, 4  # strides a side: at most 17 x 17 windows where they overlap by less than half


def block_strides(window_nbytes: int) -> int:
    """How many strides a side a region is denoised in at a time: the most whose windows are few bytes."""
    return next((n for n in BLOCKS if (n + 1) ** 2 * window_nbytes <= BLOCK_NBYTES), BLOCKS[-1])


@dataclass(frozen=True, slots=True)
class Phase:
    """The steps of one phase, of which the level's step `first` is the first; the level's step i draws
    `Draw(seed, level, i + 1)`."""

    steps: tuple[Step, ...]
    seed: int
    level: int
    first: int
    guidance: float = 1.0

    def draw(self, index: int) -> Draw:
        return Draw(self.seed, self.level, 1 + self.first + index)


class Windowed(Field):
    """The latents after a phase. Windows are kept in the memo; a region is made in blocks of whole strides.

    `held` are the level below, enlarged and encoded, and how windows are held to it.
    """

    def __init__(
        self,
        name: Hashable,
        parent: Source,
        grid: WindowGrid,
        phase: Phase,
        denoiser: Callable[[], Denoiser],
        memo: Memo,
        held: tuple[Source, Anchor] | None = None,
    ) -> None:
        self.held = held
        self.name, self.parent, self.grid, self.phase, self.memo = name, parent, grid, phase, memo
        self.channels, self.height, self.width = parent.channels, parent.height, parent.width
        self._denoiser = denoiser

    def windows(self, region: Region) -> list[Box]:
        """Those that cover a part of a region."""
        return list(self.grid.windows((region.y0, region.x0, region.y1, region.x1)))

    def _fill(self, out: Array, region: Region) -> None:
        for block in self._blocks(region):
            where = block.y0, block.x0, block.y1, block.x1
            keys: list[Hashable] = [(self.name, box) for box in self.windows(block)]
            found = self.memo.fetch(keys, self._make)
            part = block.shifted(-region.y0, -region.x0)
            blend_reference(self.grid, where, [found[key] for key in keys], out=out[:, *part.slices])

    @property
    def window_nbytes(self) -> int:
        """What a window takes in the memo."""
        return 4 * self.channels * self.grid.window[0] * self.grid.window[1]

    def _blocks(self, region: Region) -> Iterator[Region]:
        """A region cut along a lattice of whole strides, so that few windows are needed at a time."""
        strides = block_strides(self.window_nbytes)
        high, wide = (strides * side for side in self.grid.stride)
        for y in range(region.y0 // high * high, region.y1, high):
            for x in range(region.x0 // wide * wide, region.x1, wide):
                yield Region(y, x, y + high, x + wide).clipped(region)

    def _make(self, keys: list[Hashable]) -> Iterable[tuple[Hashable, Array]]:
        denoiser = self._denoiser()
        boxes = [cast(tuple[Hashable, Box], key)[1] for key in keys]
        whole = around(boxes)
        parent = self.parent.read(whole)  # at once, so that what it is made of is made side by side
        below = None if self.held is None else self.held[0].read(whole)
        batches = list(batched(zip(keys, boxes, strict=True), denoiser.batch))

        def denoised(batch: Sequence[tuple[Hashable, Box]]) -> Array:
            regions = [Region(*box).shifted(-whole.y0, -whole.x0) for _, box in batch]
            x = np.stack([parent[:, *region.slices] for region in regions])
            x = self._denoised(denoiser, x, [box for _, box in batch])
            if self.held is not None and below is not None:
                for made, region in zip(x, regions, strict=True):
                    made[...] = self.held[1].held(made, below[:, *region.slices])
            return x

        for batch, made in zip(batches, denoiser.threads.map(denoised, batches), strict=True):
            yield from zip([key for key, _ in batch], made, strict=True)

    def _denoised(self, denoiser: Denoiser, x: Array, boxes: Sequence[Box]) -> Array:
        def noise(index: int) -> Array:
            draw = self.phase.draw(index)
            return np.stack([normal_reference(*draw, self.channels, box) for box in boxes])

        check()
        made = denoiser.run(self.phase.steps, x, self.phase.guidance, noise)
        if made is None:
            return self._stepwise(denoiser, x, noise)
        for _ in range(len(boxes) * len(self.phase.steps)):
            count()
        return made

    def _stepwise(self, denoiser: Denoiser, x: Array, noise: Callable[[int], Array]) -> Array:
        history: Array | None = None
        for index, step in enumerate(self.phase.steps):
            check()
            m = denoiser(x, step.timestep, step.input_scale, self.phase.guidance)
            x, history = update(step, x, m, noise(index) if step.c != 0.0 else None, history)
            for _ in x:
                count()
        return x


def around(boxes: Sequence[Box]) -> Region:
    """The smallest region with all of them in it."""
    y0, x0, y1, x1 = zip(*boxes, strict=True)
    return Region(min(y0), min(x0), max(y1), max(x1))
