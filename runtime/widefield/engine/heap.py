"""Keep what engines free from staying with the process.

glibc serves a freed size from the heap the next time, and keeps as much of it as the largest size ever freed: after a
few tiles of activations that is hundreds of MiB which no plan can know of. With fixed thresholds large arrays are
mapped and unmapped, so resident memory is what is alive. It costs the page faults of a tile's activations: a few per
cent.
"""

from __future__ import annotations

import ctypes
from functools import cache

LARGE_NBYTES = 4 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@cache
def return_freed_memory() -> bool:
    """Set the thresholds, once a process; False where the C library has no mallopt (musl, macOS) and needs none."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGE_NBYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, LARGE_NBYTES))


def trim_heap() -> None:
    """Give pages of the heap that hold nothing back to the system: many small arrays, once freed, keep theirs."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)
