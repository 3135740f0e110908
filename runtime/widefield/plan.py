"""What a run will need, before it starts: tile, workers, every buffer and its bytes. Integers in, integers out.

Nothing is opened or allocated here, so a plan for 524,288 x 524,288 takes milliseconds anywhere. The run keeps to it:
live activations come from the graphs' own liveness (in the bundle), times what an engine was measured to take of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from widefield.attend import block_nbytes
from widefield.bundle import Bundle, Component, GraphSpec
from widefield.errors import BadRequest, OverBudget
from widefield.sampling import CELL, SWEEP_TILE, default_cells
from widefield.store.spec import level_sizes

Method = Literal["exact", "sampled"]
MIB = 1 << 20
EXACT_UP_TO_PX = 4_000_000  # `auto` measures larger pictures on a sample
LARGEST_TILE = 256  # cells; beyond it the margins are under 4 % and caches lose
STORE_TILE_PX = 512
QUEUE_TILES = 8
# What a backend takes, measured by bench/widefield_bench/memory.py: bytes for one of live activations, the same for
# certified graphs (whose statistics the liveness in the bundle leaves out), and for one of weights, over all its
# graphs; then libraries, code made at run time and thread pools. ONNX Runtime runs the sweep and attention in any case.
ACTIVATIONS = {"ort": 1.15, "openvino": 1.10, "openvino bf16": 0.65}
CERTIFIED_ACTIVATIONS = {"ort": 2.60, "openvino": 2.15, "openvino bf16": 1.20}
WEIGHTS = {"ort": 3.0, "openvino": 3.0}
RUNTIME_NBYTES = {"ort": 64 * MIB, "openvino": 72 * MIB}
WORKER_NBYTES = {"ort": 12 * MIB, "openvino": 48 * MIB}  # small pieces that a thread's heap keeps


@dataclass(frozen=True, slots=True)
class Buffer:
    """Bytes in one place during one pass: "measure", "stream", or both."""

    name: str
    place: Literal["host", "scratch", "store"]
    during: Literal["measure", "stream", "both"]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How a component turns a picture of (height, width) cells into pixels (or back), within `memory_nbytes`."""

    component: str
    height: int
    width: int
    scale: int
    tile: tuple[int, int]
    batch: int
    workers: int
    threads: int
    method: Method
    cells: int
    sweep_batch: int
    held_nbytes: int
    memory_nbytes: int
    buffers: tuple[Buffer, ...]
    flops: int
    overhead: float
    measure_flops: int
    written_nbytes: int
    tiles: int

    def peak_nbytes(self, place: str = "host") -> int:
        """The larger of the two passes."""
        return max(
            sum(b.nbytes for b in self.buffers if b.place == place and b.during in (phase, "both"))
            for phase in ("measure", "stream")
        )

    def as_dict(self) -> dict[str, Any]:
        """For --json: plain numbers, with units in the names."""
        return {
            "component": self.component,
            "size_px": [self.width * self.scale, self.height * self.scale],
            "tile_cells": list(self.tile),
            "tiles": self.tiles,
            "batch": self.batch,
            "workers": self.workers,
            "threads_per_worker": self.threads,
            "summary": self.method,
            "summary_cells": self.cells,
            "memory_nbytes": self.memory_nbytes,
            "peak_host_nbytes": self.peak_nbytes("host"),
            "scratch_nbytes": self.peak_nbytes("scratch"),
            "flops": self.flops,
            "flops_over_untiled": round(self.overhead, 4),
            "measure_flops": self.measure_flops,
            "written_nbytes": self.written_nbytes,
            "buffers": [
                {"name": b.name, "place": b.place, "during": b.during, "nbytes": b.nbytes} for b in self.buffers
            ],
        }


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What a user may fix; None is for the plan to choose. `memory_nbytes` is above the idle process."""

    memory_nbytes: int
    tile: tuple[int, int] | None = None
    batch: int = 1
    workers: int | None = None
    cores: int = 1
    summary: Literal["auto", "exact", "sampled"] = "auto"
    cells: int | None = None
    backend: str = "ort"
    precision: str = "f32"
    source_nbytes: int = 0  # what the input holds in memory, as a picture that has to be decoded whole
    bits_per_px: float = 2.94  # JPEG q90 of photographs: 2.2 at full size, and a third more for the pyramid


def make_plan(bundle: Bundle, component: Component, height: int, width: int, request: PlanRequest) -> Plan:
    """The cheapest plan that fits; raises OverBudget with the smallest budget that would, BadRequest for nonsense."""
    if height < 1 or width < 1:
        raise BadRequest(f"a picture of {width} x {height} latents has no pixels; both sides must be at least 1")
    plans = [
        _plan(bundle, component, height, width, request, *choice)
        for choice in _choices(component, height, width, request)
    ]
    fitting = [plan for plan in plans if plan.peak_nbytes() <= request.memory_nbytes]
    if not fitting:
        smallest = min(plans, key=Plan.peak_nbytes)
        largest = max((b for b in smallest.buffers if b.place == "host"), key=lambda b: b.nbytes)
        need = -(-smallest.peak_nbytes() // MIB)
        raise OverBudget(
            f"the budget is {request.memory_nbytes // MIB} MiB, the smallest plan needs {need} MiB "
            f"(tile {smallest.tile[0]}x{smallest.tile[1]}, largest buffer {largest.name}, "
            f"{-(-largest.nbytes // MIB)} MiB); raise --memory to {need}MiB",
            smallest_nbytes=need * MIB,
        )
    return min(fitting, key=lambda plan: (plan.overhead / _speed(plan), -plan.tile[0]))


def _speed(plan: Plan) -> float:
    """Relative throughput of a plan's threads: one worker a core beats one worker on all, by about a tenth."""
    return plan.workers * plan.threads * (1.0 if plan.threads == 1 else 0.9)


