"""Fields: parcels of land, each with a colour of its own, in districts that are turned against each other.

district = the nearest jittered point of a grid of DISTRICT_M; it sets the angle and the parcel's sides
parcel   = floor of the turned position over its sides; its crop is a hash of it
share    = how sharp parcels are drawn: 0 where a parcel is under about two pixels, so far views show their mean
"""

from __future__ import annotations

import numpy as np

from widefield_export.worlds.climate import local_climate, mix
from widefield_export.worlds.heights import HEIGHT, MINERAL, RUGGED, smoothstep
from widefield_export.worlds.noise import Field, hash_unit
from widefield_export.worlds.pyramid import Span
from widefield_export.worlds.world import World

DISTRICT_M = 3200.0
PARCEL_M = 260.0
CROPS = np.array(
    [
        (0.30, 0.42, 0.16), (0.38, 0.46, 0.20), (0.24, 0.36, 0.13), (0.62, 0.57, 0.32), (0.70, 0.62, 0.38),
        (0.50, 0.42, 0.28), (0.40, 0.33, 0.24), (0.47, 0.50, 0.24),
    ],
    np.float32,
)  # fmt: skip


def _nearest(seed: int, y: Field, x: Field) -> tuple[np.ndarray, np.ndarray, Field, Field]:
    """Index and offset, in cells, of the nearest jittered grid point."""
    top, left = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
    best = np.full(y.shape, np.inf, np.float32)
    row, column = np.zeros_like(top), np.zeros_like(left)
    dy_best, dx_best = np.zeros_like(best), np.zeros_like(best)
    for a in (-1, 0, 1):
        for b in (-1, 0, 1):
            r, c = top + a, left + b
            dy = (y - r - hash_unit(seed, r, c)).astype(np.float32)
            dx = (x - c - hash_unit(seed + 1, r, c)).astype(np.float32)
            closer = dy * dy + dx * dx < best
            best = np.where(closer, dy * dy + dx * dx, best)
            row, column = np.where(closer, r, row), np.where(closer, c, column)
            dy_best, dx_best = np.where(closer, dy, dy_best), np.where(closer, dx, dx_best)
    return row, column, dy_best, dx_best


def farmed(world: World, colour: Field, state: Field, span: Span, steep: Field, metres_per_px: float) -> Field:
    """Ground with fields where the climate, the slope and the world allow them; (3, h, w)."""
    sharp = float(np.clip(1.6 - metres_per_px / (0.3 * PARCEL_M), 0, 1))
    if not world.farms:
        return colour
    temperature, moisture = local_climate(world, state, np.zeros_like(steep))
    tilled = smoothstep(np.float32(0.5) * state[RUGGED] + np.float32(0.25) * state[MINERAL], 1.0 - 2 * world.farms, 1.6)
    tilled = smoothstep(tilled, 0.2, 0.45) * smoothstep(steep, 0.3, 0.12) * smoothstep(state[HEIGHT], 3.0, 12.0)
    tilled = tilled * smoothstep(temperature, 3.0, 7.0) * smoothstep(moisture, 0.1, 0.25) * np.float32(0.85)
    fields = np.broadcast_to(CROPS.mean(0)[:, None, None], colour.shape)
    if sharp > 0 and tilled.max() > 0.02:
        fields = mix(np.ascontiguousarray(fields), _parcels(world, span, metres_per_px), sharp)
    return mix(colour, fields, tilled)


def _parcels(world: World, span: Span, metres_per_px: float) -> Field:
    """The colour of the parcel at every pixel, with darker margins."""
    y = ((span.rows + 0.5) * (metres_per_px / DISTRICT_M))[:, None]
    x = ((span.columns + 0.5) * (metres_per_px / DISTRICT_M))[None]
    row, column, dy, dx = _nearest(world.seed, *np.broadcast_arrays(y, x))
    angle = hash_unit(world.seed + 2, row, column) * np.float32(np.pi)
    c, s = np.cos(angle), np.sin(angle)
    length = 0.7 + 1.2 * hash_unit(world.seed + 3, row, column)
    v = (c * dy - s * dx) * np.float32(DISTRICT_M / PARCEL_M) * length
    u = (s * dy + c * dx) * np.float32(DISTRICT_M / PARCEL_M) / length
    pv, pu = np.floor(v), np.floor(u)
    key = row * 977 + column * 131
    crop = hash_unit(world.seed + 4, pv.astype(np.int64) + key, pu.astype(np.int64) - key)
    tint = hash_unit(world.seed + 5, pv.astype(np.int64) - key, pu.astype(np.int64) + key)
    colour = CROPS.T.take((crop * len(CROPS)).astype(np.int64), axis=1) * (np.float32(0.88) + np.float32(0.24) * tint)
    edge = np.minimum(np.minimum(v - pv, 1 - v + pv) / length, np.minimum(u - pu, 1 - u + pu) * length)
    margin = smoothstep(edge * np.float32(PARCEL_M), 3.0 + 0.3 * metres_per_px, 3.0 + 0.9 * metres_per_px)
    return np.asarray(colour * (np.float32(0.72) + np.float32(0.28) * margin), np.float32)
