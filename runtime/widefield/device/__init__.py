"""A GPU's memory and streams, as few as a run needs, and the order in which tiles go through them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from widefield.bundle import Bundle, Component
    from widefield.device.coder import DeviceCoder
    from widefield.engine import EngineOptions
    from widefield.plan import Plan
    from widefield.summary import Summary
    from widefield.tiles import Source


def gpu_coder(
    bundle: Bundle, component: Component, source: Source, summary: Summary, plan: Plan, engine: EngineOptions
) -> DeviceCoder:
    """What makes the plan's tiles on a GPU, within the memory that the plan has for it. MissingBackend without one."""
    from widefield.device.coder import DeviceCoder
    from widefield.device.gpu import CupyGpu
    from widefield.device.ops import CupyOps
    from widefield.device.plan import LIBRARIES_NBYTES, WEIGHTS

    own = sum(buffer.nbytes for buffer in plan.buffers if buffer.name == WEIGHTS)  # TensorRT takes these itself
    gpu = CupyGpu(engine.gpu, plan.peak_nbytes("device") - own - LIBRARIES_NBYTES)
    coder = DeviceCoder(bundle, component, source, summary, plan.tile, plan.batch, engine)
    return coder.on(gpu, CupyOps(gpu, engine.precision))
