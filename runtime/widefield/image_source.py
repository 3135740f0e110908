"""What every picture that is read a region at a time does, and how its values become RGB.

Grey becomes three equal channels; alpha is dropped, the colour under it stays as it is; 16-bit values v become
v * 255 / 65535, rounded exactly.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widefield.errors import BadLatents
from widefield.geometry import Region

Pixels = NDArray[np.uint8]
REMEDY = "convert it to 8-bit RGB, as .png or .tif"


class ImageSource(ABC):
    """A picture of height x width pixels. Safe to read from many threads at once."""

    name: str  # what errors call it
    height: int
    width: int
    nbytes: int  # of memory, that reading makes it hold; while a file is decoded, also the file and what it decodes to

    @abstractmethod
    def _pixels(self, region: Region) -> Pixels:
        """`region`, inside the picture and not empty; may be a view."""

    @abstractmethod
    def _content(self) -> str:
        """What `digest` hashes besides the size."""

    @property
    def extent(self) -> Region:
        """All of it: [0, height) x [0, width)."""
        return Region(0, 0, self.height, self.width)

    def read(self, region: Region) -> Pixels:
        """`region` as uint8 (h, w, 3), the caller's own. BadLatents when the file turns out to be damaged.

        ValueError for a region that is not inside the picture.
        """
        if not region.within(self.extent) or region.height < 0 or region.width < 0:
            raise ValueError(f"{self.name} is {self.height} x {self.width} px, got {region}")
        if not region:
            return np.empty((region.height, region.width, 3), np.uint8)
        return np.array(self._pixels(region), np.uint8, order="C")

    def digest(self) -> str:
        """SHA-256, in hex, of the size and the file (of a store: its fingerprint). Computed on the first call."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(["image", self.height, self.width, self._content()]).encode()).hexdigest()


def to_rgb8(values: NDArray[Any], name: str) -> Pixels:
    """uint8 (h, w, 3) from uint8 or uint16 (h, w) or (h, w, 1 to 4): grey, grey and alpha, RGB, RGB and alpha.

    BadLatents for any other type or shape. A view when nothing has to change.
    """
    if values.dtype.kind != "u" or values.dtype.itemsize > 2 or not is_picture(values.shape):
        raise BadLatents(
            f"{name} is {values.dtype} {values.shape}; wanted uint8 or uint16, (height, width) or (height, width, "
            f"1 to 4 channels); {REMEDY}"
        )
    colour = values[..., None] if values.ndim == 2 else values
    colour = colour[..., :1] if colour.shape[-1] < 3 else colour[..., :3]
    if colour.dtype.itemsize == 2:
        quotient, rest = np.divmod(colour, 257)  # 65535 / 255; an odd number, so nothing lies half way
        colour = (quotient + (rest > 128)).astype(np.uint8)
    return np.broadcast_to(colour, (*colour.shape[:2], 3))


def is_picture(shape: tuple[int, ...]) -> bool:
    """Whether to_rgb8 takes an array of that shape."""
    return min(shape, default=0) > 0 and (len(shape) == 2 or (len(shape) == 3 and shape[2] <= 4))
