"""A picture that is an array: nothing is computed until it is read, and only what is read."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from widefield.bundle import Bundle
from widefield.coder import TileCoder
from widefield.geometry import Region
from widefield.job import DecodeJob, Talk
from widefield.options import RunOptions, changed_options
from widefield.plan import Plan
from widefield.render import Progress, decode_region
from widefield.save import Saved, save
from widefield.sources import LatentSource
from widefield.summary import Summary


class LazyPixels(ABC):
    """(height, width, 3) uint8, computed where it is read, indexed as numpy does. Reads are safe from several threads.

    A context manager: `close` gives back what reads opened.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) in pixels."""

    @abstractmethod
    def read(self, region: Region) -> NDArray[np.uint8]:
        """A region of pixels, (height, width, 3) uint8; raises IndexError outside the picture."""

    @abstractmethod
    def close(self) -> None:
        """Give the engines back; reading again opens them anew."""

    def check_inside(self, region: Region) -> None:
        """IndexError for a region that leaves the picture."""
        height, width, _ = self.shape
        if not region.within(Region(0, 0, height, width)):
            raise IndexError(f"{region} leaves the picture of {height} rows and {width} columns")

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        return np.dtype(np.uint8)

    @property
    def ndim(self) -> int:
        return 3

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        """picture[rows, columns, channels] with slices and integers, as numpy reads them."""
        key = key if isinstance(key, tuple) else (key,)
        if Ellipsis in key:
            at = key.index(Ellipsis)
            key = (*key[:at], *[slice(None)] * (4 - len(key)), *key[at + 1 :])
        key = (*key, *[slice(None)] * (3 - len(key)))
        spans = [_span(k, n) for k, n in zip(key[:2], self.shape[:2], strict=True)]
        region = Region(spans[0][0], spans[1][0], spans[0][1], spans[1][1])
        pixels = self.read(region) if region else np.empty((region.height, region.width, self.shape[2]), np.uint8)
        return cast(NDArray[np.uint8], pixels[spans[0][2], spans[1][2], key[2]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        height, width, _ = self.shape
        pixels = self.read(Region(0, 0, height, width))
        return pixels if dtype is None else pixels.astype(dtype)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Picture(LazyPixels):
    """Stored latents, decoded. The summary is measured at the first read or save, once."""

    def __init__(self, bundle: Bundle, source: LatentSource, options: RunOptions) -> None:
        self.job = DecodeJob(bundle, source)
        self.options = options
        self._summary: Summary | None = None
        self._coder: TileCoder | None = None
        self._lock = threading.Lock()

    @property
    def source(self) -> LatentSource:
        """The latents, read a region at a time."""
        return self.job.source

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.job.shape

    def plan(self, options: RunOptions | None = None) -> Plan:
        """How it would be made; raises OverBudget. Computes nothing."""
        return self.job.plan(options or self.options)

    def summary(self, talk: Talk | None = None) -> Summary:
        """The frozen sites: measured now, or read from the file that `summary` names."""
        with self._lock:
            if self._summary is None:
                self._summary = self.job.measured(self.options, self.plan(), talk)
            return self._summary

    def read(self, region: Region) -> NDArray[np.uint8]:
        self.check_inside(region)
        summary, plan = self.summary(), self.plan()
        with self._lock:
            if self._coder is None:
                self._coder = self.job.coder(summary, plan, self.options.engine_options(1, self.options.cores))
            coder = self._coder
        return decode_region(coder, self.job.grid(plan), region)

    def close(self) -> None:
        with self._lock:
            if self._coder is not None:
                self._coder.close()
                self._coder = None

    def save(
        self,
        path: Path | str,
        *,
        progress: Callable[[Progress], None] | None = None,
        talk: Talk | None = None,
        **options: Any,
    ) -> Saved:
        """Write all of it: .tif, .zarr, .dzi or .png by the suffix. Goes on where an earlier, equal save stopped.

        `progress` is called after every store tile, `talk(what, done, total)` while the summary is measured, both from
        working threads. Raises StoreError, OverBudget, BadLatents; what was written stays and is resumed.
        """
        merged = replace(self.options, **changed_options(options))
        return save(self.job, Path(path), merged, progress=progress, talk=talk)


def _span(key: Any, length: int) -> tuple[int, int, Any]:
    """(start, stop, what remains to be indexed) of one axis."""
    if isinstance(key, slice):
        start, stop, step = key.indices(length)
        if step < 0:
            picked = range(start, stop, step)
            return (picked[-1], picked[0] + 1, slice(None, None, step)) if picked else (0, 0, slice(None))
        return start, max(start, stop), slice(None, None, step)
    index = int(key)
    if not -length <= index < length:
        raise IndexError(f"index {index} is out of bounds for {length}")
    index %= length
    return index, index + 1, 0
