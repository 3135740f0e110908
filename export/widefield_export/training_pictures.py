"""Pictures to train the embedded autoencoder on: public-domain photographs, drawn scenes, and both mixed.

The photographs are the ones inside scikit-image's wheel; nothing is ever downloaded. `held_out_crops` are for
validation, and no training crop touches them.

Shapes   pictures (height, width, 3) float32 in [0, 1]; batches (n, 3, side, side) in [-1, 1].
Units    side, radius, held_out: pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from widefield.errors import MissingBackend

Picture = NDArray[np.float32]
BLOCK_PX = 128  # side of a held-out block


@dataclass(frozen=True, slots=True)
class Photograph:
    """A file of scikit-image's wheel, how often it is drawn, and the corner of its held-out block, if it has one."""

    file: str
    weight: float
    held_out: tuple[int, int] | None = None


# Public domain or CC0, every one; export/embedded/README.md has authors and sources.
PHOTOGRAPHS = (
    Photograph("astronaut.png", 3, (384, 0)),
    Photograph("coffee.png", 3, (272, 472)),
    Photograph("rocket.jpg", 2, (299, 448)),
    Photograph("retina.jpg", 2, (640, 260)),
    Photograph("hubble_deep_field.jpg", 1, (420, 600)),
    Photograph("camera.png", 2, (128, 384)),
    Photograph("brick.png", 1),
    Photograph("grass.png", 1),
    Photograph("gravel.png", 1),
    Photograph("cell.png", 0.5),
    Photograph("clock_motion.png", 0.5),
)
UNSEEN = "chelsea.png"  # no pixel of it is trained on


def read_photograph(name: str) -> Picture:
    """A file of scikit-image's wheel as (height, width, 3) in [0, 1]; greyscale is repeated.

    Raises MissingBackend where scikit-image is not installed.
    """
    try:
        folder = files("skimage") / "data"
    except ModuleNotFoundError as cause:
        raise MissingBackend("the training photographs are in scikit-image: pip install scikit-image") from cause
    with (folder / name).open("rb") as stream, Image.open(stream) as image:
        return np.asarray(image.convert("RGB"), np.float32) / np.float32(255)


def held_out_crops() -> dict[str, Picture]:
    """The blocks that training never sees, and the whole unseen photograph; sides are multiples of 8."""
    crops = {UNSEEN: read_photograph(UNSEEN)[:296, :448]}
    for photo in PHOTOGRAPHS:
        if photo.held_out is not None:
            y, x = photo.held_out
            crops[photo.file] = read_photograph(photo.file)[y : y + BLOCK_PX, x : x + BLOCK_PX]
    return crops


def resized(picture: Picture, side: int) -> Picture:
    """Resample a square to `side`, with antialiasing when it shrinks."""
    tensor = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]
    small = F.interpolate(tensor, (side, side), mode="bicubic", antialias=True, align_corners=False)
    return np.asarray(small[0].clamp(0, 1).permute(1, 2, 0).numpy(), np.float32)


def recoloured(rng: np.random.Generator, picture: Picture) -> Picture:
    """Jitter saturation (down to grey, or over), channel order, gains, gamma and brightness."""
    if rng.random() < 0.3:
        return picture
    if rng.random() < 0.3:
        picture = picture[..., rng.permutation(3)]
    grey = picture.mean(-1, keepdims=True)
    vivid = grey + (picture - grey) * rng.uniform(0, 1.5)
    gain = rng.uniform(0.8, 1.15) * rng.uniform(0.85, 1.15, 3)
    return np.asarray(np.clip(vivid * gain + rng.uniform(-0.1, 0.1), 0, 1) ** rng.uniform(0.7, 1.4), np.float32)


def any_colour(rng: np.random.Generator) -> Picture:
    """A colour (3,), mostly a muted one."""
    hue = rng.standard_normal(3) * rng.choice([0.05, 0.12, 0.3])
    return np.asarray(np.clip(rng.uniform() + hue - hue.mean(), 0, 1), np.float32)


def fractal(rng: np.random.Generator, side: int) -> Picture:
    """Noise with a power spectrum f^-2s, s in [0.8, 2.6], over a colour gradient: from skies to rough ground."""
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    amplitude = np.maximum(np.hypot(fy, fx), 1 / side) ** -rng.uniform(0.8, 2.6)
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((3, side, side))) * amplitude, s=(side, side))
    noise /= noise.std((1, 2), keepdims=True) + 1e-6
    mix = rng.standard_normal((3, 3)) * rng.choice([0.1, 0.3]) + np.array([1.0, 0, 0])  # one field is mostly light
    angle, (v, u) = rng.uniform(0, 2 * math.pi), np.mgrid[-0.5 : 0.5 : side * 1j, -0.5 : 0.5 : side * 1j]
    ramp = (math.cos(angle) * u + math.sin(angle) * v)[..., None]
    slope = ramp * (rng.uniform(-0.6, 0.6) + rng.uniform(-0.2, 0.2, 3))
    texture = np.einsum("cd,dyx->yxc", mix, noise) * rng.choice([0.0, 0.03, 0.12, 0.25])
    return np.asarray(np.clip(any_colour(rng) + slope + texture, 0, 1), np.float32)


