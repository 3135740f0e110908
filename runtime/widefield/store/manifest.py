"""manifest.json: what a finished picture is, in few bytes. The same for equal pictures: no dates, no file names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from widefield.errors import StoreError
from widefield.store.hashes import SIZE, TileHashes, digest
from widefield.store.provenance import source_type
from widefield.store.spec import Level, StoreSpec, as_record, foreign

VERSION = 1
OURS = "widefield_manifest"


@dataclass(frozen=True, slots=True)
class Manifest:
    """`levels` has the hash of each level, `root` that of the picture, both in hex; `record` is the spec's."""

    record: Mapping[str, Any]
    levels: tuple[str, ...]
    root: str


def root_of(record: Mapping[str, Any], levels: Sequence[str]) -> str:
    """The hash of a picture, in hex."""
    total = hashlib.sha256(b"widefield\0" + json.dumps(record, sort_keys=True).encode())
    for level in levels:
        total.update(bytes.fromhex(level))
    return total.hexdigest()


def seal(hashes: TileHashes, spec: StoreSpec, levels: Sequence[Level], read: Callable[[int, int, int], bytes]) -> bytes:
    """The manifest of a picture whose tiles are all there. `read` gives a tile whose hash is missing."""
    found = []
    for index, level in enumerate(levels):
        total = hashlib.sha256()
        for row in range(level.rows):
            known = np.frombuffer(hashes.row(index, row), np.uint8).reshape(-1, SIZE)
            for column in np.flatnonzero(~known.any(axis=1)):
                hashes.put(index, row, int(column), read(index, row, int(column)))
            total.update(hashes.seal_row(index, row))
        found.append(total.hexdigest())
    sizes = [[level.width_px, level.height_px] for level in levels]
    record = as_record(spec)
    document = {
        OURS: VERSION,
        "digitalSourceType": source_type(spec.metadata),
        "picture": record,
        "hash": "sha256",
        "levels": [{"size_px": size, "sha256": each} for size, each in zip(sizes, found, strict=True)],
        "sha256": root_of(record, found),
    }
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def read_manifest(path: Path) -> Manifest:
    """StoreError for one that is missing, damaged, not ours, or does not agree with itself."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise StoreError(
            f"{path} does not exist; wanted the manifest of a finished picture; finish it: run its command again"
        ) from None
    try:
        document = json.loads(data)
        if document[OURS] != VERSION:
            raise foreign(path)
        manifest = Manifest(
            document["picture"], tuple(level["sha256"] for level in document["levels"]), document["sha256"]
        )
        agrees = root_of(manifest.record, manifest.levels) == manifest.root
    except (ValueError, KeyError, TypeError):
        raise foreign(path) from None
    if not agrees:
        raise StoreError(f"{path} was changed: its hashes do not make its own; wanted it as it was; restore it")
    return manifest


def level_agrees(hashes: TileHashes, manifest: Manifest, level: int) -> bool:
    """Whether the rows' hashes of a level are those that the manifest speaks of."""
    return digest(hashes.rows(level)).hex() == manifest.levels[level]
