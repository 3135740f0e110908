"""The same work in torch, as far as torch has it: what a kernel's time stands beside.

A rival that a machine cannot run raises, and the bench says why. Those that torch compiles are made when first run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

Rivals = Mapping[str, Callable[[], Any]]
BACKENDS = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA math": SDPBackend.MATH,
}
MATH_NBYTES = 16 << 30  # of scores: more than that is not tried


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Rivals:
    """torch's scaled_dot_product_attention with each backend, and FlexAttention. (batch, heads, length, width)"""

    def with_backend(backend: SDPBackend) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, scale=scale)

        return run

    score_nbytes = 4 * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    found: dict[str, Callable[[], Any]] = {
        name: with_backend(backend)
        for name, backend in BACKENDS.items()
        if backend != SDPBackend.MATH or score_nbytes <= MATH_NBYTES
    }
    if q.is_cuda:
        from torch.nn.attention.flex_attention import flex_attention

        found["FlexAttention"] = _compiled(lambda: flex_attention(q, k, v, scale=scale))
    return found


def norm(x: Tensor, gamma: Tensor, beta: Tensor, groups: int) -> Rivals:
    """group_norm and silu, statistics measured each time: what a decoder that is not frozen does."""
    weight, bias = gamma.to(x.dtype), beta.to(x.dtype)

    def run() -> Tensor:
        return F.silu(F.group_norm(x, groups, weight, bias))

    def frozen() -> Tensor:
        return F.silu(torch.addcmul(bias[:, None, None], x, weight[:, None, None]))

    return {"group_norm + silu": run, "affine + silu": frozen} | (
        {"group_norm + silu, compiled": _compiled(run), "affine + silu, compiled": _compiled(frozen)}
        if x.is_cuda
        else {}
    )


def epilogue(x: Tensor) -> Rivals:
    """The same in torch's own operations, one after the other, and compiled to one."""

    def run() -> tuple[Tensor, Tensor, Tensor]:
        wide = x.float()
        bad = torch.isnan(wide).sum()
        pixels = ((wide + 1) * 127.5).nan_to_num().round().clamp(0, 255)
        half = (pixels[:, ::2, ::2] + pixels[:, 1::2, ::2] + pixels[:, ::2, 1::2] + pixels[:, 1::2, 1::2] + 2) / 4
        levels = [level.to(torch.uint8).permute(1, 2, 0).contiguous() for level in (pixels, half)]
        return levels[0], levels[1], bad

    even = not any(n % 2 for n in x.shape[1:])
    return ({"torch": run} if even else {}) | ({"torch, compiled": _compiled(run)} if x.is_cuda and even else {})


def _compiled(run: Callable[[], Any]) -> Callable[[], Any]:
    made: list[Callable[[], Any]] = []

    def first_compile() -> Any:
        if not made:
            made.append(torch.compile(run, dynamic=False))
        return made[0]()

    return first_compile
