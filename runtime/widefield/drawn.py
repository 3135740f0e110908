"""A drawn picture that is an array: computed where it is read, or drawn level by level and saved.

picture = model.generate("a harbour at dawn", size=(524288, 524288), seed=7)     # nothing computed yet
picture[200_000:201_024, 90_000:91_024]                                          # the cone under it, now
picture.level(3)[:512, :512]                                                     # the same scene, small
picture.save("harbour.tif", memory="8GiB")                                       # all of it, resumable
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widefield.cascade import Cascade
from widefield.device import limit_pool
from widefield.draw_plan import DrawPlan, plan_drawing
from widefield.drawing import Drawing
from widefield.errors import BadRequest, OverBudget, WidefieldError
from widefield.generation import DrawnLatents, Generation
from widefield.geometry import Region
from widefield.job import DecodeJob, Talk
from widefield.memo import Memo
from widefield.options import RunOptions, changed_options
from widefield.picture import LazyPixels
from widefield.plan import Plan
from widefield.reading import Watch, watched
from widefield.render import Progress
from widefield.save import Saved, as_before, save
from widefield.store.provenance import ALTERED, DRAWN, PROMPT, SEED, SOURCE_TYPE
from widefield.summary import Summary
from widefield_kernels.epilogue import to_pixels_reference


class DrawnPicture(LazyPixels):
    """(height, width, 3) uint8 of a generation. What reads compute is kept, within the memory of `options`."""

    def __init__(self, generation: Generation, options: RunOptions) -> None:
        self.generation, self.options = generation, options
        self._cascade: Cascade | None = None
        self._lock = threading.Lock()

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.generation.size_px, 3)

    @property
    def levels(self) -> int:
        """How many there are; the last is the picture."""
        return len(self.generation.levels)

    def level(self, index: int) -> LevelPixels:
        """A level as an array, 0 the smallest, -1 the picture. BadRequest for one that is not there."""
        if not -self.levels <= index < self.levels:
            raise BadRequest(f"level {index} was asked for; the picture has levels 0 to {self.levels - 1}; name one")
        return LevelPixels(self, index % self.levels)

    def read(
        self,
        region: Region,
        *,
        progress: Callable[[int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> NDArray[np.uint8]:
        return self.level(-1).read(region, progress=progress, cancelled=cancelled)

    def draw_plan(self, *, lazily: bool = True) -> DrawPlan:
        """What reads take, or drawing every level takes; raises OverBudget."""
        return plan_drawing(self.generation, self.options, lazily=lazily)

    def cascade(self) -> Cascade:
        """The fields of all levels."""
        with self._lock:
            if self._cascade is None:
                engine = self.options.engine_options(workers=self.options.side_by_side)
                plan = self.draw_plan()
                limit_pool(engine, plan.pool_nbytes)
                options = self.generation.cascade_options(engine, held_nbytes=plan.held_nbytes)
                self._cascade = self.generation.cascade(Memo(plan.memo_nbytes), options)
            return self._cascade

    def close(self) -> None:
        with self._lock:
            if self._cascade is not None:
                self._cascade.close()
                self._cascade = None

    def save(
        self,
        path: Path | str,
        *,
        latents: Path | str | None = None,
        progress: Callable[[Progress], None] | None = None,
        talk: Talk | None = None,
        **options: Any,
    ) -> Saved:
        """Write all of it, as Picture.save does. Levels' latents lie in a folder beside it until the picture is there.

        `latents` keeps the last level's in a .npy file or a .zarr array.
        """
        path = Path(path)
        merged = as_before(path, replace(self.options, **changed_options(options)))
        job = DrawnJob.beside(path, self.generation, merged)
        saved = save(job, path, merged, progress=progress, talk=talk)
        drawing = job.drawing(merged)
        if latents is not None:
            drawing.draw(talk)
            drawing.keep(Path(latents), overwrite=merged.overwrite)
        drawing.remove()
        return saved


class LevelPixels(LazyPixels):
    """One level of a drawn picture, which it shares its fields with."""

    def __init__(self, picture: DrawnPicture, index: int) -> None:
        self.picture, self.index = picture, index

    @property
    def shape(self) -> tuple[int, int, int]:
        """The picture's, over what later levels enlarge."""
        later = self.picture.generation.levels[self.index + 1 :]
        over = math.prod((level.size.ratio for level in later), start=Fraction(1))
        height, width, channels = self.picture.shape
        return math.ceil(height / over), math.ceil(width / over), channels

    def read(
        self,
        region: Region,
        *,
        progress: Callable[[int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> NDArray[np.uint8]:
        """`progress` is told how many windows and tiles were computed so far; `cancelled` is asked before each one, and
        ends the read with Cancelled."""
        self.check_inside(region)
        with watched(Watch(progress, cancelled)):
            values = self.picture.cascade().pixels[self.index].read(region)
        pixels, bad = to_pixels_reference(values)
        if bad:
            raise WidefieldError(
                f"level {self.index} has {bad} values that are not numbers in {region}; wanted finite ones; try "
                "--precision f32"
            )
        return pixels

    def close(self) -> None:
        self.picture.close()


@dataclass(frozen=True)
class DrawnJob(DecodeJob):
    """A picture that is drawn before it is decoded. `folder` holds its levels meanwhile."""

    generation: Generation
    folder: Path

    @staticmethod
    def beside(path: Path, generation: Generation, options: RunOptions) -> DrawnJob:
        """Of a picture that will lie at `path`."""
        folder = path.with_name(f"{path.stem}.levels")
        engine = options.engine_options(workers=options.side_by_side)

        def opened() -> Any:
            return Drawing(generation, folder, engine).store(generation.levels[-1]).source()

        name = f"the latents in {folder}"
        return DrawnJob(generation.bundle, DrawnLatents(generation, engine, opened, name), generation, folder)

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.generation.size_px, 3)

    def origin(self, options: RunOptions) -> dict[str, str]:
        generation = self.generation
        told = {SOURCE_TYPE: DRAWN if generation.ground is None else ALTERED, SEED: str(generation.seed)}
        return told | ({PROMPT: generation.prompt} if options.record_prompt else {})

    def drawing(self, options: RunOptions) -> Drawing:
        """Its levels, to be made within the budget."""
        engine = options.engine_options(workers=options.side_by_side)
        plan = plan_drawing(self.generation, options, lazily=False)
        return Drawing(self.generation, self.folder, engine, plan)

    def plan(self, options: RunOptions) -> Plan:
        """Of decoding. OverBudget, with what is enough for both, where drawing or decoding does not fit."""
        drawing: OverBudget | None = None
        try:
            plan_drawing(self.generation, options, lazily=False)
        except OverBudget as fault:
            drawing = fault
        try:
            plan = super().plan(options)
        except OverBudget as fault:
            if drawing is None or drawing.smallest_nbytes < fault.smallest_nbytes:
                raise
        if drawing is not None:
            raise drawing
        return plan

    def summary_request(self, options: RunOptions, plan: Plan) -> dict[str, str]:
        if options.summary != "auto":
            return super().summary_request(options, plan)
        return {"bundle": self.bundle.digest, "latents": self.source.digest(), "method": "inherited"}

    def kept_summary(self, beside: Path, options: RunOptions, plan: Plan, talk: Talk | None) -> Summary:
        drawing = self.drawing(options)
        stored = drawing.draw(talk, overwrite=options.overwrite)
        if options.summary != "auto":
            return super().kept_summary(beside, options, plan, talk)
        summary = drawing.inherited_summary(stored)
        summary.save(beside)
        return summary
