"""What is drawn: a prompt, a size, and how, resolved against a bundle. It says everything that determines the latents.

Nothing is computed here. Pictures that are equal here are equal, whoever draws them, wherever.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widefield.bundle import Bundle
from widefield.cascade import Cascade, CascadeOptions, measured_level
from widefield.denoise import Denoiser, Guide
from widefield.encode import PictureSource
from widefield.engine import EngineOptions
from widefield.errors import BadRequest
from widefield.geometry import Region
from widefield.images import ImageSource
from widefield.levels import Level, drawn_sizes, enlarged_sizes, make_levels
from widefield.memo import Memo
from widefield.parts import Defaults, DenoiserPart, WindowGraph, load_schedule
from widefield.prompt import embed
from widefield.sources import LatentSource
from widefield.store.spec import LARGEST_PX
from widefield.tiles import Source

LARGEST_BATCH, BATCH_NBYTES = 4, 8 << 20  # windows a call of the denoiser, and the activations that these may have


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a picture is drawn; None is the bundle's way.

    `steps`, `guidance` and `phases` of levels 0, 1, ..., `strength` of levels 1, 2, ...: the last number holds for all
    levels after; a single one of `steps` or `guidance` is level 0's. `window` (rows, columns) and `stride` in latents.
    `growth`, how many times a level's sides are those of the one below. `anchor`, how far a window is held to the level
    below it: coarser than this share of its side; 0, not at all.
    """

    steps: int | tuple[int, ...] | None = None
    guidance: float | tuple[float, ...] | None = None
    negative: str | None = None
    strength: float | tuple[float, ...] | None = None
    phases: int | tuple[int, ...] | None = None
    sampler: str | None = None
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    growth: int | None = None
    anchor: float | None = None


RECIPE = frozenset(field.name for field in fields(Recipe))


