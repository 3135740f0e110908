"""`widefield build`: TensorRT engines of a bundle's graphs for this GPU, ahead of time and into the cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from widefield.commands import arguments
from widefield.commands.output import print_json, show_count, show_nbytes, show_seconds
from widefield.commands.progress import Reporter, reporter
from widefield.errors import BadRequest
from widefield.options import parse_tile

if TYPE_CHECKING:
    from collections.abc import Callable

    from widefield.bundle import Bundle, Component
    from widefield.parts import DenoiserPart

    Progress = Callable[[str, int, int], None]

DEFAULT_TILE = (128, 128)


@click.command("build", cls=arguments.Command, short_help="TensorRT engines of a bundle for this GPU, ahead of time.")
@click.argument("path", metavar="[BUNDLE]", required=False, type=arguments.PATH)
@arguments.bundle
@arguments.option(
    "--engine", type=click.Choice(["trt"]), default="trt", section="Engines", help="The one that is built (trt)."
)
@arguments.option(
    "--precision", type=click.Choice(["f32", "bf16", "f16"]), default="bf16", section="Engines",
    help="What it computes in (bf16).",
)  # fmt: skip
@arguments.option(
    "--tile", type=parse_tile, default=None, metavar="N|ROWSxCOLUMNS", section="Engines",
    help=f"Latents of a tile ({DEFAULT_TILE[0]}).",
)  # fmt: skip
@arguments.option(
    "--batch", type=click.IntRange(1), default=1, metavar="N", section="Engines", help="Tiles a call (1)."
)
@arguments.option("--device", default="cuda:0", metavar="cuda:N", section="Engines", help="The GPU (cuda:0).")
@arguments.option(
    "--capability", default=None, metavar="NN", section="Engines",
    help="Of another GPU than this machine's, as 89 or 120; TensorRT-RTX alone can. Checks, and keeps nothing.",
)  # fmt: skip
@arguments.as_json
@arguments.quiet
def build(
    path: Path | None, bundle: Path | None, engine: str, precision: str, tile: tuple[int, int] | None, batch: int,
    device: str, capability: str | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Build the engines that decoding, encoding and drawing with these options would build on first use.

    Tiles and batches of a drawing are its own; the first levels of one, which are smaller than a tile, build theirs.

    \b
    widefield build sdxl.wf --precision bf16 --tile 128
    widefield build --capability 120 --precision f16
    """
    from widefield.engine.base import check_device

    if check_device(device) == "cpu":
        raise BadRequest("engine trt runs on a GPU, --device cpu was asked for; name cuda:0")
    model = arguments.open_model(arguments.one_bundle(path, bundle))
    wanted = list(graphs(model.bundle, tile or DEFAULT_TILE, batch))
    made = []
    for graph in wanted:
        with reporter("building", quiet=quiet or as_json) as told:
            talk = partial(_talk, told, graph.file)
            about = _build_one(model.bundle, graph, precision, device, capability, talk)
        made.append(about)
        if not quiet and not as_json:
            size, took = show_nbytes(about["nbytes"]), show_seconds(about["seconds"])
            click.echo(f"{graph.file} {precision}: {size} in {took}", err=True)
    if as_json:
        print_json({"bundle": str(model.bundle.path), "precision": precision, "engines": made})
    elif not quiet:
        click.echo(f"{show_count(len(made), 'engine')}, {show_nbytes(sum(about['nbytes'] for about in made))}")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A graph with the shapes that it is built for."""

    file: str
    shapes: dict[str, tuple[int, ...]]
    frozen: dict[str, tuple[int, ...]]


def graphs(bundle: Bundle, tile: tuple[int, int], batch: int) -> Iterator[Wanted]:
    """Every fused graph of both components at that tile; certified ones a tile at a time; what drawing opens."""
    for component in bundle.components.values():
        for kind in ("interior", "border", "certified"):
            yield from _fused(component, kind, 1 if kind == "certified" else batch, tile)
    if bundle.parts.denoiser is not None:
        yield from _drawn(bundle, bundle.parts.denoiser, tile, batch)
    for encoder in bundle.parts.text.encoders if bundle.parts.text is not None else ():
        shape = (1, encoder.length)
        yield Wanted(encoder.file, {"tokens": shape, "mask": shape} if encoder.mask else {"tokens": shape}, {})


def _drawn(bundle: Bundle, part: DenoiserPart, tile: tuple[int, int], batch: int) -> Iterator[Wanted]:
    """Denoisers, and graphs with masks at the tiles of levels that are larger than one of them."""
    from widefield.cascade import CascadeOptions
    from widefield.draw_plan import LARGE_TILE
    from widefield.generation import windows_a_call

    options = CascadeOptions()
    tiles = {"decoder": {options.tile}, "encoder": {options.encoder_tile, LARGE_TILE}}
    for component in bundle.components.values():
        for other in sorted(tiles[component.name] - ({tile} if batch == 1 else set())):
            yield from _fused(component, "border", 1, other)
    for window in part.windows:
        yield Wanted(window.file, dict(part.shapes(window, windows_a_call(window))), {})


def _fused(component: Component, kind: str, count: int, tile: tuple[int, int]) -> Iterator[Wanted]:
    from widefield.tiles import input_shapes

    for graph in getattr(component, kind):
        yield Wanted(graph.file, input_shapes(component, graph, count, *tile), dict(graph.parameters))


def _talk(told: Reporter, file: str, phase: str, done: int, total: int) -> None:
    """What the builder is at, in its own words."""
    told.talk(f"{file}: {phase}", done, total)


def _build_one(
    bundle: Bundle, graph: Wanted, precision: str, device: str, capability: str | None, talk: Progress
) -> dict[str, Any]:
    import time

    from widefield.engine.base import EngineOptions, importing

    began = time.perf_counter()
    with importing("trt"):
        from widefield.engine.trt_bindings import bindings
        from widefield.engine.trt_build import build_engine
        from widefield.engine.trt_graph import make_skeleton

        trt = bindings()
        if capability is not None:
            skeleton = make_skeleton(bundle.file(graph.file), graph.shapes, graph.frozen, precision)
            plan, _ = build_engine(trt, skeleton, capabilities=(capability,), progress=talk)
        else:
            from widefield.device.gpu import CupyGpu
            from widefield.engine.trt import ready_engine

            gpu = CupyGpu(EngineOptions(device=device).gpu)
            path = bundle.file(graph.file)
            with gpu.current():
                plan = ready_engine(trt, path, graph.shapes, graph.frozen, precision, gpu.capability, progress=talk)
    return {"graph": graph.file, "nbytes": len(plan), "seconds": round(time.perf_counter() - began, 3)}
