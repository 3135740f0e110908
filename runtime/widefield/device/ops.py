"""What runs on a GPU between and after the engines, on CuPy arrays: attention, pixels, a sampler's steps, and a look at
what overflowed.

Our compiled kernels where there is one for the case. All of it is queued on the stream that is given, and returns.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from widefield.device.gpu import CupyGpu
from widefield.schedule import Step
from widefield_kernels.compiled import CompiledKernel, load

KERNEL_WIDTH = 512  # that attention is compiled for with keys that are their own values
SCORES = 1 << 26  # at once, where it is CuPy's products
_TO_BF16 = "unsigned u = __float_as_uint(x); y = x != x ? 0x7fc0 : (u + 0x7fff + ((u >> 16) & 1)) >> 16"
_FROM_BF16 = "y = __uint_as_float((unsigned)x << 16)"
_SCALE = "y = factor * x"
_GUIDE = "m = negative + scale * (positive - negative)"
_STEP = "float u = a * x + b * m + c * n + h, v = history_x * x + history_m * m; y = u; k = v"
_COUNT = "if (!isfinite(x)) atomicAdd((unsigned long long *)&count[0], 1ULL)"


class Ops(Protocol):
    """Arrays are the GPU's own; `values` (channels, rows, columns) float32; `count` one int64 that grows."""

    def keys(self, keys: NDArray[np.float32], stream: Any) -> Any: ...
    def attend(self, query: Any, keys: Any, out: Any, stream: Any) -> None: ...
    def levels(self, values: Any, pixels: Any, half: Any, count: Any, stream: Any) -> None: ...
    def infinite(self, values: Any, count: Any, stream: Any) -> None: ...
    def clear(self, count: Any, stream: Any) -> None: ...
    def fill(self, x: Any, value: float, stream: Any) -> None: ...
    def scale(self, x: Any, factor: float, out: Any, stream: Any) -> None: ...
    def guide(self, m: Any, negative: Any, scale: float, stream: Any) -> None: ...
    def step(self, step: Step, x: Any, m: Any, n: Any, history: Any, stream: Any) -> None: ...


class CupyOps:
    """Ops by CuPy. Attention computes in bfloat16 unless everything is float32."""

    def __init__(self, gpu: CupyGpu, precision: str) -> None:
        self.gpu, self.cupy = gpu, gpu.cupy
        self.half = precision != "f32"
        self._kernels: dict[str, CompiledKernel] = {}
        elementwise = self.cupy.ElementwiseKernel
        self._to_bf16 = elementwise("float32 x", "uint16 y", _TO_BF16, "widefield_to_bf16")
        self._from_bf16 = elementwise("uint16 x", "float32 y", _FROM_BF16, "widefield_from_bf16")
        self._scale = elementwise("float32 x, float32 factor", "float32 y", _SCALE, "widefield_scale")
        self._guide = elementwise(
            "float32 positive, float32 negative, float32 scale", "float32 m", _GUIDE, "widefield_guide"
        )
        self._step = elementwise(
            "float32 x, float32 m, float32 n, float32 h, "
            "float32 a, float32 b, float32 c, float32 history_x, float32 history_m",
            "float32 y, float32 k", _STEP, "widefield_step",
        )  # fmt: skip
        self._count = elementwise("float32 x", "raw int64 count", _COUNT, "widefield_count")

    def keys(self, keys: NDArray[np.float32], stream: Any) -> Any:
        """Frozen keys on the GPU, as `attend` takes them on the same stream."""
        with self.gpu.current(), stream:
            found = self.cupy.asarray(np.ascontiguousarray(keys))
            return self._to_bf16(found) if self._by_kernel(found) and self.half else found

    def attend(self, query: Any, keys: Any, out: Any, stream: Any) -> None:
        with self.gpu.current(), stream:
            flat, into = (x.reshape(-1, x.shape[-1]) for x in (query, out))
            if not self._by_kernel(keys):
                block = max(1, SCORES // len(keys))
                for start in range(0, len(flat), block):
                    rows = slice(start, start + block)
                    scores = flat[rows] @ keys.T
                    scores -= scores.max(1, keepdims=True)
                    self.cupy.exp(scores, out=scores)
                    into[rows] = scores @ keys / scores.sum(1, keepdims=True)
            elif self.half:
                given = self._to_bf16(flat)
                made = self.cupy.empty_like(given)
                self._launch("bf16", given, keys, made, stream)
                self._from_bf16(made, into)
            else:
                self._launch("fp32", flat, keys, into, stream)

    def levels(self, values: Any, pixels: Any, half: Any, count: Any, stream: Any) -> None:
        channels, rows, columns = values.shape
        strides = {"x_channel": rows * columns, "x_row": columns}
        planes = columns % 8 == 0 and values.data.ptr % 16 == 0
        extra = {} if planes else {"x_column": 1}
        self._kernel(f"epilogue.{'planes' if planes else 'any'}.fp32")(
            x_ptr=values, out_ptr=pixels, half_ptr=half, bad_ptr=count, rows=rows, columns=columns, **strides, **extra,
            out_row=columns * channels, half_row=-(-columns // 2) * channels, stream=stream,
        )  # fmt: skip

    def infinite(self, values: Any, count: Any, stream: Any) -> None:
        with self.gpu.current(), stream:
            self._count(values, count)

    def clear(self, count: Any, stream: Any) -> None:
        with self.gpu.current(), stream:
            count.fill(0)

    def fill(self, x: Any, value: float, stream: Any) -> None:
        with self.gpu.current(), stream:
            x.fill(value)

    def scale(self, x: Any, factor: float, out: Any, stream: Any) -> None:
        with self.gpu.current(), stream:
            self._scale(x, np.float32(factor), out)

    def guide(self, m: Any, negative: Any, scale: float, stream: Any) -> None:
        """m := negative + scale (m - negative)."""
        with self.gpu.current(), stream:
            self._guide(m, negative, np.float32(scale), m)

    def step(self, step: Step, x: Any, m: Any, n: Any, history: Any, stream: Any) -> None:
        """x := a x + b m + c n + history, and history := history_x x + history_m m of the x before."""
        numbers = [np.float32(k) for k in (step.a, step.b, step.c, step.history_x, step.history_m)]
        with self.gpu.current(), stream:
            self._step(x, m, n, history, *numbers, x, history)

    def _kernel(self, name: str) -> CompiledKernel:
        """Loaded when it is first needed."""
        if name not in self._kernels:
            self._kernels[name] = load(name, self.gpu.number)
        return self._kernels[name]

    def _by_kernel(self, keys: Any) -> bool:
        return bool(keys.shape[-1] == KERNEL_WIDTH)

    def _launch(self, dtype: str, query: Any, keys: Any, out: Any, stream: Any) -> None:
        width = KERNEL_WIDTH
        steps = {f"{name}_{axis}": 0 for name in ("q", "k", "v", "out") for axis in ("batch", "head")}
        rows = {f"{name}_row": width for name in ("q", "k", "v", "out")}
        self._kernel(f"attention.{dtype}.d{width}.kv")(
            q_ptr=query, k_ptr=keys, v_ptr=keys, out_ptr=out, m_ptr=0, l_ptr=0, o_ptr=0, **steps, **rows, batches=1,
            heads=1, queries=len(query), keys=len(keys), reads=0, scale=1.0, constant=0.0,
            stream=stream,
        )  # fmt: skip
