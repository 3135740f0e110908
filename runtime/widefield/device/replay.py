"""The same work again and again, recorded once as a CUDA graph: a launch then takes the host one call, not hundreds.

A recording holds addresses, so there is one for each set of them. Work runs as it is the first time, which is when
libraries take memory; is recorded the second time; and from then on is launched. What CUDA cannot record runs as it is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from widefield.device.gpu import Gpu

MOST = 4  # sets of addresses that are remembered: two slots of tiles, and what comes from the host


class Replay:
    """For one thread at a time. `launches` counts what ran as a graph."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.launches = 0
        self._recordable = True
        self._graphs: OrderedDict[Hashable, Any] = OrderedDict()  # None: has run once

    def __call__(self, addresses: Hashable, stream: Any, work: Callable[[], bool]) -> bool:
        """Queue the work, which depends on the addresses alone, on the stream. Whether it was taken, as `work` says."""
        graph = self._graphs.get(addresses)
        if graph is None and addresses in self._graphs and self._recordable:
            graph = self.gpu.capture(stream, work)
            self._recordable = graph is not None
        if graph is None:
            done = work()
        else:
            self.gpu.launch(graph, stream)
            self.launches += 1
            done = True
        self._graphs[addresses] = graph
        self._graphs.move_to_end(addresses)
        if len(self._graphs) > MOST:
            self._graphs.popitem(last=False)
        return done

    def forget(self) -> None:
        """Drop every recording."""
        self._graphs.clear()
