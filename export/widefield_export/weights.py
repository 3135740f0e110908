"""Weights from checkpoint to bundle, one tensor at a time: what stays in memory is one tensor and a table of places.

A written file is read back mapped into memory, so a module made of it holds no weights until somebody computes with it.
Weights may be stored in half precision: graphs then cast each to float32, and compute as if the checkpoint had been
rounded. An engine casts once, when it loads a graph.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from widefield.errors import BadCheckpoint

Place = tuple[int, int]  # first byte in the file, bytes
FLOAT32, FLOAT16 = "float32", "float16"  # what weights may be stored in, as manifests say it
DTYPES = {FLOAT32: torch.float32, FLOAT16: torch.float16}
_ALIGNED = 64  # bytes that the first tensor starts at a multiple of
_NAMES = {torch.float32: "F32", torch.float16: "F16"}


@dataclass(frozen=True, slots=True)
class Source:
    """One tensor of a checkpoint, read when it is wanted. `shape` is what `read` gives."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def write_weights(path: Path, sources: Mapping[str, Source], dtype: torch.dtype = torch.float32) -> dict[str, Place]:
    """Write every tensor in `dtype` as safetensors; returns where each one is.

    BadCheckpoint for a weight that is NaN or infinite, as it is or in `dtype`.
    """
    header: dict[str, Any] = {}
    at = 0
    for name, source in sources.items():
        nbytes = dtype.itemsize * torch.Size(source.shape).numel()
        header[name] = {"dtype": _NAMES[dtype], "shape": list(source.shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNED)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, source in sources.items():
            file.write(_bytes(name, source, dtype))
    start = 8 + len(text)
    spans = {name: entry["data_offsets"] for name, entry in header.items()}
    return {name: (start + begin, end - begin) for name, (begin, end) in spans.items()}


def _bytes(name: str, source: Source, dtype: torch.dtype) -> bytes:
    tensor = source.read().detach()
    if tuple(tensor.shape) != source.shape:
        raise AssertionError(f"{name} was to have shape {source.shape} and has {tuple(tensor.shape)}")
    tensor = tensor.to(dtype).contiguous()
    if not all(bound.isfinite() for bound in torch.aminmax(tensor)):  # NaN passes through
        raise BadCheckpoint(
            f"{name} has {int((~tensor.isfinite()).sum())} weights that are NaN or infinite in {_NAMES[dtype]}; "
            "wanted finite ones; take another copy of the model"
        )
    return tensor.numpy().tobytes()


def is_half(shape: Sequence[int], place: Place) -> bool:
    """Whether a weight of this shape is stored in half precision, by its bytes."""
    return place[1] == 2 * math.prod(shape)


def round_to_half(module: torch.nn.Module) -> None:
    """Round every floating weight of a float32 module to what half precision can say. BadCheckpoint where it cannot."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                half = tensor.half()
                if not half.isfinite().all():
                    raise BadCheckpoint(
                        f"{name} has weights up to {float(tensor.abs().max()):g}; float16 ends at 65504; export with "
                        "--weights float32"
                    )
                tensor.copy_(half)


def mapped(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped into memory: no byte is read before it is used."""
    from safetensors.torch import load_file

    return load_file(path)
