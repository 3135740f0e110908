"""What `widefield generate` and `widefield upscale` share: how a picture is drawn, and where it or a part goes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from widefield.commands import arguments
from widefield.commands.output import print_json, show_count, show_nbytes, show_seconds, show_speed
from widefield.commands.progress import Reporter, reporter
from widefield.commands.together import Order, together
from widefield.errors import BadRequest
from widefield.options import parse_tile

if TYPE_CHECKING:
    from widefield.drawn import DrawnPicture
    from widefield.part import SavedPart
    from widefield.save import Saved

Function = TypeVar("Function", bound=Callable[..., Any])
Box = tuple[int, int, int, int]


def parse_numbers(kind: type[int] | type[float]) -> Callable[[str], tuple[Any, ...]]:
    """A parser of "8,2": one number for each level, the last for all after."""

    def parse(text: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError:
            raise BadRequest(f"{text!r} is no list of numbers; write one for each level, as 8,2") from None

    return parse


def parse_region(text: str) -> Box:
    """(y0, x0, y1, x1) from "y0:y1,x0:x1"; raises BadRequest otherwise, and where it is empty."""
    match = re.fullmatch(r"\s*(\d+):(\d+)\s*,\s*(\d+):(\d+)\s*", text)
    y0, y1, x0, x1 = map(int, match.groups()) if match else (0, 0, 0, 0)
    if not (y0 < y1 and x0 < x1):
        raise BadRequest(f"{text!r} is no region; write rows, then columns, as 0:1024,2048:3072")
    return y0, x0, y1, x1


OUTPUT = (
    arguments.option(
        "-o", "--out", required=True, type=arguments.PATH, section="Files", metavar="OUT",
        help="The picture: .tif (one pyramidal BigTIFF), .zarr (OME-Zarr), .dzi (a folder of tiles) or .png (small).",
    ),
    arguments.option(
        "--region", type=parse_region, metavar="Y0:Y1,X0:X1", section="Files",
        help="Compute only these pixels, rows and columns of --level, and what they depend on.",
    ),
    arguments.option(
        "--level", type=int, metavar="K", section="Files",
        help="Of which level: 0 is the smallest, -1 the picture (-1). Without --region, all of it.",
    ),
    arguments.option(
        "--save-latents", "latents", type=arguments.PATH, section="Files", metavar="LATENTS",
        help="Keep the picture's latents too: .npy or .zarr.",
    ),
)  # fmt: skip
DRAWING = (
    arguments.option(
        "--seed", type=click.IntRange(0), default=0, metavar="N", section="Drawing",
        help="The same seed, the same picture (0).",
    ),
    arguments.option(
        "--negative", metavar="PROMPT", section="Drawing", help="What the picture shall not show.",
    ),
    arguments.option(
        "--steps", type=parse_numbers(int), metavar="N[,N...]", section="Drawing",
        help="Steps of the smallest level, of the next, ...; the last number is for all after (the model's own).",
    ),
    arguments.option(
        "--guidance", type=parse_numbers(float), metavar="X[,X...]", section="Drawing",
        help="How closely the prompt is followed, by level as --steps (the model's own).",
    ),
    arguments.option(
        "--strength", type=parse_numbers(float), metavar="X[,X...]", section="Drawing",
        help="How much of the level below it each level may change, 0 to 1, without the smallest (the model's own).",
    ),
    arguments.option(
        "--phases", type=parse_numbers(int), metavar="N[,N...]", section="Drawing",
        help="How often windows are joined while a level is denoised, by level as --steps (the model's own).",
    ),
    arguments.option(
        "--growth", type=int, metavar="N", section="Drawing",
        help="How many times the level below it each level is, 2 or 4 (the model's own).",
    ),
    arguments.option(
        "--anchor", type=float, metavar="X", section="Drawing",
        help="What of a window is held to the level below: what is coarser than this share of its side; 0: nothing "
        "(the model's own, mostly 0.1875).",
    ),
    arguments.option("--sampler", metavar="NAME", section="Drawing", help="One of the bundle's (its default)."),
    arguments.option(
        "--window", type=parse_tile, metavar="ROWSxCOLUMNS", section="Drawing",
        help="Latents that are denoised at once, one of the bundle's (the one nearest to the picture's shape).",
    ),
)  # fmt: skip
PLACES = ("region", "level", "latents", "cluster", "lease_seconds")
RUN = ("memory", "tile", "workers", "device", "device-memory", "engine", "ort-library", "precision", "scratch",
       "summary", "codec", "quality", "shard", "record-prompt", "sign-cert", "sign-key")  # fmt: skip


def drawing_options(function: Function) -> Function:
    """Every option that the two commands share."""
    function = arguments.as_json(arguments.quiet(function))
    function = arguments.run_options(*RUN)(arguments.cluster(function))
    for decorate in (*DRAWING[::-1], arguments.overwrite, arguments.bundle, *OUTPUT[::-1]):
        function = decorate(function)
    return function


def keywords(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Of Model.generate and Model.upscale: one of `steps` or `guidance` is level 0's."""
    given = arguments.given({name: value for name, value in asked.items() if name not in PLACES})
    for name in ("steps", "guidance"):
        if len(given.get(name, ())) == 1:
            given[name] = given[name][0]
    return given