def leaf(rng: np.random.Generator, side: int, radius: float) -> Picture:
    """Coverage (side, side, 1) of one disc, box or half-plane with an edge about one pixel wide."""
    y, x = np.ogrid[:side, :side]
    angle, (cy, cx) = rng.uniform(0, 2 * math.pi), rng.uniform(0, side, 2)
    u = math.cos(angle) * (x - cx) + math.sin(angle) * (y - cy)
    v = math.cos(angle) * (y - cy) - math.sin(angle) * (x - cx)
    match rng.integers(3):
        case 0:
            distance = np.hypot(u, v * rng.uniform(1, 3)) - radius
        case 1:
            distance = np.maximum(np.abs(u) - radius, np.abs(v) - radius * rng.uniform(0.05, 1))
        case _:
            distance = u + 0 * v if radius > side / 3 else np.hypot(u, v) - radius
    softness = 1.0 if rng.random() < 0.8 else rng.uniform(1, 8)
    return np.asarray(np.clip(0.5 - distance / softness, 0, 1)[..., None], np.float32)


class Scenes:
    """Endless training pictures: crops of the photographs, drawn ones, and both cut out of each other."""

    def __init__(self) -> None:
        self.pictures = [read_photograph(photo.file) for photo in PHOTOGRAPHS]
        weights = np.array([photo.weight for photo in PHOTOGRAPHS])
        self.odds = weights / weights.sum()

    def crop(self, rng: np.random.Generator, side: int) -> Picture:
        """A square of a photograph at 0.4 to 2 times its size, turned, mirrored and recoloured."""
        index = rng.choice(len(self.pictures), p=self.odds)
        picture, held_out = self.pictures[index], PHOTOGRAPHS[index].held_out
        height, width = picture.shape[:2]
        room = min(height, width) - (BLOCK_PX if held_out else 0)
        source = min(room, max(8, round(side / math.exp(rng.uniform(math.log(0.4), math.log(2))))))
        while True:
            y, x = int(rng.integers(height - source + 1)), int(rng.integers(width - source + 1))
            if held_out is None or not self._meets((y, x), source, held_out):
                break
        square = picture[y : y + source, x : x + source]
        if source != side:
            square = resized(square, side)
        square = np.rot90(square, int(rng.integers(4)))
        return recoloured(rng, square[:, ::-1] if rng.random() < 0.5 else square)

    @staticmethod
    def _meets(corner: tuple[int, int], source: int, block: tuple[int, int]) -> bool:
        return all(c < b + BLOCK_PX and b < c + source for c, b in zip(corner, block, strict=True))

    def surface(self, rng: np.random.Generator, side: int) -> Picture:
        """A photograph three times in four, a fractal otherwise."""
        return self.crop(rng, side) if rng.random() < 0.75 else fractal(rng, side)

    def dead_leaves(self, rng: np.random.Generator, side: int) -> Picture:
        """Opaque leaves, radii p(r) ~ r^-3 as in natural pictures, in plain, shaded and photographic colours."""
        canvas, other = self.surface(rng, side), self.surface(rng, side)
        for _ in range(rng.integers(3, 50)):
            radius = min(side * 0.6, 2.5 / math.sqrt(1 - rng.uniform(0, 0.998)))
            colour = other if rng.random() < 0.25 else any_colour(rng)
            canvas = canvas + leaf(rng, side, radius) * (colour - canvas)
        return np.asarray(canvas, np.float32)

    def mosaic(self, rng: np.random.Generator, side: int) -> Picture:
        """Four scenes in the quarters of one, so that statistics over a picture come from unlike places."""
        half = side // 2
        rows = [np.concatenate([self.scene(rng, half), self.scene(rng, half)], 1) for _ in range(2)]
        return np.concatenate(rows, 0)

    def scene(self, rng: np.random.Generator, side: int) -> Picture:
        """One picture of side x side."""
        draw = rng.random()
        if side >= 64 and draw < (0.3 if side < 192 else 0.6):
            return self.mosaic(rng, side)
        draw = rng.random()
        if draw < 0.12:
            return fractal(rng, side)
        if draw < 0.27:
            return self.dead_leaves(rng, side)
        return self.crop(rng, side)

    def batch(self, rng: np.random.Generator, count: int, side: int) -> Tensor:
        """(count, 3, side, side) in [-1, 1], channels last in memory."""
        stack = np.stack([self.scene(rng, side) for _ in range(count)])
        return torch.from_numpy(stack).permute(0, 3, 1, 2) * 2 - 1
