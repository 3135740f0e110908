"""Attention to pages of keys on a GPU, going on from a state or beginning one. Formula: widefield_kernels/attention.py.

Shapes   q: (batch, heads, queries, width); k, v and out alike, with their own lengths; any strides but the last, which
         is 1. m, l: (batch, heads, queries) and o: (batch, heads, queries, width), contiguous float32.
Units    scale and constant as in the formula, natural; m in bits.
Numbers  products of the inputs' dtype (float32: IEEE, no TF32), float32 sums, weights rounded to that dtype before they
         meet the values, one rounding on the way out. Offsets are 64 bits wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import triton

from widefield_kernels.jit.attention_kernel import COUNTS, STRIDES, attention_kernel
from widefield_kernels.jit.attention_table import WIDTHS, Config, config
from widefield_kernels.jit.interpreter import interpreted
from widefield_kernels.jit.variant import Variant

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class State:
    """What queries have seen of the keys so far: float32, contiguous. Pages change it in place."""

    m: Tensor
    l: Tensor  # noqa: E741 (its name in every paper)
    o: Tensor

    @classmethod
    def empty(cls, q: Tensor) -> Self:
        """Nothing seen, for the queries (batch, heads, queries, width)."""
        import torch

        m = torch.full(q.shape[:-1], -torch.inf, dtype=torch.float32, device=q.device)
        return cls(m, torch.zeros_like(m), torch.zeros(q.shape, dtype=torch.float32, device=q.device))


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor | None = None,
    *,
    scale: float,
    constant: float = 0.0,
    state: State | None = None,
    out: Tensor | None = None,
    blocks: Config | None = None,
) -> Tensor:
    """All keys, or the last page of them where `state` has seen the others (it is left as it was).

    Without v the keys are their own values. `blocks` overrides the table. ValueError for what the kernel cannot do.
    """
    out = q.new_empty(q.shape) if out is None else out
    _check(q, k, v, out, state, scale)
    _launch(q, k, v, out, state, scale, constant, blocks, writes=False)
    return out


def page(
    q: Tensor,
    k: Tensor,
    v: Tensor | None = None,
    *,
    state: State,
    scale: float,
    constant: float = 0.0,
    blocks: Config | None = None,
) -> None:
    """Add a page of keys to the state, in place; a page without keys changes nothing. ValueError as in attention."""
    _check(q, k, v, None, state, scale)
    _launch(q, k, v, None, state, scale, constant, blocks, writes=True)


def _launch(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    out: Tensor | None,
    state: State | None,
    scale: float,
    constant: float,
    blocks: Config | None,
    *,
    writes: bool,
) -> None:
    import torch

    batches, heads, queries, width = q.shape
    if q.numel() == 0:
        return
    if blocks is None:
        major, minor = torch.cuda.get_device_capability(q.device) if q.is_cuda else (0, 0)
        blocks = config(width, half=q.element_size() == 2, shared=v is None, capability=10 * major + minor)
    values, result = k if v is None else v, q if out is None else out
    carried = (state.m, state.l, state.o) if state else (torch.empty(0, device=q.device),) * 3
    tensors = (q, k, values, result)
    attention_kernel[(triton.cdiv(queries, blocks.queries), heads, batches)](
        *tensors, *carried, *(stride for x in tensors for stride in x.stride()[:3]), batches, heads, queries,
        k.shape[2], int(state is not None), scale, constant, WIDTH=width, CHUNK=blocks.chunk, SHARED=v is None,
        WRITES=writes, ALIGN=_alignment(tensors), BLOCK_M=blocks.queries, BLOCK_N=blocks.keys,
        num_warps=blocks.warps, num_stages=blocks.stages, enable_fp_fusion=True,
    )  # fmt: skip


def _alignment(tensors: tuple[Tensor, ...]) -> int:
    """Elements of 16 bytes if all rows start at multiples of them, else 1."""
    wide = 16 // tensors[0].element_size()
    steps = (step for x in tensors for step, size in zip(x.stride()[:3], x.shape, strict=False) if size > 1)
    return wide if all(step % wide == 0 for step in steps) else 1


def _check(q: Tensor, k: Tensor, v: Tensor | None, out: Tensor | None, state: State | None, scale: float) -> None:
    import torch

    given = [x for x in (q, k, v, out) if x is not None]
    found = ", ".join(f"{x.dtype} {tuple(x.shape)} strides {x.stride()}" for x in given)
    if any(x.dim() != 4 for x in given) or q.shape[3] not in WIDTHS:
        raise ValueError(f"attention found {found}, wanted (batch, heads, length, width) with a width of {WIDTHS}")
    if {x.dtype for x in given} - {torch.float32, torch.bfloat16, torch.float16} or len({x.dtype for x in given}) > 1:
        raise ValueError(f"attention found {found}, wanted one of float32, bfloat16, float16 for all; convert them")
    batches, heads, _, width = q.shape
    shapes = [x.shape == (batches, heads, k.shape[2], width) for x in (k, v) if x is not None]
    if not all(shapes) or (out is not None and out.shape != q.shape):
        raise ValueError(f"attention found {found}, wanted k and v alike, out like q, and batches and heads alike")
    if any(x.shape[2] and x.stride(3) != 1 for x in given) or (out is not None and _overlaps(out)):
        raise ValueError(f"attention found {found}, wanted widths side by side, and no two results in one place")
    if max(batches, heads) > 65535 or not 0 < scale < float("inf"):
        raise ValueError(f"attention found {found}, scale {scale}; wanted at most 65535 batches and heads, scale > 0")
    if state is not None:
        _check_state(state, q)
    if len({x.device for x in given}) > 1 or not (q.is_cuda or interpreted()):
        raise ValueError(f"attention found {[str(x.device) for x in given]}, wanted one GPU; use attention_reference")


def _check_state(state: State, q: Tensor) -> None:
    import torch

    for x, shape in ((state.m, q.shape[:3]), (state.l, q.shape[:3]), (state.o, q.shape)):
        if x.shape != shape or x.dtype != torch.float32 or not x.is_contiguous() or x.device != q.device:
            raise ValueError(
                f"attention found a state {x.dtype} {tuple(x.shape)} strides {x.stride()} on {x.device}, wanted "
                f"contiguous float32 {tuple(shape)} on {q.device}; begin with State.empty(q)"
            )


def _overlaps(x: Tensor) -> bool:
    return any(step == 0 and size > 1 for step, size in zip(x.stride(), x.shape, strict=True))


def variants(capability: int) -> tuple[Variant, ...]:
    """What the runtime uses: keys that are their own values at 512, page and last page; others at 64 and 128."""
    dtypes = ("bf16", "fp16", "fp32")
    wide = [variant(dtype, 512, capability, shared=True, writes=writes) for dtype in dtypes for writes in (False, True)]
    return (*wide, *(variant("bf16", width, capability, shared=False, writes=False) for width in (64, 128)))


def variant(dtype: str, width: int, capability: int, *, shared: bool, writes: bool) -> Variant:
    """One form: `shared` where keys are their own values, `writes` where the state is the result and not `out`.

    All strides are multiples of 16 bytes, all pointers too. What a form does not use may be any pointer: without
    `writes` and `reads` m, l and o, with `writes` out; where shared, v and its strides are those of k.
    """
    blocks = config(width, half=dtype != "fp32", shared=shared, capability=capability)
    pointers = {f"{name}_ptr": f"*{dtype}" for name in ("q", "k", "v", "out")}
    states = {f"{name}_ptr": "*fp32" for name in ("m", "l", "o")}
    numbers = (
        dict.fromkeys(STRIDES, "i64") | dict.fromkeys(COUNTS, "i32") | dict.fromkeys(("scale", "constant"), "fp32")
    )
    return Variant(
        name=f"attention.{dtype}.d{width}{'.kv' if shared else ''}{'.page' if writes else ''}",
        function=attention_kernel,
        signature={**pointers, **states, **numbers},
        constants={
            "WIDTH": width, "CHUNK": blocks.chunk, "SHARED": shared, "WRITES": writes,
            "ALIGN": 4 if dtype == "fp32" else 8, "BLOCK_M": blocks.queries, "BLOCK_N": blocks.keys,
        },
        num_warps=blocks.warps,
        num_stages=blocks.stages,
        divisible=(*pointers, *states),
        grid=("cdiv(queries, BLOCK_M)", "heads", "batches"),
    )  # fmt: skip
