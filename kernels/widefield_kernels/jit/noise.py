"""Noise on a GPU: the formula of `widefield_kernels.noise`, the same to the last bit.

Each program makes ROWS x 4 QUADS values of one channel. Compiled without fused multiply-add, for NumPy has none.

Shapes   out: (channels, rows, columns) float32; channels and rows may stride, columns are contiguous.
Units    y0, x0: cells of the whole picture. Offsets are 64 bits wide, coordinates 32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from widefield_kernels.jit.variant import Variant
from widefield_kernels.noise import (
    CENTRE,
    CENTRE_SHIFT,
    LOG2,
    ROOT_HALF_BITS,
    SPLIT,
    TAIL,
    TAIL_SHIFT,
    Draw,
    check_region,
)

if TYPE_CHECKING:
    from torch import Tensor

_LOG2 = tl.constexpr(LOG2)
_ROOT_HALF_BITS = tl.constexpr(ROOT_HALF_BITS)
_SPLIT = tl.constexpr(SPLIT)
_CENTRE_SHIFT, _CENTRE = tl.constexpr(CENTRE_SHIFT), tl.constexpr(CENTRE)
_TAIL_SHIFT, _TAIL = tl.constexpr(TAIL_SHIFT), tl.constexpr(TAIL)
EXACT = {"enable_fp_fusion": False}
ROWS, QUADS = 16, 16


@triton.jit
def _minus_log2(q):
    bits = q.to(tl.int32, bitcast=True) - _ROOT_HALF_BITS
    exponent = (bits >> 23).to(tl.float32)
    f = ((bits & 0x7FFFFF) + _ROOT_HALF_BITS).to(tl.float32, bitcast=True) - 1.0
    total = f * _LOG2[0]
    for k in tl.static_range(1, 6):
        total = (total + _LOG2[k]) * f
    return -((total + _LOG2[6]) * f + exponent)


@triton.jit
def normal_from_bits(word):
    """One standard normal for each uint32."""
    signed = word.to(tl.int32, bitcast=True)
    r = (signed.to(tl.float32) + 0.5) * (2.0**-31)
    distance = ((signed ^ (signed >> 31) ^ 0x7FFFFFFF).to(tl.float32) + 0.5) * (2.0**-31)
    w = _minus_log2(distance * (2.0 - distance))
    rare = w > _SPLIT
    t = tl.where(rare, tl.sqrt_rn(w) - _TAIL_SHIFT, w - _CENTRE_SHIFT)
    total = t * tl.where(rare, _TAIL[0], _CENTRE[0])
    for k in tl.static_range(1, 7):
        total = (total + tl.where(rare, _TAIL[k], _CENTRE[k])) * t
    return (total + tl.where(rare, _TAIL[7], _CENTRE[7])) * r


@triton.jit
def draw_tile(seed, level_step, channel, top, quad, ROWS: tl.constexpr, QUADS: tl.constexpr):
    """(ROWS, 4 QUADS) normals: rows from `top`, columns from 4 `quad`."""
    quads = quad + tl.arange(0, QUADS)[None, :]
    rows = top + tl.arange(0, ROWS)[:, None]
    w0, w1, w2, w3 = tl.philox(seed, quads, rows, channel, level_step.to(tl.uint32))
    even, odd = tl.join(w0, w2), tl.join(w1, w3)
    return normal_from_bits(tl.join(even, odd).reshape(ROWS, 4 * QUADS))


@triton.jit(do_not_specialize=["seed", "level_step", "y0", "x0", "channels", "rows", "columns"])
def normal_kernel(
    out_ptr, seed: tl.uint64, level_step: tl.uint32, y0: tl.int32, x0: tl.int32, channels: tl.int32, rows: tl.int32,
    columns: tl.int32, out_channel: tl.int64, out_row: tl.int64, ROWS: tl.constexpr, QUADS: tl.constexpr,
):  # fmt: skip
    """Fill out[channel, y - y0, x - x0]; programs: (row blocks x column blocks, channels)."""
    first = x0 // 4
    across = tl.cdiv((x0 + columns + 3) // 4 - first, QUADS)
    top = y0 + (tl.program_id(0) // across) * ROWS
    quad = first + (tl.program_id(0) % across) * QUADS
    channel = tl.program_id(1)
    z = draw_tile(seed, level_step, channel, top, quad, ROWS, QUADS)
    row = (top - y0) + tl.arange(0, ROWS)[:, None]
    column = (4 * quad - x0) + tl.arange(0, 4 * QUADS)[None, :]
    inside = (row < rows) & (column >= 0) & (column < columns)
    target = out_ptr + channel.to(tl.int64) * out_channel + row.to(tl.int64) * out_row + column
    tl.store(target, z, mask=inside)


def normal(seed: int, level: int, step: int, region: tuple[int, int, int, int], out: Tensor) -> Tensor:
    """Fill `out`, (channels, rows, columns) float32, with the noise of the region (y0, x0, y1, x1); gives it back.

    ValueError for what the counter cannot hold and for an `out` of another shape, dtype or last stride.
    """
    Draw(seed, level, step).check()
    y0, x0, y1, x1 = region
    check_region(len(out), region)
    if (
        out.shape[1:] != (y1 - y0, x1 - x0)
        or str(out.dtype) != "torch.float32"
        or (out.shape[2] > 1 and out.stride(2) != 1)
    ):
        raise ValueError(
            f"noise into {tuple(out.shape)} {out.dtype} with strides {out.stride()}; wanted float32 of "
            f"(channels, {y1 - y0}, {x1 - x0}) with a contiguous last axis; allocate such a one"
        )
    channels, rows, columns = out.shape
    if not out.numel():
        return out
    blocks = triton.cdiv(rows, ROWS) * triton.cdiv((x1 + 3) // 4 - x0 // 4, QUADS)
    normal_kernel[blocks, channels](
        out, seed, level << 16 | step, y0, x0, channels, rows, columns, out.stride(0), out.stride(1),
        ROWS=ROWS, QUADS=QUADS, **EXACT,
    )  # fmt: skip
    return out


def variants(capability: int) -> tuple[Variant, ...]:
    """The same one for every architecture: it neither multiplies matrices nor needs shared memory worth a mention."""
    del capability
    where = dict.fromkeys(("y0", "x0", "channels", "rows", "columns"), "i32")
    signature = {
        "out_ptr": "*fp32",
        "seed": "u64",
        "level_step": "u32",
        **where,
        "out_channel": "i64",
        "out_row": "i64",
    }
    constants: dict[str, Any] = {"ROWS": ROWS, "QUADS": QUADS}
    grid = ("cdiv(rows, ROWS) * cdiv((x0 + columns + 3) // 4 - x0 // 4, QUADS)", "channels", "1")
    return (Variant("noise.fp32", normal_kernel, signature, constants, grid=grid, options=EXACT),)
