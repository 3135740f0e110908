"""`widefield finalize`: what many made, in one file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from widefield.commands import arguments
from widefield.commands.output import print_json, show_count, show_nbytes
from widefield.commands.progress import reporter
from widefield.errors import BadRequest

if TYPE_CHECKING:
    from widefield.store import Store
    from widefield.store.copying import Copied


@click.command("finalize", cls=arguments.Command, short_help="Put a finished .zarr into one .tif.")
@click.argument("path", type=arguments.PATH, metavar="STORE")
@arguments.option("-o", "--out", required=True, type=arguments.PATH, section="Files", metavar="OUT", help="The .tif.")
@arguments.overwrite
@arguments.run_options("workers", "codec", "quality", "sign-cert", "sign-key")
@arguments.as_json
@arguments.quiet
def finalize(path: Path, out: Path, overwrite: bool, as_json: bool, quiet: bool, **asked: Any) -> int | None:
    """Put all tiles of a finished, lossless .zarr into one .tif, in bounded memory.

    Tiles are jpeg of --quality unless --codec says otherwise; levels are copied, not made again. Stopped, the same
    command goes on. A tile that is not as it was made is not copied.

    \b
    widefield finalize harbour.zarr -o harbour.tif
    widefield finalize harbour.zarr -o harbour.tif --codec lossless
    """
    from widefield.provenance.signing import check_signer, sign_finished
    from widefield.store.copying import copy_picture

    check_signer(asked["sign_cert"], asked["sign_key"])
    threads = asked["workers"] or len(os.sched_getaffinity(0))
    given = {name: asked[name] for name in ("codec", "quality") if asked[name] is not None}
    try:
        with reporter("copying", quiet=quiet) as report, _opened(path) as source:
            copied = copy_picture(
                source, out, overwrite=overwrite, threads=threads, **given,
                progress=lambda done, total: report.talk("copying tiles", done, total),
            )  # fmt: skip
            sign_finished(out, asked["sign_cert"], asked["sign_key"])
    except KeyboardInterrupt:
        click.echo(f"interrupted; {out} keeps what is done; the same command goes on with it", err=True)
        return 130
    if as_json:
        print_json(copied.as_dict())
    elif not quiet:
        _tell(copied)
    return None


@contextmanager
def _opened(path: Path) -> Iterator[Store]:
    """The picture, on a disk or in a bucket."""
    from widefield.cluster.far import open_picture
    from widefield.cluster.place import remote_url

    if remote_url(path) is not None or path.exists():
        with open_picture(path, finished=True) as store:
            yield store
    else:
        raise BadRequest(f"{path} does not exist; wanted a finished .zarr; check the path")


def _tell(copied: Copied) -> None:
    width, height = copied.size_px
    found = f", {copied.found} found from before" if copied.found else ""
    checked = "each as it was made" if copied.checked else "not checked: the picture has no manifest"
    click.echo(f"{copied.path}: {width} x {height} px, {show_nbytes(copied.bytes_written)} written")
    click.echo(f"{show_count(copied.made, 'tile')} copied{found}, {checked}")
