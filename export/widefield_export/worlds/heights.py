"""Land refined octave by octave: heights with ridges, gullies and dunes, and the fields that climate and water need.

At lattice spacing s, with wavelength l = 4 s and the parent's enlarged state (h, warp, ...):

    a   = relief (l / extent)^roughness  m(h, ruggedness)         m: plains stay smooth, mountains do not
    h  += a lerp(n, 1.4 (0.75 - |n|), ridges) + gullies |grad h| 0.1 l g + dunes 0.02 l d
    warp += 0.02 l (n', n'')                        n is read at position + warp: the next octaves follow old folds

g are waves across the slope of all coarser octaves, so valleys branch; d are waves across the wind, on flat dry ground.

Shapes   a state is (STATE, h, w); its rows are named by the constants below.
Units    h, warp, l: metres; state[TEMPERATURE]: degrees; the rest have no unit.
"""

from __future__ import annotations

import numpy as np

from widefield_export.worlds.noise import SAMPLES, Field, Index, hash_unit, octave_noise, waves
from widefield_export.worlds.pyramid import Span, enlarge
from widefield_export.worlds.world import World

HEIGHT, WARP_Y, WARP_X, TEMPERATURE, MOISTURE, MINERAL, GLOW = range(7)
RIVER = 7  # the first of RIVERS rows
RIVERS_KM = (300.0, 60.0, 12.0, 2.5)  # longest wavelength of each order of rivers
RIVER_BENDS = 1 / 60  # the shortest bend of a river, of its longest wavelength
RUGGED = RIVER + len(RIVERS_KM)
SMOOTH, SMOOTHER = RUGGED + 1, RUGGED + 2  # heights as they were one and two octaves ago
STATE = RUGGED + 3
VOLCANO_KM = 48.0  # a cell that may hold one


