"""Every buffer of a run, and its bytes. Integers in, integers out.

Live activations come from the graphs' own liveness (in the bundle), times what an engine was measured to take of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from widefield.attend import block_nbytes
from widefield.bundle import Bundle, Component, GraphSpec, evaluate
from widefield.certificate import certified_tiles
from widefield.coder import has_interior
from widefield.sampling import CELL, SWEEP_TILE, stages
from widefield.scratch import Rooms
from widefield.store.spec import level_sizes
from widefield.tiles import input_shapes

Method = Literal["exact", "sampled"]
MIB = 1 << 20
STORE_TILE_PX = 512
QUEUE_TILES = 8
# What a backend takes, measured by bench/widefield_bench/memory.py: bytes for one of live activations, the same for
# certified graphs (whose statistics the liveness in the bundle leaves out), and for one of weights, over all its
# graphs; then libraries, code made at run time and thread pools. ONNX Runtime runs the sweep and attention in any case.
# For torch and trt these are not measured but meant to be ample. What runs in f16 may have to run again in float32, so
# its activations count as float32's.
ACTIVATIONS = {"ort": 1.15, "openvino": 1.10, "openvino bf16": 0.55, "torch": 1.6, "torch bf16": 1.6, "torch f16": 1.6,
               "trt": 1.2, "trt bf16": 0.8, "trt f16": 1.2}  # fmt: skip
CERTIFIED_ACTIVATIONS = {"ort": 2.60, "openvino": 1.25, "openvino bf16": 0.62, "torch": 2.6, "torch bf16": 2.6,
                         "torch f16": 2.6, "trt": 2.6, "trt bf16": 1.6, "trt f16": 2.6}  # fmt: skip
WEIGHTS = {"ort": 3.0, "openvino": 3.0, "torch": 3.0, "trt": 1.5}
RUNTIME_NBYTES = {"ort": 64 * MIB, "openvino": 72 * MIB, "torch": 320 * MIB, "trt": 400 * MIB}
# Small pieces that a thread's heap keeps.
WORKER_NBYTES = {"ort": 32 * MIB, "openvino": 48 * MIB, "torch": 48 * MIB, "trt": 8 * MIB}
SQUARES_A_CALL = 4
BETWEEN = "values between stages"


@dataclass(frozen=True, slots=True)
class Buffer:
    """Bytes in one place during one pass: "measure", "stream", or both."""

    name: str
    place: Literal["host", "scratch", "store", "device"]
    during: Literal["measure", "stream", "both"]
    nbytes: int


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
    device_nbytes: int | None = None  # of a GPU that computes; None where none does
    bits_per_px: float = 2.94  # JPEG q90 of photographs: 2.2 at full size, and a third more for the pyramid


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to do what was asked: what a plan's buffers follow from. `tile` in cells."""

    bundle: Bundle
    component: Component
    height: int
    width: int
    request: PlanRequest
    tile: tuple[int, int]
    workers: int
    threads: int
    keeps: bool
    method: Method
    cells: int

    @property
    def keys(self) -> int:
        return key_count(self.component, self.method, self.height, self.width)


def key_count(component: Component, method: Method, height: int, width: int) -> int:
    """Tokens that each attention keeps."""
    if not component.attentions:
        return 0
    tokens = height * width * component.attentions[0].scale ** 2
    return tokens if method == "exact" else min(component.keys, tokens)


def has_certified(component: Component, tile: tuple[int, int], height: int, width: int) -> bool:
    """Whether any tile of a picture is certified."""
    return certified_tiles(tile, height, width) > 0 and any(site.kind == "norm" for site in component.sites)


def _graph_nbytes(graphs: tuple[GraphSpec, ...], batch: int, rows: int, columns: int) -> int:
    return max((graph.peak_nbytes(batch, rows, columns) for graph in graphs), default=0)


def _weights_nbytes(bundle: Bundle, backend: str) -> int:
    """Of all engines: they compute with float32 whatever the weights are stored in."""
    stored = 2 if bundle.manifest.get("dtype") == "float16" else 1
    return int(bundle.weights_nbytes * stored * WEIGHTS[backend])


