"""What a run will need, before it starts: tile, workers, every buffer and its bytes. Integers in, integers out.

Nothing is opened or allocated here, so a plan for 524,288 x 524,288 takes milliseconds anywhere. The run keeps to it:
live activations come from the graphs' own liveness (in the bundle), times what an engine was measured to take of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from widefield.buffers import (
    MIB,
    STORE_TILE_PX,
    Buffer,
    Method,
    PlanRequest,
    Setting,
    has_certified,
    stream_buffers,
)
from widefield.bundle import Bundle, Component
from widefield.coder import has_interior
from widefield.errors import BadRequest, OverBudget
from widefield.sampling import CELL, default_cells
from widefield.sweep_plan import measure_buffers, measure_flops

EXACT_UP_TO_PX = 4_000_000  # `auto` measures larger pictures on a sample
LARGEST_TILE = 256  # cells; beyond it the margins are under 4 % and caches lose
# What a worker's first tile of a kind costs more than the next, in tiles: ONNX Runtime allocates every activation by
# itself before it knows the pattern (3.6 against 1.6 s at 128 cells). OpenVINO compiles for 0.3 to 0.6 s, whatever the
# tile: FIRST_FLOPS is what it would compute meanwhile. Without `keeps` activations are given back between two kinds.
# torch keeps nothing itself; on a GPU engines keep theirs whatever is asked, and tiles are compared among themselves.
FIRST_TILE = {"ort": 1.2, "ort keeping": 0.5, "openvino": 0.4, "openvino keeping": 0.2, "torch": 0.5, "trt": 0.0}
FIRST_FLOPS = {"ort": 0, "openvino": 45 * 10**9, "torch": 0, "trt": 0}
# Of a later tile's time.
STEADY = {"ort": 1.0, "ort keeping": 0.85, "openvino": 1.05, "openvino keeping": 1.0, "torch": 1.0, "trt": 1.0}
# Tiles of 128 x 128 cells of an SD-like decoder of 16 to 80 channels took OpenVINO 95 to 104 % of the time of two of
# 64 x 128, and ONNX Runtime 96 to 107 %, for 6 % less to compute: caches lose what margins save.
KEEPERS = ("ort", "openvino")
CROWDED_NBYTES, CROWDED = 256 * MIB, 1.10
# ONNX Runtime takes a tenth longer for a cell of 64 x 128 than of 64 x 64.
WIDE = {"ort": (1,), "openvino": (1, 2), "torch": (1,), "trt": (1,)}
ONE_WORKER = 0.75  # of what as many workers as it has threads would do, for each of them


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
    tile_flops: int
    tile_nbytes: int
    overhead: float
    measure_flops: int
    written_nbytes: int
    tiles: int
    kinds: int
    backend: str
    keeps: bool

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
            "keeps_activations": self.keeps,
            "summary": self.method,
            "summary_cells": self.cells,
            "memory_nbytes": self.memory_nbytes,
            "peak_host_nbytes": self.peak_nbytes("host"),
            "peak_device_nbytes": self.peak_nbytes("device"),
            "scratch_nbytes": self.peak_nbytes("scratch"),
            "flops": self.flops,
            "flops_over_untiled": round(self.overhead, 4),
            "measure_flops": self.measure_flops,
            "written_nbytes": self.written_nbytes,
            "buffers": [
                {"name": b.name, "place": b.place, "during": b.during, "nbytes": b.nbytes} for b in self.buffers
            ],
        }


def make_plan(bundle: Bundle, component: Component, height: int, width: int, request: PlanRequest) -> Plan:
    """The cheapest plan that fits; raises OverBudget with the smallest budget that would, BadRequest for nonsense."""
    if height < 1 or width < 1:
        raise BadRequest(f"a picture of {width} x {height} latents has no pixels; both sides must be at least 1")
    plans = [
        _plan(bundle, component, height, width, request, *choice)
        for choice in _choices(component, height, width, request)
    ]
    fitting = [plan for plan in plans if plan.peak_nbytes() <= request.memory_nbytes]
    if fitting and request.device_nbytes is not None:
        fitting = _on_device(fitting, request.device_nbytes)
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
    return min(fitting, key=lambda plan: (cost(plan), -plan.tile[0]))


def _on_device(plans: list[Plan], device_nbytes: int) -> list[Plan]:
    """Those that fit on the GPU, too; raises OverBudget."""
    fitting = [plan for plan in plans if plan.peak_nbytes("device") <= device_nbytes]
    if not fitting:
        need = min(plan.peak_nbytes("device") for plan in plans)
        raise OverBudget(
            f"the GPU may give {device_nbytes // MIB} MiB, the smallest plan needs {-(-need // MIB)} MiB of it; lower "
            f"--tile or --batch, or raise --device-memory to {-(-need // MIB)}MiB",
            smallest_nbytes=-(-need // MIB) * MIB,
        )
    return fitting


def cost(plan: Plan) -> float:
    """Relative time: the tiles of one worker, and what the first of each kind costs more."""
    way = f"{plan.backend} keeping" if plan.keeps and plan.backend in KEEPERS else plan.backend
    turns = -(-plan.tiles // plan.workers) * STEADY[way] + plan.kinds * FIRST_TILE[way]
    crowded = CROWDED if plan.tile_nbytes > CROWDED_NBYTES else 1.0
    return (
        (turns * plan.tile_flops * crowded + plan.kinds * FIRST_FLOPS[plan.backend])
        / plan.threads
        / (1.0 if plan.threads == 1 else ONE_WORKER)
    )


def _choices(
    component: Component, height: int, width: int, request: PlanRequest
) -> Iterator[tuple[tuple[int, int], int, int, bool]]:
    """(tile, workers, threads, keeps) worth looking at."""
    if request.tile is not None:
        if min(request.tile) < 1:
            raise BadRequest(f"--tile {request.tile[0]}x{request.tile[1]} is no tile; both sides must be at least 1")
        tiles = [request.tile]
    else:
        base = max(1, STORE_TILE_PX // max(component.output_scale, component.input_scale))
        ladder = sorted({max(8, min(LARGEST_TILE, base * 2**k // 8)) for k in range(8)})
        tiles = [(t, wide * t) for t in ladder for wide in WIDE[request.backend]]
    workers = [request.workers] if request.workers is not None else sorted({request.cores, 1})
    workers = workers if request.device_nbytes is None else [1]  # a GPU takes one tile after another
    for rows, columns in dict.fromkeys((min(rows, height), min(columns, width)) for rows, columns in tiles):
        for count in workers:
            for keeps in (True, False):
                yield (rows, columns), count, max(1, request.cores // count), keeps


def _plan(
    bundle: Bundle,
    component: Component,
    height: int,
    width: int,
    request: PlanRequest,
    tile: tuple[int, int],
    workers: int,
    threads: int,
    keeps: bool,
) -> Plan:
    rows, columns = tile
    scale = max(component.output_scale, component.input_scale)
    method = choose_method(component, height, width, request.summary)
    cells = request.cells or default_cells(height, width)
    setting = Setting(bundle, component, height, width, request, tile, workers, threads, keeps, method, cells)
    tiles = -(-height // rows) * -(-width // columns)
    stream = stream_buffers(setting)
    if request.device_nbytes is not None:
        from widefield.device.plan import device_buffers, host_buffers

        stream = [*host_buffers(setting, stream), *device_buffers(setting)]
    measuring = measure_buffers(setting, stream)
    convolutions = component.flops(rows, columns)
    each = convolutions + _attention_flops(setting)
    return Plan(
        component.name, height, width, scale, tile, request.batch, workers, threads, method, cells,
        measuring.batch, measuring.held_nbytes, request.memory_nbytes, (*stream, *measuring.buffers),
        flops=each * tiles,
        tile_flops=each,
        tile_nbytes=max(graph.peak_nbytes(request.batch, rows, columns) for graph in component.border),
        overhead=convolutions * tiles / max(1, component.flops_per_cell * height * width),
        measure_flops=measure_flops(setting) if component.sites else 0,
        written_nbytes=_written(component, height, width, request.bits_per_px),
        tiles=tiles,
        kinds=_kinds(component, tile, height, width, request.backend),
        backend=request.backend,
        keeps=keeps,
    )  # fmt: skip


def _kinds(component: Component, tile: tuple[int, int], height: int, width: int, backend: str) -> int:
    """How many kinds of fused graphs a picture needs: border, interior, certified."""
    interior = has_interior(component, tile, height, width, backend)
    return 1 + interior + has_certified(component, tile, height, width)


def choose_method(component: Component, height: int, width: int, asked: str) -> Method:
    """`auto` is exact where a picture has no room to sample, and up to EXACT_UP_TO_PX pixels unless attending to all
    tokens would cost more than a quarter of the convolutions, which are computed twice then."""
    if asked == "exact" or not component.sites or min(height, width) < CELL:
        return "exact"
    scale = max(component.output_scale, component.input_scale)
    attention = sum(4 * height * width * site.scale**4 * site.width for site in component.attentions)  # a cell
    dear = height * width * scale**2 > EXACT_UP_TO_PX or 4 * attention > component.flops_per_cell
    return "sampled" if asked == "sampled" or dear else "exact"


def _attention_flops(setting: Setting) -> int:
    """Of one tile."""
    values = setting.component.values
    return sum(
        4 * values[site.query].positions(*setting.tile) * setting.keys * site.width
        for site in setting.component.attentions
    )


def _written(component: Component, height: int, width: int, bits_per_px: float) -> int:
    scale = component.output_scale
    if component.name != "decoder":
        return 4 * component.output_channels * height * width
    return int(height * width * scale**2 * bits_per_px / 8)
