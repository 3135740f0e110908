"""Blend windows and take the sampler's step on a GPU, one pass. Formula: widefield_kernels/blend.py.

Each program makes ROWS x COLUMNS cells of one channel. It works out from the grid alone which windows cover them, sums
the weights of their tents along both axes, and then reads each window's part once, as it reads everything else.

Shapes   windows: (slots, channels, rows, columns of a window), of which `slots` (int32) names those of the region, row
         by row; all else: (channels, rows, columns) of the region. Columns are contiguous; other strides are free and
         64 bits wide.
Types    windows of one, all else of one of bfloat16, float16 and float32. float32 inside, one rounding on the way out.
Numbers  compiled without fused multiply-add: in float32 the same bits as the formula's.
ALIGN    8 promises that all that a column is the sum of is a multiple of 8: planes are read 16 bytes at a time.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from widefield_kernels.blend import BLEND, COEFFICIENTS, Row, is_aligned, launch_numbers
from widefield_kernels.jit.noise import EXACT, draw_tile
from widefield_kernels.jit.variant import Variant
from widefield_kernels.noise import Draw
from widefield_kernels.windows import WindowGrid

if TYPE_CHECKING:
    from torch import Tensor

ROWS, COLUMNS = 8, 128
TYPES = ("torch.bfloat16", "torch.float16", "torch.float32")
PLANES = ("out", "x", "history", "kept")  # of the region
STRIDES = (
    "out_channel", "out_row", "x_channel", "x_row", "history_channel", "history_row", "kept_channel", "kept_row",
    "windows_slot", "windows_channel", "windows_row",
)  # fmt: skip
WHERE = (
    "y0", "x0", "channels", "rows", "columns", "last_y", "count_y", "window_y", "stride_y", "shift_y", "last_x",
    "count_x", "window_x", "stride_x", "shift_x", "first_y", "first_x", "across",
)  # fmt: skip


@triton.jit
def _cover(low, high, last, count, window, stride, shift):
    """Axis.cover: the first window, and one beyond the last."""
    first = tl.where(low < window, 0, (low - window + shift) // stride + 1)
    return first, tl.where(high > last, count, tl.cdiv(high + shift, stride))


@triton.jit
def _inside(k, at, last, window, stride, shift, ALIGN: tl.constexpr):
    """Where the cells `at` lie in window k, whether it covers them, and its weight there: zero where not."""
    i = at - tl.minimum(tl.maximum(k * stride - shift, 0), last) // ALIGN * ALIGN
    covered = (i >= 0) & (i < (window // ALIGN * ALIGN))
    weight = tl.minimum(2 * i + 1, 2 * (window - i) - 1).to(tl.float32)
    return i, covered, tl.where(covered, weight, 0.0)


@triton.jit
def _total(begin, end, at, last, window, stride, shift):
    """The sum of these windows' weights at the cells `at`; 1 where none covers."""
    total = tl.zeros(at.shape, tl.float32)
    for k in range(begin, end):
        _, _, weight = _inside(k, at, last, window, stride, shift, 1)
        total += weight
    return tl.where(total > 0.0, total, 1.0)


