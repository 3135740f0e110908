"""A picture of a world: `render(world, sky, y, x, size_px, metres_per_px)`.

    land -> rivers cut valleys -> ground, sea and ice by coverage -> sun and shadow -> city lights -> clouds -> air

Everything is computed on lattices at absolute indices, so crops agree with the whole, and a view at twice the scale
shares all coarser octaves with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from widefield.errors import BadRequest
from widefield_export.worlds import climate, farms, light, water
from widefield_export.worlds.heights import GLOW, HEIGHT, MINERAL, land, slopes, smoothstep, steepness
from widefield_export.worlds.noise import Field
from widefield_export.worlds.pyramid import Span
from widefield_export.worlds.world import Sky, World


@dataclass(frozen=True, slots=True)
class View:
    """A picture (h, w, 3) in [0, 1], and shares of it by what covers them, for the caption."""

    pixels: Field
    shares: dict[str, float]


def octave_of(metres_per_px: float) -> int:
    """log2 of a scale, which must be a whole power of two of metres, at least one."""
    octave = round(float(np.log2(metres_per_px))) if metres_per_px > 0 else -1
    if octave < 0 or 2.0**octave != metres_per_px:
        raise BadRequest(f"metres_per_px is {metres_per_px}; wanted 1, 2, 4, 8, ...; round it to one of these")
    return octave


def render(world: World, sky: Sky, y: int, x: int, size_px: int, metres_per_px: float) -> View:
    """The square of `size_px` pixels whose first pixel has the absolute index (y, x) at this scale."""
    octave = octave_of(metres_per_px)
    span = Span(y, x, y + size_px, x + size_px)
    wide = land(world, span.grown(2), octave)
    river, near, cut = water.rivers(world, wide, metres_per_px)
    state = water.inner(wide).copy()
    state[HEIGHT] -= cut
    if world.fjords:
        state[HEIGHT] -= water.fjords(wide, metres_per_px) * np.float32(world.fjords) * (state[HEIGHT] + 350)
    down, right = slopes(state[HEIGHT], metres_per_px)
    state, river, near = water.inner(state), water.inner(river), water.inner(near)
    steep = steepness(down, right)

    wet = near * np.float32(0.35 if world.temperature > 2 else 0.05)
    colour = climate.ground(world, state, wet, steep, metres_per_px)
    h = state[HEIGHT]
    edge = h / ((steep + np.float32(0.004)) * np.float32(metres_per_px))
    colour = farms.farmed(world, colour, state, span, steep, metres_per_px)
    beach = smoothstep(h, 9.0, 1.0) * smoothstep(steep, 0.25, 0.05) * np.float32(0.75 if world.temperature > 4 else 0.2)
    sand = climate.mix(climate.SAND, climate.BASALT * np.float32(1.6), world.dark_rock * 0.8)
    colour = climate.mix(colour, sand, beach * (1 - world.flats * np.float32(0.8)))
    colour = climate.mix(colour, water.river_colour(world, state), river * np.float32(0.92))
    sea = smoothstep(-edge, -0.8, 0.8)
    colour = climate.mix(colour, water.sea_colour(world, state, near), sea)
    wetted = np.maximum(sea, river)
    ice = water.sea_ice(world, state, np.float32(0.35) * state[MINERAL] + np.float32(0.2), metres_per_px) * sea
    colour = climate.mix(colour, water.ICE, ice)

    shade = light.hillshade(down, right, sky, metres_per_px)
    flat = np.float32(1.0)
    shade = shade + (flat - shade) * wetted * np.float32(0.85)
    colour = _under_sky(world, sky, span, octave, colour, shade, state, wetted)
    field = light.cloud_field(sky, span, octave) if sky.clouds else np.zeros_like(h)
    alpha = light.cloud_alpha(field, sky) if sky.clouds else np.zeros_like(h)
    colour = light.clouded(colour, field, alpha, sky) if sky.clouds else colour
    colour = light.hazed(colour, sky, metres_per_px)
    shares = {"sea": sea, "river": river, "ice": ice, "cloud": alpha}
    pixels = np.ascontiguousarray(light.developed(colour).transpose(1, 2, 0))
    return View(pixels, {name: float(share.mean()) for name, share in shares.items()})


def _under_sky(
    world: World, sky: Sky, span: Span, octave: int, colour: Field, shade: Field, state: Field, wetted: Field
) -> Field:
    """Sun and shadows of clouds, and by night the lights of towns."""
    metres_per_px = 2.0**octave
    if sky.clouds and sky.light != "night":
        dy, dx = light.cloud_shadow_offset(sky, metres_per_px)
        over = Span(span.top + dy, span.left + dx, span.bottom + dy, span.right + dx)
        shade = shade * (1 - np.float32(0.75) * light.cloud_alpha(light.cloud_field(sky, over, octave), sky))
    colour = light.lit(colour, shade, sky)
    if sky.light == "night" and world.cities:
        lowland = smoothstep(state[HEIGHT], 900.0, 100.0) * (1 - wetted)
        windows = light.city_lights(state[GLOW], lowland * np.float32(world.cities * 0.5), metres_per_px)
        colour = colour + light.WINDOW[:, None, None] * windows * np.float32(1.2)
    return np.asarray(colour, np.float32)
