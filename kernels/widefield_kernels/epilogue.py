"""From a decoder's output to pixels.

    u8 = clamp(round_half_to_even((x + 1) * 127.5), 0, 255)            NaN is counted, never hidden: it becomes 0

Shapes   x: (channels, rows, columns) float32 in [-1, 1]; result: (rows, columns, channels) uint8.
Numbers  float32 inside, one rounding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def to_pixels_reference(x: NDArray[np.float32], out: NDArray[np.uint8] | None = None) -> tuple[NDArray[np.uint8], int]:
    """(pixels, how many values were not a number). `out` may be a view of a larger picture."""
    channels, rows, columns = x.shape
    out = np.empty((rows, columns, channels), np.uint8) if out is None else out
    bad = 0
    scaled = np.empty((rows, columns), np.float32)
    for channel in range(channels):
        np.add(x[channel], np.float32(1.0), out=scaled)
        np.multiply(scaled, np.float32(127.5), out=scaled)
        np.rint(scaled, out=scaled)
        np.clip(scaled, 0.0, 255.0, out=scaled)
        if np.isnan(scaled.max(initial=0.0)):
            bad += int(np.isnan(scaled).sum())
            np.nan_to_num(scaled, copy=False)
        out[:, :, channel] = scaled.astype(np.uint8)
    return out, bad
