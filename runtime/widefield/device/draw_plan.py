"""What drawing a picture takes of a GPU's memory. Integers in, integers out; no GPU is asked.

TensorRT's engines compute in one block, one after another; those of other libraries each keep their own. Summaries are
measured on the host, so a level's tiles go through graphs with masks alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from widefield.buffers import ACTIVATIONS, Buffer
from widefield.bundle import Bundle, Component
from widefield.device.plan import LIBRARIES, LIBRARIES_NBYTES, WEIGHTS, between_nbytes
from widefield.device.slots import slots_nbytes
from widefield.parts import WindowGraph
from widefield.tiles import input_shapes

LATENTS = 6  # of a batch: x, the scaled x, m of both prompts, noise, history


@dataclass(frozen=True, slots=True)
class Coding:
    """A component's tiles on the GPU: `sets` of engines, each of a summary with so many keys of an attention."""

    component: Component
    tile: tuple[int, int]
    sets: int
    keys: int


def drawing_buffers(
    bundle: Bundle, window: WindowGraph, batch: int, codings: tuple[Coding, ...], backend: str, precision: str
) -> list[Buffer]:
    """Of a drawing whose denoiser takes `batch` windows a call."""
    kind = backend if precision == "f32" else f"{backend} {precision}"
    fits = 2 if precision == "bf16" else 1  # what overflows in f16 is computed in float32
    live = [window.live_nbytes * batch, *(_peak_nbytes(coding) for coding in codings)]
    activations = max(live) if backend == "trt" else sum(live)
    sizes = {
        LIBRARIES: LIBRARIES_NBYTES,
        WEIGHTS: _weights_nbytes(bundle, max(coding.sets for coding in codings), fits),
        "activations on the GPU": int(activations * ACTIVATIONS[kind]) // fits,
        "between graphs": sum(c.sets * between_nbytes(c.component, 1, c.tile) for c in codings),
        "tiles on their way": sum(c.sets * tiles_nbytes(c) for c in codings),
        "windows on the GPU": windows_nbytes(bundle, window, batch),
        "what is frozen, on the GPU": sum(c.sets * _frozen_nbytes(c) for c in codings),
    }
    return [Buffer(name, "device", "both", nbytes) for name, nbytes in sizes.items()]


def tiles_nbytes(coding: Coding) -> int:
    """Of one set's tiles: on the GPU, and pinned on the host."""
    component, tile = coding.component, coding.tile
    shapes = input_shapes(component, component.border[0], 1, *tile)
    return slots_nbytes(component, shapes, 1, tile, values=True)


def windows_nbytes(bundle: Bundle, window: WindowGraph, batch: int) -> int:
    """A sampler's steps on a batch for two prompts, and once more what an engine is given from the host."""
    part = bundle.parts.denoiser
    assert part is not None
    shapes = part.shapes(window, batch)
    given = sum(4 * math.prod(shape) for shape in shapes.values())
    return LATENTS * 4 * math.prod(shapes["latent"]) + 3 * given


def _weights_nbytes(bundle: Bundle, sets: int, fits: int) -> int:
    """Text encoders are closed before anything else is opened; twice a file is ample for what they compute in, too."""
    part, text = bundle.parts.denoiser, bundle.parts.text
    stored = 2 if bundle.manifest.get("dtype") == "float16" else 1
    denoiser = 0 if part is None else 4 * part.parameters // fits
    prompt = max((bundle.nbytes(e.weights) for e in text.encoders), default=0) if text else 0
    return max(sets * bundle.weights_nbytes * stored // fits + denoiser, 2 * prompt)


def _peak_nbytes(coding: Coding) -> int:
    return max(graph.peak_nbytes(1, *coding.tile) for graph in coding.component.border)


def _frozen_nbytes(coding: Coding) -> int:
    component = coding.component
    keys = sum(4 * coding.keys * site.width for site in component.attentions)
    return keys + sum(4 * math.prod(shape) for graph in component.border for shape in graph.parameters.values())
