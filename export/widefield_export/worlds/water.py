"""Seas, rivers and ice: how much of a pixel they cover, and their colour.

    coverage of a strip of width w at distance d from its middle, in pixels:  F(w/2 - d) + F(w/2 + d) - 1,
    F(x) = clip(x + 1/2, 0, 1);        d = |n| / |grad n| for a river along the zeros of n

Units    heights and widths: metres; coverage and shares: 0 to 1; colours (3, h, w), display-referred.
"""

from __future__ import annotations

import numpy as np

from widefield_export.worlds.climate import mix
from widefield_export.worlds.heights import (
    HEIGHT,
    MINERAL,
    RIVER,
    RIVERS_KM,
    RUGGED,
    TEMPERATURE,
    slopes,
    smoothstep,
    steepness,
)
from widefield_export.worlds.noise import Field
from widefield_export.worlds.world import World

RIVER_WIDTH = 1 / 260  # of its longest wavelength
DEEP = np.array((0.015, 0.055, 0.15), np.float32)
OPEN = np.array((0.025, 0.14, 0.27), np.float32)
REEF = np.array((0.16, 0.55, 0.56), np.float32)
COLD = np.array((0.09, 0.23, 0.26), np.float32)
SILT = np.array((0.42, 0.32, 0.17), np.float32)
FRESH = np.array((0.06, 0.15, 0.19), np.float32)
ICE = np.array((0.84, 0.89, 0.93), np.float32)


def inner(x: Field) -> Field:
    """Without the outermost cell on each side."""
    return x[..., 1:-1, 1:-1]


def coverage(distance_px: Field, width_px: Field | float) -> Field:
    """How much of a pixel a straight strip covers."""
    half = np.float32(0.5) * np.float32(width_px)
    return np.asarray(np.clip(half - distance_px + 0.5, 0, 1) + np.clip(half + distance_px + 0.5, 0, 1) - 1, np.float32)


def rivers(world: World, state: Field, metres_per_px: float) -> tuple[Field, Field, Field]:
    """Coverage by rivers, how near the banks are, and how many metres their valleys cut down; one cell smaller."""
    h = inner(state[HEIGHT])
    water, near, cut = (np.zeros(h.shape, np.float32) for _ in range(3))
    lush = np.clip(np.float32(0.25 + world.moisture) + np.float32(0.12) * inner(state[RUGGED]), 0.1, 1)
    high = np.maximum(h - 2, 0) * np.float32(0.8)
    delta = np.float32(world.flats) * smoothstep(-h, -60.0, -5.0)  # channels part and widen before the sea
    for order, longest_km in enumerate(RIVERS_KM):
        longest, width = longest_km * 1000, longest_km * 1000 * RIVER_WIDTH
        if 60 * width < metres_per_px or not world.rivers:
            continue
        field = state[RIVER + order]
        down, right = slopes(field, metres_per_px)
        off, steep = np.abs(inner(field)), steepness(down, right, 0.15 / longest)
        flowing = np.float32(min(1.0, world.rivers * (1.6 - 0.2 * order))) * (
            1 - smoothstep(h, 500.0 + 500 * order, 1100.0 + 700 * order)
        )
        if order:  # tributaries dry out
            flowing = flowing * np.maximum(delta, smoothstep(lush, 0.35 + 0.08 * order, 0.6 + 0.08 * order))
        broad = np.float32(width / metres_per_px) * (1 - np.float32(0.55) * smoothstep(h, 0.0, 500.0))
        broad = broad * (1 + np.float32(0.3) * inner(state[RIVER + (order + 1) % len(RIVERS_KM)]))
        broad = broad * (1 + delta)
        strip = coverage(off / (steep * np.float32(metres_per_px)), broad)
        water = np.maximum(water, strip * smoothstep(flowing, 0.15, 0.4))
        roughly = off * np.float32(longest / 7 / width)  # widths, where the field is as steep as it is on average
        near = np.maximum(near, np.exp(-((roughly / 5) ** 2)) * flowing)
        depth = np.minimum(high, np.float32(width * (0.4 + 1.8 * world.gullies)))
        cut = np.maximum(cut, np.exp(-((roughly / 9) ** 2)) * flowing * depth)
    return water, np.asarray(near, np.float32), np.asarray(cut, np.float32)


def fjords(state: Field, metres_per_px: float) -> Field:
    """How deep long troughs are cut, 0 to 1, along the zeros of the first two orders of rivers."""
    out = np.zeros(inner(state[HEIGHT]).shape, np.float32)
    for order in (0, 1):
        down, right = slopes(state[RIVER + order], metres_per_px)
        metres = RIVERS_KM[order] * 1000
        distance = np.asarray(np.abs(inner(state[RIVER + order])) / steepness(down, right, 0.2 / metres), np.float32)
        out = np.maximum(out, 1 - smoothstep(distance, 500.0 + 0.002 * metres, 1800.0 + 0.008 * metres))
    return out


def sea_colour(world: World, state: Field, silt: Field) -> Field:
    """Colour of the sea by its depth, warm shallows turquoise, with silt off the rivers' mouths."""
    depth = np.maximum(-state[HEIGHT], 0)
    warm = smoothstep(np.float32(world.temperature) + state[TEMPERATURE], 6.0, 24.0)
    shallow = mix(COLD, REEF, warm)
    colour = mix(OPEN, DEEP, 1 - np.exp(-depth / np.float32(1500)))
    colour = colour * (1 + np.float32(0.11) * state[MINERAL])
    colour = mix(colour, shallow, np.exp(-depth / np.float32(45)) * np.float32(0.85))
    colour = mix(colour, shallow * np.float32(0.6), np.exp(-depth / np.float32(220)) * np.float32(0.5))
    return mix(colour, SILT, silt * np.exp(-depth / np.float32(25)) * np.float32(0.7))


def river_colour(world: World, state: Field) -> Field:
    """Rivers: clear where it is cool, brown where it is hot and wet."""
    brown = smoothstep(np.float32(world.temperature) + state[TEMPERATURE], 14.0, 28.0) * np.float32(0.6)
    return mix(FRESH, SILT, brown)


def sea_ice(world: World, state: Field, floes: Field, metres_per_px: float) -> Field:
    """Share of the sea under ice: solid where it is coldest, floes with dark leads where it is less so."""
    cold = -(np.float32(world.temperature) + state[TEMPERATURE]) - np.float32(7)
    ice = smoothstep(cold * np.float32(0.35) + floes, 0.0, 0.35)
    for order in (1, 2, 3):
        width = RIVERS_KM[order] * 1000 * RIVER_WIDTH
        if width > 0.1 * metres_per_px:
            away = np.abs(state[RIVER + order]) / np.float32(7 / (RIVERS_KM[order] * 1000))
            lead = coverage(away / np.float32(metres_per_px), 0.9 * width / metres_per_px)
            ice = ice * (1 - lead * np.float32(0.9))
    return np.asarray(ice, np.float32)
