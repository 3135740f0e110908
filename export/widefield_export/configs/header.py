"""The header of a safetensors file: names, types, shapes and places of its tensors, before any weight is read.

Format: 8 bytes, the little-endian length of the JSON that follows; {name: {dtype, shape, data_offsets: [begin, end]}},
counted from the end of the JSON; the tensors. Every claim is checked against the length of the file.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from widefield.errors import BadCheckpoint

FLOATS = ("F64", "F32", "F16", "BF16")
_ITEM_NBYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_LONGEST = 100_000_000  # bytes; safetensors' own limit
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor in a file."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]


def refuse_pickle(path: Path) -> None:
    """BadCheckpoint when the name of `path` is that of a pickle."""
    if path.suffix.lower() in _PICKLES:
        raise _pickle(path)


def _pickle(path: Path) -> BadCheckpoint:
    return BadCheckpoint(
        f"{path} is a pickle, and reading a pickle runs the code in it; wanted .safetensors; download that, or convert "
        "it with safetensors.torch.save_file on a machine that you trust"
    )


def read_header(path: Path) -> dict[str, Stored]:
    """Every tensor of a file by name. BadCheckpoint when it is not safetensors, damaged, or shorter than it says."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if start.startswith(_PICKLE_STARTS) and length > min(size, _LONGEST):
                raise _pickle(path)
            if len(start) < 8 or length > size - 8:
                raise _truncated(path, size, 8 + length if len(start) == 8 else 8)
            if length > _LONGEST:
                raise _damaged(path, f"a header of {length} bytes")
            header = json.loads(file.read(length))
    except OSError as cause:
        raise BadCheckpoint(f"{path}: {cause.strerror}; wanted to read it; check its permissions") from cause
    except (ValueError, RecursionError) as cause:
        raise _damaged(path, "a header that is not JSON") from cause
    if not isinstance(header, dict):
        raise _damaged(path, "a header that is not a table")
    header.pop("__metadata__", None)
    tensors = {name: _entry(path, name, entry, size - 8 - length) for name, entry in header.items()}
    if not tensors:
        raise BadCheckpoint(f"{path} holds no tensors; wanted an autoencoder; download it again")
    return tensors


def _entry(path: Path, name: str, entry: Any, room: int) -> Stored:
    try:
        dtype, shape, (begin, end) = (
            str(entry["dtype"]),
            tuple(map(int, entry["shape"])),
            map(int, entry["data_offsets"]),
        )
    except (KeyError, TypeError, ValueError) as cause:
        raise _damaged(path, f"no usable entry for {name}") from cause
    if end > room:
        raise _truncated(path, path.stat().st_size, path.stat().st_size - room + end)
    wanted = math.prod(shape) * _ITEM_NBYTES.get(dtype, 0)
    if begin < 0 or min(shape, default=0) < 0 or (dtype in _ITEM_NBYTES and end - begin != wanted):
        raise _damaged(path, f"{end - begin} bytes for {name}, {dtype} {shape}")
    return Stored(path, name, dtype, shape)


def _truncated(path: Path, size: int, wanted: int) -> BadCheckpoint:
    return BadCheckpoint(
        f"{path} is truncated or no safetensors file: {size} bytes; wanted {wanted}; download it again"
    )


def _damaged(path: Path, what: str) -> BadCheckpoint:
    return BadCheckpoint(f"{path} is damaged: it has {what}; wanted a safetensors file; download it again")
