"""`.dzi`: a Deep Zoom tree, one file a tile, for static web servers. Names and sizes are those of `vips dzsave`.

    OUT.dzi                                    the descriptor
    OUT_files/{depth}/{column}_{row}.jpeg      depth 0 is 1 x 1 px, the deepest the picture itself
    OUT_files/widefield.json                   our record; viewers do not ask for it
    OUT_files/picture.xmp                      what the picture says about itself (provenance.py)

Our level k is depth (deepest - k). Tiles do not overlap. A tile that is not made has no file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from widefield.store import codecs
from widefield.store.base import Marks, Store
from widefield.store.box import Pixels
from widefield.store.faults import replace_file
from widefield.store.provenance import source_type, xmp_packet
from widefield.store.sidecar import Sidecar
from widefield.store.spec import Level, StoreSpec, as_record, checked, foreign, level_sizes, spec_from_json

_SUFFIX = {"jpeg": "jpeg", "png": "png"}


class DziStore(Store):
    """A folder of tiles; existence is the mark, rename the commit."""

    codecs = ("jpeg", "png")
    lossless = "png"

    @classmethod
    def found(cls, path: Path) -> StoreSpec | None:
        record = _folder(path) / "widefield.json"
        if not record.is_file():
            if path.exists() or _folder(path).exists():
                raise foreign(path if path.exists() else _folder(path))
            return None
        spec = checked(spec_from_json(record.read_bytes(), record), path, cls.codecs, cls.lossless)
        if path.exists() and (not path.is_file() or path.read_bytes() != _descriptor(spec)):
            raise foreign(path)
        return spec

    @classmethod
    def create(cls, path: Path, spec: StoreSpec, sidecar: Sidecar) -> None:
        staging = sidecar.staging()
        for depth in range(len(_levels(spec))):
            (staging / str(depth)).mkdir(parents=True)
        record = as_record(spec) | {"digitalSourceType": source_type(spec.metadata)}
        (staging / "widefield.json").write_text(json.dumps(record))
        (staging / "picture.xmp").write_bytes(xmp_packet(spec.metadata))
        staging.replace(_folder(path))

    @classmethod
    def delete(cls, path: Path, sidecar: Sidecar) -> None:
        path.unlink(missing_ok=True)
        _folder(path).replace(sidecar.staging())

    def __init__(self, path: Path, spec: StoreSpec, sidecar: Sidecar | None) -> None:
        if sidecar is not None and not path.exists():
            replace_file(path, _descriptor(spec), sidecar.staging())
        self._open(path, spec, _levels(spec), sidecar)

    def encode(self, level: int, row: int, column: int, pixels: Pixels) -> bytes:
        return codecs.encode(self.spec.codec, self.clipped(level, row, column, pixels), self.spec.quality)

    def _decode(self, level: int, row: int, column: int, data: bytes) -> Pixels:
        return codecs.decode(self.spec.codec, data, (*self.tile_shape(level, row, column), 3))

    def _tile(self, level: int, row: int, column: int) -> Path:
        return self._depth(level) / f"{column}_{row}.{_SUFFIX[self.spec.codec]}"

    def _depth(self, level: int) -> Path:
        return _folder(self.path) / str(len(self.levels) - 1 - level)

    def _commit(self, level: int, row: int, column: int, data: bytes) -> None:
        assert self.sidecar is not None
        replace_file(self._tile(level, row, column), data, self.sidecar.staging())

    def _fetch(self, level: int, row: int, column: int) -> bytes | None:
        try:
            return self._tile(level, row, column).read_bytes()
        except FileNotFoundError:
            return None

    def _scan(self, level: int) -> Marks:
        marks = np.zeros((self.levels[level].rows, self.levels[level].columns), np.bool_)
        with os.scandir(self._depth(level)) as entries:
            for entry in entries:
                column, _, row = entry.name.partition(".")[0].partition("_")
                marks[int(row), int(column)] = True
        return marks


def _folder(path: Path) -> Path:
    return path.with_name(f"{path.stem}_files")


def _levels(spec: StoreSpec) -> tuple[Level, ...]:
    return level_sizes(spec.width_px, spec.height_px, spec.tile_px, smallest_px=1)


def _descriptor(spec: StoreSpec) -> bytes:
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="{_SUFFIX[spec.codec]}" Overlap="0" '
        f'TileSize="{spec.tile_px}">\n  <Size Height="{spec.height_px}" Width="{spec.width_px}"/>\n</Image>\n'
    )
    return text.encode()
