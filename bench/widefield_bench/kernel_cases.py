"""What is checked and timed of each kernel: inputs, launch, the formula's answer, work and bytes, rivals in torch.

Three sizes: "quick" for the interpreter, "check" against the formula in float64 on the CPU, "time" to fill a GPU. All
but the last are odd and unequal. `error` is the largest error over what is allowed: twice that of the formula in the
kernel's own type, and one epsilon of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from widefield_bench import rivals
from widefield_kernels.attention import attention_reference
from widefield_kernels.blend import Row, blend_reference
from widefield_kernels.epilogue import to_levels_reference
from widefield_kernels.jit import attention, blend, epilogue, noise, norm
from widefield_kernels.noise import Draw, normal_reference
from widefield_kernels.norm import apply_reference, merge_partials_reference, moments_reference
from widefield_kernels.windows import WindowGrid

Size = Literal["quick", "check", "time"]
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class Case:
    """One compiled form of a kernel, at work; `also` names others that the launch comes to."""

    form: str
    module: ModuleType
    kernel: str
    launch: Callable[[], Sequence[Tensor]]
    error: Callable[[Sequence[Tensor]], float]
    flop: float = 0.0
    nbytes: float = 0.0
    rivals: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    also: tuple[str, ...] = ()

    @property
    def forms(self) -> tuple[str, ...]:
        """All that have to be compiled for it."""
        return (self.form, *self.also)


def cases(size: Size, device: str) -> Iterator[Callable[[], Case]]:
    """Builders, one at a time: what a case holds on the device is freed before the next."""
    for width, heads in ((64, 32), (128, 16)):
        yield partial(_attention, "bf16", width, heads, size, device)
    for dtype in ("bf16", "fp16", "fp32"):
        yield partial(_attention, dtype, 512, 1, size, device)
        yield partial(_pages, dtype, size, device)
    for dtype in ("bf16", "fp32"):
        for last in (True, False):
            yield partial(_moments, dtype, last, size, device)
            yield partial(_apply, dtype, last, size, device)
        for aligned in (True, False):
            yield partial(_epilogue, dtype, aligned, size, device)
    yield partial(_noise, size, device)
    for dtype in ("bf16", "fp16", "fp32"):
        yield partial(_blend, dtype, True, size, device)
        yield partial(_blend, dtype, False, size, device)


def worst(found: Tensor, truth: np.ndarray[Any, Any], honest: np.ndarray[Any, Any]) -> float:
    """The largest error over what the formula, in the type of `found`, and one epsilon allow. NaN is infinite."""
    rounded = torch.from_numpy(np.asarray(honest)).to(found.dtype).double().numpy()
    scale = max(1.0, float(np.abs(truth).max(initial=0.0)))
    allowed = 2 * float(np.abs(rounded - truth).max(initial=0.0)) + torch.finfo(found.dtype).eps * scale
    error = float(np.abs(found.cpu().double().numpy() - truth).max(initial=0.0))
    return error / allowed if np.isfinite(error) else float("inf")


def _array(x: Tensor, dtype: torch.dtype) -> np.ndarray[Any, Any]:
    return np.asarray(x.cpu().to(dtype).numpy())


def _attention(dtype: str, width: int, heads: int, size: Size, device: str) -> Case:
    shared = width == 512
    heads, queries, keys = {"quick": (1, 19, 35), "check": (2, 333, 1111), "time": (heads, 16384, 16384)}[size]
    draw = [torch.randn(1, heads, n, width, device=device).to(TYPES[dtype]) for n in (queries, keys, keys)]
    q, k, v = draw[0], draw[1], None if shared else draw[2]
    scale = width**-0.5

    def formula(kind: torch.dtype) -> np.ndarray[Any, Any]:
        given = [None if x is None else _array(x, kind) for x in (q, k, v)]
        return np.asarray(attention_reference(given[0], given[1], given[2], scale=scale))  # type: ignore[arg-type]

    return Case(
        form=f"attention.{dtype}.d{width}{'.kv' if shared else ''}", module=attention, kernel="attention_kernel",
        launch=lambda: (attention.attention(q, k, v, scale=scale),),
        error=lambda out: worst(out[0], formula(torch.float64), formula(torch.float32)),
        flop=4.0 * heads * queries * keys * width,
        rivals=rivals.attention(q, k, k if v is None else v, scale) if dtype != "fp32" else {},
    )  # fmt: skip


def _pages(dtype: str, size: Size, device: str) -> Case:
    """Keys in two pages of unlike lengths, the state carried between them."""
    queries, keys, cut = {"quick": (19, 35, 10), "check": (333, 1111, 700), "time": (16384, 16384, 8192)}[size]
    q, x = (torch.randn(1, 1, n, 512, device=device).to(TYPES[dtype]) for n in (queries, keys))
    state, scale = attention.State.empty(q), 512**-0.5

    def launch() -> Sequence[Tensor]:
        state.m.fill_(-torch.inf)
        state.l.zero_()
        state.o.zero_()
        attention.page(q, x[:, :, :cut], state=state, scale=scale)
        return (attention.attention(q, x[:, :, cut:], state=state, scale=scale),)

    def formula(kind: torch.dtype) -> np.ndarray[Any, Any]:
        return np.asarray(attention_reference(_array(q, kind), _array(x, kind), scale=scale))

    return Case(
        form=f"attention.{dtype}.d512.kv.page", module=attention, kernel="attention_kernel", launch=launch,
        error=lambda out: worst(out[0], formula(torch.float64), formula(torch.float32)),
        flop=4.0 * queries * keys * 512, also=(f"attention.{dtype}.d512.kv",),
    )  # fmt: skip


def _picture(dtype: str, last: bool, size: Size, device: str) -> Tensor:
    shape = {"quick": (1, 8, 5, 9), "check": (2, 136, 37, 61), "time": (1, 128, 1024, 1024)}[size]
    x = (torch.randn(shape, device=device) + torch.linspace(-3, 3, shape[3], device=device)).to(TYPES[dtype])
    return x.contiguous(memory_format=torch.channels_last) if last else x


def _moments(dtype: str, last: bool, size: Size, device: str) -> Case:
    x = _picture(dtype, last, size, device)
    core = None if size == "time" else (1, x.shape[2] - 1, 2, x.shape[3] - 1)

    def statistics(partials: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        merged = merge_partials_reference(partials, 4)
        return np.concatenate([merged.mean, merged.variance])

    def formula(kind: torch.dtype) -> np.ndarray[Any, Any]:
        return statistics(moments_reference(_array(x, kind), core))

    return Case(
        form=f"norm.moments.{'nhwc' if last else 'nchw'}.{dtype}", module=norm, kernel="moments_kernel",
        launch=lambda: (norm.moments(x, core, channels_last=last),),
        error=lambda out: worst(
            torch.from_numpy(statistics(out[0].cpu().numpy()).astype(np.float32)), formula(torch.float64),
            formula(torch.float32),
        ),
        nbytes=float(x.numel() * x.element_size()),
    )  # fmt: skip


def _apply(dtype: str, last: bool, size: Size, device: str) -> Case:
    x = _picture(dtype, last, size, device)
    scale, shift = (torch.randn(x.shape[1], device=device) for _ in range(2))
    out = torch.empty_like(x)

    def formula(kind: torch.dtype) -> np.ndarray[Any, Any]:
        return apply_reference(*(_array(t, kind) for t in (x, scale, shift)))

    return Case(
        form=f"norm.apply.{'nhwc' if last else 'nchw'}.{dtype}", module=norm, kernel="apply_kernel",
        launch=lambda: (norm.apply(x, scale, shift, channels_last=last, out=out),),
        error=lambda out: worst(out[0], formula(torch.float64), formula(torch.float32)),
        nbytes=2.0 * x.numel() * x.element_size(),
        rivals=rivals.norm(x, scale, shift, groups=4),
    )  # fmt: skip


def _epilogue(dtype: str, aligned: bool, size: Size, device: str) -> Case:
    rows, columns = {"quick": (5, 40), "check": (77, 1000), "time": (8192, 8192)}[size]
    x = (torch.rand(3, rows, columns, device=device) * 2.4 - 1.2).to(TYPES[dtype])
    x = x if aligned else x.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    if size != "time":
        x[1, 2, 3] = float("nan")
    bad = torch.zeros(1, dtype=torch.int64, device=device)

    def launch() -> Sequence[Tensor]:
        bad.zero_()
        return (*epilogue.to_levels(x, bad), bad)

    def error(found: Sequence[Tensor]) -> float:
        pixels, half, count = to_levels_reference(_array(x, torch.float32))
        same = np.array_equal(found[0].cpu(), pixels) and np.array_equal(found[1].cpu(), half)
        return 0.0 if same and int(found[2].item()) == count else float("inf")

    return Case(
        form=f"epilogue.{'planes' if aligned else 'any'}.{dtype}", module=epilogue, kernel="levels_kernel",
        launch=launch, error=error, nbytes=x.numel() * (x.element_size() + 1.25),
        rivals=rivals.epilogue(x) if aligned else {},
    )  # fmt: skip


def _noise(size: Size, device: str) -> Case:
    channels, rows, columns = {"quick": (2, 5, 19), "check": (3, 77, 1003), "time": (16, 4096, 4096)}[size]
    out = torch.empty(channels, rows, columns, device=device)
    region = (7, 2, 7 + rows, 2 + columns)

    def error(found: Sequence[Tensor]) -> float:
        same = np.array_equal(found[0].cpu().numpy(), normal_reference(5, 1, 2, channels, region))
        return 0.0 if same else float("inf")

    return Case(
        form="noise.fp32", module=noise, kernel="normal_kernel", launch=lambda: (noise.normal(5, 1, 2, region, out),),
        error=error, nbytes=4.0 * out.numel(), rivals={"torch.randn": lambda: out.normal_()},
    )  # fmt: skip


def _blend(dtype: str, aligned: bool, size: Size, device: str) -> Case:
    """Windows of half an overlap, a whole sampler's step with noise, over a region in the middle of a level."""
    window, region = {
        "quick": (16, (4, 8, 9, 24)), "check": (32, (8, 16, 85, 136)), "time": (128, (64, 128, 64 + 1984, 128 + 1984)),
    }[size]  # fmt: skip
    y0, x0, y1, x1 = region = region if aligned else (region[0], region[1] + 3, region[2], region[3] - 2)
    grid = WindowGrid((2176, 2176), (window, window), (window // 2, window // 2))
    down, across = grid.cover(region)
    shape = (16 if size == "time" else 3, y1 - y0, x1 - x0)
    windows = torch.randn(len(down) * len(across), shape[0], window, window, device=device).to(TYPES[dtype])
    slots = torch.arange(len(windows), dtype=torch.int32, device=device)
    x, out = torch.randn(shape, device=device).to(TYPES[dtype]), torch.empty(shape, dtype=TYPES[dtype], device=device)
    row, draw = Row(a=0.9, b=0.4, c=0.2), Draw(3, 1, 4)

    def formula(kind: torch.dtype) -> np.ndarray[Any, Any]:
        given = _array(windows, kind)
        return np.asarray(blend_reference(grid, region, given, row, x=_array(x, kind), draw=draw))

    return Case(
        form=f"blend.{dtype}{'.aligned' if aligned else ''}", module=blend, kernel="blend_kernel",
        launch=lambda: (blend.blend(grid, region, windows, out, row, slots=slots, x=x, draw=draw),),
        error=lambda found: worst(found[0], formula(torch.float64), formula(torch.float32)),
        nbytes=float(windows.element_size() * (windows.numel() + x.numel() + out.numel())),
    )  # fmt: skip
