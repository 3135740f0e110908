"""Every buffer of the pass that makes a picture, and its bytes (those of the sweep before it: sweep_plan.py).

Live activations come from the graphs' own liveness (in the bundle), times what an engine was measured to take of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from widefield.attend import block_nbytes
from widefield.bundle import Bundle, Component, GraphSpec
from widefield.certificate import certified_tiles
from widefield.coder import has_interior
from widefield.store.spec import level_sizes

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


def blocked(component: Component) -> float:
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
        plain, certified = (int(nbytes * blocked(component)) for nbytes in (plain, certified))
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
