"""Sun, shade, night and clouds.

    shade = max(0, n . l),   n = (-E dh/dx, -E dh/dy, 1) / |.|,   E: exaggeration, which grows with the scale
    colour = albedo (ambient + direct shade) (1 - shadow) -> clouds -> haze

Shapes   colours (3, h, w); shade, shadow, alpha (h, w).
Units    elevation, azimuth: degrees, azimuth clockwise from the top of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from widefield_export.worlds.climate import mix
from widefield_export.worlds.heights import smoothstep
from widefield_export.worlds.noise import SAMPLES, Field, octave_noise
from widefield_export.worlds.pyramid import Span, enlarge
from widefield_export.worlds.world import Sky

CLOUD_TOP_OCTAVE = 16  # 262 km
CLOUD_HEIGHT_M = 2500.0


@dataclass(frozen=True, slots=True)
class Light:
    """Colours of the sun, of the sky's light, of clouds and of the air."""

    direct: tuple[float, float, float]
    ambient: tuple[float, float, float]
    cloud: tuple[float, float, float]
    haze: tuple[float, float, float]


LIGHTS = {
    "day": Light((0.72, 0.70, 0.66), (0.36, 0.38, 0.42), (0.97, 0.98, 1.0), (0.42, 0.55, 0.72)),
    "dawn": Light((0.98, 0.68, 0.42), (0.34, 0.30, 0.36), (1.0, 0.80, 0.66), (0.80, 0.56, 0.44)),
    "dusk": Light((0.82, 0.49, 0.38), (0.30, 0.26, 0.42), (0.90, 0.64, 0.66), (0.52, 0.38, 0.52)),
    "night": Light((0.16, 0.20, 0.29), (0.09, 0.12, 0.20), (0.24, 0.28, 0.38), (0.05, 0.08, 0.16)),
}
WINDOW = np.array((1.0, 0.74, 0.40), np.float32)


def sun_vector(sky: Sky) -> tuple[float, float, float]:
    """Unit vector to the sun: down the picture, rightwards, up."""
    a, e = np.radians(sky.azimuth), np.radians(sky.elevation)
    return float(-np.cos(a) * np.cos(e)), float(np.sin(a) * np.cos(e)), float(np.sin(e))


def exaggeration(metres_per_px: float) -> float:
    """How much steeper slopes are drawn: wide views would look flat."""
    return float(1.9 * max(1.0, metres_per_px / 16) ** 0.28)


def hillshade(down: Field, right: Field, sky: Sky, metres_per_px: float) -> Field:
    """Cosine between ground and sun, divided by that of flat ground, softly limited."""
    ly, lx, lz = sun_vector(sky)
    k = np.float32(exaggeration(metres_per_px))
    down, right = down * k, right * k
    cosine = (-down * np.float32(ly) - right * np.float32(lx) + np.float32(lz)) / np.sqrt(1 + down**2 + right**2)
    relative = np.maximum(cosine, 0) / np.float32(max(lz, 0.35))
    return np.asarray(relative / (1 + np.float32(0.18) * relative**2) * np.float32(1.18), np.float32)


def lit(colour: Field, shade: Field, sky: Sky) -> Field:
    """Ground under the sun and the sky."""
    light = LIGHTS[sky.light]
    direct, ambient = (np.array(c, np.float32)[:, None, None] for c in (light.direct, light.ambient))
    return np.asarray(colour * (ambient + direct * shade), np.float32)


def cloud_field(sky: Sky, span: Span, octave: int) -> Field:
    """A warped fractal on the lattice of spacing 2 ** octave metres, (h, w): the share of sky decides what shows."""
    spans = [span]
    for _ in range(octave, CLOUD_TOP_OCTAVE):
        spans.append(spans[-1].parent())
    state = np.zeros((3, *spans[-1].shape), np.float32)
    for level in range(len(spans) - 1, -1, -1):
        here = octave + level
        if level < len(spans) - 1:
            state = enlarge(state, spans[level])
        length = 2.0**here * SAMPLES
        warp = state[1:] * np.float32(2.0**-here)
        noise = octave_noise(sky.seed, here, spans[level].rows, spans[level].columns, 3, warp, stream=2)
        share = length / (2.0**CLOUD_TOP_OCTAVE * SAMPLES)
        state[0] += noise[0] * np.float32(0.75 * share**0.32)
        state[1:] += noise[1:] * np.float32((0.035 if share > 0.1 else 0.006) * length)
    return np.asarray(state[0], np.float32)


def cloud_alpha(field: Field, sky: Sky) -> Field:
    """How much a cloud hides, from 0 to almost 1."""
    threshold = 1.05 - 2.1 * sky.clouds
    return smoothstep(field, threshold, threshold + 1.5) ** np.float32(0.8) * np.float32(0.97)


def cloud_shadow_offset(sky: Sky, metres_per_px: float) -> tuple[int, int]:
    """Whole pixels from the ground to the cloud that shades it, rows and columns."""
    ly, lx, lz = sun_vector(sky)
    reach = CLOUD_HEIGHT_M / max(lz, 0.25) / metres_per_px
    return round(ly * reach), round(lx * reach)


def clouded(colour: Field, field: Field, alpha: Field, sky: Sky) -> Field:
    """Clouds over a picture; thick parts are brighter than thin ones, slopes away from the sun are grey."""
    ly, lx, _ = sun_vector(sky)
    gy, gx = np.gradient(field)
    slope = np.clip(np.float32(0.9) * (-gy * np.float32(ly) - gx * np.float32(lx)), -0.3, 0.2)
    white = np.array(LIGHTS[sky.light].cloud, np.float32)[:, None, None] * (np.float32(0.9) + slope)
    return mix(colour, np.asarray(white, np.float32), alpha)


def hazed(colour: Field, sky: Sky, metres_per_px: float) -> Field:
    """A veil of air, thicker in wide views."""
    veil = 0.03 + 0.05 * float(np.clip(np.log2(max(metres_per_px, 1) / 16) / 8, 0, 1))
    return mix(colour, np.array(LIGHTS[sky.light].haze, np.float32), veil)


def city_lights(glow: Field, populated: Field, metres_per_px: float) -> Field:
    """Windows by night: a product of many octaves, so that light is in clusters of clusters, (h, w)."""
    octaves = max(1.0, 15 - np.log2(metres_per_px))
    measure = np.exp(glow * np.float32(1.1) - np.float32(0.5 * 1.1**2 * 0.5625 * octaves))
    light = populated * measure
    return np.asarray(light / (1 + light), np.float32)


def developed(colour: Field) -> Field:
    """Bright tones bent under 1, and nothing under 0."""
    over = np.maximum(colour - np.float32(0.75), 0)
    return np.asarray(np.clip(colour, 0, 0.75) + np.float32(0.25) * (1 - np.exp(-over * 4)), np.float32)
