"""One block of a GPU's memory for what engines compute in: those that run one after another share it.

Engines say what they need as they open; the block is taken when the first of them runs, and again should a later one
need more. It is given back when the last of them has left. A plan may fix the most it may be. All that computes in it
is queued on one stream, so no two engines are at it at once, whichever threads and pictures they work for; who queues
holds `turns`.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from widefield.device.gpu import Gpu
from widefield.errors import OverBudget


class Arena:
    """`limit_nbytes` is what the plan has for it; None is whatever is asked."""

    def __init__(self, gpu: Gpu, limit_nbytes: int | None = None) -> None:
        self.gpu, self.limit_nbytes = gpu, limit_nbytes
        self.stream = gpu.stream()
        self.turns = threading.RLock()
        self._asked: list[int] = []
        self._block: Any = None
        self._lock = threading.Lock()

    def ask(self, nbytes: int) -> None:
        """An engine that will need so many bytes. OverBudget where the plan has fewer."""
        if self.limit_nbytes is not None and nbytes > self.limit_nbytes:
            raise OverBudget(
                f"an engine needs {-(-nbytes >> 20)} MiB to compute in, the plan has {self.limit_nbytes >> 20} MiB; "
                "lower --tile or raise --memory",
                smallest_nbytes=nbytes,
            )
        with self._lock:
            self._asked.append(nbytes)

    def leave(self, nbytes: int) -> None:
        """An engine that asked for so many is closed."""
        with self._lock:
            self._asked.remove(nbytes)
            if not self._asked and self._block is not None:
                self.gpu.synchronize(self.stream)
                self._block = None

    def block(self) -> tuple[int, int]:
        """(address, bytes) of the block, as large as was asked for until now."""
        with self._lock:
            wanted = max(self._asked, default=0)
            if self._block is None or self._block.shape[0] < wanted:
                self.gpu.synchronize(self.stream)  # whoever computes in it is done
                self._block = None  # give it back before a larger one is taken
                self._block = self.gpu.empty((max(256, wanted),), np.uint8)
            return int(self._block.data.ptr), int(self._block.shape[0])
