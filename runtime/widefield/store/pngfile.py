"""A PNG in pieces, from bands of rows: bounded memory, and right for tiles one pixel wide, where imagecodecs is not.

Source: ISO/IEC 15948. Eight-bit RGB, every row filtered by "Up" (less the row above), one zlib stream over all rows.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator

import numpy as np

from widefield.store.box import Pixels

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT_AT = len(SIGNATURE) + 25  # IHDR takes 25 bytes; the first text comes next
_UP = 2


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_pieces(
    width: int, height: int, bands: Iterable[Pixels], *, texts: Iterable[tuple[bytes, bytes]] = ()
) -> Iterator[bytes]:
    """The bytes of a picture given from top to bottom as (rows, width, 3) bands. `texts`: (chunk kind, data)."""
    yield SIGNATURE + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    for kind, data in texts:
        yield _chunk(kind, data)
    deflate = zlib.compressobj(level=3)
    above = np.zeros((1, width * 3), np.uint8)
    for band in bands:
        rows = band.reshape(len(band), -1)
        lines = np.full((len(rows), 1 + rows.shape[1]), _UP, np.uint8)
        np.subtract(rows, np.concatenate((above, rows[:-1])), out=lines[:, 1:])
        above = rows[-1:]
        data = deflate.compress(lines.data)
        if data:
            yield _chunk(b"IDAT", data)
    yield _chunk(b"IDAT", deflate.flush()) + _chunk(b"IEND", b"")
