"""What determines a picture: a world (terrain and climate) and a sky (sun and clouds). Plain numbers, no arrays.

Units    _km, _m as named; temperature in degrees Celsius at sea level; angles in degrees; the rest are shares, 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class World:
    """An endless plane with one character; the same fields with another seed are another place of the same kind."""

    seed: int
    extent_km: float = 600.0  # the longest wavelength of its heights
    relief_m: float = 1400.0  # their amplitude at that wavelength
    rise_m: float = 200.0  # mean height over the sea
    roughness: float = 0.82  # amplitude falls as wavelength to this power
    ridges: float = 0.5
    gullies: float = 0.6
    volcanoes: float = 0.0
    rivers: float = 0.5
    fjords: float = 0.0
    dunes: float = 0.0
    flats: float = 0.0  # how much of what is just over the sea is a plain
    temperature: float = 14.0
    moisture: float = 0.5
    redness: float = 0.3  # of bare ground
    dark_rock: float = 0.0  # basalt and ash instead of bare ground
    farms: float = 0.0
    cities: float = 0.3
    wind: float = 20.0


@dataclass(frozen=True, slots=True)
class Sky:
    """The light and the clouds over a world."""

    light: str = "day"  # dawn, day, dusk or night
    azimuth: float = 315.0  # where the sun stands, clockwise from the picture's top
    elevation: float = 45.0
    clouds: float = 0.0  # share of the sky, about
    seed: int = 0
