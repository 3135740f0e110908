"""What a cubin says of its kernel's parameters: read from the ELF file itself, with nothing of ours.

Section .nv.info.<symbol> is a list of (format u8, attribute u8, length u16, payload). Attribute 0x17 is one parameter:
index u32, ordinal u16, offset u16, flags u32, whose upper 14 bits are its bytes. Source: `cuobjdump -elf` of the same.
"""

from __future__ import annotations

import struct

PARAMETER = 0x17
WITH_PAYLOAD = 4


def parameter_layout(code: bytes, symbol: str) -> list[tuple[int, int]]:
    """(offset, bytes) of each parameter of a kernel, in their order."""
    data = _section(code, f".nv.info.{symbol}")
    found: dict[int, tuple[int, int]] = {}
    at = 0
    while at < len(data):
        kind, attribute, length = struct.unpack_from("<BBH", data, at)
        at += 4
        if kind != WITH_PAYLOAD:
            continue
        if attribute == PARAMETER:
            _, ordinal, offset, flags = struct.unpack_from("<IHHI", data, at)
            found[ordinal] = offset, flags >> 18
        at += length
    return [found[ordinal] for ordinal in sorted(found)]


def _section(code: bytes, name: str) -> bytes:
    (table,) = struct.unpack_from("<Q", code, 0x28)
    size, count, names_at = struct.unpack_from("<HHH", code, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", code, table + size * index) for index in range(count)]
    names = headers[names_at]
    for head in headers:
        at = names[4] + head[0]
        if code[at : code.index(b"\0", at)] == name.encode():
            return code[head[4] : head[4] + head[5]]
    raise AssertionError(f"the cubin has no section {name}")
