"""Training pictures by number: `draw_picture(seed, index, size_px)` is always the same picture with the same captions.

Shapes   pixels (size_px, size_px, 3) uint8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from widefield_export.worlds.captions import caption
from widefield_export.worlds.draw import SCALE_ODDS, SCALES_M, Scene, draw_scene, find_place
from widefield_export.worlds.render import render

CAPTIONS = 4  # ways of saying it, each


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture, what it was drawn as, and captions of it."""

    pixels: NDArray[np.uint8]
    captions: tuple[str, ...]
    scene: Scene
    metres_per_px: float


def draw_picture(seed: int, index: int, size_px: int) -> Drawn:
    """Scene, scale, place and captions from (seed, index) alone."""
    rng = np.random.default_rng([seed, index])
    scene = draw_scene(rng)
    scale = float(rng.choice(SCALES_M, p=SCALE_ODDS))
    y, x = find_place(rng, scene, scale, size_px)
    view = render(scene.world, scene.sky, y, x, size_px, scale)
    words = tuple(caption(rng, scene, view.shares, scale) for _ in range(CAPTIONS))
    return Drawn(np.rint(view.pixels * 255).astype(np.uint8), words, scene, scale)
