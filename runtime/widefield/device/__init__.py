"""A GPU's memory and streams, as few as a run needs, and the order in which tiles go through them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from widefield.bundle import Bundle, Component
    from widefield.coder import TileCoder
    from widefield.coder_engines import CoderEngines
    from widefield.device.coder import DeviceCoder
    from widefield.device.steps import DeviceSteps
    from widefield.engine import EngineOptions
    from widefield.plan import Plan
    from widefield.summary import Summary
    from widefield.tiles import Source


def gpu_coder(
    bundle: Bundle, component: Component, source: Source, summary: Summary, plan: Plan, engine: EngineOptions
) -> DeviceCoder:
    """What makes the plan's tiles on a GPU, within the memory that the plan has for it: pixels of a decoder, values of
    an encoder. MissingBackend without a GPU."""
    from widefield.device.coder import DeviceCoder
    from widefield.device.gpu import CupyGpu
    from widefield.device.ops import CupyOps
    from widefield.device.plan import LIBRARIES_NBYTES, WEIGHTS
    from widefield.device.slots import makes_pixels

    own = sum(buffer.nbytes for buffer in plan.buffers if buffer.name == WEIGHTS)  # TensorRT takes these itself
    gpu = CupyGpu(engine.gpu, plan.peak_nbytes("device") - own - LIBRARIES_NBYTES)
    coder = DeviceCoder(bundle, component, source, summary, plan.tile, plan.batch, engine)
    return coder.on(gpu, CupyOps(gpu, engine.precision), values=not makes_pixels(component))


def takes_tiles(engine: EngineOptions) -> bool:
    """Whether an engine computes on a GPU what is there already, so that tiles need not come back between graphs."""
    return engine.on_gpu and engine.backend in ("trt", "ort")


def limit_pool(engine: EngineOptions, nbytes: int | None) -> None:
    """From now on arrays on the GPU take no more than that together, whoever asks; None leaves it as it is."""
    if nbytes is not None and takes_tiles(engine):
        from widefield.device.gpu import CupyGpu

        CupyGpu(engine.gpu, nbytes)


def shared_engines(
    bundle: Bundle, component: Component, summary: Summary, tile: tuple[int, int], engine: EngineOptions
) -> CoderEngines:
    """The engines of all levels that are drawn with one summary, for `values_coder`."""
    from widefield.coder_engines import CoderEngines
    from widefield.device.engines import DeviceEngines

    return (DeviceEngines if takes_tiles(engine) else CoderEngines)(bundle, component, summary, tile, 1, engine)


def values_coder(
    bundle: Bundle,
    component: Component,
    source: Source,
    summary: Summary,
    tile: tuple[int, int],
    engine: EngineOptions,
    engines: CoderEngines,
) -> TileCoder:
    """What makes tiles of a level that is drawn, one a call, from any thread: values, also of a decoder, through border
    graphs alone. `engines` are `shared_engines`, and outlive it. MissingBackend for a GPU that is not there."""
    from widefield.coder import NEVER, TileCoder
    from widefield.device.engines import DeviceEngines

    given = bundle, component, source, summary, tile, 1, engine
    if not isinstance(engines, DeviceEngines):
        return TileCoder(*given, interior_from=NEVER, certify=False, engines=engines)
    from widefield.device.coder import DeviceCoder

    return DeviceCoder(*given, interior_from=NEVER, certify=False, engines=engines).through(engines.slots())


def device_steps(
    engine: Any, options: EngineOptions, shapes: Mapping[str, tuple[int, ...]], output: str
) -> DeviceSteps:
    """A denoiser's engine, and what its steps need on the GPU. MissingBackend for one that is not there."""
    from widefield.device.gpu import CupyGpu
    from widefield.device.ops import CupyOps
    from widefield.device.steps import DeviceSteps

    gpu = CupyGpu(options.gpu)
    return DeviceSteps(engine, gpu, CupyOps(gpu, options.precision), shapes, output)
