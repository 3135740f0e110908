"""How attention is cut into blocks, for each width and architecture: plain data. No triton here.

A width is padded to a multiple of 16 and cut into powers of two, at most `chunk` wide, each with its own accumulator:
40 = 32 + 16, 72 = 64 + 16, 112 = 64 + 32 + 16. The worst of the widths in use is 40, with 1.2 times the work.
"""

from __future__ import annotations

from dataclasses import dataclass

WIDTHS = (32, 40, 64, 72, 80, 88, 96, 112, 128, 160, 256, 512)


@dataclass(frozen=True, slots=True)
class Config:
    """Queries and keys of a block, warps, stages of the pipeline, and the widest chunk."""

    queries: int
    keys: int
    warps: int
    stages: int
    chunk: int = 256


# By the largest padded width that the row serves; then by capability, where 0 stands for those not named.
Table = dict[int, dict[int, Config]]
HALF: Table = {
    64: {0: Config(128, 64, 4, 3), 120: Config(128, 64, 8, 2)},
    128: {0: Config(128, 64, 8, 2), 120: Config(128, 32, 8, 2)},
    160: {0: Config(64, 32, 4, 2), 90: Config(128, 64, 8, 2), 120: Config(64, 32, 8, 2)},
    256: {0: Config(64, 32, 4, 2), 90: Config(128, 64, 8, 2)},
    512: {0: Config(32, 16, 8, 2), 80: Config(32, 32, 8, 2), 90: Config(64, 16, 8, 2), 100: Config(32, 32, 8, 2)},
}
# Products without matrix units: the operands of a chunk are registers. What spills here spills a word or two, now at
# one width and now at another: test_no_width_spills compiles them all.
SINGLE: Table = {
    48: {0: Config(16, 16, 8, 1, 16)},
    128: {0: Config(32, 16, 8, 1, 16), 100: Config(16, 16, 8, 1, 16)},
    256: {0: Config(32, 16, 8, 1, 16)},
    512: {0: Config(16, 16, 8, 1, 64)},
}
# Where keys are their own values there is room for more of them.
HALF_SHARED: Table = HALF | {
    512: {0: Config(32, 32, 8, 2, 128), 80: Config(64, 32, 8, 2), 90: Config(64, 32, 8, 2)},
}
SINGLE_SHARED: Table = SINGLE | {512: {0: Config(32, 16, 8, 1, 32)}}


def padded(width: int) -> int:
    """What a width costs."""
    return -(-width // 16) * 16


def config(width: int, *, half: bool, shared: bool, capability: int) -> Config:
    """Of the smallest row that serves this width; ValueError past 512."""
    table = (HALF_SHARED if shared else HALF) if half else (SINGLE_SHARED if shared else SINGLE)
    by_capability = table[min(limit for limit in table if limit >= padded(width))]
    return by_capability.get(capability, by_capability[0])
