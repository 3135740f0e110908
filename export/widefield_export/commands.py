"""`widefield export`: a checkpoint in, a bundle out."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import click

from widefield.commands import arguments
from widefield.commands.output import print_json, show_nbytes
from widefield.errors import BadRequest


@click.command("export", cls=arguments.Command, short_help="A checkpoint in, a bundle out; once.")
@click.argument("checkpoint", type=arguments.PATH)
@arguments.option(
    "-o", "--out", required=True, type=arguments.PATH, section="Files", metavar="BUNDLE",
    help="The folder to write; whole, or not at all.",
)  # fmt: skip
@arguments.option("--overwrite", is_flag=True, section="Files", help="Replace a folder that is there.")
@arguments.as_json
@arguments.quiet
def export(checkpoint: Path, out: Path, overwrite: bool, as_json: bool, quiet: bool) -> None:
    """Turn a checkpoint's autoencoder into a bundle, which runs without PyTorch.

    CHECKPOINT is a diffusers folder (a pipeline's or an autoencoder's own) or one .safetensors file.

    \b
    widefield export stable-diffusion-xl -o sdxl.wf
    widefield export vae.safetensors -o vae.wf
    """
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # it warns of what every checkpoint has
    manifest = export_bundle(checkpoint, out, overwrite=overwrite)
    nbytes = sum(entry["nbytes"] for entry in manifest["files"].values())
    if as_json:
        about = {key: manifest[key] for key in ("name", "family", "scale", "latent_channels", "created")}
        print_json({"path": str(out), **about, "files": len(manifest["files"]), "files_nbytes": nbytes})
    elif not quiet:
        click.echo(
            f"{out}: {manifest['family']}, {manifest['scale']} px a latent, {manifest['latent_channels']} channels, "
            f"{show_nbytes(nbytes)}"
        )


def export_bundle(checkpoint: Path, out: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Export an autoencoder into a new folder `out`, whole or not at all; returns the manifest.

    Raises BadCheckpoint for what cannot be read, UnsupportedGraph for what cannot be localised, BadRequest where `out`
    exists and `overwrite` is false.
    """
    from widefield_export.checkpoint import load_autoencoder

    if out.exists() and not overwrite:
        raise BadRequest(f"{out} exists; name another folder or pass --overwrite")
    if not out.absolute().parent.is_dir():
        raise BadRequest(f"{out.absolute().parent} is no folder; make it first")
    loaded = load_autoencoder(checkpoint)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.absolute().parent))
    try:
        manifest = build_bundle(loaded.vae, work, name=checkpoint.absolute().stem, source=loaded.source_files)
        work.chmod(0o755)
        for file in work.iterdir():
            file.chmod(0o644)  # safetensors hides what it writes from everybody else
        if out.exists():
            shutil.rmtree(out)
        work.replace(out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return manifest


def build_bundle(vae: Any, folder: Path, *, name: str, source: dict[str, str]) -> dict[str, Any]:
    """Localise both directions of a diffusers autoencoder and write them into `folder`."""
    import diffusers
    import torch

    import widefield
    from widefield_export.families import latent_channels, localise, scale_factor
    from widefield_export.write_bundle import write_bundle

    programs = {direction: localise(vae, direction) for direction in ("decoder", "encoder")}
    about = {
        "name": name,
        "family": type(vae).__name__,
        "scale": scale_factor(vae),
        "latent_channels": latent_channels(vae),
        "created": {
            "widefield": widefield.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
        "source": source,
    }
    return write_bundle(folder, programs, about)
