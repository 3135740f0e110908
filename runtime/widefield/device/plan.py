"""What a run takes of a GPU's memory: buffers whose place is "device". Integers in, integers out; no GPU is asked.

Weights count once for each kind of fused graph, for each has an engine of its own. Half precision halves weights and
activations; what lies between graphs is float32.
"""

from __future__ import annotations

from widefield.buffers import ACTIVATIONS, CERTIFIED_ACTIVATIONS, Buffer, Setting, has_certified
from widefield.coder import has_interior
from widefield.device.coder import slots_nbytes
from widefield.tiles import input_shapes

WEIGHTS = "weights on the GPU"
LIBRARIES_NBYTES = 600 << 20  # a context, cuDNN, cuBLAS: what a process has before it computes anything


def device_buffers(setting: Setting) -> list[Buffer]:
    """Of the pass that makes the picture; summaries are measured on the host."""
    component, request, tile = setting.component, setting.request, setting.tile
    kind = request.backend if request.precision == "f32" else f"{request.backend} {request.precision}"
    fits = 2 if request.precision == "bf16" else 1  # what overflows in f16 is computed in float32
    plain = max(graph.peak_nbytes(request.batch, *tile) for graph in (*component.interior, *component.border))
    certifies = has_certified(component, tile, setting.height, setting.width)
    certified = max((graph.peak_nbytes(1, *tile) for graph in component.certified), default=0) if certifies else 0
    activations = max(int(plain * ACTIVATIONS[kind]), int(certified * CERTIFIED_ACTIVATIONS[kind])) // fits
    stored = 2 if setting.bundle.manifest.get("dtype") == "float16" else 1
    kinds = 1 + certifies + has_interior(component, tile, setting.height, setting.width, request.backend)
    weights = setting.bundle.weights_nbytes * stored // fits * kinds
    between = {v for g in component.border for v in (*g.inputs, *g.outputs)} & set(component.values)
    between |= {site.result for site in component.attentions}
    values = [component.values.get(v) or component.values[_query_of(setting, v)] for v in between]
    ends = sum(value.nbytes(request.batch, *tile) for value in values)
    shapes = input_shapes(component, component.border[0], request.batch, *tile)
    width = component.attentions[0].width if component.attentions else 0
    return [
        Buffer("context and libraries", "device", "stream", LIBRARIES_NBYTES),
        Buffer(WEIGHTS, "device", "stream", weights),
        Buffer("activations on the GPU", "device", "stream", activations),
        Buffer("between graphs", "device", "stream", ends),
        Buffer("tiles on their way", "device", "stream", slots_nbytes(component, shapes, request.batch, tile)),
        Buffer("attention keys on the GPU", "device", "stream", 4 * setting.keys * width * len(component.attentions)),
    ]


def host_buffers(setting: Setting, buffers: list[Buffer]) -> list[Buffer]:
    """A run's buffers on the host, where the GPU computes: no activations, and pinned memory for two tiles."""
    component, batch = setting.component, setting.request.batch
    shapes = input_shapes(component, component.border[0], batch, *setting.tile)
    pinned = slots_nbytes(component, shapes, batch, setting.tile)
    left = [b for b in buffers if b.name not in ("activations", "attention blocks", "tiles in and out")]
    return [*left, Buffer("pinned tiles", "host", "stream", pinned)]


def _query_of(setting: Setting, result: str) -> str:
    return next(site.query for site in setting.component.attentions if site.result == result)
