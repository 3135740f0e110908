"""`widefield encode`: a picture in, latents out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from widefield.commands import arguments
from widefield.commands.output import print_json, show_count, show_seconds, show_speed
from widefield.commands.progress import reporter

if TYPE_CHECKING:
    from widefield.encode import Encoded


@click.command("encode", cls=arguments.Command, short_help="A picture in, latents out.")
@click.argument("paths", nargs=-1, required=True, type=arguments.PATH, metavar="[BUNDLE] IMAGE")
@arguments.option(
    "-o", "--out", required=True, type=arguments.PATH, section="Files", metavar="LATENTS",
    help="Where the latents go, .npy or .zarr; whole, or not at all.",
)  # fmt: skip
@arguments.bundle
@arguments.option("--overwrite", is_flag=True, section="Files", help="Replace latents that are there.")
@arguments.run_options("memory", "tile", "batch", "workers", "device", "device-memory")
@arguments.run_options("engine", "ort-library", "precision", "scratch")
@arguments.run_options("summary", "cells", "seed")
@arguments.as_json
@arguments.quiet
def encode(
    paths: tuple[Path, ...], out: Path, bundle: Path | None, as_json: bool, quiet: bool, **asked: Any
) -> int | None:
    """Encode a picture of any size into latents, within a memory budget.

    IMAGE is a .png, .jpg, .webp, .tif or .npy (height, width, 3), or a picture that widefield made: .tif, .zarr, .dzi.
    Sides are rounded up to whole latents by repeating the last row and column.

    \b
    widefield encode photo.png -o latents.npy
    widefield encode vae.wf picture.tif -o latents.zarr --memory 8GiB
    """
    where, image = arguments.bundle_and_file(paths, bundle, "IMAGE")
    model = arguments.open_model(where, verify=True)
    encoding = model.encode(image, **arguments.given(asked))
    try:
        with reporter("encoding", quiet=quiet) as report:
            encoded = encoding.save(out, progress=report.progress, talk=report.talk)
    except KeyboardInterrupt:
        click.echo(f"interrupted; nothing is left of {out}; the same command starts it again", err=True)
        return 130
    if as_json:
        print_json(encoded.as_dict())
    elif not quiet:
        _tell(encoded)
    return None


def _tell(encoded: Encoded) -> None:
    width, height = encoded.plan.as_dict()["size_px"]
    padded = (
        "" if (width, height) == encoded.image_px else f" (edges repeated from {'x'.join(map(str, encoded.image_px))})"
    )
    click.echo(f"{encoded.path}: latents {'x'.join(map(str, encoded.shape))} of {width} x {height} px{padded}")
    speed = show_speed(width * height, encoded.seconds)
    click.echo(f"{show_count(encoded.plan.tiles, 'tile')} in {show_seconds(encoded.seconds)}, {speed}")
    if encoded.certificate.tiles:
        click.echo(f"{encoded.certificate}")
