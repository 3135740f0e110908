"""The attention kernel; what it computes is in attention.py beside it.

A program has a block of queries, whole rows of it, in registers: the output is cut into chunks along the width, a
tuple of accumulators. Keys past the end of a page repeat its last key with weight 0, which costs the loads no mask:
masks, and 64-bit offsets kept through the loop, are what spilled at width 512. Where keys are their own values a chunk
is loaded once and multiplied twice from shared memory.
"""
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

import triton
import triton.language as tl

STRIDES = tuple(f"{name}_{axis}" for name in ("q", "k", "v", "out") for axis in ("batch", "head", "row"))
COUNTS = ("batches", "heads", "queries", "keys", "reads")


@triton.constexpr_function
def chunks_of(width, limit):
    """The width, padded to a multiple of 16, as powers of two that fall."""
    left, sizes = (width + 15) // 16 * 16, []
    while left:
        sizes.append(min(limit, 1 << (left.bit_length() - 1)))
        left -= sizes[-1]
    return tuple(sizes)


@triton.constexpr_function
def starts_of(sizes):
    """Where each chunk starts."""
    return tuple(sum(sizes[:i]) for i in range(len(sizes)))


@triton.jit
def _aligned(offset, ALIGN: tl.constexpr):
    """The same number in 64 bits, which the compiler now knows to be a multiple of ALIGN: loads become wide."""
    return offset.to(tl.int64) // ALIGN * ALIGN


