"""Latents of one level on disk: a sharded Zarr v3 array, written a shard at a time, in any order, read while it grows.

A shard is there whole or not at all (zarr renames it into its place), so what is there is what is done. Shards that are
not there read as NaN.

Shapes   (channels, height, width) float32; a shard has all channels of SHARD x SHARD cells, less at the far edges.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widefield.errors import StoreError
from widefield.geometry import Region, morton_order
from widefield.sinks import OURS, explained
from widefield.sources import open_latents
from widefield.tiles import Source

SHARD, CHUNK = 256, 64  # cells; what is computed between two commits, and what is read at once
DIGEST = "digest"


class LevelStore:
    """`digest` tells what its latents are of: another one's are refused, or replaced where `overwrite` says so."""

    def __init__(self, path: Path, shape: tuple[int, int, int], digest: str, *, overwrite: bool = False) -> None:
        import zarr

        self.path, self.shape = path, shape
        if path.exists() and self._known() != digest:
            if not overwrite:
                raise StoreError(
                    f"{path} holds latents of another prompt, size, seed or setting; wanted those of this one; name "
                    "another output or pass --overwrite"
                )
            shutil.rmtree(path)
        with explained(path):
            if not path.exists():
                self._create(digest)
            self._array: Any = zarr.open_array(path, mode="r+")

    def _create(self, digest: str) -> None:
        """Under another name first: what is there has its metadata."""
        import zarr

        work = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
        channels = self.shape[0]
        zarr.create_array(
            work / self.path.name, shape=self.shape, chunks=(channels, CHUNK, CHUNK), shards=(channels, SHARD, SHARD),
            dtype="float32", fill_value=float("nan"), compressors=None, dimension_names=("channel", "row", "column"),
            attributes={OURS: 1, DIGEST: digest},
        )  # fmt: skip
        try:
            (work / self.path.name).rename(self.path)
        except OSError:
            if not self.path.exists():  # or another worker of the same picture was here first
                raise
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _known(self) -> str:
        """The digest of what is there. StoreError for what is not ours."""
        try:
            attributes = json.loads((self.path / "zarr.json").read_bytes())["attributes"]
            if OURS in attributes:
                return str(attributes[DIGEST])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise StoreError(f"{self.path} holds no latents of widefield; it is left as it is; name another output")

    def shards(self) -> Iterator[Region]:
        """All of them, in Morton order: those that lie side by side are mostly made one after the other."""
        _, height, width = self.shape
        for row, column in morton_order(-(-height // SHARD), -(-width // SHARD)):
            y, x = row * SHARD, column * SHARD
            yield Region(y, x, y + SHARD, x + SHARD).clipped(Region(0, 0, height, width))

    def file(self, shard: Region) -> Path:
        """Where a shard is, or will be."""
        return self.path / "c" / "0" / str(shard.y0 // SHARD) / str(shard.x0 // SHARD)

    def has(self, shard: Region) -> bool:
        return self.file(shard).is_file()

    def missing(self) -> list[Region]:
        """Shards that are still to be made."""
        return [shard for shard in self.shards() if not self.has(shard)]

    def write(self, shard: Region, values: NDArray[np.float32]) -> None:
        """Commit a shard. StoreError where the disk is full; what was there stays."""
        with explained(self.path):
            self._array[:, *shard.slices] = values

    def source(self) -> Source:
        """Its latents, read where they are."""
        return open_latents(self.path, channels=self.shape[0])
