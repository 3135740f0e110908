"""What covers the ground: a colour for every temperature and moisture, then rock, sand, snow.

Colours are of a satellite's picture at noon, display-referred (sRGB), in [0, 1]; (3, h, w).
"""

from __future__ import annotations

import numpy as np

from widefield_export.worlds.heights import HEIGHT, MINERAL, MOISTURE, TEMPERATURE, smoothstep
from widefield_export.worlds.noise import Field
from widefield_export.worlds.world import World

LAPSE = 0.0055  # degrees lost a metre
TEMPERATURES = (-14.0, -2.0, 6.0, 15.0, 23.0, 29.0)
MOISTURES = (0.0, 0.25, 0.5, 0.75, 1.0)
# Rows: temperatures; columns: moistures.
GROUND = np.array(
    [
        [(0.56, 0.53, 0.50), (0.54, 0.52, 0.49), (0.52, 0.51, 0.48), (0.52, 0.52, 0.50), (0.54, 0.55, 0.54)],
        [(0.52, 0.48, 0.41), (0.45, 0.43, 0.34), (0.38, 0.38, 0.28), (0.31, 0.34, 0.24), (0.27, 0.32, 0.24)],
        [(0.58, 0.52, 0.40), (0.44, 0.43, 0.29), (0.29, 0.34, 0.20), (0.16, 0.25, 0.14), (0.11, 0.20, 0.12)],
        [(0.68, 0.59, 0.43), (0.54, 0.51, 0.32), (0.38, 0.44, 0.22), (0.22, 0.34, 0.14), (0.13, 0.26, 0.10)],
        [(0.80, 0.67, 0.47), (0.66, 0.57, 0.37), (0.46, 0.46, 0.24), (0.24, 0.37, 0.14), (0.10, 0.27, 0.09)],
        [(0.85, 0.70, 0.48), (0.72, 0.57, 0.36), (0.50, 0.47, 0.24), (0.24, 0.38, 0.14), (0.085, 0.23, 0.085)],
    ],
    np.float32,
)
RED = np.array((0.71, 0.42, 0.26), np.float32)
PALE = np.array((0.87, 0.80, 0.66), np.float32)
ROCK = np.array((0.44, 0.41, 0.37), np.float32)
BASALT = np.array((0.17, 0.155, 0.15), np.float32)
RUST = np.array((0.33, 0.21, 0.16), np.float32)
SAND = np.array((0.86, 0.79, 0.62), np.float32)
SNOW = np.array((0.88, 0.91, 0.94), np.float32)


def mix(a: Field, b: Field, share: Field | float) -> Field:
    """a where share is 0, b where it is 1; colours (3,) or (3, h, w), share (h, w)."""
    a, b = (c[:, None, None] if c.ndim == 1 else c for c in (a, b))
    return np.asarray(a + (b - a) * np.float32(share), np.float32)


def _position(x: Field, knots: tuple[float, ...]) -> tuple[Field, Field]:
    """Which interval of the knots, and how far into it."""
    place = np.interp(x, knots, np.arange(len(knots)))
    lower = np.minimum(place.astype(np.int64), len(knots) - 2)
    return lower, (place - lower).astype(np.float32)


def vegetation(temperature: Field, moisture: Field) -> Field:
    """The table of colours, read bilinearly."""
    row, t = _position(temperature, TEMPERATURES)
    column, m = _position(moisture, MOISTURES)
    table, width = GROUND.reshape(-1, 3).T, len(MOISTURES)
    corner = row * width + column
    out = np.empty((3, *t.shape), np.float32)
    weights = ((1 - t) * (1 - m), (1 - t) * m, t * (1 - m), t * m)
    for channel in range(3):
        parts = (table[channel].take(corner + step) for step in (0, 1, width, width + 1))
        out[channel] = sum(w * p for w, p in zip(weights, parts, strict=True))
    return out


def variety(world: World) -> float:
    """How much moisture varies: deserts and rainforests stay what they are."""
    return 0.3 + 2.8 * world.moisture * (1 - world.moisture)


def local_climate(world: World, state: Field, wet: Field) -> tuple[Field, Field]:
    """Degrees Celsius and moisture at the ground; `wet` is added near rivers."""
    h = np.maximum(state[HEIGHT], 0)
    temperature = np.float32(world.temperature) + state[TEMPERATURE] - np.float32(LAPSE) * h
    moisture = np.float32(world.moisture) + state[MOISTURE] * np.float32(variety(world)) + wet
    return temperature, np.asarray(moisture, np.float32)


def ground(world: World, state: Field, wet: Field, steep: Field, metres_per_px: float) -> Field:
    """Land's colour before light, (3, h, w); `steep` is the slope."""
    temperature, moisture = local_climate(world, state, wet)
    colour = vegetation(temperature, np.clip(moisture, 0, 1))
    bare = 1 - smoothstep(moisture, 0.08, 0.5)
    mineral = state[MINERAL]
    red = np.clip(np.float32(world.redness) + np.float32(0.35) * mineral, 0, 1)
    warm = smoothstep(temperature, -4.0, 14.0)
    earth = mix(PALE, RED, red)
    colour = mix(colour, earth * (colour.mean(0) / 0.62), bare * warm * np.float32(0.75))
    colour = colour * (1 + np.array((0.10, 0.06, 0.03), np.float32)[:, None, None] * mineral)
    rocky = smoothstep(steep * np.float32(min(1.0, (metres_per_px / 64) ** 0.2)), 0.35, 0.95) * np.float32(0.8)
    tone = mix(ROCK, RED * np.float32(0.85), np.clip(red, 0, 1) * warm * bare)
    colour = mix(colour, tone, rocky)
    if world.dark_rock:
        lava = mix(BASALT, RUST, smoothstep(mineral, 0.2, 1.4) * np.float32(0.7))
        fresh = smoothstep(np.float32(1.2) * mineral + state[HEIGHT] / np.float32(900), -0.6, 1.2)
        fresh = np.maximum(fresh, smoothstep(moisture, 0.5, 0.2) if world.moisture < 0.4 else fresh)
        colour = mix(colour, lava, fresh * np.float32(world.dark_rock))
    return snowed(colour, temperature, moisture, steep, mineral)


def snowed(colour: Field, temperature: Field, moisture: Field, steep: Field, mineral: Field) -> Field:
    """Snow where it is cold enough, later on steep slopes and on dry ground."""
    cold = -temperature - np.float32(2.5) + np.float32(3) * (moisture - np.float32(0.4)) + np.float32(0.8) * mineral
    cover = smoothstep(cold - np.float32(5) * np.minimum(steep, 1.2), -1.6, 2.2)
    return mix(colour, SNOW, cover)
