"""Time on a GPU: events around each run, a cold L2, quantiles; and the two ceilings that a kernel is measured against.

Before each run a buffer several times as large as the L2 is written, which also keeps the GPU busy while the host
queues the run. On a CPU, where a bench runs only to be seen to run, the clock of the host.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

FLUSH_NBYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Clock:
    """Where runs are timed, and how often."""

    device: str
    repeats: int = 30
    warm_up: int = 3

    def quantiles_ms(self, run: Callable[[], Any]) -> list[float]:
        """The 20th, 50th and 80th percentile of what a run takes, milliseconds."""
        for _ in range(self.warm_up):
            run()
        times = self._events(run) if self.device == "cuda" else self._host(run)
        quantiles = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
        return [float(q) for q in torch.quantile(torch.tensor(times, dtype=torch.float64), quantiles)]

    def _events(self, run: Callable[[], Any]) -> list[float]:
        flush = torch.empty(FLUSH_NBYTES, dtype=torch.int8, device=self.device)
        pairs = [[_event(), _event()] for _ in range(self.repeats)]
        for start, end in pairs:
            flush.zero_()
            start.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return [float(start.elapsed_time(end)) for start, end in pairs]

    def _host(self, run: Callable[[], Any]) -> list[float]:
        times = []
        for _ in range(self.repeats):
            began = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - began))
        return times


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def ceilings(clock: Clock, *, side: int, nbytes: int) -> dict[str, float]:
    """TFLOP/s of a bfloat16 product of two (side, side) matrices, and TB/s of a copy, read and written, of `nbytes`."""
    a, b = torch.randn(2, side, side, device=clock.device).bfloat16()
    source = torch.randn(nbytes // 4, device=clock.device)
    target = torch.empty_like(source)
    product_ms = clock.quantiles_ms(lambda: a @ b)[1]
    copy_ms = clock.quantiles_ms(lambda: target.copy_(source))[1]
    return {"tflops": 2 * side**3 / product_ms / 1e9, "tbps": 2 * nbytes / copy_ms / 1e9}


def describe(device: str) -> dict[str, Any]:
    """The card, its capability, memory and driver side, as torch sees them; nothing on a CPU."""
    if device != "cuda":
        return {}
    card = torch.cuda.get_device_properties(0)
    return {
        "name": card.name,
        "capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "memory_gib": round(card.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
    }