def smoothstep(x: Field, low: float, high: float) -> Field:
    """0 up to `low`, 1 from `high` on, and a cubic between; `high` may be the lower one."""
    t = np.clip((x - np.float32(low)) / np.float32(high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def slopes(h: Field, spacing_m: float) -> tuple[Field, Field]:
    """Central differences of heights with one cell to spare on each side: rise per metre, downwards and rightwards."""
    k = np.float32(0.5 / spacing_m)
    return (h[2:, 1:-1] - h[:-2, 1:-1]) * k, (h[1:-1, 2:] - h[1:-1, :-2]) * k


def steepness(down: Field, right: Field, least: float = 0.0) -> Field:
    """The length of a slope, plus `least`."""
    return np.asarray(np.sqrt(down * down + right * right) + np.float32(least), np.float32)


def top_octave(world: World) -> int:
    """log2 of the spacing, in metres, of the coarsest lattice that has anything on it."""
    return int(np.ceil(np.log2(max(world.extent_km, RIVERS_KM[0]) * 1000 / SAMPLES)))


def land(world: World, span: Span, octave: int) -> Field:
    """The state on `span` of the lattice with spacing 2 ** octave metres, (STATE, h, w)."""
    spans = [span]
    for _ in range(octave, top_octave(world)):
        spans.append(spans[-1].grown(1).parent())
    root = spans[-1].grown(1)
    start = np.zeros((STATE, *root.shape), np.float32)
    start[[HEIGHT, SMOOTH, SMOOTHER]] = world.rise_m
    state = _refined(world, start, spans[-1], octave + len(spans) - 1)
    for level in range(len(spans) - 2, -1, -1):
        state = _refined(world, enlarge(state, spans[level].grown(1)), spans[level], octave + level)
    return state


def _refined(world: World, wider: Field, span: Span, octave: int) -> Field:
    """Add one octave to an enlarged parent that is one cell wider than `span` on every side."""
    spacing, length = 2.0**octave, 2.0**octave * SAMPLES
    state = np.ascontiguousarray(wider[:, 1:-1, 1:-1])
    rows, columns = span.rows, span.columns
    warp = state[WARP_Y : WARP_X + 1] * np.float32(1 / spacing)
    share = length / (world.extent_km * 1000)
    noise = octave_noise(world.seed, octave, rows, columns, RUGGED + (share > 0.05), warp)
    h = state[HEIGHT]
    new = np.zeros_like(h)
    if share <= 1.5:
        new += _fractal(world, state, noise[HEIGHT], share)
    if world.gullies and length < 0.12 * world.extent_km * 1000:
        new += _gullies(world, wider[SMOOTHER], span, octave)
    if world.dunes and length < 5000:
        new += _dunes(world, state, span, octave)
    if length <= 40 and world.temperature > 0:  # crowns of trees
        new += (
            noise[GLOW]
            * np.float32(0.16 * length**0.6)
            * smoothstep(state[MOISTURE] + world.moisture, 0.45, 0.8)
            * smoothstep(h, 2, 9)
        )
    if world.volcanoes and octave == 9:
        new += _volcanoes(world, rows, columns, warp)
    _refine_fields(world, state, noise, length, share)
    state[SMOOTHER] = state[SMOOTH]
    state[SMOOTH] = h
    h += new
    return state


def _fractal(world: World, state: Field, noise: Field, share: float) -> Field:
    """The multifractal term: n or its ridges, more of it where the land is high and rugged."""
    amplitude = world.relief_m * min(1.0, share) ** world.roughness
    h = state[HEIGHT]
    tall = np.float32(0.3) + np.float32(0.9) * smoothstep(np.abs(h), 0.0, 0.9 * world.relief_m)
    ground = smoothstep(h, -0.1 * world.relief_m, 0.08 * world.relief_m) - smoothstep(
        h, 0.1 * world.relief_m, 0.35 * world.relief_m
    )
    local = tall * np.exp(np.float32(0.45) * np.clip(state[RUGGED], -3, 2)) if share < 0.5 else np.ones_like(h)
    local = local * (1 - np.float32(0.85 * world.flats) * ground) if share < 0.3 else local
    ridged = np.float32(1.4) * (np.float32(0.75) - np.abs(noise))
    blend = np.float32(world.ridges) * smoothstep(h, -0.2 * world.relief_m, 0.4 * world.relief_m)
    return np.asarray(np.float32(amplitude) * local * (noise + blend * (ridged - noise)), np.float32)


def _gullies(world: World, wider: Field, span: Span, octave: int) -> Field:
    """Waves across the slope of everything coarser: their valleys run downhill and meet."""
    down, right = slopes(wider, 2.0**octave)
    steep = steepness(down, right, 1e-6)
    across = np.stack([-right / steep, down / steep])
    wave = waves(world.seed, octave, span.rows, span.columns, across)
    dry = smoothstep(wider[1:-1, 1:-1], -60.0, 20.0)
    size = np.float32(world.gullies * 0.11 * 2.0**octave * SAMPLES) * np.minimum(steep, 0.3) * dry
    return np.asarray(size * (wave - np.float32(0.25)), np.float32)


def _dunes(world: World, state: Field, span: Span, octave: int) -> Field:
    """Waves across the wind, steep on the lee side, where the ground is dry and low."""
    turn = np.float32(np.radians(world.wind)) + np.float32(0.35) * state[RUGGED] + np.float32(0.25) * state[MINERAL]
    along = np.stack([np.sin(turn), np.cos(turn)])
    wave = waves(world.seed + 1, octave, span.rows, span.columns, along, skew=0.6)
    length = 2.0**octave * SAMPLES
    strength = 0.03 if length > 300 else 0.012
    sandy = smoothstep(state[MINERAL] + np.float32(world.temperature < 0), -0.7, 0.5)
    sandy = sandy * smoothstep(state[HEIGHT], 5.0, 60.0)
    return np.asarray(np.float32(world.dunes * strength * length) * sandy * wave, np.float32)


def _volcanoes(world: World, rows: Index, columns: Index, warp: Field) -> Field:
    """Cones with craters, at most one to a cell; heights in metres."""
    cells = 2.0**9 / (VOLCANO_KM * 1000)
    y = (rows[:, None] + np.float32(0.35) * warp[0]) * cells
    x = (columns[None] + np.float32(0.35) * warp[1]) * cells
    top, left = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
    out = np.zeros(y.shape, np.float32)
    for a in (-1, 0, 1):
        for b in (-1, 0, 1):
            r, c = top + a, left + b
            dy = y - r - 0.2 - 0.6 * hash_unit(world.seed, r, c)
            dx = x - c - 0.2 - 0.6 * hash_unit(world.seed + 1, r, c)
            size = hash_unit(world.seed + 2, r, c)
            there = (hash_unit(world.seed + 3, r, c) < 0.85 * world.volcanoes).astype(np.float32)
            radius = (0.16 + 0.34 * size**2).astype(np.float32)
            d = np.sqrt(dy * dy + dx * dx) / radius
            rim = 0.075 + 0.05 * (1 - size)
            cone = np.exp(-3.2 * d) * (1 - smoothstep(d, 0.7, 1.4))
            crater = np.exp(-3.2 * rim) * (0.55 + 0.45 * (d / rim) ** 2)
            out += there * radius * 8500 * np.where(d < rim, np.minimum(cone, crater), cone).astype(np.float32)
    return out


def _refine_fields(world: World, state: Field, noise: Field, length: float, share: float) -> None:
    """Add an octave to everything but height, in place."""
    fold = 0.022 if share > 0.08 else 0.004  # folds add up: more of them would tear the fine octaves into stripes
    state[WARP_Y : WARP_X + 1] += noise[WARP_Y : WARP_X + 1] * np.float32(fold * min(length, world.extent_km * 1000))
    if share <= 1.5:
        state[TEMPERATURE] += noise[TEMPERATURE] * np.float32(2.5 * share**0.35)
        state[MOISTURE] += noise[MOISTURE] * np.float32(0.13 * max(share**0.13, 0.5))
        state[MINERAL] += noise[MINERAL] * np.float32(0.5 * share**0.16)
        state[GLOW] += noise[GLOW] * np.float32(0.75)
        if share > 0.05:
            state[RUGGED] += noise[RUGGED] * np.float32(0.9)
    for order, longest_km in enumerate(RIVERS_KM):
        part = length / (longest_km * 1000)
        if RIVER_BENDS <= part <= 1:
            state[RIVER + order] += noise[RIVER + order] * np.float32(part**1.1)
