"""Server-sent events: who looks at a picture is told how far it is, and which tiles are new.

event: state    {"busy": ..., ...}          when it changed
event: tiles    [[level, row, column], ...] when a run has made some; [] where they are too many: look at all again
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from widefield.serve.flights import Busy
from widefield.serve.served import Served
from widefield.serve.stored import StoredPicture

EVERY_SECONDS, SILENCE_SECONDS = 1.0, 15.0
MOST_TILES = 256  # that are told one by one
MOST_WATCHERS = 256
Tile = tuple[int, int, int]


class _News:
    """The newest tiles of a picture, and how many there were ever."""

    def __init__(self) -> None:
        self.total = 0
        self.last: deque[Tile] = deque(maxlen=MOST_TILES)

    def add(self, tiles: Sequence[Tile]) -> None:
        self.total += len(tiles)
        self.last.extend(tiles)

    def since(self, seen: int) -> list[Tile]:
        """Those after the first `seen`; none, where they are too many to say."""
        new = self.total - seen
        return list(self.last)[-new:] if new <= MOST_TILES else []


class Watchers:
    """All who look. A stored picture is looked at once for all of them, and only while there are any."""

    def __init__(self, closing: Callable[[], bool]) -> None:
        self.closing = closing
        self.watching = 0
        self._news: defaultdict[str, _News] = defaultdict(_News)
        self._looked: dict[str, float] = {}
        self._looking = asyncio.Lock()

    async def look(self, picture: Served) -> None:
        """See what a run has made, at most once a second."""
        if not isinstance(picture, StoredPicture) or picture.complete:
            return
        async with self._looking:
            if time.monotonic() - self._looked.get(picture.id, -EVERY_SECONDS) >= EVERY_SECONDS:
                new = await asyncio.to_thread(picture.look)
                self._news[picture.id].add(new)
                self._looked[picture.id] = time.monotonic()

    def enter(self) -> None:
        """Busy where too many look already."""
        if self.watching >= MOST_WATCHERS:
            raise Busy
        self.watching += 1

    async def events(self, picture: Served) -> AsyncIterator[str]:
        """The text of a stream, until the server closes; whoever iterates has called `enter`."""
        try:
            news = self._news[picture.id] if isinstance(picture, StoredPicture) else _News()
            seen, silent = news.total, time.monotonic()
            told: dict[str, Any] | None = None
            while not self.closing():
                await self.look(picture)
                if news.total > seen:
                    yield _event("tiles", news.since(seen))
                    seen = news.total
                state = picture.state()
                if state != told:
                    told, silent = state, time.monotonic()
                    yield _event("state", state)
                elif time.monotonic() - silent >= SILENCE_SECONDS:
                    silent = time.monotonic()
                    yield ": still here\n\n"
                await asyncio.sleep(EVERY_SECONDS)
        finally:
            self.watching -= 1


def _event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
