"""`widefield decode`: latents in, a picture out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from widefield.commands import arguments
from widefield.commands.output import print_json, show_count, show_nbytes, show_seconds, show_speed
from widefield.commands.progress import Reporter, reporter
from widefield.commands.together import Order, together

if TYPE_CHECKING:
    from widefield.save import Saved


@click.command("decode", cls=arguments.Command, short_help="Latents in, a picture of any size out.")
@click.argument("paths", nargs=-1, required=True, type=arguments.PATH, metavar="[BUNDLE] LATENTS")
@arguments.option(
    "-o", "--out", required=True, type=arguments.PATH, section="Files", metavar="OUT",
    help="The picture: .tif (one pyramidal BigTIFF), .zarr (OME-Zarr), .dzi (a folder of tiles) or .png (small).",
)  # fmt: skip
@arguments.bundle
@arguments.overwrite
@arguments.run_options("memory", "tile", "batch", "workers", "device", "device-memory")
@arguments.run_options("engine", "ort-library", "precision", "scratch")
@arguments.run_options("summary", "cells", "seed", "codec", "quality", "shard")
@arguments.run_options("source-type", "sign-cert", "sign-key")
@arguments.cluster
@arguments.as_json
@arguments.quiet
def decode(
    paths: tuple[Path, ...],
    out: Path,
    bundle: Path | None,
    cluster: str | None,
    lease_seconds: float | None,
    as_json: bool,
    quiet: bool,
    **asked: Any,
) -> int | None:
    """Decode latents of any size into a picture without seams, within a memory budget.

    LATENTS is a .npy or .zarr of (channels, height, width), as a pipeline returns them with output_type="latent".
    Stopped by Ctrl-C, a full disk or a crash, the same command goes on where it stopped.

    \b
    widefield decode latents.npy -o picture.tif
    widefield decode vae.wf latents.npy -o picture.zarr --memory 8GiB
    """
    where, latents = arguments.bundle_and_file(paths, bundle, "LATENTS")
    if cluster is not None:
        order = Order("decode", where, (latents,), arguments.given(asked), out, lease_seconds)
        return together(order, cluster, as_json=as_json, quiet=quiet)
    model = arguments.open_model(where, verify=True)
    picture = model.decode(latents, **arguments.given(asked))
    try:
        with reporter("decoding", quiet=quiet) as report:
            saved = picture.save(out, progress=report.progress, talk=report.talk)
    except KeyboardInterrupt:
        click.echo(f"interrupted; {out} keeps what is done; the same command goes on with it", err=True)
        return 130
    if as_json:
        print_json(saved.as_dict())
    elif not quiet:
        _tell(saved, report)
    return None


def _tell(saved: Saved, report: Reporter) -> None:
    width, height = saved.size_px
    click.echo(f"{saved.path}: {width} x {height} px, {show_nbytes(saved.bytes_written)} written")
    found = f", {saved.tiles_found} found from before" if saved.tiles_found else ""
    speed = show_speed(report.px_done, saved.seconds)
    made = show_count(saved.tiles_made, "tile")
    click.echo(f"{made} made{found}, in {show_seconds(saved.seconds)}, {speed}")
    if saved.tiles_made:
        click.echo(f"{saved.certificate}")
    if saved.redone:
        click.echo(f"{show_count(saved.redone, 'call')} overflowed in half precision and ran again in float32")
