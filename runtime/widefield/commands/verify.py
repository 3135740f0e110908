"""`widefield verify`: is a picture as it was made?"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from widefield.commands import arguments
from widefield.commands.drawing import Box, parse_region
from widefield.commands.output import print_json, show_count
from widefield.commands.progress import reporter
from widefield.errors import BadRequest

if TYPE_CHECKING:
    from widefield.provenance.verify import Verified


@click.command("verify", cls=arguments.Command, short_help="Say whether a picture is as it was made.")
@click.argument("path", type=arguments.PATH, metavar="PICTURE")
@arguments.option(
    "--region", type=parse_region, metavar="Y0:Y1,X0:X1", section="Files",
    help="Look only at the tiles under these rows and columns, on all levels.",
)  # fmt: skip
@arguments.as_json
@arguments.quiet
def verify(path: Path, region: Box | None, as_json: bool, quiet: bool) -> int | None:
    """Compare the tiles of a finished picture with what they were when they were made.

    PICTURE is a .tif, .zarr, .dzi or .png of widefield, with PICTURE.provenance beside it, or a .zarr at s3://. What
    was signed is checked too. Exits 1 where something is not as it was.

    \b
    widefield verify islands.tif
    widefield verify islands.tif --region 262144:263168,262144:263168
    """
    from widefield.cluster.far import open_picture
    from widefield.cluster.place import remote_url
    from widefield.geometry import Region
    from widefield.provenance.verify import verify as verified

    url = remote_url(path)
    if url is None and not path.exists():
        raise BadRequest(f"{path} does not exist; wanted a picture; check the path")
    with reporter("verifying", quiet=quiet) as report:
        box = None if region is None else Region(*region)
        with nullcontext(path) if url is None else open_picture(path, finished=True) as picture:
            found = verified(picture, box, progress=lambda done, total: report.talk("tiles", done, total))
    found.path = url or path
    if as_json:
        print_json(found.as_dict())
    else:
        _tell(found, quiet=quiet)
    return None if found.good else 1


def _signed(found: Verified) -> str:
    if found.unchecked:
        return "signed, and not checked: pip install 'widefield[provenance]'"
    if found.signature is None:
        return "not signed"
    whose = found.signature.issuer or "somebody"
    return f"signed by {whose}" + ("" if found.signature.trusted else ", whose certificate is on no trust list")


def _tell(found: Verified, *, quiet: bool) -> None:
    for level, row, column in found.changed:
        click.echo(f"changed: level {level}, row {row}, column {column}")
    if found.wrong > len(found.changed):
        click.echo(f"and {found.wrong - len(found.changed)} more")
    for level in found.levels:
        click.echo(f"unknown: level {level}, whose hashes were changed")
    if found.signature is not None and not found.signature.valid:
        click.echo(f"the signature does not hold: {', '.join(found.signature.problems)}")
    if not quiet:
        click.echo(_signed(found))
        tiles = show_count(found.tiles, "tile")
        click.echo(f"{found.path}: {tiles} looked at, {found.wrong} not as made")
