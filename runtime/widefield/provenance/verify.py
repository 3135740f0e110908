"""Check a stored picture, or a region of it, against its manifest: which tiles are as they were made.

    manifest.json agrees with itself -> each level's rows with it -> each row's tiles with that -> each tile's bytes

Memory: one tile, and the hashes of one row of tiles and of all rows of a level. A changed tile is found and named, and
the rest still verifies; so it does when the hashes of a row were changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from widefield.errors import BadRequest, MissingBackend, StoreError
from widefield.geometry import Region
from widefield.provenance.signing import Signature, read_signature
from widefield.store import Store, open_store
from widefield.store.faults import explained
from widefield.store.hashes import HASHES, MANIFEST, SIZE, TileHashes, digest, provenance_path
from widefield.store.manifest import Manifest, level_agrees, read_manifest
from widefield.store.spec import as_record

LISTED = 100  # tiles that are named
Tile = tuple[int, int, int]  # level, row, column


@dataclass
class Verified:
    """What was found. `changed` names the first LISTED tiles whose bytes, or whose row's hashes, are not as they were;
    `levels` those whose rows' hashes are not, so that nothing of them can be said. `unchecked`: there is a signature,
    and no c2pa to read it with."""

    path: Path | str
    root: str
    tiles: int = 0
    wrong: int = 0
    changed: list[Tile] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    signature: Signature | None = None
    unchecked: bool = False

    @property
    def good(self) -> bool:
        """Whether all that was looked at is as it was made."""
        return not self.wrong and not self.levels and (self.signature is None or self.signature.valid)

    def as_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "sha256": self.root,
            "good": self.good,
            "tiles": self.tiles,
            "tiles_changed": self.wrong,
            "changed": [{"level": k, "row": row, "column": column} for k, row, column in self.changed],
            "levels_unknown": self.levels,
            "signature": None if self.signature is None else self.signature.as_dict(),
            "signature_unchecked": self.unchecked,
        }


def verify(
    picture: Path | Store, region: Region | None = None, *, progress: Callable[[int, int], None] | None = None
) -> Verified:
    """Look at every tile, or at those under a region of the picture's pixels, on all levels. A picture that is opened
    already is left open.

    StoreError for a picture that has no manifest, or another one's, or cannot be opened; BadRequest for a region
    outside. `progress(done, total)` counts tiles.
    """
    path = picture.path if isinstance(picture, Store) else picture
    manifest = read_manifest(provenance_path(path) / MANIFEST)
    with nullcontext(picture) if isinstance(picture, Store) else open_store(picture) as store:
        if manifest.record != as_record(store.spec):
            raise StoreError(
                f"{provenance_path(path)} is of another picture than {path}; wanted its own; put it beside its picture"
            )
        whole = Region(0, 0, store.spec.height_px, store.spec.width_px)
        region = whole if region is None else region
        if not region or not region.within(whole):
            raise BadRequest(
                f"rows {region.y0}:{region.y1}, columns {region.x0}:{region.x1} leave the picture of {whole.height} "
                f"rows and {whole.width} columns; name a part of it"
            )
        with explained(path), closing(_hashes(path, store)) as hashes:
            found = _looked_at(store, hashes, manifest, region, progress)
    try:
        found.signature = read_signature(path)
    except MissingBackend:
        found.unchecked = True
    return found


def _hashes(path: Path, store: Store) -> TileHashes:
    return TileHashes(provenance_path(path) / HASHES, store.spec, store.levels, writable=False)


def _looked_at(
    store: Store,
    hashes: TileHashes,
    manifest: Manifest,
    region: Region,
    progress: Callable[[int, int], None] | None,
) -> Verified:
    found = Verified(store.path, manifest.root)
    parts = [_tiles_under(store, level, region) for level in range(len(store.levels))]
    total = sum(part.area for part in parts)
    for level, part in enumerate(parts):
        if not level_agrees(hashes, manifest, level):
            found.levels.append(level)
            continue
        for tile, good in _checked(store, hashes, level, part):
            found.tiles += 1
            if not good:
                found.wrong += 1
                found.changed += [tile] if len(found.changed) < LISTED else []
            if progress is not None:
                progress(found.tiles, total)
    return found


def _tiles_under(store: Store, level: int, region: Region) -> Region:
    """The tiles of a level that show a region of level 0's pixels, in rows and columns of tiles."""
    side, it = store.spec.tile_px << level, store.levels[level]
    tiles = Region(region.y0 // side, region.x0 // side, -(-region.y1 // side), -(-region.x1 // side))
    return tiles.clipped(Region(0, 0, it.rows, it.columns))


def _checked(store: Store, hashes: TileHashes, level: int, part: Region) -> Iterator[tuple[Tile, bool]]:
    rows = hashes.rows(level)
    for row in range(part.y0, part.y1):
        known = hashes.row(level, row)
        agrees = digest(known) == rows[SIZE * row : SIZE * (row + 1)]
        for column in range(part.x0, part.x1):
            tile = level, row, column
            yield tile, agrees and _hash_of(store, tile) == known[SIZE * column : SIZE * (column + 1)]


def _hash_of(store: Store, tile: Tile) -> bytes | None:
    """None for a tile that is missing, or in a file that cannot be read any more."""
    try:
        return digest(store.read_encoded(*tile))
    except (StoreError, RuntimeError, ValueError):  # as codecs report damage
        return None
