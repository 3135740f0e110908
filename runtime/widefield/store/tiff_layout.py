"""Where everything in our BigTIFF is, before a tile is made. Integers in, bytes and integers out; no file is touched.

    header | directories, chained, one a level | texts, XMP | tables, one pair a level | blank tile | tiles as they come

Rules    Tile offsets are uint64, byte counts uint32. An offset lies on 8 bytes, so writing it is one store to a reader.
         No table ends on a multiple of 1,024 bytes (geotiff.js 2 stumbles there). A level of one tile has its offset in
         its directory, of one or two tiles its counts; TIFF wants it so.
Source   Adobe, TIFF Revision 6.0, 1992; BigTIFF, libtiff.org; Adobe XMP Specification part 3 (tag 700).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from widefield.store.provenance import SOFTWARE, xmp_packet
from widefield.store.spec import Level, StoreSpec

COMPRESSION = {"jpeg": 7, "deflate": 8, "zstd": 50000, "jpegxl": 50002}
PREDICTED = ("deflate", "zstd")
IMAGE_DESCRIPTION, TILE_OFFSETS, TILE_BYTE_COUNTS = 270, 324, 325
BYTE, ASCII, SHORT, LONG, LONG8 = 1, 2, 3, 4, 16
_SIZE = {BYTE: 1, ASCII: 1, SHORT: 2, LONG: 4, LONG8: 8}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tag. Its value is bytes, or the number of table entries that are filled in later."""

    tag: int
    kind: int
    value: bytes | int

    @property
    def count(self) -> int:
        return self.value if isinstance(self.value, int) else len(self.value) // _SIZE[self.kind]

    @property
    def nbytes(self) -> int:
        return self.count * _SIZE[self.kind]


@dataclass(frozen=True, slots=True)
class Table:
    """Where the offsets and the byte counts of a level's tiles are: positions in the file, in bytes."""

    offsets_at: int
    counts_at: int


@dataclass(frozen=True, slots=True)
class TiffLayout:
    """`head` is all before the tables; `mutable` are the 8-byte values in it that change as tiles come."""

    head: bytes
    mutable: tuple[int, ...]
    tables: tuple[Table, ...]
    data_at: int

    def still(self, head: bytes) -> bytes:
        """`head` with its changing values zeroed, for comparing."""
        still = bytearray(head)
        for position in self.mutable:
            still[position : position + 8] = bytes(8)
        return bytes(still)


def _entries(spec: StoreSpec, level: Level, *, first: bool) -> list[Entry]:
    tiles = level.rows * level.columns
    entries = [
        _numbers(254, LONG, 0 if first else 1),  # NewSubfileType: an overview
        _numbers(256, LONG, level.width_px),
        _numbers(257, LONG, level.height_px),
        _numbers(258, SHORT, 8, 8, 8),
        _numbers(259, SHORT, COMPRESSION[spec.codec]),
        _numbers(262, SHORT, 6 if spec.codec == "jpeg" else 2),  # YCbCr or RGB
        _numbers(277, SHORT, 3),
        _numbers(284, SHORT, 1),
        _numbers(322, LONG, spec.tile_px),
        _numbers(323, LONG, spec.tile_px),
        Entry(TILE_OFFSETS, LONG8, tiles),
        Entry(TILE_BYTE_COUNTS, LONG, tiles),
    ]
    if first:
        entries.append(Entry(IMAGE_DESCRIPTION, ASCII, spec.to_json().encode("ascii") + b"\0"))
        entries.append(Entry(305, ASCII, SOFTWARE.encode("ascii") + b"\0"))
        entries.append(Entry(700, BYTE, xmp_packet(spec.metadata)))
    if spec.codec == "jpeg":
        entries += [_numbers(530, SHORT, 2, 2), _numbers(531, SHORT, 1)]  # subsampling, centred
    if spec.codec in PREDICTED:
        entries.append(_numbers(317, SHORT, 2))
    return sorted(entries, key=lambda entry: entry.tag)


def _numbers(tag: int, kind: int, *values: int) -> Entry:
    return Entry(tag, kind, np.array(values, "<u2" if kind == SHORT else "<u4").tobytes())