def _blocked(component: Component) -> float:
    """How much larger values become where an engine keeps channels in blocks of 16: the most among those that cross
    stages. 1 for widths that are multiples of 16, as trained networks have them."""
    inner = [v for name, v in component.values.items() if name not in (component.input, component.output)]
    images = [v.channels for v in inner if {"rows", "columns"} <= set(v.axes)]
    return max((-(-channels // 16) * 16 / channels for channels in images), default=1.0)


def _activations(setting: Setting) -> int:
    """Bytes of all workers' activations at most: one makes a certified tile (`TileCoder` sees to that), the others not.

    With `keeps` every worker has a block for every kind of graph but the certified, which has one, and ONNX Runtime
    takes twice one while it learns their pattern. Without, ONNX Runtime keeps none between two tiles; OpenVINO, which
    has no interior graphs, keeps them for every worker that has run a kind of graph, until nobody runs that kind.
    """
    component, request, workers = setting.component, setting.request, setting.workers
    plain, certified = (
        max(_graph_nbytes(g, request.batch, *setting.tile) for g in graphs)
        for graphs in ((component.interior, component.border), (component.certified,))
    )
    kind = request.backend if request.precision == "f32" else f"{request.backend} {request.precision}"
    if request.backend == "ort":
        plain, certified = (int(nbytes * _blocked(component)) for nbytes in (plain, certified))
    each = int(plain * ACTIVATIONS[kind])
    certifies = has_certified(component, setting.tile, setting.height, setting.width)
    one = int(certified * CERTIFIED_ACTIVATIONS[kind]) if certifies else each
    if setting.keeps:
        interior = has_interior(component, setting.tile, setting.height, setting.width, request.backend)
        return each * workers * (1 + interior) + max(each, one)
    others = workers - 1 if request.backend == "ort" or workers == 1 else workers
    return others * each + one


def stream_buffers(setting: Setting) -> list[Buffer]:
    """Of the pass that makes the picture, and those of both passes."""
    bundle, component, request, workers = setting.bundle, setting.component, setting.request, setting.workers
    height, width, keys = setting.height, setting.width, setting.keys
    rows, columns = setting.tile
    batch = request.batch
    between = {v for g in component.border for v in (*g.inputs, *g.outputs)} & set(component.values)
    ends = sum(component.values[v].nbytes(batch, rows, columns) for v in between)
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
        Buffer("weights", "host", "both", _weights_nbytes(bundle, request.backend)),
        Buffer("activations", "host", "stream", _activations(setting)),
        Buffer("tiles in and out", "host", "stream", ends * workers),
    ]
    if request.backend != "ort":
        more = RUNTIME_NBYTES[request.backend] + WORKER_NBYTES[request.backend] * workers
        buffers.append(Buffer(f"{request.backend} and its graphs", "host", "stream", more))
    if component.attentions:
        buffers += [
            Buffer("attention keys", "host", "both", 4 * keys * width_),
            Buffer("attention blocks", "host", "stream", block_nbytes(batch * queries, keys) * workers),
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


@dataclass(frozen=True, slots=True)
class Moment:
    """Of a sweep: what one of its steps works with, and the values that are held meanwhile."""

    name: str
    work_nbytes: int
    held_nbytes: int = 0
    in_files_nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Measuring:
    """`batch` squares a call; `held_nbytes` may be held in memory; the buffers of the moment that takes most."""

    batch: int
    held_nbytes: int
    buffers: tuple[Buffer, ...]


def measure_buffers(setting: Setting, stream: list[Buffer]) -> Measuring:
    """Of the sweep. What there is beside its steps' work may all be held values."""
    if not setting.component.sites:
        return Measuring(1, 0, ())
    work = max(moment.work_nbytes for moment in _moments(setting, 0)[0])
    others = sum(b.nbytes for b in stream if b.place == "host" and b.during == "both")
    moments, held = _moments(setting, setting.request.memory_nbytes - others - work - 8 * MIB)
    worst = max(moments, key=lambda moment: moment.work_nbytes + moment.held_nbytes)
    buffers = (
        Buffer(worst.name, "host", "measure", worst.work_nbytes),
        Buffer(BETWEEN, "host", "measure", worst.held_nbytes),
        Buffer(BETWEEN, "scratch", "measure", max(moment.in_files_nbytes for moment in moments)),
    )
    return Measuring(SQUARES_A_CALL, held, buffers)


def sweep_nbytes(setting: Setting, held_nbytes: int) -> int:
    """What a sweep takes that may hold so much in memory."""
    if not setting.component.sites:
        return 0
    return max(moment.work_nbytes + moment.held_nbytes for moment in _moments(setting, held_nbytes)[0])


@dataclass(frozen=True, slots=True)
class Pass:
    """The stages of a sweep that run over one set of `count` tiles of `side` cells, `batch` a call."""

    graphs: tuple[GraphSpec, ...]
    first: int
    side: tuple[int, int]
    count: int
    batch: int
    margins: bool

    @property
    def flops(self) -> int:
        return self.count * sum(evaluate(graph.flops, *self.side) for graph in self.graphs)

    def nbytes(self, component: Component, name: str) -> int:
        """Of a value of all tiles."""
        value = component.values[name]
        value = value if self.margins else replace(value, margin=(0, 0))
        return value.nbytes(self.count, *self.side)


def _passes(setting: Setting) -> list[Pass]:
    component, height, width = setting.component, setting.height, setting.width
    split, count, _ = stages(component, height, width, setting.method, setting.cells)
    side = min(SWEEP_TILE, height), min(SWEEP_TILE, width)
    tiles = -(-height // side[0]) * -(-width // side[1])
    found = [
        Pass(component.planes[:split], 0, side, tiles, 1, margins=False),
        Pass(component.squares[split:], split, (CELL, CELL), count, SQUARES_A_CALL, margins=True),
    ]
    return [tiles for tiles in found if tiles.graphs]


def measure_flops(setting: Setting) -> int:
    """Multiplications and additions of the sweep, attention left out."""
    return sum(tiles.flops for tiles in _passes(setting))


def _stage_nbytes(component: Component, graph: GraphSpec, tiles: Pass) -> int:
    """One call of a sweep's graph: activations, and what goes in and out, which may come from a file in two steps."""
    live = graph.peak_nbytes(tiles.batch, *tiles.side) * CERTIFIED_ACTIVATIONS["ort"] * _blocked(component)
    shapes = input_shapes(component, graph, tiles.batch, *tiles.side)
    ends = 2 * sum(4 * math.prod(shape) for name, shape in shapes.items() if name in component.values)
    ends += sum(tiles.nbytes(component, n) for n in graph.outputs if n in component.values) * tiles.batch // tiles.count
    tokens = [component.sites[int(n.split(".")[1])] for n in graph.outputs if n.endswith(".tokens")]
    ends += sum(4 * tiles.batch * math.prod(tiles.side) * s.scale**2 * s.width for s in tokens)
    return int(live) + ends


@dataclass(frozen=True, slots=True)
class _Place:
    """Of a held value in memory."""

    nbytes: int


def _moments(setting: Setting, limit_nbytes: int) -> tuple[list[Moment], int]:
    """(every step of a sweep that may hold so much in memory, the most that it does hold).

    Values are held and released in the sweep's order, so one that may hold no more than that most puts the same there.
    """
    component, workers, passes = setting.component, setting.workers, _passes(setting)
    order = [(tiles, graph) for tiles in passes for graph in tiles.graphs]
    rooms: Rooms[_Place] = Rooms(limit_nbytes, _Place)
    alive: dict[str, tuple[int, _Place | None]] = {}
    found: list[Moment] = []

    def hold(name: str, nbytes: int) -> None:
        alive[name] = nbytes, rooms.take(nbytes)

    def note(name: str, work_nbytes: int) -> None:
        in_files = sum(nbytes for nbytes, place in alive.values() if place is None)
        found.append(Moment(name, work_nbytes, rooms.used_nbytes, in_files))

    for site, (tiles, graph) in zip(component.sites, order, strict=True):
        for name in graph.outputs:
            if name in component.values:
                hold(name, tiles.nbytes(component, name))
        note("sweep activations", _stage_nbytes(component, graph, tiles) * workers)
        if site.kind == "attention":
            hold(site.result, tiles.nbytes(component, site.query))
            queries = tiles.batch * component.values[site.query].shape(1, *tiles.side)[1]
            note("sweep attention blocks", block_nbytes(queries, setting.keys) * workers)
        wanted = {n for _, later in order[site.index + 1 :] for n in later.inputs}
        wanted |= {s.query for s in component.sites[site.index + 1 :] if s.kind == "attention"}
        for name in [name for name in alive if name not in wanted]:
            _, place = alive.pop(name)
            if place is not None:
                rooms.release(place)
    keys = sum(4 * setting.keys * site.width for site in component.attentions)
    return [*found, Moment("keys while they are saved", keys)], rooms.peak_nbytes
