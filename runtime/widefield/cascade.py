"""A picture of any size from a prompt: each level's latents are a field, made of the level below.

    noise -> phases -> latents 0 -> decoded -> enlarged -> encoded -> noised -> phases -> latents 1 -> ...

Nothing is computed until a region of a level is read, and then only the cone under it. What the autoencoder's sites
see of a whole picture is measured on the levels up to `MEASURED_CELLS`, and inherited by deeper ones: those look alike
at any magnification, so a part of the deepest level needs no pass over all of it. A decoder's is measured on what a
level is made from, before it is denoised, which costs a tenth and decodes as well.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from widefield.anchor import Anchor
from widefield.buffers import Method
from widefield.bundle import Bundle, Component
from widefield.coder import TileCoder
from widefield.coder_engines import CoderEngines
from widefield.denoise import Denoiser, Guide
from widefield.device import shared_engines, values_coder
from widefield.engine import EngineOptions
from widefield.engine.heap import trim_heap
from widefield.errors import BadRequest
from widefield.fields import Coded, Noise, Noised, Resized
from widefield.geometry import Region
from widefield.levels import Level
from widefield.memo import Memo
from widefield.parts import WindowGraph, load_schedule
from widefield.plan import choose_method
from widefield.schedule import Schedule
from widefield.summary import Summary, load_summary
from widefield.sweep import SweepOptions, measure
from widefield.tiles import Source
from widefield.windowed import Phase, Windowed, around
from widefield_kernels.noise import Draw
from widefield_kernels.windows import WindowGrid

Array = NDArray[np.float32]
EXACT_CELLS = 32 * 32
MEASURED_CELLS = 64 * 64  # of the largest level whose sites are measured; level 1 always is
SWEEP_BATCH = 8


@dataclass(frozen=True, slots=True)
class CascadeOptions:
    """`tile` and `encoder_tile` are what decoder and encoder compute at a time, in cells; `stride` how far windows are
    apart, and `shift` moves those of the last level, to see what their place does. `seed` is the picture's. Measured
    summaries are kept in the folder `summaries`, where one is named; measuring one may hold `held_nbytes` in memory.
    """

    seed: int = 0
    sampler: str | None = None
    tile: tuple[int, int] = (32, 32)
    encoder_tile: tuple[int, int] = (32, 32)
    stride: tuple[int, int] | None = None
    shift: tuple[int, int] = (0, 0)
    batch: int = 1
    engine: EngineOptions = field(default_factory=EngineOptions)
    summaries: Path | None = None
    held_nbytes: int = 256 << 20


def measuring_method(component: Component, level: Level) -> Method:
    """How a level's sites are measured: all of one up to EXACT_CELLS; a sample of a larger one, which is nearly all of
    it, and leaves an attention so few keys that every deeper tile is a third quicker."""
    return choose_method(component, level.height, level.width, "auto" if level.area <= EXACT_CELLS else "sampled")


def measured_level(levels: Sequence[Level]) -> int:
    """The deepest level whose sites are measured."""
    small = [level.index for level in levels if level.area <= MEASURED_CELLS]
    return max([min(1, len(levels) - 1), *small])


class Cascade:
    """The fields of one picture. Reads are safe from several threads; `close` gives the engines back.

    `guide` is called when something is first denoised, or `denoiser`, which the caller closes. `ground` is what
    level 0 shows, where it is not drawn but given: pixels in [-1, 1]. `stored` are levels' latents that were made
    before.

    For level k: `latents[k]`, `pixels[k]`, and `encoded[k]`, the level below enlarged and encoded. None for the latents
    of a `ground`, and for what level 0 was encoded from.
    """

    def __init__(
        self,
        bundle: Bundle,
        window: WindowGraph,
        guide: Callable[[], Guide],
        levels: Sequence[Level],
        memo: Memo,
        options: CascadeOptions,
        *,
        ground: Source | None = None,
        stored: Mapping[int, Source] | None = None,
        denoiser: Callable[[], Denoiser] | None = None,
    ) -> None:
        self.bundle, self.window, self.levels = bundle, window, tuple(levels)
        self.memo, self.options, self._guide, self._lent = memo, options, guide, denoiser
        self._summaries: dict[tuple[str, int], Summary] = {}
        self._engines: dict[Hashable, CoderEngines] = {}
        self._locks = {(name, level.index): threading.Lock() for name in ("decoder", "encoder") for level in levels}
        self._opening = threading.Lock()
        self._denoiser: Denoiser | None = None
        self.latents: list[Source | None] = []
        self.pixels: list[Source] = []
        self.encoded: list[Coded | None] = []
        for level in self.levels:
            if ground is not None and level.index == 0:
                self._append(None, None, ground)
                continue
            encoded = self._encoded(level) if level.index else None
            latents = (stored or {}).get(level.index) or self._denoised(level, encoded)
            self._append(encoded, latents, self._decoded(level, latents))

    def _append(self, encoded: Coded | None, latents: Source | None, pixels: Source) -> None:
        self.encoded.append(encoded)
        self.latents.append(latents)
        self.pixels.append(pixels)

    @cached_property
    def schedule(self) -> Schedule:
        """The tables of the sampler, as they are for this window. BadRequest for a bundle that has none."""
        defaults, part = self.bundle.parts.defaults, self.bundle.parts.denoiser
        if defaults is None or part is None:
            raise BadRequest(
                f"{self.bundle.name} has no denoiser; it decodes and encodes only; export a whole checkpoint"
            )
        return load_schedule(self.bundle, self.options.sampler or defaults.sampler, part.windows.index(self.window))

    def denoiser(self) -> Denoiser:
        """The denoiser, which is told of the prompt now."""
        if self._lent is not None:
            return self._lent()
        with self._opening:
            if self._denoiser is None:
                options = self.options
                self._denoiser = Denoiser(self.bundle, self.window, self._guide(), options.batch, options.engine)
            return self._denoiser

    def _denoised(self, level: Level, clean: Source | None) -> Source:
        """What the phases of a level make of `clean`, which only level 0 does without."""
        shape = self.bundle.decoder.input_channels, level.height, level.width
        runs = self.schedule.phases(level.count, level.strength, level.phases)
        if not runs:  # a strength that leaves no step
            assert clean is not None
            return clean
        keep, noise = runs[0].steps[0].keep, runs[0].steps[0].noise
        grid, first = self.grid(level), 0
        anchor = None
        if level.strength == 1.0:
            clean, keep, noise = None, 0.0, runs[0].initial
        elif clean is not None and level.anchor > 0.0:
            anchor = clean, Anchor(grid.window, level.anchor)
        latents: Source = Noised(clean, Noise(Draw(self.options.seed, level.index, 0), shape), keep, noise)
        for index, run in enumerate(runs):
            phase = Phase(run.steps, self.options.seed, level.index, first, level.guidance)
            name = "window", level.index, index
            held = anchor if index == len(runs) - 1 else None
            latents = Windowed(name, latents, grid.phase(index), phase, self.denoiser, self.memo, held)
            first += len(run.steps)
        return latents

    def prepare(self, index: int, region: Region) -> None:
        """Encode all that a region of a level's latents is made of, where there is room to keep it.

        A region is denoised in blocks, each of which needs few tiles of the encoder: too few for all workers.
        """
        field = self.latents[index]
        while isinstance(field, Windowed):
            region, field = around(field.windows(region)), field.parent
        if isinstance(field, Noised) and isinstance(field.clean, Coded):
            tiles = list(field.clean.tiles(region))
            if 2 * len(tiles) * field.clean.tile_nbytes <= self.memo.limit_nbytes:
                field.clean.make(tiles)

    def grid(self, level: Level) -> WindowGrid:
        """Where a level's windows lie in its first phase."""
        window = self.window.rows, self.window.columns
        stride = self.options.stride or (max(1, window[0] * 3 // 4), max(1, window[1] * 3 // 4))
        shift = self.options.shift if level.index == len(self.levels) - 1 else (0, 0)
        return WindowGrid((level.height, level.width), window, stride, shift)

    def _decoded(self, level: Level, latents: Source) -> Coded:
        decoder = self.bundle.decoder
        sides = level.height * decoder.output_scale, level.width * decoder.output_scale
        return self._coded(("pixels", level.index), decoder, latents, (decoder.output_channels, *sides), level)

    def enlarged(self, level: Level) -> Resized:
        """The pixels of the level below at this level's size."""
        scale = self.bundle.encoder.input_scale
        return Resized(self.pixels[level.index - 1], level.height * scale, level.width * scale, level.size.ratio)

    def _encoded(self, level: Level) -> Coded:
        shape = self.bundle.decoder.input_channels, level.height, level.width
        return self._coded(("encoded", level.index), self.bundle.encoder, self.enlarged(level), shape, level)

    def _coded(
        self, name: Hashable, component: Component, source: Source, shape: tuple[int, int, int], level: Level
    ) -> Coded:
        rows, columns = self.options.encoder_tile if component.name == "encoder" else self.options.tile
        tile = min(rows, level.height), min(columns, level.width)

        def opened() -> TileCoder:
            summary = self.summary(component.name, level.index)
            engines = self._engines_of(component, level.index, summary, tile)
            return values_coder(self.bundle, component, source, summary, tile, self.options.engine, engines)

        return Coded(name, component, source, shape, tile, opened, self.memo, self.options.engine.workers)

    def _engines_of(self, component: Component, level: int, summary: Summary, tile: tuple[int, int]) -> CoderEngines:
        """Those of all levels that share a summary."""
        key = component.name, min(level, self.measured_level), tile
        with self._opening:
            if key not in self._engines:
                self._engines[key] = shared_engines(self.bundle, component, summary, tile, self.options.engine)
            return self._engines[key]

    @property
    def measured_level(self) -> int:
        """The deepest level whose sites are measured."""
        return measured_level(self.levels)

    def summary(self, component: str, level: int) -> Summary:
        """A level's frozen sites: its own, or those of the deepest level that was measured."""
        key = component, min(level, self.measured_level)
        if key not in self._summaries:
            self._open_below(*key)
        with self._locks[key]:
            if key not in self._summaries:
                self._summaries[key] = self._kept_or_measured(*key)
            return self._summaries[key]

    def _open_below(self, component: str, level: int) -> None:
        """Open what measuring a level reads. It is read from other threads, which must find no lock of this one's."""
        below = self.pixels[level - 1] if component == "encoder" else self.encoded[level]
        if isinstance(below, Coded):
            below.open()

    def _kept_or_measured(self, name: str, index: int) -> Summary:
        component, folder = self.bundle.component(name), self.options.summaries
        if not component.sites or folder is None:
            return self._measured(name, index)
        path = folder / f"level-{index}.{name}.safetensors"
        if path.is_file():
            return load_summary(path, component, self.bundle.digest)
        found = self._measured(name, index)
        found.save(path)
        return found

    def _measured(self, name: str, index: int) -> Summary:
        component, level = self.bundle.component(name), self.levels[index]
        source = self.enlarged(level) if name == "encoder" else self.encoded[index] or self.latents[index]
        assert source is not None
        method = measuring_method(component, level)
        engine = replace(self.options.engine, precision="f32")
        options = SweepOptions(SWEEP_BATCH, self.options.held_nbytes, Path(tempfile.gettempdir()), engine)
        return measure(self.bundle, component, source, method, options, seed=self.options.seed)

    def close(self) -> None:
        """Give the engines back, and what was kept; reading again opens and makes them anew."""
        self.memo.clear()
        with self._opening:
            if self._denoiser is not None:
                self._denoiser.close()
            for coded in (*self.encoded, *self.pixels):
                if isinstance(coded, Coded):
                    coded.close()
            for engines in self._engines.values():
                engines.close()
            self._engines.clear()
        trim_heap()
