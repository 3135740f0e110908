"""`.png`: one lossless file for small pictures. PNG is a single stream, so it is put together at the end.

Until then the tiles lie raw in OUT.png.partial/pixels, a slot each, and a byte each in OUT.png.partial/marks says which
are there. There is one level: PNG has no pyramid. Up to 2**26 px, so that Pillow's bomb warning (89 Mpx) stays silent.
The file's first text is our record (tEXt), its second the XMP packet (iTXt).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from widefield.errors import StoreError
from widefield.store import codecs
from widefield.store.base import Marks, Store
from widefield.store.box import Pixels
from widefield.store.faults import pwrite_all
from widefield.store.pngfile import SIGNATURE, TEXT_AT, png_pieces
from widefield.store.provenance import xmp_packet
from widefield.store.sidecar import Sidecar, sidecar_path, sidecar_spec
from widefield.store.spec import StoreSpec, checked, foreign, level_sizes, spec_from_json

LARGEST_AREA_PX = 1 << 26
_KEYWORD = b"widefield\0"


class PngStore(Store):
    """Raw tiles beside the path, and a PNG at it once they are all there."""

    codecs = ("png",)
    lossless = "png"

    @classmethod
    def check(cls, spec: StoreSpec, path: Path) -> None:
        if spec.width_px * spec.height_px > LARGEST_AREA_PX:
            raise StoreError(
                f"{path}: {spec.width_px}x{spec.height_px} px is too large for .png; wanted at most "
                f"{LARGEST_AREA_PX} px; write {path.with_suffix('.tif').name} instead"
            )

    @classmethod
    def found(cls, path: Path) -> StoreSpec | None:
        if not path.exists():
            return sidecar_spec(path)
        if not path.is_file():
            raise foreign(path)
        with path.open("rb") as file:
            head = file.read(TEXT_AT + 8)
            (length,) = struct.unpack(">I", head[TEXT_AT : TEXT_AT + 4]) if len(head) == TEXT_AT + 8 else (0,)
            text = file.read(min(length, 1 << 24))
        if head[:8] != SIGNATURE or head[-4:] != b"tEXt" or not text.startswith(_KEYWORD):
            raise foreign(path)
        return checked(spec_from_json(text[len(_KEYWORD) :], path), path, cls.codecs, cls.lossless)

    @classmethod
    def create(cls, path: Path, spec: StoreSpec, sidecar: Sidecar) -> None:
        """The sidecar's record is all there is at first."""

    @classmethod
    def delete(cls, path: Path, sidecar: Sidecar) -> None:
        path.unlink(missing_ok=True)

    def __init__(self, path: Path, spec: StoreSpec, sidecar: Sidecar | None) -> None:
        self._pixels = self._marks = -1
        self._whole: Pixels | None = None
        spool = sidecar_path(path)
        if not path.exists():
            flags = os.O_RDONLY if sidecar is None else os.O_RDWR | os.O_CREAT
            self._pixels = os.open(spool / "pixels", flags, 0o644)
            self._marks = os.open(spool / "marks", flags, 0o644)
        self._open(path, spec, level_sizes(spec.width_px, spec.height_px, spec.tile_px)[:1], sidecar)

    def encode(self, level: int, row: int, column: int, pixels: Pixels) -> bytes:
        return self.clipped(level, row, column, pixels).tobytes()

    def _decode(self, level: int, row: int, column: int, data: bytes) -> Pixels:
        return np.frombuffer(data, np.uint8).reshape(*self.tile_shape(level, row, column), 3).copy()

    def _number(self, row: int, column: int) -> tuple[int, int]:
        """A tile's number, and where its slot begins."""
        number = row * self.levels[0].columns + column
        return number, number * self.spec.tile_px**2 * 3

    def _commit(self, level: int, row: int, column: int, data: bytes) -> None:
        if self._pixels < 0:
            return  # finished already, and what is finished is the same
        number, position = self._number(row, column)
        pwrite_all(self._pixels, data, position)
        pwrite_all(self._marks, b"\1", number)

    def _fetch(self, level: int, row: int, column: int) -> bytes | None:
        height, width = self.tile_shape(level, row, column)
        if self._pixels < 0:
            if self._whole is None:
                shape = (self.spec.height_px, self.spec.width_px, 3)
                self._whole = codecs.decode("png", self.path.read_bytes(), shape)
            y, x = row * self.spec.tile_px, column * self.spec.tile_px
            return self._whole[y : y + height, x : x + width].tobytes()
        number, position = self._number(row, column)
        if os.pread(self._marks, 1, number) != b"\1":
            return None
        return os.pread(self._pixels, height * width * 3, position)

    def _scan(self, level: int) -> Marks:
        shape = self.levels[0].rows, self.levels[0].columns
        if self._pixels < 0:
            return np.ones(shape, np.bool_)
        tiles = shape[0] * shape[1]
        marks = os.pread(self._marks, tiles, 0).ljust(tiles, b"\0")
        return np.equal(np.frombuffer(marks, np.uint8), 1).reshape(shape)

    def _seal(self) -> None:
        if self._pixels < 0:
            return
        assert self.sidecar is not None
        staging = self.sidecar.staging()
        with staging.open("wb") as file:
            record = _KEYWORD + self.spec.to_json().encode("ascii")
            texts = ((b"tEXt", record), (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp_packet(self.spec.metadata)))
            for piece in png_pieces(self.spec.width_px, self.spec.height_px, self._bands(), texts=texts):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(self.path)

    def _bands(self) -> Iterator[Pixels]:
        """The picture from top to bottom, 16 rows at a time."""
        level, tile = self.levels[0], self.spec.tile_px
        for y in range(0, level.height_px, 16):
            row, inside = divmod(y, tile)
            parts = []
            for column in range(level.columns):
                height, width = self.tile_shape(0, row, column)
                rows = min(16, height - inside)
                raw = os.pread(self._pixels, rows * width * 3, self._number(row, column)[1] + inside * width * 3)
                parts.append(np.frombuffer(raw, np.uint8).reshape(rows, width, 3))
            yield np.concatenate(parts, axis=1)

    def _let_go(self) -> None:
        fds, self._pixels, self._marks = (self._pixels, self._marks), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)
