"""A drawn picture whose pixels are a formula of their place: lazy serving without a model's seconds."""

import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np

import widefield
from widefield.drawn import DrawnPicture, LevelPixels
from widefield.errors import Cancelled
from widefield.geometry import Region
from widefield.serve.desk import Desk
from widefield.serve.flights import Flights
from widefield.serve.gallery import Gallery, Studio, Wish, drawn_gallery
from widefield.serve.tile_cache import TileCache

STEP_SECONDS = 0.01  # between two looks whether a read was cancelled


class PaintedLevel(LevelPixels):
    """What `formula` says, after `picture.seconds`."""

    def read(self, region, *, progress=None, cancelled=None):
        self.check_inside(region)
        picture = self.picture
        with picture.counting:
            picture.reads[self.index, region] += 1
            picture.reading += 1
            picture.most_reading = max(picture.most_reading, picture.reading)
        try:
            until = time.monotonic() + picture.seconds
            while True:
                if cancelled is not None and cancelled():
                    with picture.counting:
                        picture.cancelled += 1
                    raise Cancelled("stopped")
                if progress is not None:
                    progress(1)
                if time.monotonic() >= until:
                    return formula(picture.generation.seed, self.index, region)
                time.sleep(STEP_SECONDS)
        finally:
            with picture.counting:
                picture.reading -= 1


class Painted(DrawnPicture):
    """`reads` counts what was computed, `cancelled` what was given up, `closed` how often its engines were."""

    seconds = 0.0

    def __init__(self, generation, options):
        super().__init__(generation, options)
        self.reads, self.counting = Counter(), threading.Lock()
        self.reading = self.most_reading = self.cancelled = self.closed = 0

    def level(self, index):
        super().level(index)  # checks it
        return PaintedLevel(self, index % self.levels)

    def close(self):
        self.closed += 1


def formula(seed: int, level: int, region: Region) -> np.ndarray:
    """Smooth, so that JPEG keeps it, nowhere the same, and cheap."""
    y, x = np.arange(region.y0, region.y1)[:, None], np.arange(region.x0, region.x1)[None]
    planes = (
        np.sin(x / 91 + seed) + np.cos(y / 57),
        np.cos(y / 83 + level) + np.sin(x / 29),
        x / 4e5 + np.sin(y / 131),
    )
    return np.stack([(128 + 60 * plane).astype(np.uint8) for plane in planes], -1)


def studio(
    folder: Path, *, memory: str = "2GiB", limit_nbytes: int = 64 << 20, queue: int = 64, threads: int = 2
) -> Studio:
    """One that paints with the embedded model's levels."""
    model = widefield.open()

    def draw(prompt: str, size: tuple[int, int], seed: int) -> Painted:
        made = model.generate(prompt, size=size, seed=seed, memory=memory)
        return Painted(made.generation, made.options)

    desk = Desk(widefield.options.parse_nbytes(memory))
    return Studio(draw, desk, TileCache(folder, limit_nbytes), Flights(threads, queue, "painting"))


def gallery(folder: Path, size: tuple[int, int] = (40_000, 30_000), **options: object) -> Gallery:
    """One with a first picture."""
    return drawn_gallery(studio(folder, **options), Wish("a coast", size, 3))