def _choices(
    component: Component, height: int, width: int, request: PlanRequest
) -> Iterator[tuple[tuple[int, int], int, int]]:
    """(tile, workers, threads) worth looking at."""
    if request.tile is not None:
        if min(request.tile) < 1:
            raise BadRequest(f"--tile {request.tile[0]}x{request.tile[1]} is no tile; both sides must be at least 1")
        tiles = [request.tile]
    else:
        base = max(1, STORE_TILE_PX // max(component.output_scale, component.input_scale))
        ladder = sorted({max(8, min(LARGEST_TILE, base * 2**k // 8)) for k in range(8)})
        tiles = [(t, t) for t in ladder]
    workers = [request.workers] if request.workers is not None else sorted({request.cores, 1})
    for rows, columns in dict.fromkeys((min(rows, height), min(columns, width)) for rows, columns in tiles):
        for count in workers:
            yield (rows, columns), count, max(1, request.cores // count)


def _plan(
    bundle: Bundle,
    component: Component,
    height: int,
    width: int,
    request: PlanRequest,
    tile: tuple[int, int],
    workers: int,
    threads: int,
) -> Plan:
    rows, columns = tile
    scale = max(component.output_scale, component.input_scale)
    method = choose_method(component, height, width, request.summary)
    cells = request.cells or default_cells(height, width)
    tiles = -(-height // rows) * -(-width // columns)
    attention = _attention_flops(component, rows, columns, method, height, width) * tiles
    buffers = _stream_buffers(bundle, component, request, tile, workers, method, height, width)
    sweep_batch, held, measured = _measure_buffers(
        bundle, component, request, workers, method, cells, height, width, buffers
    )
    sweep_tile, sweep_count = (
        (CELL, cells) if method == "sampled" else (SWEEP_TILE, -(-height // SWEEP_TILE) * -(-width // SWEEP_TILE))
    )
    return Plan(
        component.name, height, width, scale, tile, request.batch, workers, threads, method, cells,
        sweep_batch, held, request.memory_nbytes, tuple(buffers + measured),
        flops=component.flops(rows, columns) * tiles + attention,
        overhead=component.flops(rows, columns) * tiles / max(1, component.flops_per_cell * height * width),
        measure_flops=component.flops(sweep_tile, sweep_tile) * sweep_count if component.sites else 0,
        written_nbytes=_written(component, height, width, request.bits_per_px),
        tiles=tiles,
    )  # fmt: skip


def choose_method(component: Component, height: int, width: int, asked: str) -> Method:
    """`auto` is exact where a picture has no room to sample, and up to EXACT_UP_TO_PX pixels unless attending to all
    tokens would cost more than the convolutions."""
    if asked == "exact" or not component.sites or min(height, width) < CELL:
        return "exact"
    scale = max(component.output_scale, component.input_scale)
    attention = sum(4 * height * width * site.scale**4 * site.width for site in component.attentions)  # a cell
    dear = height * width * scale**2 > EXACT_UP_TO_PX or attention > component.flops_per_cell
    return "sampled" if asked == "sampled" or dear else "exact"


def key_count(component: Component, method: Method, height: int, width: int) -> int:
    """Tokens that each attention keeps."""
    if not component.attentions:
        return 0
    tokens = height * width * component.attentions[0].scale ** 2
    return tokens if method == "exact" else min(component.keys, tokens)


def _attention_flops(component: Component, rows: int, columns: int, method: Method, height: int, width: int) -> int:
    keys = key_count(component, method, height, width)
    total = 0
    for site in component.attentions:
        queries = component.values[site.query].shape(1, rows, columns)[1]
        total += 4 * queries * keys * site.width
    return total


def _graph_nbytes(graphs: tuple[GraphSpec, ...], batch: int, rows: int, columns: int) -> int:
    return max((graph.peak_nbytes(batch, rows, columns) for graph in graphs), default=0)


def _blocked(component: Component) -> float:
    """How much larger values become where an engine keeps channels in blocks of 16: the most among those that cross
    stages. 1 for widths that are multiples of 16, as trained networks have them."""
    inner = [v for name, v in component.values.items() if name not in (component.input, component.output)]
    images = [v.channels for v in inner if {"rows", "columns"} <= set(v.axes)]
    return max((-(-channels // 16) * 16 / channels for channels in images), default=1.0)


def _activations(component: Component, request: PlanRequest, tile: tuple[int, int], workers: int) -> int:
    """Bytes of all workers' activations at most: one makes a certified tile (`TileCoder` sees to that), the others not.

    ONNX Runtime keeps none between two tiles. OpenVINO keeps them for every worker that has run a kind of graph, until
    nobody runs that kind: with `workers` past two, interior and border ones may both be there, some of them idle.
    """
    plain, certified = (
        max(_graph_nbytes(g, request.batch, *tile) for g in graphs)
        for graphs in ((component.interior, component.border), (component.certified,))
    )
    kind = request.backend if request.precision == "f32" else f"{request.backend} {request.precision}"
    if request.backend == "ort":
        plain, certified = (int(nbytes * _blocked(component)) for nbytes in (plain, certified))
    each = int(plain * ACTIVATIONS[kind])
    certifies = any(site.kind == "norm" for site in component.sites)
    one = int(certified * CERTIFIED_ACTIVATIONS[kind]) if certifies else each
    others = workers - 1 if request.backend == "ort" or workers == 1 else workers + max(0, workers - 2)
    return others * each + one


def _stream_buffers(
    bundle: Bundle,
    component: Component,
    request: PlanRequest,
    tile: tuple[int, int],
    workers: int,
    method: Method,
    height: int,
    width: int,
) -> list[Buffer]:
    rows, columns = tile
    batch = request.batch
    between = {v for g in component.border for v in (*g.inputs, *g.outputs)} & set(component.values)
    ends = sum(component.values[v].nbytes(batch, rows, columns) for v in between)
    keys = key_count(component, method, height, width)
    width_ = component.attentions[0].width if component.attentions else 0
    queries = max((component.values[s.query].shape(1, rows, columns)[1] for s in component.attentions), default=0)
    tile_px = STORE_TILE_PX**2 * 3
    block_px = (
        max(STORE_TILE_PX, rows * component.output_scale) * max(STORE_TILE_PX, columns * component.output_scale) * 3
    )
    levels = len(level_sizes(width * component.output_scale, height * component.output_scale, STORE_TILE_PX))
    buffers = [
        Buffer("engine runtime", "host", "both", RUNTIME_NBYTES["ort"]),
        Buffer("workers' heaps", "host", "both", WORKER_NBYTES["ort"] * workers),
        Buffer("weights", "host", "both", int(bundle.weights_nbytes * WEIGHTS[request.backend])),
        Buffer("activations", "host", "stream", _activations(component, request, tile, workers)),
        Buffer("tiles in and out", "host", "stream", ends * workers),
    ]
    if request.backend != "ort":
        more = RUNTIME_NBYTES[request.backend] + WORKER_NBYTES[request.backend] * workers
        buffers.append(Buffer(f"{request.backend} and its graphs", "host", "stream", more))
    if component.attentions:
        buffers += [
            Buffer("attention keys", "host", "both", 4 * keys * width_),
            Buffer("attention blocks", "host", "stream", block_nbytes(batch * queries, keys, width_) * workers),
        ]
    if request.source_nbytes:
        buffers.append(Buffer("picture read", "host", "both", request.source_nbytes))
    if component.name == "decoder":
        buffers += [
            Buffer("blocks of pixels", "host", "stream", block_px * workers),
            Buffer("encode queue", "host", "stream", (QUEUE_TILES + 4) * tile_px),
            Buffer("pyramid tiles", "host", "stream", min(levels, 3) * tile_px),
        ]
    return buffers


def _measure_buffers(
    bundle: Bundle,
    component: Component,
    request: PlanRequest,
    workers: int,
    method: Method,
    cells: int,
    height: int,
    width: int,
    stream: list[Buffer],
) -> tuple[int, int, list[Buffer]]:
    """(tiles a call, bytes that may be held in memory, buffers) of the sweep."""
    if not component.sites:
        return 1, 0, []
    if method == "sampled":
        rows, columns, count, batch = CELL, CELL, cells, 4
    else:
        rows, columns = min(SWEEP_TILE, height), min(SWEEP_TILE, width)
        count, batch = -(-height // rows) * -(-width // columns), 1
    factor = CERTIFIED_ACTIVATIONS["ort"] * _blocked(component)
    each = max(
        int(_graph_nbytes((g,), batch, rows, columns) * factor) + _ends(component, g, batch, rows, columns)
        for g in component.sweep
    )
    buffers = [Buffer("sweep activations", "host", "measure", each * workers)]
    for site in component.attentions:  # an exact sweep's tokens become its keys; they are copied once, to be saved
        tokens = 4 * count * site.width * rows * columns * site.scale**2
        queries = batch * component.values[site.query].shape(1, rows, columns)[1]
        blocks = block_nbytes(queries, key_count(component, method, height, width), site.width) * workers
        buffers += [
            Buffer("tokens to choose keys from", "host", "measure", tokens),
            Buffer("sweep attention blocks", "host", "measure", blocks),
        ]
    held = _held_nbytes(component, count, rows, columns)
    others = sum(b.nbytes for b in (*stream, *buffers) if b.place == "host" and b.during in ("both", "measure"))
    in_memory = max(0, min(held, request.memory_nbytes - others - 8 * MIB))
    buffers.append(Buffer("values between stages", "host", "measure", in_memory))
    buffers.append(Buffer("values between stages", "scratch", "measure", held - in_memory))
    return batch, in_memory, buffers


def _ends(component: Component, graph: GraphSpec, batch: int, rows: int, columns: int) -> int:
    """What goes in and out of one call of a sweep's graph; it may have come from a file."""
    names = [n for n in (*graph.inputs, *graph.outputs) if n in component.values]
    return sum(component.values[n].nbytes(batch, rows, columns) for n in names)


def _held_nbytes(component: Component, count: int, rows: int, columns: int) -> int:
    """Peak bytes of what lives between two stages, over all tiles."""
    alive: dict[str, int] = {}
    peak = 0
    for index, graph in enumerate(component.sweep[:-1]):
        later = {n for g in component.sweep[index + 1 :] for n in g.inputs}
        queries = {s.query for s in component.sites[index:] if s.kind == "attention"}
        for name in graph.outputs:
            if not name.startswith("site."):
                alive[name] = component.values[name].nbytes(count, rows, columns)
        site = component.sites[index]
        if site.kind == "attention":
            alive[site.result] = component.values[site.query].nbytes(count, rows, columns)
        peak = max(peak, sum(alive.values()))
        alive = {n: b for n, b in alive.items() if n in later | queries}
    return peak


def _written(component: Component, height: int, width: int, bits_per_px: float) -> int:
    scale = component.output_scale
    if component.name != "decoder":
        return 4 * component.output_channels * height * width
    return int(height * width * scale**2 * bits_per_px / 8)
