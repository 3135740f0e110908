"""A narrow engine that is watched: a run that overflows is made again in float32, counted, and never handed on.

Half precision ends at 65,504, and the SDXL autoencoder goes beyond; what comes out is infinite or no number. So the
results of every run are looked at, and where one is not finite the same feeds go through a float32 engine, which is
opened when that first happens. What is not finite there either is the caller's to refuse.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import numpy as np

from widefield.engine.base import Array, Engine


class Guarded(Engine):
    """`narrow` first; `open_wide` gives the engine for what overflows in it."""

    def __init__(self, narrow: Engine, open_wide: Callable[[], Engine]) -> None:
        self.narrow, self._open_wide = narrow, open_wide
        self.name = narrow.name
        self._wide: Engine | None = None
        self._lock = threading.Lock()

    def run(self, feeds: Mapping[str, Array], into: Mapping[str, Array]) -> None:
        self.narrow.run(feeds, into)
        if all(is_finite(result) for result in into.values()):
            return
        with self._lock:
            self.redone += 1
            if self._wide is None:
                self._wide = self._open_wide()
        self._wide.run(feeds, into)

    def release(self) -> None:
        self.narrow.release()
        if self._wide is not None:
            self._wide.release()

    def close(self) -> None:
        self.narrow.close()
        if self._wide is not None:
            self._wide.close()


def is_finite(x: Array) -> bool:
    """Whether every value is: their sum is not where one is not, so a sound array is read once and copied never."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.add.reduce(x, axis=None)) or np.isfinite(x).all())
