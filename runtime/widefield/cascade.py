"""A picture of any size from a prompt: each level's latents are a field, made of the level below.

    noise -> phases -> latents 0 -> decoded -> enlarged -> encoded -> noised -> phases -> latents 1 -> ...

Nothing is computed until a region of the last level is read, and then only the cone under it. What the autoencoder's
sites see of a whole picture is measured on the levels up to `MEASURED_CELLS`, and inherited by deeper ones: those look
alike at any magnification, so a part of the deepest level needs no pass over all of it.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from widefield.bundle import Bundle, Component
from widefield.coder import TileCoder
from widefield.denoise import Denoiser, Guide
from widefield.engine import EngineOptions
from widefield.fields import Coded, Noise, Noised, Resized
from widefield.geometry import Region
from widefield.levels import Level
from widefield.memo import Memo
from widefield.parts import WindowGraph, load_schedule
from widefield.plan import choose_method
from widefield.schedule import Schedule
from widefield.sources import LatentSource
from widefield.summary import Summary
from widefield.sweep import SweepOptions, measure
from widefield.tiles import Source
from widefield.windowed import Phase, Windowed
from widefield_kernels.noise import Draw
from widefield_kernels.windows import WindowGrid

Array = NDArray[np.float32]
MEASURED_CELLS = 128 * 128  # of the largest level whose sites are measured; level 1 always is
SWEEP_HELD_NBYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class CascadeOptions:
    """`tile` is what the autoencoder computes at a time, in cells; `stride` how far windows are apart. `seed` is the
    picture's."""

    seed: int = 0
    sampler: str | None = None
    tile: tuple[int, int] = (32, 32)
    stride: tuple[int, int] | None = None
    batch: int = 4
    engine: EngineOptions = field(default_factory=EngineOptions)


