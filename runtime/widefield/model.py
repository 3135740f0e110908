"""The library's front: open a bundle, get a picture that is an array, save it in a budget.

For example:

    model = widefield.open("vae.wf")
    picture = model.decode("latents.npy")          # nothing computed yet
    picture[2000:2512, 4000:4512]                  # rows, columns: (512, 512, 3) uint8, computed now
    picture.save("harbour.tif", memory="2GiB")     # all of it, resumable
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from widefield.bundle import Bundle, open_bundle
from widefield.encode import Encoding
from widefield.images import open_image
from widefield.options import run_options
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

    def encode(self, image: Path | str | NDArray[Any], **options: Any) -> Encoding:
        """The latents of a picture, made when they are saved or asked for as an array: a file or uint8 (H, W, 3).

        `options` are as in `decode`. Raises BadLatents for what is no grey or RGB picture.
        """
        where = Path(image) if isinstance(image, str) else image
        return Encoding(self.bundle, open_image(where), run_options(options))
