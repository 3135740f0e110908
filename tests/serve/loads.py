"""Viewers that pan and zoom over one picture at once, on loopback, for a bounded number of requests each."""

import asyncio
import ssl
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx
import numpy as np

from widefield.serve.pyramid import Pyramid

PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # unused, and costly to make once a client


@dataclass
class Load:
    """What viewers met. `milliseconds` of answers with a tile; `tiles` by (depth, column, row); `untold` counts answers
    503 that did not say when to come again."""

    statuses: Counter = field(default_factory=Counter)
    milliseconds: list[float] = field(default_factory=list)
    tiles: set[tuple[int, int, int]] = field(default_factory=set)
    bodies: dict[tuple[int, int, int], bytes] = field(default_factory=dict)
    differing: int = 0
    untold: int = 0

    def at(self, percent: float) -> float:
        """A percentile of the time to a tile."""
        return float(np.percentile(self.milliseconds, percent))

    def __str__(self) -> str:
        asked = sum(self.statuses.values())
        return (
            f"{asked} requests, {dict(self.statuses)}, {len(self.tiles)} tiles, p50 {self.at(50):.1f} ms, "
            f"p99 {self.at(99):.1f} ms"
        )


def walk(picture: dict, steps: int, rng: np.random.Generator):
    """(depth, columns, rows): from anywhere, moving by a tile, in and now and then out; 2 x 2 tiles."""
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


def sizes(picture: dict, level: int) -> tuple[int, int]:
    """(rows, columns) of a level's tiles."""
    return Pyramid(picture["width"], picture["height"], picture["tile"]).grid(level)


async def _view(url: str, picture: dict, steps: int, seed: int, load: Load) -> None:
    async def get(place: tuple[int, int, int]) -> None:
        depth, column, row = place
        began = time.monotonic()
        answer = await client.get(f"/dzi/{picture['id']}_files/{depth}/{column}_{row}.{picture['form']}")
        load.statuses[answer.status_code] += 1
        load.untold += answer.status_code == 503 and not answer.headers.get("retry-after", "").isdecimal()
        if answer.status_code == 200:
            load.milliseconds.append(1000 * (time.monotonic() - began))
            load.tiles.add(place)
            load.differing += load.bodies.setdefault(place, answer.content) != answer.content

    places = list(walk(picture, steps, np.random.default_rng(seed)))
    async with httpx.AsyncClient(base_url=url, timeout=600, verify=PLAIN) as client:
        for four in range(0, len(places), 4):
            await asyncio.gather(*(get(place) for place in places[four : four + 4]))


def pan(url: str, name: str, *, viewers: int = 64, steps: int = 5) -> Load:
    """`viewers` at once, each with connections of its own as a browser has, over the picture of an id."""

    async def run() -> Load:
        load = Load()
        async with httpx.AsyncClient(base_url=url, verify=PLAIN) as client:
            picture = (await client.get(f"/pictures/{name}")).json()
        await asyncio.gather(*(_view(url, picture, steps, seed, load) for seed in range(viewers)))
        return load

    return asyncio.run(run())


def metric(url: str, name: str) -> float:
    """A number of /metrics, read by Prometheus' own parser."""
    from prometheus_client.parser import text_string_to_metric_families

    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)
