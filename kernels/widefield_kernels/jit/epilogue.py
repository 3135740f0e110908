"""Pixels and the next level of the pyramid in one pass. Formula: widefield_kernels/epilogue.py.

    u8   = clamp((x + 1) * 127.5) + 2^23, whose lowest byte is the number rounded half to even: float32 has no
           fractions from 2^23 on. Clamping before the rounding is the same, and leaves no product to fuse with a sum.
    half = the 2 x 2 boxes of a block of even size; a box over an odd edge counts what it has twice

Shapes   x: (channels, rows, columns) with any strides; out, half: (rows, columns, channels) uint8, pixels side by side,
         rows with any stride; bad: one int64, to which the values that are not numbers are added: nobody sets it to
         zero here.
Numbers  float32 inside, one rounding: equal to the formula to the last bit. Offsets are 64 bits wide.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import triton
import triton.language as tl

from widefield_kernels.jit.variant import Variant

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_Y, BLOCK_X = 4, 256  # pixels, both even
OPTIONS = {"enable_fp_fusion": False}  # two roundings, as the formula has them


@triton.jit
def levels_kernel(
    x_ptr, out_ptr, half_ptr, bad_ptr, rows, columns, x_channel, x_row, x_column, out_row, half_row,
    CHANNELS: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """Programs: (blocks of columns, blocks of rows)."""
    row = tl.program_id(1) * BLOCK_Y + tl.arange(0, BLOCK_Y)
    column = tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    row_half = tl.program_id(1) * (BLOCK_Y // 2) + tl.arange(0, BLOCK_Y // 2)
    column_half = tl.program_id(0) * (BLOCK_X // 2) + tl.arange(0, BLOCK_X // 2)
    inside_half = (2 * row_half < rows)[:, None] & (2 * column_half < columns)[None, :]
    twice = tl.where(2 * row_half + 1 < rows, 1, 2)[:, None] * tl.where(2 * column_half + 1 < columns, 1, 2)[None, :]
    x_at = x_ptr + (row.to(tl.int64) * x_row)[:, None] + (column.to(tl.int64) * x_column)[None, :]
    out_at = out_ptr + (row.to(tl.int64) * out_row)[:, None] + (column.to(tl.int64) * CHANNELS)[None, :]
    half_at = half_ptr + (row_half.to(tl.int64) * half_row)[:, None]
    half_at += (column_half.to(tl.int64) * CHANNELS)[None, :]
    full = ((tl.program_id(1) + 1) * BLOCK_Y <= rows) & ((tl.program_id(0) + 1) * BLOCK_X <= columns)
    bad = tl.zeros([BLOCK_Y, BLOCK_X], tl.int32)
    for channel in tl.static_range(CHANNELS):
        if full:  # without a mask the loads are as wide as the strides allow, whatever the number of columns
            loaded = tl.load(x_at + channel * x_channel)
        else:
            loaded = tl.load(x_at + channel * x_channel, mask=inside, other=-1.0)
        x = loaded.to(tl.float32)
        bad += (x != x).to(tl.int32)
        scaled = tl.where(x == x, (x + 1.0) * 127.5, 0.0)
        whole = tl.minimum(tl.maximum(scaled, 0.0), 255.0) + 8388608.0
        pixels = whole.to(tl.int32, bitcast=True) & 255
        tl.store(out_at + channel, pixels.to(tl.uint8), mask=inside)
        boxes = tl.reshape(pixels, [BLOCK_Y // 2, 2, BLOCK_X // 2, 2])
        total = tl.sum(tl.sum(boxes, 3), 1) * twice
        tl.store(half_at + channel, ((total + 2) >> 2).to(tl.uint8), mask=inside_half)
    count = tl.sum(bad)
    tl.atomic_add(bad_ptr, count.to(tl.int64), mask=count > 0)


def to_levels(x: Tensor, bad: Tensor, out: Tensor | None = None, half: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(pixels, the same at half the size) of x (channels, rows, columns); `bad` grows by how many are not numbers.

    `out` and `half` may be views of larger pictures. ValueError for what the kernel cannot do.
    """
    import torch

    channels, rows, columns = x.shape
    if out is None:
        out = torch.empty((rows, columns, channels), dtype=torch.uint8, device=x.device)
    if half is None:
        half = torch.empty((-(-rows // 2), -(-columns // 2), channels), dtype=torch.uint8, device=x.device)
    _check(x, bad, out, half)
    levels_kernel[(triton.cdiv(columns, BLOCK_X), triton.cdiv(rows, BLOCK_Y))](
        x, out, half, bad, rows, columns, *x.stride(), out.stride(0), half.stride(0),
        channels, BLOCK_Y, BLOCK_X, **OPTIONS,
    )  # fmt: skip
    return out, half


def _check(x: Tensor, bad: Tensor, out: Tensor, half: Tensor) -> None:
    import torch

    channels, rows, columns = x.shape
    found = ", ".join(f"{t.dtype} {tuple(t.shape)} strides {t.stride()}" for t in (x, bad, out, half))
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"to_levels found {found}, wanted x in 16 or 32 bits, floating; convert it")
    sizes = ((rows, columns, channels), (-(-rows // 2), -(-columns // 2), channels))
    for level, size in zip((out, half), sizes, strict=True):
        if level.shape != size or level.dtype != torch.uint8 or level.stride()[1:] != (channels, 1):
            raise ValueError(f"to_levels found {found}, wanted {size} uint8 with pixels side by side")
    if bad.dtype != torch.int64 or bad.numel() != 1:
        raise ValueError(f"to_levels found {found}, wanted one int64 to count into")


def variants(capability: int) -> tuple[Variant, ...]:
    """Three channels: planes whose rows begin at multiples of 16 bytes, and any. The same for every capability."""
    return tuple(_levels(dtype, aligned) for aligned, dtype in itertools.product((True, False), ("bf16", "fp32")))


def _levels(dtype: str, aligned: bool) -> Variant:
    strides = ["x_channel", "x_row", *([] if aligned else ["x_column"]), "out_row", "half_row"]
    pointers = {"x_ptr": f"*{dtype}", "out_ptr": "*u8", "half_ptr": "*u8", "bad_ptr": "*i64"}
    return Variant(
        name=f"epilogue.{'planes' if aligned else 'any'}.{dtype}",
        function=levels_kernel,
        signature={**pointers, "rows": "i32", "columns": "i32", **dict.fromkeys(strides, "i64")},
        constants={"CHANNELS": 3, "BLOCK_Y": BLOCK_Y, "BLOCK_X": BLOCK_X} | ({"x_column": 1} if aligned else {}),
        divisible=("x_ptr", "x_channel", "x_row") if aligned else (),
        divisor=8,
        grid=("cdiv(columns, BLOCK_X)", "cdiv(rows, BLOCK_Y)", "1"),
        options=OPTIONS,
    )
