"""Draw worlds, skies and places at random: terrain x climate x light x clouds, but for compositions that are held out.

Nothing here looks at a picture but `find_place`, which walks down the scales towards a coast, a river or any land, so
that close views are seldom of nothing but sea.

Units    _m: metres; scale: metres per pixel, a power of two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from widefield_export.worlds.heights import HEIGHT, RIVER, land
from widefield_export.worlds.pyramid import Span
from widefield_export.worlds.world import Sky, World

SCALES_M = tuple(2.0**k for k in range(1, 13))
SCALE_ODDS = tuple(w / 10.4 for w in (0.4, 0.4, 0.5, 0.6, 0.7, 0.9, 1.0, 1.2, 1.4, 1.4, 1.2, 0.7))
LIGHTS = ("dawn", "day", "dusk", "night")
LIGHT_ODDS = (0.2, 0.45, 0.17, 0.18)
CLOUDS = ("clear", "scattered", "cloudy")
CLOUD_ODDS = (0.55, 0.25, 0.2)

# What the plane is like: any of World's fields, a pair for a range.
Ranges = dict[str, float | tuple[float, float]]
TERRAINS: dict[str, Ranges] = {
    "islands": {"extent_km": (60, 200), "relief_m": (400, 900), "rise_m": (-420, -150), "ridges": (0.2, 0.7)},
    "volcanoes": {
        "extent_km": (100, 240), "relief_m": (350, 700), "rise_m": (-650, -300), "volcanoes": (0.6, 1),
        "dark_rock": (0.6, 1), "ridges": (0.1, 0.5),
    },
    "coast": {"extent_km": (300, 900), "relief_m": (500, 1200), "rise_m": (-100, 150), "rivers": (0.4, 0.9)},
    "mountains": {
        "extent_km": (200, 500), "relief_m": (1100, 1900), "rise_m": (1200, 2400), "ridges": (0.7, 1),
        "gullies": (0.6, 1), "roughness": (0.74, 0.82),
    },
    "plains": {
        "extent_km": (400, 900), "relief_m": (200, 450), "rise_m": (300, 700), "ridges": 0.0, "rivers": (0.6, 1),
        "gullies": (0.1, 0.4),
    },
    "delta": {
        "extent_km": (250, 600), "relief_m": (150, 300), "rise_m": (-30, 40), "ridges": 0.0, "rivers": 1.0,
        "gullies": 0.1, "flats": (0.8, 1),
    },
    "fjords": {
        "extent_km": (150, 400), "relief_m": (900, 1400), "rise_m": (100, 700), "ridges": (0.5, 0.9),
        "gullies": (0.6, 0.9), "fjords": 1.0, "rivers": (0.5, 1),
    },
    "dunes": {
        "extent_km": (400, 900), "relief_m": (200, 500), "rise_m": (400, 800), "ridges": 0.1, "gullies": (0.1, 0.3),
        "dunes": (0.8, 1.2), "rivers": 0.0,
    },
    "canyons": {
        "extent_km": (300, 700), "relief_m": (500, 900), "rise_m": (900, 1500), "ridges": (0.0, 0.3),
        "gullies": 1.0, "rivers": (0.7, 1),
    },
    "reefs": {
        "extent_km": (40, 120), "relief_m": (50, 110), "rise_m": (-65, -25), "ridges": 0.1, "gullies": 0.1,
        "rivers": 0.0, "flats": (0.3, 0.8),
    },
    "sea": {"extent_km": (300, 900), "relief_m": (500, 900), "rise_m": (-2200, -1300), "ridges": 0.2},
}  # fmt: skip
TERRAIN_ODDS = tuple((0.4 if name == "sea" else 1.0) / (len(TERRAINS) - 0.6) for name in TERRAINS)
CLIMATES: dict[str, Ranges] = {
    "ice": {"temperature": (-24, -13), "moisture": (0.4, 0.7), "dunes": (0, 0.6), "cities": 0.0, "rivers": (0, 0.2)},
    "tundra": {"temperature": (-4, 2), "moisture": (0.35, 0.7), "cities": 0.05},
    "boreal": {"temperature": (5, 9), "moisture": (0.6, 0.9), "cities": (0.1, 0.4)},
    "temperate": {"temperature": (12, 17), "moisture": (0.5, 0.8), "cities": (0.4, 1), "farms": (0, 1)},
    "steppe": {"temperature": (10, 20), "moisture": (0.2, 0.36), "cities": (0.2, 0.7), "farms": (0, 0.8)},
    "desert": {"temperature": (22, 31), "moisture": (-0.1, 0.07), "redness": (0, 0.8), "cities": (0.05, 0.4)},
    "savanna": {"temperature": (23, 29), "moisture": (0.32, 0.5), "cities": (0.1, 0.5)},
    "rainforest": {"temperature": (24, 30), "moisture": (0.82, 1.05), "cities": (0.1, 0.5)},
}
ONLY: dict[str, tuple[str, ...]] = {
    "dunes": ("desert",),
    "reefs": ("rainforest", "savanna", "desert"),
    "canyons": ("desert", "steppe", "savanna", "temperate"),
    "delta": ("boreal", "temperate", "steppe", "desert", "savanna", "rainforest", "tundra"),
    "fjords": ("ice", "tundra", "boreal", "temperate"),
}
# Pairs of concepts that no training picture has: what is shown of them was composed by the model.
HELD_OUT: tuple[frozenset[str], ...] = tuple(
    frozenset(pair)
    for pair in (
        ("dunes", "night"),
        ("fjords", "dusk"),
        ("reefs", "dawn"),
        ("rainforest", "dusk"),
        ("ice", "volcanoes"),
        ("mountains", "savanna"),
        ("delta", "night"),
    )
)


@dataclass(frozen=True, slots=True)
class Scene:
    """A world and a sky, and the words for what they were drawn as."""

    world: World
    sky: Sky
    terrain: str
    climate: str
    light: str
    clouds: str

    @property
    def concepts(self) -> frozenset[str]:
        return frozenset((self.terrain, self.climate, self.light, self.clouds))


def is_held_out(concepts: frozenset[str]) -> bool:
    """Whether any held-out pair is among these concepts."""
    return any(pair <= concepts for pair in HELD_OUT)


def draw_scene(rng: np.random.Generator) -> Scene:
    """One scene that is not held out."""
    while True:
        terrain = str(rng.choice(list(TERRAINS), p=TERRAIN_ODDS))
        climate = str(rng.choice(ONLY.get(terrain, tuple(CLIMATES))))
        world = make_world(rng, terrain, climate)
        scene = under_another_sky(rng, Scene(world, Sky(), terrain, climate, "day", "clear"))
        if not is_held_out(scene.concepts):
            return scene


def under_another_sky(rng: np.random.Generator, scene: Scene) -> Scene:
    """The same world with new light and clouds; it may be one that is held out."""
    light = str(rng.choice(LIGHTS, p=LIGHT_ODDS))
    clouds = str(rng.choice(CLOUDS, p=CLOUD_ODDS))
    return replace(scene, sky=make_sky(rng, light, clouds), light=light, clouds=clouds)


def make_world(rng: np.random.Generator, terrain: str, climate: str) -> World:
    """A world with this terrain and climate: ranges are drawn uniformly, the climate's after the terrain's."""
    values: dict[str, float] = {}
    for name, value in (*TERRAINS[terrain].items(), *CLIMATES[climate].items()):
        drawn = float(rng.uniform(*value)) if isinstance(value, tuple) else float(value)
        values[name] = max(drawn, values.get(name, 0.0)) if name in ("dunes", "rivers") else drawn
    if climate == "desert" and terrain != "delta":
        values["rivers"] = min(values.get("rivers", 0.0), 0.25)
    return World(seed=int(rng.integers(2**31)), wind=float(rng.uniform(0, 180)), **values)


def make_sky(rng: np.random.Generator, light: str, clouds: str) -> Sky:
    """The sun of an hour and the clouds of a word."""
    elevation = {"day": (35, 65), "dawn": (12, 22), "dusk": (9, 18), "night": (30, 60)}[light]
    azimuth = {"day": (285, 345), "dawn": (60, 120), "dusk": (240, 300), "night": (285, 345)}[light]
    cover = {"clear": (0.0, 0.0), "scattered": (0.3, 0.5), "cloudy": (0.6, 0.85)}[clouds]
    return Sky(light, rng.uniform(*azimuth), rng.uniform(*elevation), rng.uniform(*cover), int(rng.integers(2**31)))


def find_place(rng: np.random.Generator, scene: Scene, scale: float, size_px: int) -> tuple[int, int]:
    """The first pixel, (y, x), of a view at this scale that is likely to show something of the scene."""
    world, final = scene.world, round(float(np.log2(scale)))
    octave = max(final, round(float(np.log2(world.extent_km * 1000 / 24))))
    y, x = (int(rng.integers(-(2**25), 2**25)) >> octave for _ in range(2))
    aim = str(rng.choice(["coast", "land", "river", "any"], p=[0.5, 0.3, 0.15, 0.05]))
    while octave > final:
        window = 32
        state = land(world, Span(y - window // 2, x - window // 2, y + window // 2, x + window // 2), octave)
        at = int(np.argmax(_appeal(state, aim, 2.0**octave) + rng.gumbel(size=(window, window))))
        step = min(4, octave - final)
        y, x = (y - window // 2 + at // window) * 2**step, (x - window // 2 + at % window) * 2**step
        octave -= step
    jitter = rng.integers(-size_px // 4, size_px // 4 + 1, 2)
    return y - size_px // 2 + int(jitter[0]), x - size_px // 2 + int(jitter[1])


def _appeal(state: np.ndarray, aim: str, spacing: float) -> np.ndarray:
    """Log odds of going on at each lattice point."""
    h = state[HEIGHT]
    if aim == "coast":
        return np.asarray(-6 * np.minimum(np.abs(h) / (0.05 * spacing), 1.5))
    if aim == "land":
        return np.asarray(6.0 * (h > 0))
    if aim == "river":
        return np.asarray(6.0 * (h > 0) - 5 * np.minimum(np.abs(state[RIVER : RIVER + 3]).min(0) * 8, 1))
    return np.zeros_like(h)
