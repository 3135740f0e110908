"""Save a part of a drawn picture: only the cone under it is computed. A tile of the store at a time, resumable."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from widefield import __version__
from widefield.buffers import STORE_TILE_PX
from widefield.cone import cone
from widefield.errors import BadRequest
from widefield.geometry import Region
from widefield.save import writing
from widefield.store import StoreSpec, create_or_resume, default_codec

if TYPE_CHECKING:
    from widefield.drawn import DrawnPicture


@dataclass(frozen=True, slots=True)
class SavedPart:
    """`units` are the windows, times their steps, and the tiles that were computed."""

    path: Path
    level: int
    region: Region
    units: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "level": self.level,
            "region": [self.region.y0, self.region.x0, self.region.y1, self.region.x1],
            "size_px": [self.region.width, self.region.height],
            "units": self.units,
            "seconds": round(self.seconds, 3),
        }


def save_part(
    picture: DrawnPicture,
    path: Path,
    region: Region | None,
    level: int,
    *,
    talk: Callable[[str, int, int], None] | None = None,
) -> SavedPart:
    """Write the pixels of a region (None: all) of a level. `talk` hears of the units done, and how many there are.

    BadRequest for a level or a region that is not there; StoreError for an output that cannot be written.
    """
    started = time.perf_counter()
    pixels = picture.level(level)
    height, width, _ = pixels.shape
    whole = Region(0, 0, height, width)
    region = whole if region is None else region
    if not region.within(whole):
        raise BadRequest(
            f"rows {region.y0}:{region.y1}, columns {region.x0}:{region.x1} leave level {pixels.index}, which has "
            f"{height} rows and {width} columns; name a part of it"
        )
    total = cone(picture.cascade(), region, level).units
    units = 0

    def heard(_: int) -> None:
        nonlocal units
        units += 1
        if talk is not None:
            talk("drawing", min(units, total), total)

    store = create_or_resume(path, _spec(picture, path, region, pixels.index), overwrite=picture.options.overwrite)
    with writing(store) as writer:
        for row, column in writer.missing():
            y, x = region.y0 + row * STORE_TILE_PX, region.x0 + column * STORE_TILE_PX
            tile = Region(y, x, y + STORE_TILE_PX, x + STORE_TILE_PX).clipped(region)
            writer.put(row, column, pixels.read(tile, progress=heard))
    return SavedPart(path, pixels.index, region, units, time.perf_counter() - started)


def _spec(picture: DrawnPicture, path: Path, region: Region, level: int) -> StoreSpec:
    options = picture.options
    codec = options.codec
    if codec in ("auto", "lossless"):
        codec = default_codec(path, lossless=codec == "lossless")
    digest = picture.generation.digest(-1, options.engine_options())
    about = {"software": f"widefield {__version__}", "level": str(level), "region": str(region), "drawn": digest}
    fingerprint = hashlib.sha256(repr((digest, level, region)).encode()).hexdigest()
    return StoreSpec(region.width, region.height, fingerprint, codec, options.quality, STORE_TILE_PX, about)
