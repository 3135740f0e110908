"""Two operations of our own, `torch.ops.widefield`: on a GPU the Triton kernels, elsewhere the same formula in torch.

    affine(x, scale, shift, residual, silu)     f(x scale + shift) + residual, by channel; f is SiLU or nothing
    attend(query, keys)                         softmax(query keys') keys, one head of any width; the scale is in query

Shapes   x, residual: (tiles, channels, rows, columns); scale, shift: (channels,) float32. query: (..., cells, width),
         keys: (tokens, width).
Numbers  float32 inside, one rounding on the way out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

QUERIES = 1 << 24  # scores at once, where there is no kernel


@torch.library.custom_op("widefield::affine", mutates_args=())
def affine(x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, silu: bool) -> Tensor:
    """See the head of this file."""
    shape = (1, -1, 1, 1)
    y = torch.addcmul(shift.reshape(shape), x.float(), scale.reshape(shape))
    y = F.silu(y, inplace=True) if silu else y
    y = y if residual is None else y.add_(residual)
    return y.to(x.dtype)


@affine.register_kernel("cuda")
def _affine_on_gpu(x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, silu: bool) -> Tensor:
    from widefield_kernels.jit.norm import apply

    channels_last = x.stride(1) == 1
    x = x if channels_last or x.stride(3) == 1 else x.contiguous()
    added = residual if residual is None or residual.stride() == x.stride() else _as(residual, channels_last)
    return apply(x, scale, shift, added, silu=silu, channels_last=channels_last)


def _as(x: Tensor, channels_last: bool) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@affine.register_fake
def _affine_like(x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, silu: bool) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("widefield::attend", mutates_args=())
def attend(query: Tensor, keys: Tensor) -> Tensor:
    """See the head of this file. Memory in proportion to a block of queries."""
    flat = query.reshape(-1, query.shape[-1])
    out = torch.empty_like(flat)
    block = max(1, QUERIES // len(keys))
    for start in range(0, len(flat), block):
        rows = slice(start, start + block)
        out[rows] = torch.softmax(flat[rows] @ keys.T, -1) @ keys
    return out.reshape(query.shape)


@attend.register_kernel("cuda")
def _attend_on_gpu(query: Tensor, keys: Tensor) -> Tensor:
    from widefield_kernels.jit.attention import attention
    from widefield_kernels.jit.attention_table import WIDTHS

    if keys.shape[-1] not in WIDTHS:  # narrow ones, of small models: torch's own is at its best there
        some = query.reshape(1, 1, -1, query.shape[-1])
        return F.scaled_dot_product_attention(some, keys[None, None], keys[None, None], scale=1.0).reshape(query.shape)
    flat = query.reshape(1, 1, -1, query.shape[-1]).contiguous()
    return attention(flat, keys[None, None].contiguous(), scale=1.0).reshape(query.shape)


@attend.register_fake
def _attend_like(query: Tensor, keys: Tensor) -> Tensor:
    return torch.empty_like(query)
