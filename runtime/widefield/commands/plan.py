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


VIEWPORT_PX = 1024


@click.command("plan", cls=arguments.Command, short_help="Say what a run would take, and take nothing.")
@click.argument("path", required=False, type=arguments.PATH, metavar="[BUNDLE]")
@arguments.option(
    "--size", required=True, type=parse_size, metavar="WIDTHxHEIGHT", section="Picture",
    help="Of the picture, in pixels; rounded up to whole latents.",
)  # fmt: skip
@arguments.bundle
@arguments.run_options("memory", "tile", "batch", "workers", "device", "device-memory")
@arguments.run_options("engine", "ort-library", "precision")
@arguments.run_options("summary", "cells")
@arguments.as_json
def plan(path: Path | None, size: tuple[int, int], bundle: Path | None, as_json: bool, **asked: Any) -> None:
    """Say how a picture of a size would be drawn and decoded: levels, tile, passes, every buffer, and the peak.

    Nothing is opened but the bundle's manifest, so any size is answered at once.

    \b
    widefield plan --size 8192x8192
    widefield plan vae.wf --size 524288x524288 --memory 8GiB
    """
    model = arguments.open_model(arguments.one_bundle(path, bundle))
    options = RunOptions(**arguments.given(asked))
    answer = plan_of_size(model.bundle, size, options)
    drawn = None if model.bundle.parts.denoiser is None else drawing(model.bundle, size, options)
    if as_json:
        about = {"latents_nbytes": latents_nbytes(model.bundle, answer), "asked_px": list(size)}
        print_json({**answer.as_dict(), **about, **({} if drawn is None else {"drawing": drawn})})
    else:
        _tell(model.bundle, answer, size)
        if drawn is not None:
            _tell_drawing(drawn)


def plan_of_size(bundle: Bundle, size: tuple[int, int], options: RunOptions) -> Plan:
    """The decoder's plan for (width, height) pixels, rounded up to whole latents."""
    from widefield.buffers import PlanRequest
    from widefield.plan import make_plan

    summary: Any = options.summary if options.summary in ("auto", "exact", "sampled") else "sampled"
    request = PlanRequest(
        options.memory_nbytes, options.tile, options.batch, options.workers, options.cores, summary,
        options.cells, options.engine_options().backend, options.precision, device_nbytes=options.gpu_nbytes,
    )  # fmt: skip
    width, height = (-(-side // bundle.scale) for side in size)
    return make_plan(bundle, bundle.decoder, height, width, request)


def drawing(bundle: Bundle, size: tuple[int, int], options: RunOptions) -> dict[str, Any]:
    """What `widefield generate` would take with the bundle's own settings: levels, windows, memory, and the cone of a
    viewport in the middle."""
    from widefield.cone import cone
    from widefield.draw_plan import plan_drawing
    from widefield.errors import OverBudget
    from widefield.generation import Generation, Recipe
    from widefield.geometry import Region
    from widefield.memo import Memo

    width, height = size
    generation = Generation(bundle, "", (height, width), 0, Recipe())
    try:
        memory = plan_drawing(generation, options, lazily=False).as_dict()
    except OverBudget as refused:  # decoding alone may still fit
        memory = {"refused": str(refused), "smallest_nbytes": refused.smallest_nbytes}
    engine = options.engine_options(workers=options.side_by_side)
    fields = generation.cascade(Memo(0), generation.cascade_options(engine))
    y, x = (max(0, side - VIEWPORT_PX) // 2 for side in (height, width))
    viewport = Region(y, x, y + VIEWPORT_PX, x + VIEWPORT_PX).pushed(Region(0, 0, height, width))
    counted = cone(fields, viewport)
    levels = []
    for level in generation.levels:
        runs = fields.schedule.phases(level.count, level.strength, level.phases)
        rows, columns = fields.grid(level).shape
        levels.append(
            {
                "cells": [level.height, level.width], "steps": sum(len(run.steps) for run in runs),
                "strength": level.strength, "guidance": level.guidance, "phases": len(runs),
                "windows": rows * columns * len(runs),
                "latents_nbytes": 4 * bundle.latent_channels * level.area,
            }
        )  # fmt: skip
    return {**memory, "levels": levels, "viewport_px": VIEWPORT_PX, "viewport": counted.as_dict()}


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


def _tell_drawing(drawn: dict[str, Any]) -> None:
    levels = drawn["levels"]
    sides = ", ".join(f"{level['cells'][1]}x{level['cells'][0]}" for level in levels)
    windows = sum(level["windows"] * level["steps"] // max(1, level["phases"]) for level in levels)
    stored = sum(level["latents_nbytes"] for level in levels)
    click.echo(f"drawn in levels of {sides} latents: {windows:,} steps of a window, {show_nbytes(stored)} meanwhile")
    if "refused" in drawn:
        click.echo(f"drawing does not fit: {drawn['refused']}")
    else:
        host, budget = drawn["peak_host_nbytes"], drawn["memory_nbytes"]
        device = drawn["peak_device_nbytes"]
        there = f", and {show_nbytes(device)} of the GPU" if device else ""
        click.echo(f"drawing takes {show_nbytes(host)} of {show_nbytes(budget)}{there}")
    viewport = drawn["viewport"]
    side = drawn["viewport_px"]
    click.echo(
        f"a cold viewport of {side} x {side} px: {viewport['window_steps']:,} steps of a window, "
        f"{viewport['decoder_tiles']} tiles decoded, {viewport['encoder_tiles']} encoded; its own windows at every "
        f"level are {viewport['least_window_steps']:,} steps"
    )


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
    for place in ("scratch", "device"):
        if answer.peak_nbytes(place):
            table.add_row("peak", place, "", show_nbytes(answer.peak_nbytes(place)), style="bold")
    Console().print(table)
