"""Numbers for Prometheus, in its text format 0.0.4."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

MEDIA = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)


class Metrics:
    """Counters by their labels, one histogram of seconds, and gauges that are asked when they are read."""

    def __init__(self) -> None:
        self._counts: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._buckets = [0] * (len(SECONDS) + 1)
        self._seconds = 0.0
        self._lock = threading.Lock()
        self._read: dict[str, tuple[str, Callable[[], float]]] = {
            "process_resident_memory_bytes": ("gauge", resident_nbytes)
        }

    def count(self, name: str, **labels: object) -> None:
        """One more of `name`, which ends in _total."""
        inside = ",".join(f'{key}="{value}"' for key, value in labels.items())
        with self._lock:
            self._counts[name, inside] += 1

    def took(self, seconds: float) -> None:
        """A tile was answered."""
        with self._lock:
            self._seconds += seconds
            self._buckets[sum(seconds > bound for bound in SECONDS)] += 1

    def ask(self, name: str, read: Callable[[], float]) -> None:
        """A number that somebody else keeps: a counter where its name ends in _total."""
        self._read[name] = ("counter" if name.endswith("_total") else "gauge", read)

    def text(self) -> str:
        """What a scrape is answered."""
        with self._lock:
            counts, buckets, seconds = dict(self._counts), list(self._buckets), self._seconds
        lines: list[str] = []
        for name in sorted({name for name, _ in counts}):
            lines.append(f"# TYPE {name} counter")
            lines += [f"{name}{{{inside}}} {value:g}" for (of, inside), value in sorted(counts.items()) if of == name]
        for name, (kind, read) in self._read.items():
            lines += [f"# TYPE {name} {kind}", f"{name} {float(read()):.17g}"]
        lines.append("# TYPE widefield_tile_seconds histogram")
        total = 0
        for bound, many in zip((*map(str, SECONDS), "+Inf"), buckets, strict=True):
            total += many
            lines.append(f'widefield_tile_seconds_bucket{{le="{bound}"}} {total}')
        lines += [f"widefield_tile_seconds_sum {seconds:.6f}", f"widefield_tile_seconds_count {total}"]
        return "\n".join(lines) + "\n"


def resident_nbytes() -> float:
    """Memory that this process has in use."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return float(fields["VmRSS"].split()[0]) * 1024
