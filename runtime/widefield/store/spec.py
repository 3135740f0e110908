"""What a store holds, said before the first tile: its size, its codec, its levels. Pure; no file is touched here.

Units: pixels; tiles are `tile_px` square and clipped at the right and bottom edge of the picture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from widefield.errors import StoreError

RECORD = "widefield_store"  # the key that tells our files from others'; its value is the version of the record
VERSION = 1
_COMPARED = ("width_px", "height_px", "codec", "quality", "tile_px")
MOST_TILES = 1 << 26  # a byte each is held in memory; 524,288 x 524,288 px has 2**20
LARGEST_SHARD_PX = 1 << 15
LARGEST_PX = 100_000_000  # libvips refuses longer sides; GDAL and TIFF would take 2**31 - 1


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the pyramid: its size in pixels and in tiles."""

    width_px: int
    height_px: int
    rows: int
    columns: int


def level_sizes(width_px: int, height_px: int, tile_px: int, *, smallest_px: int | None = None) -> tuple[Level, ...]:
    """Level 0 and its overviews, each half the one before, rounded up.

    The last one is the first whose longer side is at most `smallest_px` (default: one tile).
    """
    smallest_px = tile_px if smallest_px is None else smallest_px
    levels = [Level(width_px, height_px, -(-height_px // tile_px), -(-width_px // tile_px))]
    while max(width_px, height_px) > smallest_px:
        width_px, height_px = -(-width_px // 2), -(-height_px // 2)
        levels.append(Level(width_px, height_px, -(-height_px // tile_px), -(-width_px // tile_px)))
    return tuple(levels)


@dataclass(frozen=True, slots=True)
class StoreSpec:
    """A picture to be stored.

    `fingerprint` is a hex digest of everything that determines the pixels: a store with another one is not resumed.
    `codec` is "jpeg" or a lossless one ("deflate", "zstd", "jpegxl", "png"; which depends on the form), or "auto" or
    "lossless" for the form's own choice. `quality` counts for jpeg alone. `metadata` is recorded and never compared.
    `shard_px`, the largest side of a .zarr's shards (None: 8192), counts when one is made: what is there knows its own.
    """

    width_px: int
    height_px: int
    fingerprint: str
    codec: str = "jpeg"
    quality: int = 90
    tile_px: int = 512
    metadata: Mapping[str, str] = field(default_factory=dict)
    shard_px: int | None = None

    def to_json(self) -> str:
        """One line of ASCII, the same for equal specs."""
        return json.dumps(as_record(self))


def spec_from_json(text: str | bytes, path: Path) -> StoreSpec:
    """The spec that `to_json` wrote. StoreError when `text` is not one: `path` is then not ours."""
    try:
        return spec_from_record(json.loads(text), path)
    except ValueError:
        raise foreign(path) from None


def spec_from_record(record: Any, path: Path) -> StoreSpec:
    """The same from parsed JSON."""
    if not isinstance(record, dict) or RECORD not in record:
        raise foreign(path)
    if record[RECORD] != VERSION:
        raise StoreError(
            f"{path} was written by store version {record[RECORD]}; this is version {VERSION}; "
            "use the widefield that wrote it"
        )
    try:
        spec = StoreSpec(**{name: record[name] for name in (*_COMPARED, "fingerprint", "metadata")})
        numbers = (spec.width_px, spec.height_px, spec.quality, spec.tile_px)
        if any(type(number) is not int for number in numbers) or not isinstance(spec.metadata, dict):
            raise TypeError
        return spec
    except (KeyError, TypeError):
        raise StoreError(
            f"the record in {path} is damaged; wanted the fields of a store; write to another path"
        ) from None


def foreign(path: Path) -> StoreError:
    """What to say of a file that we did not write, and so do not touch."""
    return StoreError(
        f"{path} exists and was not written by widefield; it is left as it is; choose another path or move it"
    )


def agree(found: StoreSpec, wanted: StoreSpec, path: Path) -> None:
    """Raise StoreError unless a run for `wanted` may go on with what `found` began."""
    if found.fingerprint != wanted.fingerprint:
        raise StoreError(
            f"{path} holds another picture: its fingerprint is {found.fingerprint}; wanted {wanted.fingerprint}; "
            "repeat the run that began it, choose another path, or overwrite it"
        )
    for name in _COMPARED:
        here, there = getattr(found, name), getattr(wanted, name)
        if here != there and not (name == "quality" and found.codec != "jpeg"):
            raise StoreError(
                f"{path} was begun with {name} {here}; wanted {there}; choose the same, another path, or overwrite it"
            )


def checked(spec: StoreSpec, path: Path, codecs: tuple[str, ...], lossless: str) -> StoreSpec:
    """`spec` with its codec resolved for a form that takes `codecs`, the first by default. StoreError if impossible."""
    codec = {"auto": codecs[0], "lossless": lossless}.get(spec.codec, spec.codec)
    if codec not in codecs:
        raise StoreError(
            f"{path}: codec {spec.codec!r} found; {path.suffix} takes {', '.join(codecs)}; choose one of these"
        )
    if not (1 <= spec.width_px <= LARGEST_PX and 1 <= spec.height_px <= LARGEST_PX):
        raise StoreError(
            f"{path}: found size {spec.width_px}x{spec.height_px} px; wanted sides of 1 to {LARGEST_PX} px; "
            "choose another size"
        )
    if spec.tile_px % 16 or not 16 <= spec.tile_px <= 4096:
        raise StoreError(
            f"{path}: tile_px {spec.tile_px}; wanted a multiple of 16 from 16 to 4096; 512 suits most readers"
        )
    if -(-spec.width_px // spec.tile_px) * -(-spec.height_px // spec.tile_px) > MOST_TILES:
        raise StoreError(
            f"{path}: {spec.width_px}x{spec.height_px} px in tiles of {spec.tile_px} px; wanted at most "
            f"{MOST_TILES} tiles; choose larger tiles or a smaller picture"
        )
    if spec.shard_px is not None and not spec.tile_px <= spec.shard_px <= LARGEST_SHARD_PX:
        raise StoreError(
            f"{path}: shards of {spec.shard_px} px; wanted {spec.tile_px} (a tile) to {LARGEST_SHARD_PX}; take 8192"
        )
    if not 1 <= spec.quality <= 100:
        raise StoreError(f"{path}: quality {spec.quality}; wanted 1 to 100; 90 is a good start")
    if not spec.fingerprint:
        raise StoreError(f"{path}: an empty fingerprint; wanted a digest of all that determines the pixels; pass one")
    return replace(spec, codec=codec)


def as_record(spec: StoreSpec) -> dict[str, Any]:
    """What `spec_from_record` reads, for a JSON document of another kind to carry."""
    fields = {name: getattr(spec, name) for name in (*_COMPARED, "fingerprint")}
    return {RECORD: VERSION, **fields, "metadata": dict(spec.metadata)}