@triton.jit
def _load(base, row, stride, START: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """(rows, SIZE) columns from START on, zeros past WIDTH."""
    column = START + tl.arange(0, SIZE)
    at = base + row[:, None] * stride + column[None, :]
    if START + SIZE > WIDTH:
        return tl.load(at, mask=(column < WIDTH)[None, :], other=0.0)
    else:  # noqa: RET505 (Triton would compile both)
        return tl.load(at)


@triton.jit
def _step(
    q, acc, most, sums, k_ptr, v_ptr, k_row, v_row, start, keys, scale, constant,
    WIDTH: tl.constexpr, CHUNK: tl.constexpr, SHARED: tl.constexpr, EDGE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A block of keys into (acc, most, sums), which are o, m and l. EDGE: the block may reach past the last key."""
    SIZES: tl.constexpr = chunks_of(WIDTH, CHUNK)
    STARTS: tl.constexpr = starts_of(SIZES)
    n = tl.arange(0, BLOCK_N)
    row = start + n
    if EDGE:
        row = tl.minimum(row, keys - 1)
    row = row.to(tl.int64)
    ks = ()
    scores = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i in tl.static_range(len(SIZES)):
        k = _load(k_ptr, row, k_row, STARTS[i], SIZES[i], WIDTH)
        scores = tl.dot(q[i], k.T, scores, input_precision="ieee")
        ks = ks + (k,)  # noqa: RUF005
    scores = scores * scale
    if EDGE:
        scores = tl.where((n < keys - start)[None, :], scores, float("-inf"))
    before, most = most, tl.maximum(most, tl.max(scores, 1) + constant)
    towards = tl.where(most == float("-inf"), 0.0, most)
    weights = tl.exp2(scores + (constant - towards)[:, None])
    fade = tl.exp2(before - towards)
    sums = sums * fade + tl.sum(weights, 1)
    weights = weights.to(v_ptr.dtype.element_ty)
    out = ()
    for i in tl.static_range(len(SIZES)):
        v = ks[i] if SHARED else _load(v_ptr, row, v_row, STARTS[i], SIZES[i], WIDTH)
        out = out + (tl.dot(weights, v, acc[i] * fade[:, None], input_precision="ieee"),)  # noqa: RUF005
    return out, most, sums


@triton.jit(do_not_specialize=[*STRIDES, *COUNTS])
def attention_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, m_ptr, l_ptr, o_ptr, q_batch, q_head, q_row, k_batch, k_head, k_row,
    v_batch, v_head, v_row, out_batch, out_head, out_row, batches, heads, queries, keys, reads, scale, constant,
    WIDTH: tl.constexpr, CHUNK: tl.constexpr, SHARED: tl.constexpr, WRITES: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Programs: (blocks of queries, heads, batches).

    reads: 1 to go on from (m, l, o), else 0. WRITES: leave (m, l, o) there, else out. SHARED: keys are their own
    values, v_ptr is k_ptr. ALIGN: what all strides are multiples of. `batches` is for the grid's rule alone.
    """
    SIZES: tl.constexpr = chunks_of(WIDTH, CHUNK)
    STARTS: tl.constexpr = starts_of(SIZES)
    first = tl.program_id(0) * BLOCK_M
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    row = tl.arange(0, BLOCK_M)
    seen = row < queries * reads - first
    at = (batch * heads + head) * queries + first
    q_row, k_row, v_row = _aligned(q_row, ALIGN), _aligned(k_row, ALIGN), _aligned(v_row, ALIGN)
    q_ptr += _aligned(batch * q_batch + head * q_head, ALIGN) + first * q_row
    k_ptr += _aligned(batch * k_batch + head * k_head, ALIGN)
    v_ptr += _aligned(batch * v_batch + head * v_head, ALIGN)
    q = ()
    acc = ()
    for i in tl.static_range(len(SIZES)):
        rows = tl.minimum(row, queries - 1 - first).to(tl.int64)
        q = q + (_load(q_ptr, rows, q_row, STARTS[i], SIZES[i], WIDTH),)  # noqa: RUF005
        column = STARTS[i] + tl.arange(0, SIZES[i])
        o_at = o_ptr + at * WIDTH + (row * WIDTH)[:, None] + column[None, :]
        acc = acc + (tl.load(o_at, mask=seen[:, None] & (column < WIDTH)[None, :], other=0.0),)  # noqa: RUF005
    most = tl.load(m_ptr + at + row, mask=seen, other=float("-inf"))
    sums = tl.load(l_ptr + at + row, mask=seen, other=0.0)
    scale *= 1.4426950408889634  # log2 e, spelt out: the interpreter knows no module constants
    constant *= 1.4426950408889634
    PEEL: tl.constexpr = (WIDTH <= 160) & (q_ptr.dtype.element_ty.primitive_bitwidth == 16)
    whole = 0
    if PEEL:  # a comparison for each score is dear where a score is cheap
        whole = keys // BLOCK_N * BLOCK_N
        for start in tl.range(0, whole, BLOCK_N):
            acc, most, sums = _step(
                q, acc, most, sums, k_ptr, v_ptr, k_row, v_row, start, keys, scale, constant,
                WIDTH, CHUNK, SHARED, False, BLOCK_M, BLOCK_N,
            )  # fmt: skip
        for start in tl.range(whole, keys, BLOCK_N, num_stages=1):
            acc, most, sums = _step(
                q, acc, most, sums, k_ptr, v_ptr, k_row, v_row, start, keys, scale, constant,
                WIDTH, CHUNK, SHARED, True, BLOCK_M, BLOCK_N,
            )  # fmt: skip
    else:
        for start in tl.range(0, keys, BLOCK_N):
            acc, most, sums = _step(
                q, acc, most, sums, k_ptr, v_ptr, k_row, v_row, start, keys, scale, constant,
                WIDTH, CHUNK, SHARED, True, BLOCK_M, BLOCK_N,
            )  # fmt: skip
    # Where rows lie is computed anew, from a value that the compiler cannot know to be the same: kept, it would spill.
    # (For a state, which is contiguous, 32 bits are enough, and keeping them is what does not spill.)
    zero = 0 if WRITES else tl.minimum(keys, 0)
    first = (tl.program_id(0) + zero) * BLOCK_M
    head = (tl.program_id(1) + zero).to(tl.int64)
    batch = (tl.program_id(2) + zero).to(tl.int64)
    inside = row < queries - first
    if WRITES:
        at = (batch * heads + head) * queries + first
        for i in tl.static_range(len(SIZES)):
            column = STARTS[i] + tl.arange(0, SIZES[i])
            mask = inside[:, None] & (column < WIDTH)[None, :]
            tl.store(o_ptr + at * WIDTH + (row * WIDTH)[:, None] + column[None, :], acc[i], mask=mask)
        tl.store(m_ptr + at + row, most, mask=inside)
        tl.store(l_ptr + at + row, sums, mask=inside)
    else:
        share = 1.0 / tl.where(sums > 0, sums, 1.0)  # where there is no weight, acc is 0
        out_row = _aligned(out_row, ALIGN)
        out_ptr += _aligned(batch * out_batch + head * out_head, ALIGN)
        rows = (first + tl.arange(0, BLOCK_M)).to(tl.int64)
        inside = rows < queries
        for i in tl.static_range(len(SIZES)):
            column = STARTS[i] + tl.arange(0, SIZES[i])
            mask = inside[:, None] & (column < WIDTH)[None, :]
            out = (acc[i] * share[:, None]).to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + rows[:, None] * out_row + column[None, :], out, mask=mask)
