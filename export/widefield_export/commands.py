"""`widefield export`: a checkpoint in, a bundle out."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
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
@arguments.option(
    "--window", "windows", multiple=True, section="Generation", metavar="ROWSxCOLUMNS",
    help="A window of the denoiser, in latents; again for more. The model's own.",
)  # fmt: skip
@arguments.option("--sampler", section="Generation", help="The default sampler. The checkpoint's own, where it can be.")
@arguments.option(
    "--text", type=arguments.PATH, section="Generation", metavar="FOLDER",
    help="A pipeline's folder whose text encoders and tokenizers to take.",
)  # fmt: skip
@arguments.option(
    "--autoencoder", type=arguments.PATH, section="Generation", metavar="CHECKPOINT",
    help="Another checkpoint to take the autoencoder from.",
)  # fmt: skip
@arguments.option(
    "--weights", default="float32", section="Files", metavar="PRECISION",
    help="What weights are stored in: float32, or float16, half the size; computed in float32.",
)  # fmt: skip
@arguments.option("--autoencoder-only", is_flag=True, section="Generation", help="Decode and encode only.")
@arguments.as_json
@arguments.quiet
def export(
    checkpoint: Path,
    out: Path,
    overwrite: bool,
    windows: tuple[str, ...],
    sampler: str | None,
    text: Path | None,
    autoencoder: Path | None,
    weights: str,
    autoencoder_only: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Turn a checkpoint into a bundle, which runs without PyTorch.

    CHECKPOINT is a diffusers folder (a pipeline's or an autoencoder's own) or one .safetensors file. A pipeline's
    bundle generates: it has the denoiser, the text encoders and the samplers too. A single file holds no tokenizers, so
    its prompts need --text.

    \b
    widefield export stable-diffusion-xl -o sdxl.wf
    widefield export vae.safetensors -o vae.wf
    widefield export sdxl.safetensors --text stable-diffusion-xl -o sdxl.wf
    """
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # it warns of what every checkpoint has
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    asked = {"windows": windows, "sampler": sampler, "text": text, "weights": weights}
    manifest = export_bundle(
        checkpoint, out, overwrite=overwrite, autoencoder=autoencoder, autoencoder_only=autoencoder_only, asked=asked
    )
    nbytes = sum(entry["nbytes"] for entry in manifest["files"].values())
    if as_json:
        about = {key: manifest[key] for key in ("name", "family", "scale", "latent_channels", "created")}
        about |= {
            "weights": manifest["dtype"],
            "base": manifest.get("denoiser", {}).get("base"),
            "text": "text" in manifest,
        }
        print_json({"path": str(out), **about, "files": len(manifest["files"]), "files_nbytes": nbytes})
    elif not quiet:
        click.echo(
            f"{out}: {manifest['family']}, {manifest['scale']} px a latent, {manifest['latent_channels']} channels, "
            f"weights in {manifest['dtype']}, {show_nbytes(nbytes)}"
        )
        _tell_generation(manifest)


def _tell_generation(manifest: Mapping[str, Any]) -> None:
    """A line on what the bundle generates with, and one on what is missing for prompts."""
    if "denoiser" not in manifest:
        return
    schedulers = manifest["schedulers"]
    windows = ", ".join(f"{window['rows']}x{window['columns']}" for window in manifest["denoiser"]["windows"])
    others = [name for name in schedulers["samplers"] if name != schedulers["default"]]
    more = f" ({', '.join(others)} too)" if others else ""
    base = manifest["denoiser"]["base"]
    click.echo(f"generates as {base} in windows of {windows} latents, sampler {schedulers['default']}{more}")
    if "text" not in manifest:
        click.echo("no prompts: found no text encoders with tokenizers; --text FOLDER takes a pipeline's")


def export_bundle(
    checkpoint: Path,
    out: Path,
    *,
    overwrite: bool = False,
    autoencoder: Path | None = None,
    autoencoder_only: bool = False,
    asked: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Export a checkpoint into a new folder `out`, whole or not at all; returns the manifest.

    `autoencoder` is another checkpoint to take it from; `asked` are the fields of whole.PipelineOptions, windows as
    text. Raises BadCheckpoint for what cannot be read, UnsupportedGraph for what cannot be localised, BadRequest where
    `out` exists and `overwrite` is false.
    """
    from widefield_export.checkpoint import load_autoencoder
    from widefield_export.pipeline import write_parts
    from widefield_export.provenance import hashes
    from widefield_export.whole import open_checkpoint, pipeline_options

    if out.exists() and not overwrite:
        raise BadRequest(f"{out} exists; name another folder or pass --overwrite")
    if not out.absolute().parent.is_dir():
        raise BadRequest(f"{out.absolute().parent} is no folder; make it first")
    options = pipeline_options(**(asked or {}))
    whole = None if autoencoder_only else open_checkpoint(checkpoint, options)
    loaded = None
    if whole is None or whole.has_autoencoder or autoencoder is not None:
        loaded = load_autoencoder(autoencoder or checkpoint)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.absolute().parent))
    try:
        parts: dict[str, Any] = {}
        source = {} if loaded is None else dict(loaded.source_files)
        if whole is not None:
            whole.check(None if loaded is None else loaded.vae)
            parts = write_parts(whole, work, options)
            source |= hashes(whole.files, checkpoint, known=source)
        vae = None if loaded is None else loaded.vae
        manifest = build_bundle(
            vae, work, name=checkpoint.absolute().stem, source=source, parts=parts, weights=options.weights
        )
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


def build_bundle(
    vae: Any,
    folder: Path,
    *,
    name: str,
    source: dict[str, str],
    parts: Mapping[str, Any] | None = None,
    weights: str = "float32",
) -> dict[str, Any]:
    """Localise both directions of a diffusers autoencoder and write them into `folder`, where `parts` may be already.

    Without an autoencoder the bundle has no components; `parts` then tell its family and scale. With `weights`
    "float16" the autoencoder is rounded first, in place, so that what is rewritten is made of what is stored.
    """
    import diffusers
    import torch

    import widefield
    from widefield_export.bases import NAMED
    from widefield_export.families import latent_channels, localise, scale_factor
    from widefield_export.weights import FLOAT16, round_to_half
    from widefield_export.write_bundle import write_bundle

    parts = parts or {}
    if vae is not None and weights == FLOAT16:
        round_to_half(vae)
    if vae is None:
        denoiser = parts["denoiser"]
        about = {
            "name": name,
            "family": denoiser["family"],
            "scale": NAMED[denoiser["base"]].scale,
            "latent_channels": denoiser["inputs"]["latent"][1],
        }
    else:
        about = {
            "name": name,
            "family": type(vae).__name__,
            "scale": scale_factor(vae),
            "latent_channels": latent_channels(vae),
        }
    programs = {} if vae is None else {direction: localise(vae, direction) for direction in ("decoder", "encoder")}
    created = {
        "widefield": widefield.__version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }
    return write_bundle(folder, programs, {**about, "created": created, "source": source, **parts}, weights)
