"""`widefield upscale`: a picture in, a larger one with more detail out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from widefield.commands import arguments
from widefield.commands.drawing import draw, draw_together, drawing_options, keywords
from widefield.commands.together import Order


@click.command("upscale", cls=arguments.Command, short_help="A picture in, a larger one with more detail out.")
@click.argument("image", type=arguments.PATH, metavar="IMAGE")
@arguments.option(
    "--scale", required=True, metavar="N", section="Files", help="How many times the picture's sides, as 4 or 2.5.",
)  # fmt: skip
@arguments.option(
    "--prompt", default="", metavar="PROMPT", section="Drawing", help="What the picture shows (nothing said).",
)  # fmt: skip
@drawing_options
def upscale(
    image: Path, scale: str, prompt: str, out: Path, bundle: Path | None, as_json: bool, quiet: bool, **asked: Any
) -> int | None:
    """Enlarge a picture, and let the model draw the detail that it has not.

    IMAGE is a .png, .jpg, .webp, .tif, .zarr, .dzi or .npy. --strength says how much may change.

    \b
    widefield upscale photo.jpg --scale 4 -o large.tif
    widefield upscale photo.jpg --scale 16 --prompt "a harbour" --strength 0.5 -o huge.zarr --memory 8GiB
    """
    if asked["cluster"] is not None:
        order = Order("upscale", bundle, (image, scale, prompt), keywords(asked), out)
        return draw_together(order, asked, as_json=as_json, quiet=quiet)
    model = arguments.open_model(bundle, verify=True)
    picture = model.upscale(image, scale, prompt, **keywords(asked))
    return draw(picture, out, asked, as_json=as_json, quiet=quiet)