@triton.jit(do_not_specialize=[*WHERE, "seed", "level_step"])
def blend_kernel(
    out_ptr, x_ptr, history_ptr, kept_ptr, windows_ptr, slots_ptr, out_channel: tl.int64, out_row: tl.int64,
    x_channel: tl.int64, x_row: tl.int64, history_channel: tl.int64, history_row: tl.int64, kept_channel: tl.int64,
    kept_row: tl.int64, windows_slot: tl.int64, windows_channel: tl.int64, windows_row: tl.int64, y0: tl.int32,
    x0: tl.int32, channels: tl.int32, rows: tl.int32, columns: tl.int32, last_y: tl.int32, count_y: tl.int32,
    window_y: tl.int32, stride_y: tl.int32, shift_y: tl.int32, last_x: tl.int32, count_x: tl.int32, window_x: tl.int32,
    stride_x: tl.int32, shift_x: tl.int32, first_y: tl.int32, first_x: tl.int32, across: tl.int32,
    seed: tl.uint64, level_step: tl.uint32, a: tl.float32, b: tl.float32, c: tl.float32, d: tl.float32,
    keep_x: tl.float32, keep_m: tl.float32, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Programs: (row blocks x column blocks, channels). Columns start at multiples of 4 of the picture: noise does."""
    lead = x0 % 4 // ALIGN * ALIGN  # what is written `n // ALIGN * ALIGN` is n, and seen to be a multiple
    blocks = tl.cdiv(columns + lead, COLUMNS)
    top, left = (tl.program_id(0) // blocks) * ROWS, (tl.program_id(0) % blocks) * COLUMNS - lead
    channel = tl.program_id(1).to(tl.int64)
    row, column = top + tl.arange(0, ROWS), left + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & ((column >= 0) & (column < (columns // ALIGN * ALIGN)))[None, :]
    at = row.to(tl.int64)[:, None]

    here = x_ptr + channel * (x_channel // ALIGN * ALIGN) + at * (x_row // ALIGN * ALIGN) + column[None, :]
    x = tl.load(here, mask=inside & ((a != 0.0) | (keep_x != 0.0)), other=0.0).to(tl.float32)
    here = history_ptr + channel * (history_channel // ALIGN * ALIGN) + at * (history_row // ALIGN * ALIGN)
    history = tl.load(here + column[None, :], mask=inside & (d != 0.0), other=0.0).to(tl.float32)

    y_at, x_at = y0 + row, (x0 // ALIGN * ALIGN) + column
    low, high = y0 + top, y0 + tl.minimum(top + ROWS, rows)
    begin_y, end_y = _cover(low, high, last_y, count_y, window_y, stride_y, shift_y)
    low, high = x0 + tl.maximum(left, 0), x0 + tl.minimum(left + COLUMNS, columns)
    begin_x, end_x = _cover(low, high, last_x, count_x, window_x, stride_x, shift_x)
    total_y = _total(begin_y, end_y, y_at, last_y, window_y, stride_y, shift_y)
    total_x = _total(begin_x, end_x, x_at, last_x, window_x, stride_x, shift_x)
    m = tl.zeros([ROWS, COLUMNS], tl.float32)
    for ky in range(begin_y, end_y):
        i, covered_y, v_y = _inside(ky, y_at, last_y, window_y, stride_y, shift_y, 1)
        line = tl.zeros([ROWS, COLUMNS], tl.float32)
        for kx in range(begin_x, end_x):
            j, covered_x, v_x = _inside(kx, x_at, last_x, window_x, stride_x, shift_x, ALIGN)
            slot = tl.load(slots_ptr + (ky - first_y) * across + (kx - first_x)).to(tl.int64)
            pool = windows_ptr + slot * (windows_slot // ALIGN * ALIGN) + channel * (windows_channel // ALIGN * ALIGN)
            pool += i.to(tl.int64)[:, None] * (windows_row // ALIGN * ALIGN)
            covered = inside & covered_y[:, None] & covered_x[None, :]
            part = tl.load(pool + j[None, :], mask=covered, other=0.0).to(tl.float32)
            line += tl.div_rn(v_x, total_x)[None, :] * part
        m += tl.div_rn(v_y, total_y)[:, None] * line

    fresh = a * x + b * m
    if c != 0.0:
        z = draw_tile(seed, level_step, tl.program_id(1), y0 + top, (x0 + left) // 4, ROWS, COLUMNS // 4)
        fresh += c * z
    fresh += d * history
    here = kept_ptr + channel * (kept_channel // ALIGN * ALIGN) + at * (kept_row // ALIGN * ALIGN) + column[None, :]
    keeps = inside & ((keep_x != 0.0) | (keep_m != 0.0))
    tl.store(here, (keep_x * x + keep_m * m).to(kept_ptr.dtype.element_ty), mask=keeps)
    here = out_ptr + channel * (out_channel // ALIGN * ALIGN) + at * (out_row // ALIGN * ALIGN) + column[None, :]
    tl.store(here, fresh.to(out_ptr.dtype.element_ty), mask=inside)


def blend(
    grid: WindowGrid,
    region: tuple[int, int, int, int],
    windows: Tensor,
    out: Tensor,
    row: Row = BLEND,
    *,
    slots: Tensor | None = None,
    x: Tensor | None = None,
    draw: Draw | None = None,
    history: Tensor | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """Fill `out` (which may be `x`) with x' of the region and `kept` (which may be `history`) with what to keep.

    `windows` is (slots, channels, *grid.window), a pool of which `slots`, int32, names those of `grid.windows(region)`,
    in that order; without it the pool is these. Numbers in `slots` are not checked. ValueError for anything else that
    does not fit. Allocates only the `slots` that are not given.
    """
    row.check(x=x is not None, draw=draw is not None, history=history is not None, kept=kept is not None)
    channels = windows.shape[1] if windows.ndim == 4 else 0
    numbers = launch_numbers(grid, region, channels, row, draw)
    (y0, x0, y1, x1), (down, across) = region, grid.cover(region)
    _check_windows(windows, slots, grid, len(down) * len(across))
    given = dict(zip(PLANES, (out, x, history, kept), strict=True))
    planes = {name: out if plane is None else plane for name, plane in given.items()}  # who is None is not touched
    _check_planes(planes, (channels, y1 - y0, x1 - x0))
    steps = [*itertools.chain(*(plane.stride()[:2] for plane in planes.values())), *windows.stride()[:3]]
    blocks = triton.cdiv(y1 - y0, ROWS) * triton.cdiv(x1 - x0 + x0 % 4, COLUMNS)
    blend_kernel[blocks, channels](
        **{f"{name}_ptr": plane for name, plane in planes.items()}, **dict(zip(STRIDES, steps, strict=True)), **numbers,
        windows_ptr=windows, slots_ptr=_every_slot(windows) if slots is None else slots,
        ROWS=ROWS, COLUMNS=COLUMNS, ALIGN=8 if is_aligned(numbers, steps) else 1, **EXACT,
    )  # fmt: skip
    return out


def _every_slot(windows: Tensor) -> Tensor:
    import torch

    return torch.arange(len(windows), dtype=torch.int32, device=windows.device)


def _check_windows(windows: Tensor, slots: Tensor | None, grid: WindowGrid, count: int) -> None:
    if windows.ndim != 4 or tuple(windows.shape[2:]) != grid.window or not _readable(windows):
        raise ValueError(
            f"windows are {_show(windows)}; wanted (slots, channels, {grid.window[0]}, {grid.window[1]}) with a "
            "contiguous last axis, of bfloat16, float16 or float32"
        )
    if slots is None and len(windows) != count:
        raise ValueError(
            f"{len(windows)} windows; wanted the {count} of grid.windows(region), or `slots` that name them"
        )
    if slots is not None and (tuple(slots.shape), str(slots.dtype), slots.is_contiguous()) != (
        (count,),
        "torch.int32",
        True,
    ):
        raise ValueError(
            f"slots are {_show(slots)}; wanted ({count},) torch.int32, one for each of grid.windows(region)"
        )


def _check_planes(planes: dict[str, Tensor], shape: tuple[int, ...]) -> None:
    for name, plane in planes.items():
        if tuple(plane.shape) != shape or plane.dtype != planes["out"].dtype or not _readable(plane):
            raise ValueError(
                f"{name} is {_show(plane)}; wanted {shape} with a contiguous last axis, in the dtype of out, which is "
                f"{planes['out'].dtype} and may be bfloat16, float16 or float32"
            )


def _readable(tensor: Tensor) -> bool:
    return str(tensor.dtype) in TYPES and (tensor.shape[-1] == 1 or tensor.stride(-1) == 1)


def _show(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype} with strides {tensor.stride()}"


def variants(capability: int) -> tuple[Variant, ...]:
    """One dtype for windows and planes, aligned and not. The same for every capability."""
    del capability
    return tuple(_variant(dtype, align) for dtype, align in itertools.product(("bf16", "fp16", "fp32"), (8, 1)))


def _variant(dtype: str, align: int) -> Variant:
    pointers: dict[str, str] = {f"{name}_ptr": f"*{dtype}" for name in (*PLANES, "windows")} | {"slots_ptr": "*i32"}
    constants: dict[str, Any] = {"ROWS": ROWS, "COLUMNS": COLUMNS, "ALIGN": align}
    return Variant(
        name=f"blend.{dtype}{'.aligned' if align > 1 else ''}",
        function=blend_kernel,
        signature=pointers
        | dict.fromkeys(STRIDES, "i64")
        | dict.fromkeys(WHERE, "i32")
        | {"seed": "u64", "level_step": "u32"}
        | dict.fromkeys(COEFFICIENTS, "fp32"),
        constants=constants,
        divisible=tuple(pointers) if align > 1 else (),
        grid=("cdiv(rows, ROWS) * cdiv(columns + x0 % 4, COLUMNS)", "channels", "1"),
        options=EXACT,
    )
