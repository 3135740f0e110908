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


@dataclass(frozen=True, slots=True)
class _Surface:
    """What there is before any light: colour (3, h, w), the land's state and slopes, and shares of water and ice."""

    colour: Field
    state: Field
    down: Field
    right: Field
    sea: Field
    river: Field
    ice: Field

    @property
    def wetted(self) -> Field:
        return np.asarray(np.maximum(self.sea, self.river), np.float32)


def render(world: World, sky: Sky, y: int, x: int, size_px: int, metres_per_px: float) -> View:
    """The square of `size_px` pixels whose first pixel has the absolute index (y, x) at this scale."""
    octave = octave_of(metres_per_px)
    span = Span(y, x, y + size_px, x + size_px)
    surface = _surface(world, span, octave)
    colour = _under_sky(world, sky, span, octave, surface)
    alpha = np.zeros(span.shape, np.float32)
    if sky.clouds:
        field = light.cloud_field(sky, span, octave)
        alpha = light.cloud_alpha(field, sky)
        colour = light.clouded(colour, field, alpha, sky)
    colour = light.developed(light.hazed(colour, sky, metres_per_px))
    shares = {"sea": surface.sea, "river": surface.river, "ice": surface.ice, "cloud": alpha}
    pixels = np.ascontiguousarray(colour.transpose(1, 2, 0))
    return View(pixels, {name: float(share.mean()) for name, share in shares.items()})


def _surface(world: World, span: Span, octave: int) -> _Surface:
    """Land with its valleys, what grows or lies on it, and the water over it."""
    metres_per_px = 2.0**octave
    wide = land(world, span.grown(2), octave)
    river, near, cut = water.rivers(world, wide, metres_per_px)
    state = water.inner(wide).copy()
    state[HEIGHT] -= cut
    if world.fjords:
        state[HEIGHT] -= water.fjords(wide, metres_per_px) * np.float32(world.fjords) * (state[HEIGHT] + 350)
    down, right = slopes(state[HEIGHT], metres_per_px)
    state, river, near = (water.inner(field) for field in (state, river, near))
    h, steep = state[HEIGHT], steepness(down, right)

    colour = climate.ground(
        world, state, near * np.float32(0.35 if world.temperature > 2 else 0.05), steep, metres_per_px
    )
    colour = farms.farmed(world, colour, state, span, steep, metres_per_px)
    colour = _beached(world, colour, h, steep)
    colour = climate.mix(colour, water.river_colour(world, state), river * np.float32(0.92))
    sea = smoothstep(-h / ((steep + np.float32(0.004)) * np.float32(metres_per_px)), -0.8, 0.8)
    colour = climate.mix(colour, water.sea_colour(world, state, near), sea)
    ice = water.sea_ice(world, state, np.float32(0.35) * state[MINERAL] + np.float32(0.2), metres_per_px) * sea
    return _Surface(climate.mix(colour, water.ICE, ice), state, down, right, sea, river, np.asarray(ice, np.float32))


def _beached(world: World, colour: Field, h: Field, steep: Field) -> Field:
    """Sand, or black sand, just over the sea where it is flat; swamps have little."""
    sand = climate.mix(climate.SAND, climate.BASALT * np.float32(1.6), world.dark_rock * 0.8)
    most = (0.75 if world.temperature > 4 else 0.2) * (1 - 0.8 * world.flats)
    return climate.mix(colour, sand, smoothstep(h, 9.0, 1.0) * smoothstep(steep, 0.25, 0.05) * np.float32(most))


def _under_sky(world: World, sky: Sky, span: Span, octave: int, surface: _Surface) -> Field:
    """Sun and shadows of clouds, and by night the lights of towns."""
    metres_per_px, wetted = 2.0**octave, surface.wetted
    shade = light.hillshade(surface.down, surface.right, sky, metres_per_px)
    shade = shade + (1 - shade) * wetted * np.float32(0.85)  # water is flat
    if sky.clouds and sky.light != "night":
        dy, dx = light.cloud_shadow_offset(sky, metres_per_px)
        over = Span(span.top + dy, span.left + dx, span.bottom + dy, span.right + dx)
        shade = shade * (1 - np.float32(0.75) * light.cloud_alpha(light.cloud_field(sky, over, octave), sky))
    colour = light.lit(surface.colour, shade, sky)
    if sky.light == "night" and world.cities:
        lowland = smoothstep(surface.state[HEIGHT], 900.0, 100.0) * (1 - wetted)
        windows = light.city_lights(surface.state[GLOW], lowland * np.float32(world.cities * 0.5), metres_per_px)
        colour = colour + light.WINDOW[:, None, None] * windows * np.float32(1.2)
    return np.asarray(colour, np.float32)
