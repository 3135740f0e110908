"""The pictures of a server by their ids: the one that it was started with, and those that visitors asked for since."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from widefield.drawn import DrawnPicture
from widefield.errors import BadRequest
from widefield.serve.desk import Desk
from widefield.serve.flights import Flights
from widefield.serve.lazy import LazyPicture
from widefield.serve.served import Served
from widefield.serve.stored import StoredPicture
from widefield.serve.tile_cache import TileCache

MOST_PICTURES = 32
MOST_PROMPT = 1000  # characters
LARGEST_SIDE_PX = 1 << 20
Draw = Callable[[str, tuple[int, int], int], DrawnPicture]


@dataclass(frozen=True, slots=True)
class Wish:
    """A picture that somebody asks for; `size` is (width, height). BadRequest for what is too long or too large."""

    prompt: str
    size: tuple[int, int]
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.prompt) > MOST_PROMPT:
            raise BadRequest(f"the prompt has {len(self.prompt)} characters; wanted at most {MOST_PROMPT}; shorten it")
        if not all(1 <= side <= LARGEST_SIDE_PX for side in self.size):
            raise BadRequest(
                f"{self.size[0]} x {self.size[1]} px was asked for; wanted sides of 1 to {LARGEST_SIDE_PX:,} px; "
                "choose another size"
            )


@dataclass
class Studio:
    """What drawn pictures need: `draw` makes one of (prompt, size, seed), the rest they share."""

    draw: Draw
    desk: Desk
    cache: TileCache
    flights: Flights[bytes]


@dataclass
class Gallery:
    """`studio` is None where nothing is drawn. `first` is the picture that a viewer opens with, if there is one."""

    studio: Studio | None = None
    first: Served | None = None
    _drawn: OrderedDict[str, LazyPicture] = field(default_factory=OrderedDict)

    def find(self, name: str) -> Served | None:
        """The picture of an id."""
        if self.first is not None and self.first.id == name:
            return self.first
        return self._drawn.get(name)

    def draw(self, wish: Wish) -> tuple[LazyPicture, list[LazyPicture]]:
        """(the picture, known before or new, those that made room for it and are to be closed). Nothing is computed.

        BadRequest where nothing is drawn, or not this; OverBudget.
        """
        if self.studio is None:
            raise BadRequest("this server shows one picture and draws none; wanted a server that draws; start one")
        studio = self.studio
        drawn = studio.desk.planned(studio.draw(wish.prompt, wish.size, wish.seed))
        new = LazyPicture(drawn, studio.desk, studio.cache, studio.flights)
        known = self.find(new.id)
        if isinstance(known, LazyPicture):
            return known, []
        self._drawn[new.id] = new
        gone = []
        while len(self._drawn) > MOST_PICTURES:
            gone.append(self._drawn.popitem(last=False)[1])
        return new, gone

    def pictures(self) -> list[Served]:
        """All of them, the newest last."""
        return [*([] if self.first is None else [self.first]), *self._drawn.values()]

    async def close(self) -> None:
        """Stop all work."""
        if self.studio is not None:
            self.studio.flights.close()
        for picture in self.pictures():
            await picture.close()


def stored_gallery(picture: StoredPicture) -> Gallery:
    """Of one picture on disk."""
    return Gallery(None, picture)


def drawn_gallery(studio: Studio, wish: Wish | None) -> Gallery:
    """Of what is drawn, with a first picture or none yet."""
    gallery = Gallery(studio)
    if wish is not None:
        gallery.first, _ = gallery.draw(wish)
        gallery._drawn.clear()
    return gallery
