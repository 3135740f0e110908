"""Results that are kept while there is room for them, least recently used first to go; each is computed once.

Threads that want the same result at the same time do not compute it twice: the first one claims it, the others wait.
A thread computes all that it has claimed before it waits for anybody, and what it computes asks only for results that
lie further down (a level's windows, then its parent's tiles, and so on), so nobody waits in a circle.

Kept arrays are small and lie all over the heap, and what is freed between two of them would stay with the process:
without `trim_heap` now and then it was twice as much as what is alive.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from widefield.engine.heap import trim_heap

Array = NDArray[np.float32]
Make = Callable[[list[Hashable]], Iterable[tuple[Hashable, Array]]]
TRIM_NBYTES = 4 << 20  # kept since the heap was last trimmed, which takes some 15 ms


class _Claim:
    """A result on its way. `value` stays None where the one who claimed it failed."""

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.value: Array | None = None


class Memo:
    """Holds at most `limit_nbytes` of arrays; 0 keeps nothing. Safe from several threads."""

    def __init__(self, limit_nbytes: int) -> None:
        self.limit_nbytes = limit_nbytes
        self.nbytes = 0
        self.made = 0
        self._since_trim_nbytes = 0
        self._kept: OrderedDict[Hashable, Array] = OrderedDict()
        self._claims: dict[Hashable, _Claim] = {}
        self._lock = threading.Lock()

    def fetch(self, keys: Sequence[Hashable], make: Make) -> dict[Hashable, Array]:
        """The arrays of all `keys`, which must not be changed. `make` gives those that nobody has, one by one.

        What `make` raises passes through; nobody who waited for its results is left waiting.
        """
        found: dict[Hashable, Array] = {}
        while True:
            mine, others = self._claimed([key for key in dict.fromkeys(keys) if key not in found], found)
            found |= self._computed(mine, make)
            for key, claim in others.items():
                claim.ready.wait()
                if claim.value is not None:
                    found[key] = claim.value
            if len(found) == len(set(keys)):
                return found

    def _claimed(
        self, keys: list[Hashable], found: dict[Hashable, Array]
    ) -> tuple[dict[Hashable, _Claim], dict[Hashable, _Claim]]:
        """(claims of mine, claims of others); what is kept goes into `found`."""
        mine: dict[Hashable, _Claim] = {}
        others: dict[Hashable, _Claim] = {}
        with self._lock:
            for key in keys:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    found[key] = self._kept[key]
                elif key in self._claims:
                    others[key] = self._claims[key]
                else:
                    mine[key] = self._claims[key] = _Claim()
        return mine, others

    def _computed(self, mine: dict[Hashable, _Claim], make: Make) -> dict[Hashable, Array]:
        found: dict[Hashable, Array] = {}
        try:
            for key, array in make(list(mine)) if mine else ():
                array.flags.writeable = False
                found[key] = mine[key].value = array
                self._keep(key, array)
                mine[key].ready.set()
        finally:
            with self._lock:
                for key, claim in mine.items():
                    del self._claims[key]
                    claim.ready.set()
        if len(found) < len(mine):
            raise ValueError(f"{len(mine) - len(found)} of {len(mine)} results were not made")
        return found

    def _keep(self, key: Hashable, array: Array) -> None:
        with self._lock:
            self.made += 1
            if array.nbytes > self.limit_nbytes:
                return
            self._kept[key] = array
            self.nbytes += array.nbytes
            while self.nbytes > self.limit_nbytes:
                _, dropped = self._kept.popitem(last=False)
                self.nbytes -= dropped.nbytes
            self._since_trim_nbytes += array.nbytes
            trim = self._since_trim_nbytes >= TRIM_NBYTES
            if trim:
                self._since_trim_nbytes = 0
        if trim:
            trim_heap()

    def clear(self) -> None:
        """Keep nothing of what was kept so far."""
        with self._lock:
            self._kept.clear()
            self.nbytes = 0

    def __iter__(self) -> Iterator[Hashable]:
        with self._lock:
            return iter(list(self._kept))
