"""Statistics of a tile's core, and the frozen affine map with SiLU, on a GPU. Formula: widefield_kernels/norm.py.

    moments    each program takes `rows_per_part` rows of the core of a tile, a block at a time: mean and M2 of the
               block around its own mean, merged into the program's by Chan's formula
    apply      y = f(x scale + shift) + residual, each element read once and written once

Shapes   x, residual, y: four strides each, for tile, channel, row and column. One of the last three is 1: channels
         (NHWC) or columns (NCHW), and that one is not an argument but a constant of the variant.
         partials: (tiles * programs, 3, channels) float32, contiguous, for `merge_partials_reference`.
Numbers  float32 inside, one rounding on the way out. Offsets are 64 bits wide.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from widefield_kernels.jit.variant import Variant

if TYPE_CHECKING:
    from torch import Tensor

    from widefield_kernels.norm import Core

# Channels, rows and columns of a block, by whether channels are what lies side by side.
MOMENTS_BLOCKS = {True: (64, 2, 16), False: (1, 8, 256)}
APPLY_BLOCKS = {True: (64, 64), False: (1, 2048)}  # channels and columns
MOST_PARTS = 512  # into which a tile's core falls


@triton.jit
def moments_kernel(
    x_ptr, partials_ptr, tiles, channels, top, left, core_rows, core_columns, rows_per_part,
    x_tile, x_channel, x_row, x_column, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """Programs: (parts of a core, blocks of channels, tiles)."""
    part, tile = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    pixel = tl.arange(0, BLOCK_R * BLOCK_X)
    at = x_ptr + tile * x_tile + (channel.to(tl.int64) * x_channel)[:, None]
    first = part * rows_per_part
    last = tl.minimum(first + rows_per_part, core_rows)
    count = 0.0
    mean = tl.zeros([BLOCK_C], tl.float32)
    m2 = tl.zeros([BLOCK_C], tl.float32)
    for row0 in range(first, last, BLOCK_R):
        for column0 in range(0, core_columns, BLOCK_X):
            row, column = row0 + pixel // BLOCK_X, column0 + pixel % BLOCK_X
            inside = (channel < channels)[:, None] & ((row < last) & (column < core_columns))[None, :]
            offset = (row + top).to(tl.int64) * x_row + (column + left).to(tl.int64) * x_column
            x = tl.load(at + offset[None, :], mask=inside, other=0.0).to(tl.float32)
            samples = (tl.minimum(last - row0, BLOCK_R) * tl.minimum(core_columns - column0, BLOCK_X)).to(tl.float32)
            block_mean = tl.sum(x, 1) / samples
            distance = tl.where(inside, x - block_mean[:, None], 0.0)
            share = samples / (count + samples)
            delta = block_mean - mean
            mean += delta * share
            m2 += tl.sum(distance * distance, 1) + delta * delta * (count * share)
            count += samples
    out = partials_ptr + (tile * tl.num_programs(0) + part) * 3 * channels + channel
    tl.store(out, tl.zeros([BLOCK_C], tl.float32) + count, mask=channel < channels)
    tl.store(out + channels, mean, mask=channel < channels)
    tl.store(out + 2 * channels, m2, mask=channel < channels)


@triton.jit
def apply_kernel(
    x_ptr, scale_ptr, shift_ptr, residual_ptr, out_ptr, tiles, channels, rows, columns, silu, with_residual,
    x_tile, x_channel, x_row, x_column, residual_tile, residual_channel, residual_row, residual_column,
    out_tile, out_channel, out_row, out_column, BLOCK_C: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """Programs: (blocks of columns in a row, in all rows, in all tiles; blocks of channels)."""
    blocks = tl.cdiv(columns, BLOCK_X)
    line = tl.program_id(0) // blocks
    column = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_X + tl.arange(0, BLOCK_X)
    tile, row = (line // rows).to(tl.int64), (line % rows).to(tl.int64)
    narrow_channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside_c = narrow_channel < channels
    channel = narrow_channel.to(tl.int64)
    inside = inside_c[:, None] & (column < columns)[None, :]
    scale = tl.load(scale_ptr + channel, mask=inside_c, other=0.0)[:, None]
    shift = tl.load(shift_ptr + channel, mask=inside_c, other=0.0)[:, None]
    x_at = x_ptr + tile * x_tile + row * x_row
    x = tl.load(x_at + (channel * x_channel)[:, None] + (column * x_column)[None, :], mask=inside, other=0.0)
    y = x.to(tl.float32) * scale + shift
    if silu != 0:
        y = y / (1.0 + tl.exp(-y))
    if with_residual != 0:
        at = residual_ptr + tile * residual_tile + row * residual_row
        offset = (channel * residual_channel)[:, None] + (column * residual_column)[None, :]
        y += tl.load(at + offset, mask=inside, other=0.0).to(tl.float32)
    out_at = out_ptr + tile * out_tile + row * out_row
    at = out_at + (channel * out_channel)[:, None] + (column * out_column)[None, :]
    tl.store(at, y.to(out_ptr.dtype.element_ty), mask=inside)


def moments(x: Tensor, core: Core | None = None, *, channels_last: bool = False) -> Tensor:
    """Partials (tiles * parts, 3, channels) float32 of x (tiles, channels, rows, columns) over the core of each tile.

    `channels_last` says which axis of x has stride 1: channels, or else columns. ValueError for another x or core.
    """
    import torch

    _check("moments", x, channels_last=channels_last)
    tiles, channels, height, width = x.shape
    top, bottom, left, right = core or (0, height, 0, width)
    if not (0 <= top < bottom <= height and 0 <= left < right <= width):
        raise ValueError(f"moments found core {core}, wanted one within {height} rows and {width} columns; clip it")
    block_c, block_r, block_x = MOMENTS_BLOCKS[channels_last]
    rows_per_part = rows_per_part_of(bottom - top, block_r)
    parts = triton.cdiv(bottom - top, rows_per_part)
    out = torch.empty((tiles * parts, 3, channels), dtype=torch.float32, device=x.device)
    moments_kernel[(parts, triton.cdiv(channels, block_c), tiles)](
        x, out, tiles, channels, top, left, bottom - top, right - left, rows_per_part, *x.stride(),
        block_c, block_r, block_x,
    )  # fmt: skip
    return out


def apply(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    *,
    silu: bool = True,
    channels_last: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """f(x scale + shift) + residual of x (tiles, channels, rows, columns). `out` may be x or the residual itself.

    `channels_last` says which axis has stride 1 in all three: channels, or else columns. ValueError where one has not.
    """
    import torch

    out = torch.empty_like(x) if out is None else out
    added = x if residual is None else residual
    _check("apply", x, added, out, channels_last=channels_last)
    tiles, channels, rows, columns = x.shape
    for vector in (scale, shift):
        if vector.shape != (channels,) or vector.dtype != torch.float32 or not vector.is_contiguous():
            raise ValueError(f"apply found {_show(scale, shift)}, wanted scale and shift ({channels},) float32")
    block_c, block_x = APPLY_BLOCKS[channels_last]
    tensors, (tiles, rows, columns) = _collapsed(x, added, out)
    strides = [stride for tensor in tensors for stride in tensor.stride()]
    apply_kernel[(tiles * rows * triton.cdiv(columns, block_x), triton.cdiv(channels, block_c))](
        x, scale, shift, added, out, tiles, channels, rows, columns, int(silu), int(residual is not None), *strides,
        block_c, block_x,
    )  # fmt: skip
    return out


def rows_per_part_of(core_rows: int, block_r: int) -> int:
    """How many rows of a core a program takes: whole blocks, so many that no more than MOST_PARTS parts come of it."""
    return -(-core_rows // (MOST_PARTS * block_r)) * block_r


def _collapsed(*tensors: Tensor) -> tuple[list[Tensor], tuple[int, int, int]]:
    """The same with rows that follow each other without a gap made one long row: few short blocks of columns."""
    tiles, _, rows, columns = tensors[0].shape
    if any(t.stride(2) != columns * t.stride(3) for t in tensors):
        return list(tensors), (tiles, rows, columns)
    return [t.flatten(2).unsqueeze(2) for t in tensors], (tiles, 1, rows * columns)


def _check(kernel: str, *tensors: Tensor, channels_last: bool) -> None:
    import torch

    first, axis = tensors[0], 1 if channels_last else 3
    wanted = "channels" if channels_last else "columns"
    if first.ndim != 4 or first.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"{kernel} found {_show(first)}, wanted (tiles, channels, rows, columns) in 16 or 32 bits")
    if any(t.shape != first.shape or t.dtype != first.dtype or t.device != first.device for t in tensors):
        raise ValueError(f"{kernel} found {_show(*tensors)}, wanted all alike in shape, type and device")
    if any(t.stride(axis) != 1 and t.shape[axis] > 1 for t in tensors):
        raise ValueError(f"{kernel} found {_show(*tensors)}, wanted {wanted} with stride 1; set channels_last or copy")


def _show(*tensors: Tensor) -> str:
    return ", ".join(
        f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)} strides {list(t.stride())}" for t in tensors
    )


def variants(capability: int) -> tuple[Variant, ...]:
    """Both kernels, both layouts, in the types that decoders run in. The same for every capability.

    Channels that lie side by side come in multiples of 8, which makes 16-byte loads of them; of columns nothing is
    promised, as tiles and cores have any width.
    """
    return tuple(
        make(dtype, channels_last)
        for make, channels_last, dtype in itertools.product((_moments, _apply), (True, False), ("bf16", "fp32"))
    )


def _moments(dtype: str, channels_last: bool) -> Variant:
    strides, constants = _strides("x", channels_last=channels_last)
    counts = ("tiles", "channels", "top", "left", "core_rows", "core_columns", "rows_per_part")
    blocks = dict(zip(("BLOCK_C", "BLOCK_R", "BLOCK_X"), MOMENTS_BLOCKS[channels_last], strict=True))
    return Variant(
        name=f"norm.moments.{'nhwc' if channels_last else 'nchw'}.{dtype}",
        function=moments_kernel,
        signature={"x_ptr": f"*{dtype}", "partials_ptr": "*fp32", **dict.fromkeys(counts, "i32"), **strides},
        constants=constants | blocks,
        divisible=("x_ptr", "partials_ptr", "channels", *strides) if channels_last else (),
        divisor=8,
        grid=("cdiv(core_rows, rows_per_part)", "cdiv(channels, BLOCK_C)", "tiles"),
    )


def _apply(dtype: str, channels_last: bool) -> Variant:
    strides, constants = _strides("x", "residual", "out", channels_last=channels_last)
    counts = ("tiles", "channels", "rows", "columns", "silu", "with_residual")
    blocks = dict(zip(("BLOCK_C", "BLOCK_X"), APPLY_BLOCKS[channels_last], strict=True))
    pointers = {"scale_ptr": "*fp32", "shift_ptr": "*fp32", "residual_ptr": f"*{dtype}", "out_ptr": f"*{dtype}"}
    return Variant(
        name=f"norm.apply.{'nhwc' if channels_last else 'nchw'}.{dtype}",
        function=apply_kernel,
        signature={"x_ptr": f"*{dtype}", **pointers, **dict.fromkeys(counts, "i32"), **strides},
        constants=constants | blocks,
        divisible=("x_ptr", *pointers, "channels", *strides) if channels_last else (),
        divisor=8,
        grid=("tiles * rows * cdiv(columns, BLOCK_X)", "cdiv(channels, BLOCK_C)", "1"),
    )


def _strides(*names: str, channels_last: bool) -> tuple[dict[str, str], dict[str, Any]]:
    signature, constants = {}, {}
    for name, axis in itertools.product(names, ("tile", "channel", "row", "column")):
        if axis == ("channel" if channels_last else "column"):
            constants[f"{name}_{axis}"] = 1
        else:
            signature[f"{name}_{axis}"] = "i64"
    return signature, constants