@dataclass(frozen=True)
class Generation:
    """One picture to draw. `ground` and `times`: a picture to enlarge instead of a level 0 from noise.

    `size_px` is (height, width). BadRequest for what cannot be, on construction.
    """

    bundle: Bundle
    prompt: str
    size_px: tuple[int, int]
    seed: int
    recipe: Recipe
    ground: ImageSource | None = None
    times: Fraction = Fraction(1)

    def __post_init__(self) -> None:
        if max(self.size_px) > LARGEST_PX:
            raise BadRequest(
                f"{self.size_px[1]} x {self.size_px[0]} px is larger than any format holds; wanted sides of at most "
                f"{LARGEST_PX:,} px"
            )
        if not 0 <= self.seed < 1 << 64:
            raise BadRequest(f"seed {self.seed} is outside 0 to 2**64 - 1; name another")
        _ = self.levels

    @property
    def part(self) -> DenoiserPart:
        """The denoiser; BadRequest for a bundle without one."""
        return self._parts[0]

    @property
    def defaults(self) -> Defaults:
        return self._parts[1]

    @property
    def _parts(self) -> tuple[DenoiserPart, Defaults]:
        part, defaults = self.bundle.parts.denoiser, self.bundle.parts.defaults
        if part is None or defaults is None:
            raise BadRequest(
                f"{self.bundle.name} has no denoiser; it decodes and encodes only; export a whole checkpoint"
            )
        return part, defaults

    @cached_property
    def window(self) -> WindowGraph:
        """The one that was asked for, or whose shape is nearest to the picture's."""
        if self.recipe.window is not None:
            return self.part.window(*self.recipe.window)
        height, width = self.size_px
        return min(self.part.windows, key=lambda w: abs(np.log(w.columns / w.rows * height / width)))

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The smallest first."""
        window, scale, recipe = (self.window.rows, self.window.columns), self.bundle.scale, self.recipe
        growth = self.defaults.growth if recipe.growth is None else recipe.growth
        schedule = load_schedule(self.bundle, self.sampler, self.part.windows.index(self.window))
        if self.ground is None:
            sizes = drawn_sizes(*self.size_px, scale, window, growth)
        else:
            sizes = enlarged_sizes(self.ground.height, self.ground.width, self.times, scale, window, growth)
        steps = recipe.steps if recipe.steps is not None else self.defaults.steps
        if isinstance(steps, int):
            steps = steps, min(steps, self.defaults.detail_steps)
        strengths = _listed(self.defaults.strength if recipe.strength is None else recipe.strength)
        phases = (
            _listed(recipe.phases)
            if recipe.phases is not None
            else (_first_phases(sizes[0], window, steps[0]), self.defaults.detail_phases)
        )
        anchor = self.defaults.anchor if recipe.anchor is None else recipe.anchor
        return make_levels(
            sizes, schedule, steps=steps, strengths=strengths, phases=phases, guidance=self.guidance, anchor=anchor
        )

    @property
    def batch(self) -> int:
        """Windows a call."""
        return windows_a_call(self.window)

    @property
    def measured_levels(self) -> int:
        """How many levels' sites are measured; deeper ones inherit."""
        return measured_level(self.levels) + 1

    @property
    def sampler(self) -> str:
        return self.recipe.sampler or self.defaults.sampler

    @property
    def guidance(self) -> tuple[float, ...]:
        """Of levels 0, 1, ...; the last holds for all after."""
        given, defaults = self.recipe.guidance, self.defaults
        if isinstance(given, tuple):
            return given
        first = defaults.guidance if given is None else given
        return (first,) if defaults.detail_guidance is None else (first, defaults.detail_guidance)

    def guide(self, options: EngineOptions) -> Guide:
        """The prompt, embedded now. What of it the model does not read is said as a warning."""
        positive, negative = embed(self.bundle, self.prompt, self.recipe.negative, options)
        for told in (positive.told(), negative.told()):
            if told is not None:
                warnings.warn(told, stacklevel=2)
        return Guide(positive, negative)

    def denoiser(self, options: EngineOptions) -> Denoiser:
        """One for all levels, which is told of the prompt now; the caller closes it."""
        return Denoiser(self.bundle, self.window, self.guide(options), self.batch, options)

    def cascade(
        self,
        memo: Memo,
        options: CascadeOptions,
        stored: Mapping[int, Source] | None = None,
        denoiser: Callable[[], Denoiser] | None = None,
    ) -> Cascade:
        """Its fields; the caller closes them. `stored` are levels' latents, `denoiser` gives one that he closes too."""
        ground = None if self.ground is None else PictureSource(self.ground, self.bundle.encoder.input_scale)
        return Cascade(
            self.bundle, self.window, lambda: self.guide(options.engine), self.levels, memo, options,
            ground=ground, stored=stored, denoiser=denoiser,
        )  # fmt: skip

    def cascade_options(self, engine: EngineOptions, **more: Any) -> CascadeOptions:
        """What of a cascade's options is this picture's."""
        given = {"batch": self.batch, **more}
        return CascadeOptions(self.seed, self.sampler, stride=self.recipe.stride, engine=engine, **given)

    def digest(self, level: int, engine: EngineOptions) -> str:
        """SHA-256 of all that determines the latents of a level (-1: the last), engine and precision included."""
        resolved = engine.resolved()
        levels = self.levels if level == -1 else self.levels[: level + 1]
        about = {
            "bundle": self.bundle.digest,
            "prompt": self.prompt,
            "negative": self.recipe.negative,
            "seed": self.seed,
            "sampler": self.sampler,
            "window": [self.window.rows, self.window.columns],
            "stride": self.recipe.stride,
            "blend": "tent",
            "levels": [asdict(at) for at in levels],
            "ground": None if self.ground is None else self.ground.digest(),
            "engine": [resolved.backend, resolved.precision],
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


class DrawnLatents(LatentSource):
    """The last level's latents, known by what determines them: `opened` is called when they are first read."""

    def __init__(self, generation: Generation, engine: EngineOptions, opened: Callable[[], Source], name: str) -> None:
        level = generation.levels[-1]
        self.channels, self.height, self.width = generation.bundle.latent_channels, level.height, level.width
        self.name, self.dtype, self._opened = name, np.dtype(np.float32), cache(opened)
        self._known = generation.digest(-1, engine)

    def _fill(self, out: NDArray[np.float32], region: Region) -> None:
        out[...] = self._opened().read(region)

    def digest(self) -> str:
        """Nothing is computed or read for it."""
        return self._known


def windows_a_call(window: WindowGraph) -> int:
    """How many an engine of a drawing takes: small ones leave it idle."""
    return max(1, min(LARGEST_BATCH, BATCH_NBYTES // max(1, window.live_nbytes or BATCH_NBYTES)))


def _listed(given: Any) -> tuple[Any, ...]:
    return tuple(given) if isinstance(given, tuple | list) else (given,)


def _first_phases(size: Any, window: tuple[int, int], steps: int) -> int:
    """One where level 0 is a single window, else as many as steps: its windows have to agree."""
    return 1 if (size.height, size.width) == window else steps