def plan_tiff(spec: StoreSpec, levels: tuple[Level, ...]) -> TiffLayout:
    """Place every byte that is not a tile. The same spec gives the same layout, which is how a file is reopened."""
    directories = [_entries(spec, level, first=index == 0) for index, level in enumerate(levels)]
    starts, position = [], 16
    for entries in directories:
        which = next(i for i, entry in enumerate(entries) if entry.tag == TILE_OFFSETS)
        position += -(position + 8 + 20 * which + 12) % 8  # the offset inside, if there is one, on 8 bytes
        starts.append(position)
        position += 8 + 20 * len(entries) + 8
    texts: dict[tuple[int, int], int] = {}
    for index, entries in enumerate(directories):
        for entry in entries:
            if isinstance(entry.value, bytes) and entry.nbytes > 8:
                texts[index, entry.tag] = position
                position += entry.nbytes + entry.nbytes % 2
    head_nbytes = position
    tables, mutable = [], []
    for start, entries in zip(starts, directories, strict=True):
        places = {}
        for which, entry in enumerate(entries):
            if isinstance(entry.value, int):
                if entry.nbytes <= 8:
                    places[entry.tag] = start + 8 + 20 * which + 12
                    mutable.append(places[entry.tag])
                else:
                    position = _table_start(position, entry.nbytes)
                    places[entry.tag] = position
                    position += entry.nbytes
        tables.append(Table(places[TILE_OFFSETS], places[TILE_BYTE_COUNTS]))
    head = _serialised(directories, starts, texts, tables, head_nbytes)
    return TiffLayout(head, tuple(mutable), tuple(tables), -(-position // 8) * 8)


def _table_start(position: int, nbytes: int) -> int:
    start = -(-position // 8) * 8
    return start + 8 if (start + nbytes) % 1024 == 0 else start


def _serialised(
    directories: list[list[Entry]],
    starts: list[int],
    texts: dict[tuple[int, int], int],
    tables: list[Table],
    nbytes: int,
) -> bytes:
    head = bytearray(nbytes)
    struct.pack_into("<2sHHHQ", head, 0, b"II", 43, 8, 0, starts[0])
    for index, (entries, start) in enumerate(zip(directories, starts, strict=True)):
        struct.pack_into("<Q", head, start, len(entries))
        at = start + 8
        for entry in entries:
            struct.pack_into("<HHQ", head, at, entry.tag, entry.kind, entry.count)
            head[at + 12 : at + 20] = _value(entry, texts.get((index, entry.tag)), tables[index])
            at += 20
        struct.pack_into("<Q", head, at, starts[index + 1] if index + 1 < len(starts) else 0)
    for (index, tag), position in texts.items():
        value = next(entry.value for entry in directories[index] if entry.tag == tag)
        assert isinstance(value, bytes)
        head[position : position + len(value)] = value
    return bytes(head)


def _value(entry: Entry, text_at: int | None, table: Table) -> bytes:
    if isinstance(entry.value, int):
        place = table.offsets_at if entry.tag == TILE_OFFSETS else table.counts_at
        return bytes(8) if entry.nbytes <= 8 else struct.pack("<Q", place)
    return entry.value.ljust(8, b"\0") if text_at is None else struct.pack("<Q", text_at)


def description(read: Callable[[int, int], bytes], size: int) -> bytes | None:
    """ImageDescription of the first directory of a BigTIFF, by `read(nbytes, position)`; None when there is none."""
    header = read(16, 0)
    if len(header) < 16 or struct.unpack("<2sHHH", header[:8]) != (b"II", 43, 8, 0):
        return None
    (start,) = struct.unpack("<Q", header[8:])
    if start + 8 > size:  # also keeps a damaged offset from reaching pread, which takes 63 bits
        return None
    (count,) = struct.unpack("<Q", read(8, start))
    entries = read(20 * min(count, 100), start + 8)
    for tag, kind, length, value in struct.iter_unpack("<HHQQ", entries[: len(entries) // 20 * 20]):
        if tag == IMAGE_DESCRIPTION and kind == ASCII and 8 < length < 1 << 24 and value < size:
            return read(length, value).rstrip(b"\0")
    return None
