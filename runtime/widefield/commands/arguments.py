"""The options that commands share: what each does, in which section of --help, and its default from RunOptions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from widefield.commands.output import show_nbytes
from widefield.errors import BadRequest
from widefield.options import RunOptions, parse_nbytes, parse_tile

if TYPE_CHECKING:
    from widefield.model import Model

Function = TypeVar("Function", bound=Callable[..., Any])
DEFAULT = RunOptions()
VERIFIED_NBYTES = 256 << 20  # bundles up to this size are hashed whenever they are used, at half a second or less
HELP_WIDTH = 30
PATH = click.Path(path_type=Path, readable=False)  # what cannot be read is a fault, and said as others are
MESSAGES = "Messages"  # the section that comes last


class Option(click.Option):
    """An option that stands in a section of --help."""

    def __init__(self, *declarations: Any, section: str = "Other", **settings: Any) -> None:
        super().__init__(*declarations, **settings)
        self.section = section


class Command(click.Command):
    """A command whose --help groups its options into sections, in the order they were declared."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(getattr(parameter, "section", MESSAGES), []).append(record)
        for title, records in sorted(sections.items(), key=lambda section: section[0] == MESSAGES):
            with formatter.section(title):
                formatter.write_dl(records, col_max=HELP_WIDTH)


def option(*declarations: str, section: str, **settings: Any) -> Callable[[Function], Function]:
    """click.option in a section."""
    return click.option(*declarations, cls=Option, section=section, **settings)


def parse_folder(text: str) -> Path:
    """The folder `text`; raises BadRequest where there is none."""
    if not Path(text).is_dir():
        raise BadRequest(f"{text!r} is no folder; wanted one that exists; make it first")
    return Path(text)


def parse_source_type(text: str) -> str:
    """A digital source type by name or URI; raises BadRequest for one that does not fit."""
    from widefield.store import provenance  # numpy loads here, and not for --help

    return provenance.parse_source_type(text)


bundle = option(
    "--bundle", type=PATH, section="Files", metavar="BUNDLE",
    help="The model, as `widefield export` wrote it (the one that came with widefield).",
)  # fmt: skip
overwrite = option(
    "--overwrite", is_flag=True, section="Files",
    help="Replace what widefield wrote there before; without it an equal run is resumed, another one refused.",
)  # fmt: skip
as_json = option("--json", "as_json", is_flag=True, section=MESSAGES, help="Print one JSON object, and nothing else.")
quiet = option("--quiet", "-q", is_flag=True, section=MESSAGES, help="Say nothing but errors.")

RUN: dict[str, Callable[[Any], Any]] = {
    "memory": option(
        "--memory", "memory_nbytes", type=parse_nbytes, metavar="AMOUNT", section="Resources",
        help="What the run may take beside the idle process, as 512MiB or 8GiB "
        f"({show_nbytes(DEFAULT.memory_nbytes)}).",
    ),
    "tile": option(
        "--tile", type=parse_tile, metavar="N|ROWSxCOLUMNS", section="Resources",
        help="Latents that are computed at once (as many as is quickest within --memory).",
    ),
    "batch": option(
        "--batch", type=click.IntRange(1), metavar="N", section="Resources",
        help=f"Tiles in one call of the engine ({DEFAULT.batch}).",
    ),
    "workers": option(
        "--workers", type=click.IntRange(1), metavar="N", section="Resources",
        help="Tiles that are computed side by side (one a core, or one in all where memory is short).",
    ),
    "device": option(
        "--device", metavar="cpu|cuda:N", section="Resources",
        help=f"Where the graphs run: the processor, or a GPU by its number ({DEFAULT.device}).",
    ),
    "device-memory": option(
        "--device-memory", "device_memory_nbytes", type=parse_nbytes, metavar="AMOUNT", section="Resources",
        help="What the run may take of a GPU's memory (nine tenths of what is free).",
    ),
    "engine": option(
        "--engine", metavar="auto|ort|openvino|torch|trt", section="Resources",
        help="What runs the graphs: ONNX Runtime, OpenVINO, PyTorch or TensorRT. auto takes OpenVINO on a processor "
        f"and TensorRT on a GPU, where they are installed; `widefield doctor` lists them ({DEFAULT.engine}).",
    ),
    "ort-library": option(
        "--ort-library", type=PATH, metavar="FILE", section="Resources",
        help="A plugin of ONNX Runtime that has its CUDA execution provider, for --engine ort on a GPU "
        "(what onnxruntime itself has).",
    ),
    "precision": option(
        "--precision", type=click.Choice(["f32", "bf16", "f16"]), section="Resources",
        help="bf16 and f16 are quicker on what is made for them, and less exact; what overflows is made again in f32 "
        f"({DEFAULT.precision}).",
    ),
    "scratch": option(
        "--scratch", type=parse_folder, metavar="FOLDER", section="Resources",
        help="Where what does not fit in --memory waits, on a disk and not in memory (the system's folder for it).",
    ),
    "summary": option(
        "--summary", metavar="auto|exact|sampled|FILE", section="Summary",
        help="How the picture's statistics are found before it is made: over all of it, over a sample, or in an "
        f"earlier run; auto is exact up to 4 megapixels, where that is cheap ({DEFAULT.summary}).",
    ),
    "cells": option(
        "--cells", type=click.IntRange(1), metavar="N", section="Summary",
        help="Squares of 4 x 4 latents in a sample (256 to 1024, by the picture's size).",
    ),
    "seed": option(
        "--seed", type=click.IntRange(0), metavar="N", section="Summary",
        help=f"Where a sample's squares lie: the same seed, the same picture ({DEFAULT.seed}).",
    ),
    "codec": option(
        "--codec", metavar="NAME", section="Picture",
        help="How tiles are stored: jpeg, lossless, or what the format also has (jpeg, where the format has it).",
    ),
    "quality": option(
        "--quality", type=click.IntRange(1, 100), metavar="1-100", section="Picture",
        help=f"Of jpeg tiles ({DEFAULT.quality}).",
    ),
    "shard": option(
        "--shard", "shard_px", type=click.IntRange(1), metavar="PIXELS", section="Picture",
        help="The largest side of a .zarr's shards, its files (8192).",
    ),
    "source-type": option(
        "--source-type", type=parse_source_type, metavar="NAME", section="Provenance",
        help="What the latents are, in IPTC's words, which the picture records (what they say of themselves, or "
        "trainedAlgorithmicMedia).",
    ),
    "record-prompt": option(
        "--record-prompt", is_flag=True, default=None, section="Provenance", help="Record the prompt in the picture.",
    ),
    "sign-cert": option(
        "--sign-cert", type=PATH, metavar="PEM", section="Provenance",
        help="Sign the finished picture's manifest and a preview, with this certificate and those above it (C2PA).",
    ),
    "sign-key": option(
        "--sign-key", type=PATH, metavar="PEM", section="Provenance", help="The certificate's private key.",
    ),
}  # fmt: skip


