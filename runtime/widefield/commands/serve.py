"""`widefield serve`: a viewer and a tile server, of a picture on disk or of one that is drawn where it is looked at."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from widefield.commands import arguments
from widefield.commands.drawing import DRAWING, keywords
from widefield.commands.output import print_json, show_nbytes
from widefield.errors import BadRequest, MissingBackend
from widefield.options import RunOptions, parse_nbytes, parse_size

if TYPE_CHECKING:
    from widefield.serve.gallery import Gallery
    from widefield.serve.run import Address


def parse_cache_nbytes(text: str) -> int:
    """As parse_nbytes, and 0."""
    return 0 if text.strip() == "0" else parse_nbytes(text)


STORES = (".tif", ".tiff", ".zarr", ".dzi")
DEFAULT_CACHE_NBYTES = 1 << 30
SERVING = (
    arguments.option(
        "--size", type=parse_size, metavar="WIDTHxHEIGHT", section="Drawing", help="Of a prompt's picture, in pixels.",
    ),
    arguments.option("--host", default="127.0.0.1", metavar="ADDRESS", section="Serving",
        help="Where to listen (127.0.0.1: this machine alone)."),
    arguments.option("--port", type=click.IntRange(0, 65535), default=8000, metavar="N", section="Serving",
        help="0 is any that is free (8000)."),
    arguments.option("--queue", type=click.IntRange(1), default=128, metavar="N", section="Serving",
        help="Tiles that may wait to be made; whoever asks for one more is told to come again (128)."),
    arguments.option("--cache", type=arguments.PATH, metavar="FOLDER", section="Serving",
        help="Where drawn tiles are kept (the user's cache folder)."),
    arguments.option("--cache-size", "cache_nbytes", type=parse_cache_nbytes, metavar="AMOUNT", section="Serving",
        help=f"What they may take, the oldest go first; 0 keeps none ({show_nbytes(DEFAULT_CACHE_NBYTES)})."),
)  # fmt: skip
RUN = ("memory", "workers", "engine", "precision")
OURS = ("size", "host", "port", "queue", "cache", "cache_nbytes")


def _options(function: Any) -> Any:
    function = arguments.as_json(arguments.quiet(function))
    function = arguments.run_options(*RUN)(function)
    for decorate in (*DRAWING[::-1], arguments.bundle, *SERVING[::-1]):
        function = decorate(function)
    return function


@click.command("serve", cls=arguments.Command, short_help="A viewer and a tile server: Deep Zoom, IIIF.")
@click.argument("target", required=False, metavar="[PICTURE | PROMPT]")
@_options
def serve(target: str | None, bundle: Path | None, as_json: bool, quiet: bool, **asked: Any) -> None:
    """Show a picture in the browser, however large: one on disk, also while it is made, or one drawn as you look.

    PICTURE is a .tif, .zarr or .dzi, or a .zarr at s3://. With a PROMPT nothing is drawn but what somebody looks at,
    and that is kept; with neither, the page asks for a prompt. Tiles are at /dzi/ID.dzi (Deep Zoom) and
    /iiif/ID/info.json (IIIF Image API 3).

    \b
    widefield serve coast.tif
    widefield serve "a temperate coast, from space" --size 524288x524288 --seed 5 --memory 4GiB
    """
    _check_installed()
    from widefield.serve.assets import has_viewer
    from widefield.serve.run import Address
    from widefield.serve.run import serve as run

    address = Address(asked["host"], asked["port"])
    stored = target is not None and (target.lower().endswith(STORES) or _is_place(target))
    given = {name: value for name, value in asked.items() if name not in OURS}
    if stored and (asked["size"] is not None or bundle is not None):
        raise click.UsageError(f"{target} is a picture; --size and --bundle are for a prompt.")
    gallery = _stored(Path(str(target)), asked) if stored else _drawn(target, bundle, asked, given)

    def ready(url: str) -> None:
        picture = gallery.first
        if as_json:
            print_json({"url": url, "picture": picture.id if picture else None, "process": os.getpid()})
        elif not quiet:
            what = (
                f"{picture.name}, {picture.pyramid.width_px} x {picture.pyramid.height_px} px" if picture else "prompts"
            )
            click.echo(f"serving {what} at {url}; Ctrl-C ends it")
        if not has_viewer():
            click.echo("note: the viewer is not in this installation, tiles are; see docs/serving.md", err=True)

    _warn(address)
    with contextlib.suppress(KeyboardInterrupt):  # how it ends, unless whoever started it has signals ignored
        run(gallery, address, ready)
    if not quiet:
        click.echo("closed", err=True)


def _is_place(target: str) -> bool:
    from widefield.cluster.place import remote_url

    return remote_url(Path(target)) is not None or Path(target).exists()


def _check_installed() -> None:
    for name in ("starlette", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            raise MissingBackend(
                f"`widefield serve` needs {name}; wanted the extra 'serve'; pip install 'widefield[serve]'"
            )


def _warn(address: Address) -> None:
    if not address.is_loopback:
        click.echo(
            f"warning: {address.host} can be reached from other machines: whoever does may look and, where pictures "
            "are drawn, have them drawn; there is no password and no encryption; put a server that has them before it",
            err=True,
        )


def _stored(path: Path, asked: Mapping[str, Any]) -> Gallery:
    from widefield.cluster.far import open_picture
    from widefield.serve.gallery import stored_gallery
    from widefield.serve.stored import StoredPicture

    return stored_gallery(StoredPicture(path, asked["queue"], open_picture(path)))


def _drawn(prompt: str | None, bundle: Path | None, asked: Mapping[str, Any], given: Mapping[str, Any]) -> Gallery:
    from widefield.serve.desk import Desk
    from widefield.serve.flights import Flights
    from widefield.serve.gallery import Studio, Wish, drawn_gallery
    from widefield.serve.run import cache_folder
    from widefield.serve.tile_cache import TileCache

    if prompt is not None and asked["size"] is None:
        raise click.UsageError("A prompt's picture needs --size WIDTHxHEIGHT.")
    model = arguments.open_model(bundle, verify=True)
    if model.bundle.parts.denoiser is None:
        raise BadRequest(f"{model.bundle.name} draws nothing; wanted a bundle with a denoiser, or a picture; name one")
    how = {name: value for name, value in keywords(given).items() if name != "seed"}
    nbytes = DEFAULT_CACHE_NBYTES if asked["cache_nbytes"] is None else asked["cache_nbytes"]
    cache = TileCache(asked["cache"] or cache_folder(), nbytes)
    budget = RunOptions(**arguments.given({name: given[name] for name in ("memory_nbytes", "workers")}))
    studio = Studio(
        lambda text, size, seed: model.generate(text, size=size, seed=seed, **how),
        Desk(budget.memory_nbytes), cache, Flights(budget.side_by_side, asked["queue"], "drawing"),
    )  # fmt: skip
    wish = None if prompt is None else Wish(prompt, asked["size"], given["seed"])
    return drawn_gallery(studio, wish)
