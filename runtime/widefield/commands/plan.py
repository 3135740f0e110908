"""`widefield plan`: what a run would take; it takes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from widefield.commands import arguments
from widefield.commands.output import print_json, show_nbytes
from widefield.options import RunOptions, parse_size

if TYPE_CHECKING:
    from widefield.bundle import Bundle
    from widefield.plan import Plan


@click.command("plan", cls=arguments.Command, short_help="Say what a run would take, and take nothing.")
@click.argument("path", required=False, type=arguments.PATH, metavar="[BUNDLE]")
@arguments.option(
    "--size", required=True, type=parse_size, metavar="WIDTHxHEIGHT", section="Picture",
    help="Of the picture, in pixels; rounded up to whole latents.",
)  # fmt: skip
@arguments.bundle
@arguments.run_options("memory", "tile", "batch", "workers", "engine", "precision", "summary", "cells")
@arguments.as_json
def plan(path: Path | None, size: tuple[int, int], bundle: Path | None, as_json: bool, **asked: Any) -> None:
    """Say how a picture of a size would be decoded: tile, passes, every buffer, and the peak against the budget.

    Nothing is opened but the bundle's manifest, so any size is answered at once.

    \b
    widefield plan --size 8192x8192
    widefield plan vae.wf --size 524288x524288 --memory 8GiB
    """
    model = arguments.open_model(arguments.one_bundle(path, bundle))
    answer = plan_of_size(model.bundle, size, RunOptions(**arguments.given(asked)))
    if as_json:
        print_json({**answer.as_dict(), "latents_nbytes": latents_nbytes(model.bundle, answer), "asked_px": list(size)})
    else:
        _tell(model.bundle, answer, size)


def plan_of_size(bundle: Bundle, size: tuple[int, int], options: RunOptions) -> Plan:
    """The decoder's plan for (width, height) pixels, rounded up to whole latents."""
    from widefield.buffers import PlanRequest
    from widefield.plan import make_plan

    summary: Any = options.summary if options.summary in ("auto", "exact", "sampled") else "sampled"
    request = PlanRequest(
        options.memory_nbytes, options.tile, options.batch, options.workers, options.cores, summary,
        options.cells, options.engine_options().backend, options.precision,
    )  # fmt: skip
    width, height = (-(-side // bundle.scale) for side in size)
    return make_plan(bundle, bundle.decoder, height, width, request)


def latents_nbytes(bundle: Bundle, answer: Plan) -> int:
    """What the latents take, in float32, where they are: they are read a tile at a time."""
    return 4 * bundle.latent_channels * answer.height * answer.width


def _tell(bundle: Bundle, answer: Plan, asked: tuple[int, int]) -> None:
    width, height = answer.width * answer.scale, answer.height * answer.scale
    rounded = "" if (width, height) == asked else f", {asked[0]} x {asked[1]} rounded up to whole latents"
    click.echo(f"{width} x {height} px of {answer.width} x {answer.height} latents{rounded}, with {bundle.name}")
    tile = f"{answer.tile[0]}x{answer.tile[1]} latents"
    click.echo(
        f"tile {tile}, {answer.tiles} of them, {answer.workers} side by side on {answer.threads} threads each, "
        f"{answer.overhead:.3f} times the operations of an untiled decode"
    )
    click.echo(f"passes: {_passes(bundle, answer)}")
    click.echo(
        f"latents {show_nbytes(latents_nbytes(bundle, answer))}, read where they are; "
        f"picture about {show_nbytes(answer.written_nbytes)} as jpeg, pyramid included"
    )
    _table(answer)


def _passes(bundle: Bundle, answer: Plan) -> str:
    share = answer.measure_flops / max(1, answer.flops)
    if not bundle.decoder.sites:
        return "one, the picture"
    how = "all of the picture" if answer.method == "exact" else f"{answer.cells} squares of 4 x 4 latents"
    return f"measure {how} ({share:.2%} of the operations), then make the picture"


def _table(answer: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("buffer", "place", "pass", box=None, pad_edge=False, header_style="bold", show_footer=True)
    table.add_column("bytes", justify="right")
    for buffer in sorted((b for b in answer.buffers if b.nbytes), key=lambda b: (b.place, -b.nbytes)):
        table.add_row(buffer.name, buffer.place, buffer.during, show_nbytes(buffer.nbytes))
    table.add_section()
    host, budget = answer.peak_nbytes("host"), answer.memory_nbytes
    table.add_row("peak", "host", "", f"{show_nbytes(host)} of {show_nbytes(budget)}", style="bold")
    if answer.peak_nbytes("scratch"):
        table.add_row("peak", "scratch", "", show_nbytes(answer.peak_nbytes("scratch")), style="bold")
    Console().print(table)
