"""Captions composed from what was drawn: terrain, climate, light, clouds and scale, in several ways of saying it.

Every part but one may be left out, as people leave out what they do not mind.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from widefield_export.worlds.draw import Scene

Words = tuple[str, ...]

TERRAIN: dict[str, Words] = {
    "islands": ("an archipelago", "islands", "many islands in the sea", "a group of islands", "small islands"),
    "volcanoes": (
        "a volcanic archipelago", "volcanic islands", "volcanoes in the sea", "a volcano with a crater",
        "an archipelago of volcanoes", "islands of black lava",
    ),
    "coast": ("a coast", "a coastline", "a shore with bays", "land and sea", "a coast with beaches", "a harbour"),
    "mountains": ("mountains", "a mountain range", "high peaks and valleys", "alps", "steep mountains and ridges"),
    "plains": ("plains", "a wide plain with rivers", "lowlands", "flat land", "a plain with a winding river"),
    "delta": ("a river delta", "a delta with many channels", "a river mouth", "an estuary", "wetlands by the sea"),
    "fjords": ("fjords", "a fjord coast", "a coast with fjords", "long fjords between mountains"),
    "dunes": ("dunes", "a desert with dunes", "sand dunes", "a sea of sand", "an erg of dunes"),
    "canyons": ("canyons", "a canyon", "eroded plateaus and gorges", "badlands", "a land of gullies and canyons"),
    "reefs": ("coral reefs", "atolls and lagoons", "turquoise lagoons", "a reef", "shallow water and sandbanks"),
    "sea": ("the open sea", "an ocean", "deep blue water", "a wide sea", "the ocean with few islands"),
}  # fmt: skip
CLIMATE: dict[str, Words] = {
    "ice": ("icy", "frozen", "arctic", "snow covered", "polar", "glacial"),
    "tundra": ("tundra", "cold", "subarctic", "barren cold"),
    "boreal": ("boreal", "northern forest", "taiga", "pine forest", "cool forested"),
    "temperate": ("temperate", "green", "forest and meadow", "mild", "lush green"),
    "steppe": ("steppe", "dry grassland", "semi arid", "prairie", "dry"),
    "desert": ("desert", "arid", "sandy", "barren desert", "sahara"),
    "savanna": ("savanna", "warm dry", "tropical grassland", "golden savanna"),
    "rainforest": ("rainforest", "jungle", "tropical", "tropical rainforest", "humid"),
}
CLIMATE_NOUN: dict[str, Words] = {
    "ice": ("ice", "snow and ice", "ice and glaciers", "an ice cap"),
    "tundra": ("tundra", "cold barren land"),
    "boreal": ("forest", "dark forest", "boreal forest", "taiga"),
    "temperate": ("forest and fields", "green hills", "woodland", "meadows"),
    "steppe": ("steppe", "grassland", "prairie"),
    "desert": ("desert", "sand and rock", "a desert"),
    "savanna": ("savanna", "grassland with trees"),
    "rainforest": ("rainforest", "jungle", "dense forest"),
}
LIGHT: dict[str, Words] = {
    "dawn": ("at dawn", "at sunrise", "in the early morning", "dawn", "in the golden light of morning"),
    "day": ("by day", "at noon", "in daylight", "in bright sun", "day"),
    "dusk": ("at dusk", "at sunset", "in the evening", "dusk", "at twilight"),
    "night": ("at night", "by night", "night", "in the dark", "under the moon"),
}
CLOUDS: dict[str, Words] = {
    "clear": ("under a clear sky", "without clouds", "clear sky", "cloudless"),
    "scattered": ("with scattered clouds", "with some clouds", "with a few clouds", "partly cloudy"),
    "cloudy": ("under clouds", "with many clouds", "cloudy", "with thick clouds", "overcast"),
}
# Views by metres per pixel: up to and including each bound.
SCALE: tuple[tuple[float, Words], ...] = (
    (4.0, ("close up", "from low above", "a drone picture", "a close view", "seen from a balloon")),
    (32.0, ("an aerial view", "from an aeroplane", "an aerial photograph", "from above")),
    (256.0, ("from high above", "a high view", "from the stratosphere", "seen from high up")),
    (float("inf"), ("from space", "from far above", "a satellite picture", "from orbit", "seen from a satellite")),
)


def scale_words(metres_per_px: float) -> Words:
    """The phrases for a scale."""
    return next(words for bound, words in SCALE if metres_per_px <= bound)


def cloud_word(share: float) -> str:
    """What to call the clouds that cover this share of a view."""
    return "clear" if share < 0.04 else "scattered" if share < 0.35 else "cloudy"


def _pick(rng: np.random.Generator, words: Words) -> str:
    return words[int(rng.integers(len(words)))]


def _with_article(adjective: str, noun: str) -> str:
    """`a` or `an` moved in front of an adjective."""
    for article in ("an ", "a "):
        if noun.startswith(article):
            return f"{'an' if adjective[0] in 'aeiou' else 'a'} {adjective} {noun.removeprefix(article)}"
    if noun.startswith("the "):
        return f"the {adjective} {noun.removeprefix('the ')}"
    return f"{adjective} {noun}"


def subject(rng: np.random.Generator, scene: Scene) -> str:
    """Terrain and climate, or one of them."""
    terrain, climate = _pick(rng, TERRAIN[scene.terrain]), _pick(rng, CLIMATE[scene.climate])
    way = rng.random()
    if scene.terrain == "dunes" or way < 0.12:
        return terrain if rng.random() < 0.7 or "desert" in terrain else _with_article(climate, terrain)
    if way < 0.22 and scene.terrain != "sea":
        return _pick(rng, CLIMATE_NOUN[scene.climate])
    if way < 0.45:
        joint = "and" if rng.random() < 0.5 else "with"
        return f"{terrain} {joint} {_pick(rng, CLIMATE_NOUN[scene.climate])}"
    return _with_article(climate, terrain)


def details(rng: np.random.Generator, scene: Scene, shares: Mapping[str, float]) -> list[str]:
    """What this very view shows, if it is worth a word."""
    said = []
    if shares["sea"] > 0.85:
        said.append(_pick(rng, ("mostly water", "water", "open water")))
    elif shares["sea"] < 0.01 and scene.terrain in ("islands", "volcanoes", "coast", "fjords", "delta"):
        said.append(_pick(rng, ("only land", "inland", "no sea")))
    if shares["river"] > 0.06:
        said.append(_pick(rng, ("a river", "a wide river", "river and banks")))
    if scene.light == "night" and scene.world.cities > 0.35 and shares["sea"] < 0.8:
        said.append(_pick(rng, ("city lights", "lights of towns")))
    return said


def caption(rng: np.random.Generator, scene: Scene, shares: Mapping[str, float], metres_per_px: float) -> str:
    """One caption of one view."""
    parts = [subject(rng, scene)]
    if rng.random() < (0.28 if scene.light == "day" else 0.92):
        parts.append(_pick(rng, LIGHT[scene.light]))
    clouds = cloud_word(shares["cloud"])
    if rng.random() < (0.18 if clouds == "clear" else 0.9):
        parts.append(_pick(rng, CLOUDS[clouds]))
    parts += [word for word in details(rng, scene, shares) if rng.random() < 0.4]
    scale = _pick(rng, scale_words(metres_per_px)) if rng.random() < 0.75 else ""
    joined = 2 if rng.random() < 0.55 else 1  # the first parts run on without a comma
    text = ", ".join([" ".join(parts[:joined]), *parts[joined:]])
    if not scale:
        return text
    joins_of = scale.startswith(("a ", "an ")) and rng.random() < 0.7
    return f"{scale} of {text}" if joins_of else f"{text}, {scale}"
