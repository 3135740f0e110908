"""Viewers that pan and zoom over one picture at once, on loopback, for a bounded number of requests each."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from widefield.serve.pyramid import Pyramid

Place = tuple[int, int, int]  # (depth, column, row), as Deep Zoom names tiles
PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # unused, and costly to make once a client
AT_ONCE = 4  # requests of a viewer


@dataclass
class Load:
    """What viewers met. `milliseconds` of answers with a tile; `digests` of the first bytes of each tile, SHA-256, and
    `differing` counts answers with others; `untold` counts answers 503 that did not say when to come again; `seconds`
    from the first request to the last answer."""

    statuses: Counter[int] = field(default_factory=Counter)
    milliseconds: list[float] = field(default_factory=list)
    tiles: set[Place] = field(default_factory=set)
    digests: dict[Place, bytes] = field(default_factory=dict)
    differing: int = 0
    untold: int = 0
    seconds: float = 0.0

    def at(self, percent: float) -> float:
        """A percentile of the milliseconds to a tile."""
        return float(np.percentile(self.milliseconds, percent))

    def __str__(self) -> str:
        asked = sum(self.statuses.values())
        times = f", p50 {self.at(50):.1f} ms, p99 {self.at(99):.1f} ms" if self.milliseconds else ""
        return f"{asked} requests, {dict(self.statuses)}, {len(self.tiles)} tiles{times}"


def walk(picture: dict[str, Any], steps: int, rng: np.random.Generator) -> Iterator[Place]:
    """From anywhere, moving by a tile, in and now and then out; 2 x 2 tiles a step."""
    levels = sorted(picture["levels"], reverse=True)
    top = next(i for i, level in enumerate(levels) if max(sizes(picture, level)) > 1)
    at, y, x = int(rng.integers(top, len(levels))), rng.random(), rng.random()
    for _ in range(steps):
        level = levels[at]
        rows, columns = sizes(picture, level)
        row, column = int(y * rows), int(x * columns)
        for down, across in np.ndindex(2, 2):
            if row + down < rows and column + across < columns:
                yield picture["deepest"] - level, column + across, row + down
        at = int(np.clip(at + rng.choice([-1, 0, 1, 1]), top, len(levels) - 1))
        y, x = (float(np.clip(v + rng.normal() / (8 * max(rows, columns)), 0, 0.999)) for v in (y, x))


def sizes(picture: dict[str, Any], level: int) -> tuple[int, int]:
    """(rows, columns) of a level's tiles."""
    return Pyramid(picture["width"], picture["height"], picture["tile"]).grid(level)


async def _view(url: str, picture: dict[str, Any], places: list[Place], load: Load) -> None:
    async def get(place: Place) -> None:
        depth, column, row = place
        began = time.monotonic()
        answer = await client.get(f"/dzi/{picture['id']}_files/{depth}/{column}_{row}.{picture['form']}")
        ended = time.monotonic()
        load.statuses[answer.status_code] += 1
        load.untold += answer.status_code == 503 and not answer.headers.get("retry-after", "").isdecimal()
        if answer.status_code == 200:
            load.milliseconds.append(1000 * (ended - began))
            load.tiles.add(place)
            digest = hashlib.sha256(answer.content).digest()
            load.differing += load.digests.setdefault(place, digest) != digest

    async with httpx.AsyncClient(base_url=url, timeout=600, verify=PLAIN) as client:
        for first in range(0, len(places), AT_ONCE):
            await asyncio.gather(*(get(place) for place in places[first : first + AT_ONCE]))


def _look(url: str, name: str, load: Load, walks: Callable[[dict[str, Any]], Iterable[Iterable[Place]]]) -> Load:
    """A viewer a walk, all at once, each with connections of its own as a browser has."""

    async def run() -> Load:
        async with httpx.AsyncClient(base_url=url, verify=PLAIN) as client:
            picture = (await client.get(f"/pictures/{name}")).json()
        places = [list(walked) for walked in walks(picture)]
        began = time.monotonic()
        await asyncio.gather(*(_view(url, picture, walked, load) for walked in places))
        load.seconds = time.monotonic() - began
        return load

    return asyncio.run(run())


def pan(url: str, name: str, *, viewers: int = 64, steps: int = 5) -> Load:
    """So many viewers at once over the picture of an id."""
    rngs = [np.random.default_rng(seed) for seed in range(viewers)]
    return _look(url, name, Load(), lambda picture: (walk(picture, steps, rng) for rng in rngs))


def look_again(url: str, name: str, before: Load) -> Load:
    """One viewer over all tiles that others were shown; `differing` counts those that have other bytes now."""
    return _look(url, name, Load(digests=dict(before.digests)), lambda _: [sorted(before.tiles)])


def metric(url: str, name: str) -> float:
    """A number of /metrics, read by Prometheus' own parser."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)
