"""Which drawn pictures hold engines and memory: as many as the budget has room for, the least recently used go first.

Each has the same share of the budget. Nobody's engines are closed while one of its tiles is being made.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from widefield.draw_plan import plan_drawing
from widefield.drawn import DrawnPicture
from widefield.errors import Cancelled, OverBudget

if TYPE_CHECKING:
    from widefield.serve.lazy import LazyPicture

MIB = 1 << 20
SERVER_NBYTES = 192 * MIB  # requests, tiles on their way, a region being put together
MOST_OPEN = 4
LOOK_SECONDS = 0.1


class Desk:
    """`memory_nbytes` is for the whole server."""

    def __init__(self, memory_nbytes: int) -> None:
        self.memory_nbytes = memory_nbytes
        self.places = MOST_OPEN
        self._open: OrderedDict[LazyPicture, int] = OrderedDict()  # how many threads use each
        self._changed = threading.Condition()

    def planned(self, picture: DrawnPicture) -> DrawnPicture:
        """A picture that was not read yet, given its share of the memory. OverBudget where that is too little."""
        need, budget = smallest_nbytes(picture), self.memory_nbytes - SERVER_NBYTES
        if need > budget:
            wanted = -(-(need + SERVER_NBYTES) // MIB)
            raise OverBudget(
                f"the budget is {self.memory_nbytes // MIB} MiB, drawing {need // MIB} and serving "
                f"{SERVER_NBYTES // MIB} of it need {wanted} MiB; raise --memory to {wanted}MiB",
                smallest_nbytes=wanted * MIB,
            )
        with self._changed:
            self.places = max(1, min(self.places, budget // need))
        picture.options = replace(picture.options, memory_nbytes=budget // self.places)
        return picture

    @contextmanager
    def lent(self, picture: LazyPicture, cancelled: Callable[[], bool]) -> Iterator[None]:
        """A place for a picture, when somebody leaves one. Cancelled, when `cancelled()` turns true before."""
        with self._changed:
            while not self._sit(picture):
                if cancelled():
                    raise Cancelled("nobody waits for the tile any more; ask again")
                self._changed.wait(LOOK_SECONDS)
        try:
            yield
        finally:
            with self._changed:
                self._open[picture] -= 1
                self._changed.notify_all()

    def _sit(self, picture: LazyPicture) -> bool:
        if picture not in self._open:
            while len(self._open) >= self.places:  # which a picture of larger needs may have made fewer
                if not self._cleared():
                    return False
            self._open[picture] = 0
        self._open[picture] += 1
        self._open.move_to_end(picture)
        return True

    def _cleared(self) -> bool:
        """Whether a place could be made free."""
        for picture, users in self._open.items():
            if not users:
                del self._open[picture]
                picture.drawn.close()
                return True
        return False

    def clear(self, picture: LazyPicture) -> None:
        """Take a picture's place, when nobody uses it any more."""
        with self._changed:
            while self._open.get(picture):
                self._changed.wait(LOOK_SECONDS)
            if self._open.pop(picture, None) is not None:
                picture.drawn.close()
                self._changed.notify_all()

    def __len__(self) -> int:
        return len(self._open)


def smallest_nbytes(picture: DrawnPicture) -> int:
    """The least memory that reading a picture takes."""
    try:
        plan_drawing(picture.generation, replace(picture.options, memory_nbytes=0), lazily=True)
    except OverBudget as fault:
        return fault.smallest_nbytes
    raise AssertionError("a plan for no memory")
