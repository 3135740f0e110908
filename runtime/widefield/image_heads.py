"""(height, width) from the head of a picture file, without decoding it.

ValueError, IndexError or struct.error where it is damaged or is no grey or RGB picture.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import IO


def png_size(file: IO[bytes]) -> tuple[int, int]:
    """Of a PNG."""
    head = file.read(24)
    if head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR":
        raise ValueError("it has no PNG signature")
    width, height = struct.unpack(">II", head[16:])
    return height, width


def jpeg_size(file: IO[bytes]) -> tuple[int, int]:
    """Of a JPEG, of any process; grey or with three components."""
    if file.read(2) != b"\xff\xd8":
        raise ValueError("it has no JPEG signature")
    while True:
        lead, kind, length = struct.unpack(">BBH", file.read(4))
        if lead != 0xFF or length < 2:
            raise ValueError("a segment is damaged")
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # a frame header, of any process
            _, height, width, components = struct.unpack(">BHHB", file.read(6))
            if components not in (1, 3):
                raise ValueError(f"it has {components} colour components, as CMYK has")
            return height, width
        file.seek(length - 2, os.SEEK_CUR)


def webp_size(file: IO[bytes]) -> tuple[int, int]:
    """Of a WebP, of each of its three kinds."""
    head = file.read(30)
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        raise ValueError("it has no WebP signature")
    match head[12:16]:
        case b"VP8X":
            return int.from_bytes(head[27:30], "little") + 1, int.from_bytes(head[24:27], "little") + 1
        case b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
        case b"VP8 ":
            width, height = struct.unpack("<HH", head[26:30])
            return height & 0x3FFF, width & 0x3FFF
        case kind:
            raise ValueError(f"it begins with chunk {kind!r}")


_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}


def tiff_size(file: IO[bytes]) -> tuple[int, int]:
    """Of a TIFF or BigTIFF: grey, RGB, or YCbCr in JPEG, of 8 or 16 bits; all its pixels are there."""
    tags = _tiff_tags(file)
    (height,), (width,), (photometric,) = tags[257], tags[256], tags[262]
    if photometric not in (1, 2) and (photometric, tags.get(259)) != (6, (7,)):  # grey, RGB; YCbCr in JPEG
        raise ValueError(f"its photometric interpretation is {photometric}")
    if not set(tags.get(258, (1,))) <= {8, 16}:
        raise ValueError(f"it has {tags.get(258, (1,))[0]} bits a sample")
    ends = (at + n for at, n in zip(tags.get(324, tags.get(273, ())), tags.get(325, tags.get(279, ())), strict=True))
    size = file.seek(0, os.SEEK_END)
    if max(ends, default=size + 1) > size:
        raise ValueError("it ends before its pixels do")
    return height, width


def _tiff_tags(file: IO[bytes]) -> dict[int, tuple[int, ...]]:
    """The integer tags of the first directory of a TIFF or BigTIFF."""
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
    version = struct.unpack(f"{order}H", head[2:4])[0]
    if not order or version not in (42, 43):
        raise ValueError("it has no TIFF signature")
    word, count, slot = ("I", "H", 4) if version == 42 else ("Q", "Q", 8)

    def unpacked(at: int, form: str) -> tuple[int, ...]:
        file.seek(at)
        return struct.unpack(order + form, file.read(struct.calcsize(order + form)))

    (at,) = unpacked(slot, word)
    (entries,) = unpacked(at, count)
    tags: dict[int, tuple[int, ...]] = {}
    for i in range(min(entries, 1000)):
        entry = at + struct.calcsize(count) + i * (4 + 2 * slot)
        tag, kind, n = unpacked(entry, f"HH{word}")
        if kind in _TIFF_TYPES and n <= 1 << 24:
            form = f"{n}{_TIFF_TYPES[kind]}"
            place = entry + 4 + slot
            tags[tag] = unpacked(place if struct.calcsize(form) <= slot else unpacked(place, word)[0], form)
    if not {256, 257, 262} <= tags.keys():
        raise ValueError("its first directory is no picture")
    return tags


def is_ours(path: Path) -> bool:
    """Whether a TIFF carries the record of a store."""
    from widefield.store.spec import RECORD
    from widefield.store.tiff_layout import description

    with path.open("rb", buffering=0) as file:
        fd, size = file.fileno(), path.stat().st_size
        text = description(lambda nbytes, at: os.pread(fd, nbytes, at) if at < size else b"", size)
    return text is not None and RECORD.encode() in text