class Cascade:
    """The fields of one picture. Reads are safe from several threads; `close` gives the engines back."""

    def __init__(
        self,
        bundle: Bundle,
        window: WindowGraph,
        guide: Guide,
        levels: Sequence[Level],
        memo: Memo,
        options: CascadeOptions,
        *,
        first: Source | None = None,
        cancelled: Callable[[], None] | None = None,
    ) -> None:
        self.bundle, self.window, self.guide, self.levels = bundle, window, guide, tuple(levels)
        self.memo, self.options, self._cancelled = memo, options, cancelled
        self._summaries: dict[tuple[str, int], Summary] = {}
        self._locks = {(name, level.index): threading.Lock() for name in ("decoder", "encoder") for level in levels}
        self._denoiser = Denoiser(bundle, window, guide, options.batch, options.engine)
        self.coded: list[Coded] = []
        self.latents: list[Source] = []
        self.pixels: list[Coded] = []
        self.encoded: list[Coded | None] = []
        for level in self.levels:
            self._add(level, first if level.index == 0 else None)

    @cached_property
    def schedule(self) -> Schedule:
        """The tables of the sampler, as they are for this window."""
        defaults, part = self.bundle.parts.defaults, self.bundle.parts.denoiser
        assert defaults is not None and part is not None  # or there would be no Denoiser
        return load_schedule(self.bundle, self.options.sampler or defaults.sampler, part.windows.index(self.window))

    def _add(self, level: Level, given: Source | None) -> None:
        channels = self.bundle.decoder.input_channels
        shape = channels, level.height, level.width
        encoded = self._encoded(level) if level.index else None
        self.encoded.append(encoded)
        clean: Source | None = encoded or given
        parts = self.schedule.phases(level.steps, level.strength, level.phases)
        latents: Source
        if not parts:  # a strength that leaves no step
            assert clean is not None
            latents = clean
        else:
            keep, noise = (parts[0].steps[0].keep, parts[0].steps[0].noise)
            if level.strength == 1.0:
                clean, keep, noise = None, 0.0, parts[0].initial
            latents = Noised(clean, Noise(Draw(self.options.seed, level.index, 0), shape), keep, noise)
        grid = self.grid(level)
        first = 0
        for index, part in enumerate(parts):
            phase = Phase(part.steps, self.options.seed, level.index, first)
            name = "window", level.index, index
            latents = Windowed(
                name, latents, grid.phase(index), phase, lambda: self._denoiser, self.memo, self._cancelled
            )
            first += len(part.steps)
        self.latents.append(latents)
        self.pixels.append(self._decoded(level, latents))

    def grid(self, level: Level) -> WindowGrid:
        """Where a level's windows lie in its first phase."""
        window = self.window.rows, self.window.columns
        stride = self.options.stride or (max(1, window[0] * 3 // 4), max(1, window[1] * 3 // 4))
        return WindowGrid((level.height, level.width), window, stride)

    def _decoded(self, level: Level, latents: Source) -> Coded:
        decoder = self.bundle.decoder
        scale = decoder.output_scale
        shape = decoder.output_channels, level.height * scale, level.width * scale
        return self._coded(("pixels", level.index), decoder, latents, shape, scale, level)

    def _encoded(self, level: Level) -> Coded:
        encoder = self.bundle.encoder
        scale = encoder.input_scale
        enlarged = Resized(self.pixels[level.index - 1], level.height * scale, level.width * scale)
        shape = self.bundle.decoder.input_channels, level.height, level.width
        return self._coded(("encoded", level.index), encoder, enlarged, shape, 1, level)

    def _coded(
        self,
        name: Hashable,
        component: Component,
        source: Source,
        shape: tuple[int, int, int],
        scale: int,
        level: Level,
    ) -> Coded:
        tile = min(self.options.tile[0], level.height), min(self.options.tile[1], level.width)

        def opened() -> TileCoder:
            summary = self.summary(component.name, level.index)
            return TileCoder(self.bundle, component, source, summary, tile, 1, self.options.engine, certify=False)

        coded = Coded(name, shape, scale, tile, opened, self.memo)
        self.coded.append(coded)
        return coded

    @property
    def measured_level(self) -> int:
        """The deepest level whose sites are measured."""
        small = [level.index for level in self.levels if level.height * level.width <= MEASURED_CELLS]
        return max([min(1, len(self.levels) - 1), *small])

    def summary(self, component: str, level: int) -> Summary:
        """A level's frozen sites: its own, or those of the deepest level that was measured."""
        key = component, min(level, self.measured_level)
        if key not in self._summaries:
            self._open_below(*key)
        with self._locks[key]:
            if key not in self._summaries:
                self._summaries[key] = self._measured(*key)
            return self._summaries[key]

    def _open_below(self, component: str, level: int) -> None:
        """Open what measuring a level reads. It is read from other threads, which must find no lock of this one's."""
        below = self.pixels[level - 1] if component == "encoder" else self.encoded[level]
        if below is not None:
            below.open()

    def _measured(self, name: str, index: int) -> Summary:
        component = self.bundle.component(name)
        level = self.levels[index]
        source: Source = self.latents[index]
        if name == "encoder":
            side = component.input_scale
            source = Resized(self.pixels[index - 1], level.height * side, level.width * side)
        method = choose_method(component, level.height, level.width, "auto")
        options = SweepOptions(8, SWEEP_HELD_NBYTES, Path(tempfile.gettempdir()), self.options.engine)
        return measure(self.bundle, component, source, method, options, seed=self.options.seed)

    def identity(self) -> str:
        """SHA-256 of all that determines the latents of the last level, engine and precision included."""
        told = [self.guide.positive, self.guide.negative] if self.guide.scale != 1.0 else [self.guide.positive]
        arrays = [x for c in told for x in (c.text, c.pooled, c.mask) if x is not None]
        engine = self.options.engine.resolved()
        about = {
            "bundle": self.bundle.digest, "levels": [asdict(level) for level in self.levels],
            "seed": self.options.seed, "sampler": self.schedule.name, "tile": self.options.tile,
            "grid": asdict(self.grid(self.levels[-1])), "guidance": self.guide.scale,
            "engine": [engine.backend, engine.precision],
            "prompt": [hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest() for x in arrays],
        }  # fmt: skip
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def close(self) -> None:
        """Give the engines back; reading again opens them anew."""
        self._denoiser.close()
        for coded in self.coded:
            coded.close()


class GeneratedLatents(LatentSource):
    """The last level of a cascade, as latents to decode."""

    def __init__(self, cascade: Cascade, name: str) -> None:
        self.cascade, self.name = cascade, name
        self.field = cascade.latents[-1]
        self.channels, self.height, self.width = self.field.channels, self.field.height, self.field.width
        self.dtype = np.dtype(np.float32)

    def _fill(self, out: Array, region: Region) -> None:
        out[...] = self.field.read(region)

    def digest(self) -> str:
        """Of what determines them: nothing is computed for it."""
        return self.cascade.identity()
