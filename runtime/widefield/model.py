"""The library's front: open a bundle, get a picture that is an array, save it in a budget.

For example:

    model = widefield.open("sdxl.wf")
    picture = model.generate("a harbour at dawn", size=(65536, 32768), seed=7)     # nothing computed yet
    picture[20000:20512, 4000:4512]                # rows, columns: (512, 512, 3) uint8, computed now
    picture.save("harbour.tif", memory="8GiB")     # all of it, resumable

    model.decode("latents.npy").save("picture.tif")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from widefield.bundle import Bundle, open_bundle
from widefield.drawn import DrawnPicture
from widefield.encode import Encoding
from widefield.errors import BadRequest
from widefield.generation import RECIPE, Generation, Recipe
from widefield.images import open_image
from widefield.levels import enlarged_px
from widefield.options import RunOptions, run_options
from widefield.picture import Picture
from widefield.sources import open_latents

EMBEDDED = Path(__file__).parent / "embedded"


def open(bundle: Path | str | None = None) -> Model:  # noqa: A001 -- widefield.open is the front door
    """The model in a bundle's folder; None opens the embedded checkpoint. Raises BadBundle."""
    return Model(open_bundle(EMBEDDED if bundle is None else bundle))


class Model:
    """An opened bundle. Holds no engine and no memory; every picture has its own."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def __repr__(self) -> str:
        return f"Model({self.bundle.name!r}, {self.bundle.family}, {self.bundle.scale} px a latent)"

    def decode(self, latents: Path | str | NDArray[Any], **options: Any) -> Picture:
        """A lazy picture of latents (C, H, W), as `output_type="latent"` returns them: .npy, .zarr or an array.

        `options` are RunOptions' fields, or memory="8GiB". Raises BadLatents for the wrong shape or type.
        """
        where = Path(latents) if isinstance(latents, str) else latents
        source = open_latents(where, channels=self.bundle.latent_channels)
        return Picture(self.bundle, source, run_options(options))

    def generate(self, prompt: str, *, size: tuple[int, int], seed: int = 0, **options: Any) -> DrawnPicture:
        """A lazy picture of a prompt, `size` (width, height) in pixels. Equal arguments, equal pictures.

        `options` are Recipe's fields and RunOptions', or memory="8GiB". Raises BadRequest for what cannot be drawn.
        """
        recipe, run = _recipe(options)
        width, height = size
        generation = Generation(self.bundle, prompt, (height, width), seed, recipe)
        return DrawnPicture(generation, replace(run, seed=seed))

    def upscale(
        self,
        image: Path | str | NDArray[Any],
        scale: float | Fraction | str,
        prompt: str = "",
        *,
        seed: int = 0,
        **options: Any,
    ) -> DrawnPicture:
        """A lazy picture, `scale` times the one given, with detail that the model draws.

        `image` is as in `encode`, `options` as in `generate`.
        """
        where = Path(image) if isinstance(image, str) else image
        ground = open_image(where)
        times = _times(scale)
        recipe, run = _recipe(options)
        size = enlarged_px(ground.height, ground.width, times)
        generation = Generation(self.bundle, prompt, size, seed, recipe, ground, times)
        return DrawnPicture(generation, replace(run, seed=seed))

    def encode(self, image: Path | str | NDArray[Any], **options: Any) -> Encoding:
        """The latents of a picture, made when they are saved or asked for as an array: a file or uint8 (H, W, 3).

        `options` are as in `decode`. Raises BadLatents for what is no grey or RGB picture.
        """
        where = Path(image) if isinstance(image, str) else image
        return Encoding(self.bundle, open_image(where), run_options(options))


def _recipe(options: Mapping[str, Any]) -> tuple[Recipe, RunOptions]:
    """Options of the two kinds, apart."""
    recipe = Recipe(**{name: value for name, value in options.items() if name in RECIPE})
    return recipe, run_options({name: value for name, value in options.items() if name not in RECIPE})


def _times(scale: float | Fraction | str) -> Fraction:
    try:
        return Fraction(scale).limit_denominator(1000)
    except (ValueError, OverflowError, ZeroDivisionError):
        raise BadRequest(f"{scale!r} is no scale; write a number above 1, as 4 or 2.5") from None