CLUSTER = (
    option(
        "--cluster", type=click.Choice(["claims", "ray"]), section="Many processes",
        help="Make a .zarr together with all processes that run this command on a folder that they share (claims), or "
        "with a worker on every core or GPU of a Ray cluster (ray).",
    ),
    option(
        "--lease", "lease_seconds", type=click.FloatRange(1), metavar="SECONDS", section="Many processes",
        help="How long a process may be silent before others take over what it was at (60).",
    ),
)  # fmt: skip


def cluster(function: Function) -> Function:
    """The options of many processes."""
    for decorate in reversed(CLUSTER):
        function = decorate(function)
    return function


def run_options(*names: str) -> Callable[[Function], Function]:
    """The options of RUN by name, in that order; a command gets them as keywords, None where not given."""

    def decorate(function: Function) -> Function:
        for name in reversed(names):
            function = RUN[name](function)
        return function

    return decorate


def given(asked: Mapping[str, Any]) -> dict[str, Any]:
    """RunOptions' fields that the user set; the rest keep their defaults."""
    return {name: value for name, value in asked.items() if value is not None}


def bundle_and_file(paths: Sequence[Path], bundle: Path | None, what: str) -> tuple[Path | None, Path]:
    """(bundle, file) from `[BUNDLE] FILE` and --bundle; UsageError when they are too many."""
    if len(paths) > 2:
        raise click.UsageError(f"Got {len(paths)} paths; wanted [BUNDLE] {what}.")
    return one_bundle(paths[0] if len(paths) == 2 else None, bundle), paths[-1]


def one_bundle(path: Path | None, bundle: Path | None) -> Path | None:
    """The bundle of `[BUNDLE]` and --bundle; UsageError when both are given."""
    if path is not None and bundle is not None:
        raise click.UsageError(f"Got {path} and --bundle {bundle}; name one.")
    return bundle if path is None else path


def open_model(path: Path | None, *, verify: bool = False) -> Model:
    """The model in a bundle; None is the embedded one. `verify` hashes it where that costs little: see VERIFIED_NBYTES.

    Raises BadBundle; BadRequest where none is embedded.
    """
    from widefield.model import EMBEDDED
    from widefield.model import open as open_bundle

    if path is None and not EMBEDDED.exists():
        raise BadRequest(
            "no bundle was named and none came with this widefield; wanted one; make one with "
            "`widefield export CHECKPOINT -o BUNDLE` and name it with --bundle"
        )
    model = open_bundle(path)
    if verify and sum(entry["nbytes"] for entry in model.bundle.manifest["files"].values()) <= VERIFIED_NBYTES:
        model.bundle.verify()
    return model
