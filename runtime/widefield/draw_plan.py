"""What drawing a picture takes, before it starts: every buffer, and how much may be kept of what was computed.

Two ways: for a full render each level is drawn by itself, with the decoder of the level below and its own encoder open;
a lazy read may meet every level at once, and keeps all that a viewport is made from: with less, what levels share is
computed again for each, and deep pictures hardly end. Where a GPU computes, its memory is planned, too, and the host
has no activations. Integers in, integers out; what decoding the last level takes is in plan.py.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from widefield.buffers import (
    ACTIVATIONS,
    MIB,
    RUNTIME_NBYTES,
    WEIGHTS,
    WORKER_NBYTES,
    Buffer,
    PlanRequest,
    Setting,
    key_count,
)
from widefield.bundle import Component
from widefield.cascade import CascadeOptions, measuring_method
from widefield.cone import cone
from widefield.errors import OverBudget
from widefield.geometry import Region
from widefield.level_store import CHUNK, SHARD
from widefield.memo import Memo
from widefield.options import RunOptions
from widefield.sampling import default_cells
from widefield.sweep_plan import measure_buffers, sweep_nbytes
from widefield.windowed import block_strides

if TYPE_CHECKING:
    from widefield.generation import Generation

LEAST_MEMO_NBYTES = 16 * MIB
VIEWPORT_PX = 512  # a side of what a lazy read keeps the whole cone of
MOST_MEMO_NBYTES = 1 << 30  # of a full render: a shard and its neighbours are far less
SWEEP_NBYTES = 128 * MIB  # what measuring a level may take; values beyond it wait in a file
LARGE_TILE = 64, 64  # latents of a full render's encoder, where memory allows: a quarter less work than with 32 x 32
SHARD_COPIES = 4  # the values, zarr's shard, what it encodes to, and what is written
DENOISING, CODING = "denoiser's activations", "autoencoder's activations"
PIXEL_COPIES = 4  # of what an encoder reads: the parent's part, two steps of enlarging it, the tile


@dataclass(frozen=True, slots=True)
class DrawPlan:
    """`memo_nbytes` may be kept; `held_nbytes` is for a sweep's values in memory; `encoder_tile` is in latents.
    `device_nbytes` is what a GPU may give, None where none computes."""

    buffers: tuple[Buffer, ...]
    memo_nbytes: int
    held_nbytes: int
    encoder_tile: tuple[int, int]
    memory_nbytes: int
    device_nbytes: int | None = None

    @property
    def peak_nbytes(self) -> int:
        return self._peak("host")

    @property
    def peak_device_nbytes(self) -> int:
        """Of the GPU."""
        return self._peak("device")

    @property
    def pool_nbytes(self) -> int | None:
        """What arrays on the GPU may take together: all of it but what libraries take by themselves."""
        if self.device_nbytes is None:
            return None
        from widefield.device.plan import OF_LIBRARIES

        own = sum(b.nbytes for b in self.buffers if b.place == "device" and b.name in OF_LIBRARIES)
        return self.device_nbytes - own

    def _peak(self, place: str) -> int:
        return sum(b.nbytes for b in self.buffers if b.place == place)

    def as_dict(self) -> dict[str, Any]:
        return {
            "memory_nbytes": self.memory_nbytes,
            "peak_host_nbytes": self.peak_nbytes,
            "peak_device_nbytes": self.peak_device_nbytes,
            "buffers": [{"name": b.name, "place": b.place, "nbytes": b.nbytes} for b in self.buffers],
        }


def plan_drawing(generation: Generation, options: RunOptions, *, lazily: bool) -> DrawPlan:
    """For a lazy reader, or for a full render. OverBudget with the smallest budget that would do.

    A full render encodes all of a level, so tiles may be large, which have less margin; a lazy one only what it reads.
    """
    small = CascadeOptions().encoder_tile
    if not lazily:
        with suppress(OverBudget):
            return _planned(generation, options, LARGE_TILE, lazily=False)
    return _planned(generation, options, small, lazily=lazily)


def _planned(generation: Generation, options: RunOptions, encoder_tile: tuple[int, int], *, lazily: bool) -> DrawPlan:
    engine = options.engine_options(workers=options.side_by_side)
    fixed = _engines(generation, engine.backend, options.side_by_side, lazily=lazily)
    fixed += _working(generation, options, encoder_tile)
    sweep, held = _sweep(generation, options)
    fixed += sweep
    device_nbytes = options.gpu_nbytes
    if device_nbytes is not None:
        fixed = _with_gpu(generation, options, encoder_tile, fixed, lazily=lazily)
    on_host = [buffer for buffer in fixed if buffer.place == "host"]
    needed = sum(buffer.nbytes for buffer in on_host)
    rest, least = options.memory_nbytes - needed, LEAST_MEMO_NBYTES
    if lazily:
        least = max(least, _cone_nbytes(generation, options))
    if rest < least:
        need = -(-(needed + least) // MIB)
        largest = max(on_host, key=lambda buffer: buffer.nbytes)
        raise OverBudget(
            f"the budget is {options.memory_nbytes // MIB} MiB, drawing needs {need} MiB (largest buffer "
            f"{largest.name}, {-(-largest.nbytes // MIB)} MiB); raise --memory to {need}MiB",
            smallest_nbytes=need * MIB,
        )
    memo = min(rest, MOST_MEMO_NBYTES)
    fixed.append(Buffer("windows and tiles kept", "host", "both", memo))
    plan = DrawPlan(tuple(fixed), memo, held, encoder_tile, options.memory_nbytes, device_nbytes)
    if device_nbytes is not None and plan.peak_device_nbytes > device_nbytes:
        need = -(-plan.peak_device_nbytes // MIB)
        raise OverBudget(
            f"the GPU may give {device_nbytes // MIB} MiB, drawing needs {need} MiB of it; raise --device-memory to "
            f"{need}MiB, or name a smaller window",
            smallest_nbytes=need * MIB,
        )
    return plan


def _with_gpu(
    generation: Generation, options: RunOptions, encoder_tile: tuple[int, int], host: list[Buffer], *, lazily: bool
) -> list[Buffer]:
    """Buffers of a drawing that a GPU computes: no activations on the host, and pinned memory for what goes there."""
    from widefield.device.draw_plan import Coding, drawing_buffers, tiles_nbytes, windows_nbytes

    bundle, window, engine = generation.bundle, generation.window, options.engine_options()
    measured = generation.levels[: generation.measured_levels]
    sets = _open_sets(generation, lazily=lazily)

    def coding(component: Component, tile: tuple[int, int]) -> Coding:
        keys = (key_count(component, measuring_method(component, at), at.height, at.width) for at in measured)
        return Coding(component, tile, sets, max(keys))

    codings = coding(bundle.decoder, CascadeOptions().tile), coding(bundle.encoder, encoder_tile)
    pinned = sum(at.sets * tiles_nbytes(at) for at in codings)
    pinned += windows_nbytes(bundle, window, generation.batch)
    return [
        *(buffer for buffer in host if buffer.name not in (DENOISING, CODING)),
        Buffer("pinned tiles and windows", "host", "both", pinned),
        *drawing_buffers(bundle, window, generation.batch, codings, engine.backend, engine.precision),
    ]


def _engines(generation: Generation, backend: str, workers: int, *, lazily: bool) -> list[Buffer]:
    """Runtimes and weights. Text encoders are closed again before anything else is opened."""
    bundle = generation.bundle
    runtime = RUNTIME_NBYTES["ort"] + WORKER_NBYTES["ort"] * workers
    if backend != "ort":
        runtime += RUNTIME_NBYTES[backend] + WORKER_NBYTES[backend] * workers
    sets = _open_sets(generation, lazily=lazily)
    denoiser = int(4 * generation.part.parameters * WEIGHTS[backend])
    text = bundle.parts.text
    prompt = max((bundle.nbytes(e.weights) for e in text.encoders), default=0) if text else 0
    return [
        Buffer("engine runtimes", "host", "both", runtime),
        Buffer("autoencoder's weights", "host", "both", int(bundle.weights_nbytes * WEIGHTS[backend]) * sets),
        Buffer("denoiser's weights, or a text encoder's", "host", "both", max(denoiser, 3 * prompt)),
    ]


def _open_sets(generation: Generation, *, lazily: bool) -> int:
    """Summaries whose engines are open at a time: two of a full render, as the second is being measured; all of a lazy
    read. What measures one has it instead of the engines that it is for."""
    return generation.measured_levels if lazily else min(2, generation.measured_levels)


def _working(generation: Generation, options: RunOptions, encoder_tile: tuple[int, int]) -> list[Buffer]:
    """What computing windows, tiles and a shard takes."""
    bundle, workers = generation.bundle, options.side_by_side
    factor = ACTIVATIONS[options.engine_options().backend]
    decoder, encoder, tile = bundle.decoder, bundle.encoder, CascadeOptions().tile
    coders = _peak(decoder, tile) + _peak(encoder, encoder_tile)
    live = generation.window.live_nbytes * generation.batch
    channels, window = decoder.input_channels, generation.window.rows * generation.window.columns
    px = decoder.output_scale**2
    reach = math.prod(side + 2 * encoder.margin_cells for side in encoder_tile)
    tiles = 4 * (decoder.output_channels * px * (2 * tile[0] * tile[1] + PIXEL_COPIES * reach))
    one = 4 * channels * window
    block = (block_strides(one) + 1) ** 2  # windows, of which a block's parent and what it is held to are less
    windows = one * (2 * block + 8) * len(generation.levels)
    return [
        Buffer(DENOISING, "host", "both", int(live * factor) * (workers + 1)),
        Buffer(CODING, "host", "both", int(coders * factor) * workers),
        Buffer("tiles on their way", "host", "both", tiles * workers * 2),
        Buffer("windows on their way", "host", "both", windows),
        Buffer("a shard of latents", "host", "both", 4 * channels * (SHARD + CHUNK) ** 2 * SHARD_COPIES),
    ]


def _peak(component: Component, tile: tuple[int, int]) -> int:
    return max((graph.peak_nbytes(1, *tile) for graph in component.border), default=0)


def _cone_nbytes(generation: Generation, options: RunOptions) -> int:
    """Of all that a viewport of the last level is made from, where no tile's edges are: a third of the way."""
    cascade = generation.cascade(Memo(0), generation.cascade_options(options.engine_options()))
    height, width = generation.size_px
    y, x = height // 3, width // 3
    viewport = Region(y, x, y + VIEWPORT_PX, x + VIEWPORT_PX).pushed(Region(0, 0, height, width))
    return cone(cascade, viewport).kept_nbytes


def _sweep(generation: Generation, options: RunOptions) -> tuple[list[Buffer], int]:
    """(what the sweeps take, one after the other, bytes that any of them may hold in memory)."""
    request = PlanRequest(SWEEP_NBYTES, workers=options.side_by_side, cores=options.cores, backend="ort")
    settings = [
        Setting(
            generation.bundle, component, level.height, level.width, request,
            (min(32, level.height), min(32, level.width)), options.side_by_side, 1, False,
            measuring_method(component, level), default_cells(level.height, level.width),
        )
        for level in generation.levels[: generation.measured_levels]
        for component in (generation.bundle.decoder, generation.bundle.encoder)
    ]  # fmt: skip
    held = max((measure_buffers(setting, []).held_nbytes for setting in settings), default=0)
    most = max((sweep_nbytes(setting, held) for setting in settings), default=0)
    return [Buffer("sweeps of the first levels", "host", "both", most)], held