def draw_together(order: Order, asked: Mapping[str, Any], *, as_json: bool, quiet: bool) -> int | None:
    """Draw all of a picture with other processes; the exit status."""
    if asked["region"] is not None or asked["level"] is not None:
        raise BadRequest("--cluster and a part of the picture; wanted all of it, or a part alone; leave one out")
    order = replace(order, lease_seconds=asked["lease_seconds"], latents=asked["latents"])
    with _told():
        return together(order, asked["cluster"], as_json=as_json, quiet=quiet)


def draw(picture: DrawnPicture, out: Path, asked: Mapping[str, Any], *, as_json: bool, quiet: bool) -> int | None:
    """Draw all of a picture, or a part; the exit status."""
    region, level, latents = asked["region"], asked["level"], asked["latents"]
    saved: Saved | SavedPart
    try:
        with _told(), reporter("decoding", quiet=quiet) as report, picture:
            if region is None and level is None:
                saved = picture.save(out, latents=latents, progress=report.progress, talk=report.talk)
            elif latents is not None:
                raise BadRequest("--save-latents and a part of the picture; wanted all of it; leave one of them out")
            else:
                saved = _part(picture, out, region, -1 if level is None else level, report)
    except KeyboardInterrupt:
        click.echo(f"interrupted; what is done of {out} is kept; the same command goes on with it", err=True)
        return 130
    if as_json:
        print_json(saved.as_dict())
    elif not quiet:
        _tell(saved, report)
    return None


def _part(picture: DrawnPicture, out: Path, region: Box | None, level: int, report: Reporter) -> SavedPart:
    from widefield.geometry import Region
    from widefield.part import save_part

    return save_part(picture, out, None if region is None else Region(*region), level, talk=report.talk)


@contextmanager
def _told() -> Iterator[None]:
    """Warnings of the library, as of a prompt that is too long, become lines."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_, **__: click.echo(f"note: {message}", err=True)
        yield


def _tell(saved: Saved | SavedPart, report: Reporter) -> None:
    about = saved.as_dict()
    width, height = about["size_px"]
    click.echo(f"{saved.path}: {width} x {height} px")
    if "units" in about:
        units = show_count(about["units"], "window-step and tile").replace("step and tiles", "steps and tiles")
        click.echo(f"{units} computed in {show_seconds(saved.seconds)}")
        return
    found = f", {about['store_tiles_found']} found from before" if about["store_tiles_found"] else ""
    made = show_count(about["store_tiles_made"], "tile")
    speed = show_speed(report.px_done, saved.seconds)
    click.echo(f"{made} made{found}, {show_nbytes(about['bytes_written'])}, in {show_seconds(saved.seconds)}, {speed}")
