"""What a server shows: pictures by tiles, whether they lie on a disk or are made when somebody looks."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from widefield.serve.pyramid import Pyramid
from widefield.store.box import Pixels

MEDIA = {"jpeg": "image/jpeg", "png": "image/png"}


class Missing(Exception):
    """A tile that has not been made yet."""


class Served(ABC):
    """One picture. `form` is what its tiles are encoded in, `jpeg` or `png`; `quality` that of jpegs.

    `levels` are those that cost no more than their tiles: what a viewer should ask for. `id` is a digest of all that
    determines the bytes of every tile, so a tile's address and its bytes never part.
    """

    id: str
    name: str
    pyramid: Pyramid
    form: str
    quality: int
    levels: tuple[int, ...]
    most_px: int  # of a region, in what is answered
    about: Mapping[str, Any]

    @abstractmethod
    async def tile(self, level: int, row: int, column: int) -> bytes:
        """A tile, encoded and clipped. IndexError outside the picture, Missing, Busy; StoreError for a damaged one."""

    @abstractmethod
    async def pixels(self, level: int, row: int, column: int) -> Pixels:
        """The same, decoded: uint8 (height, width, 3)."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """How far it is, for whoever watches: `busy` and numbers of its kind."""

    @abstractmethod
    async def close(self) -> None:
        """Stop what is being made, and close what is open."""

    def source_level(self, ratio: float) -> int:
        """What to make a view from that shows `ratio` pixels of the picture in one: a level no smaller than it."""
        return max((level for level in self.levels if 1 << level <= ratio), default=0)

    def etag(self, level: int, row: int, column: int) -> str:
        """Of a tile, known before it is made."""
        return f'"{self.id}-{level}-{row}-{column}"'

    def described(self) -> dict[str, Any]:
        """For the viewer."""
        pyramid = self.pyramid
        return {
            "id": self.id,
            "name": self.name,
            "width": pyramid.width_px,
            "height": pyramid.height_px,
            "tile": pyramid.tile_px,
            "form": self.form,
            "deepest": pyramid.deepest,
            "levels": list(self.levels),
            "most_px": self.most_px,
            "state": self.state(),
            **self.about,
        }


def named(*parts: object) -> str:
    """An id: 16 hex digits of a digest."""
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:16]
