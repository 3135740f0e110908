"""What a run takes of a GPU's memory: buffers whose place is "device". Integers in, integers out; no GPU is asked.

Weights count once for each kind of fused graph, for each has an engine of its own. Half precision halves weights and
activations; what lies between graphs is float32.
"""

from __future__ import annotations

from widefield.buffers import ACTIVATIONS, CERTIFIED_ACTIVATIONS, Buffer, Setting, has_certified
from widefield.bundle import Component
from widefield.coder import has_interior
from widefield.device.slots import makes_pixels, slots_nbytes
from widefield.tiles import input_shapes

WEIGHTS, LIBRARIES = "weights on the GPU", "context and libraries"
OF_LIBRARIES = WEIGHTS, LIBRARIES  # which take these themselves: they are no arrays of ours
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
    shapes = input_shapes(component, component.border[0], request.batch, *tile)
    slots = slots_nbytes(component, shapes, request.batch, tile, values=not makes_pixels(component))
    width = component.attentions[0].width if component.attentions else 0
    return [
        Buffer(LIBRARIES, "device", "stream", LIBRARIES_NBYTES),
        Buffer(WEIGHTS, "device", "stream", weights),
        Buffer("activations on the GPU", "device", "stream", activations),
        Buffer("between graphs", "device", "stream", between_nbytes(component, request.batch, tile)),
        Buffer("tiles on their way", "device", "stream", slots),
        Buffer("attention keys on the GPU", "device", "stream", 4 * setting.keys * width * len(component.attentions)),
    ]


def host_buffers(setting: Setting, buffers: list[Buffer]) -> list[Buffer]:
    """A run's buffers on the host, where the GPU computes: no activations, and pinned memory for two tiles."""
    component, batch = setting.component, setting.request.batch
    shapes = input_shapes(component, component.border[0], batch, *setting.tile)
    pinned = slots_nbytes(component, shapes, batch, setting.tile, values=not makes_pixels(component))
    left = [b for b in buffers if b.name not in ("activations", "attention blocks", "tiles in and out")]
    return [*left, Buffer("pinned tiles", "host", "stream", pinned)]


def between_nbytes(component: Component, batch: int, tile: tuple[int, int]) -> int:
    """Of the values that lie on the GPU before, between and after a component's graphs."""
    queries = {site.result: site.query for site in component.attentions}
    names = {v for g in component.border for v in (*g.inputs, *g.outputs)} & set(component.values)
    values = [component.values.get(name) or component.values[queries[name]] for name in names | set(queries)]
    return sum(value.nbytes(batch, *tile) for value in values)
