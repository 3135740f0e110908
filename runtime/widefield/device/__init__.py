"""A GPU's memory and streams, as few as a run needs, and the order in which tiles go through them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from widefield.bundle import Bundle, Component
    from widefield.coder_engines import CoderEngines
    from widefield.device.coder import DeviceCoder
    from widefield.engine import EngineOptions
    from widefield.plan import Plan
    from widefield.summary import Summary
    from widefield.tiles import Source

NEVER = 1 << 62  # interior tiles from which on graphs without masks are opened


def gpu_coder(
    bundle: Bundle, component: Component, source: Source, summary: Summary, plan: Plan, engine: EngineOptions
) -> DeviceCoder:
    """What makes the plan's tiles on a GPU, within the memory that the plan has for it: pixels of a decoder, values of
    an encoder. MissingBackend without a GPU."""
    from widefield.device.coder import DeviceCoder, makes_pixels
    from widefield.device.gpu import CupyGpu
    from widefield.device.ops import CupyOps
    from widefield.device.plan import LIBRARIES_NBYTES, WEIGHTS

    own = sum(buffer.nbytes for buffer in plan.buffers if buffer.name == WEIGHTS)  # TensorRT takes these itself
    gpu = CupyGpu(engine.gpu, plan.peak_nbytes("device") - own - LIBRARIES_NBYTES)
    coder = DeviceCoder(bundle, component, source, summary, plan.tile, plan.batch, engine)
    return coder.on(gpu, CupyOps(gpu, engine.precision), values=not makes_pixels(component))


def takes_tiles(engine: EngineOptions) -> bool:
    """Whether an engine computes on a GPU what is there already, so that tiles need not come back between graphs."""
    return engine.on_gpu and engine.backend in ("trt", "ort")


def values_coder(
    bundle: Bundle,
    component: Component,
    source: Source,
    summary: Summary,
    tile: tuple[int, int],
    engine: EngineOptions,
    engines: CoderEngines,
) -> DeviceCoder:
    """What makes tiles of a level that is drawn, one a call, from any thread: values, also of a decoder, through border
    graphs alone. `engines` are shared, and outlive it. MissingBackend without a GPU."""
    from widefield.device.coder import DeviceCoder
    from widefield.device.gpu import CupyGpu
    from widefield.device.ops import CupyOps

    gpu = CupyGpu(engine.gpu)
    coder = DeviceCoder(
        bundle, component, source, summary, tile, 1, engine, interior_from=NEVER, certify=False, engines=engines
    )
    return coder.on(gpu, CupyOps(gpu, engine.precision), values=True)
