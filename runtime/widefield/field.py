"""A field: an array (channels, height, width) of which any part is read by itself, a function of its place alone."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from widefield.geometry import Region

Array = NDArray[np.float32]


class Field(ABC):
    """Stored or computed. Safe to read from many threads at once. It is what a `TileCoder` reads (`tiles.Source`)."""

    channels: int
    height: int
    width: int

    @property
    def extent(self) -> Region:
        """All of it: [0, height) x [0, width)."""
        return Region(0, 0, self.height, self.width)

    def read(self, region: Region) -> Array:
        """`region` as float32 (channels, h, w), the caller's own; zeros where it reaches outside."""
        inside = region.clipped(self.extent)
        new = np.empty if inside == region else np.zeros
        out: Array = new((self.channels, region.height, region.width), np.float32)
        if inside:
            self._fill(out[:, *inside.shifted(-region.y0, -region.x0).slices], inside)
        return out

    @abstractmethod
    def _fill(self, out: Array, region: Region) -> None:
        """Put `region`, which lies inside and is not empty, into `out` (channels, h, w), which may have strides."""
