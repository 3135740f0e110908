"""What runs on a GPU between and after the engines, on CuPy arrays: attention, pixels, and a look at what overflowed.

Our compiled kernels where there is one for the case. All of it is queued on the stream that is given, and returns.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from widefield.device.gpu import CupyGpu
from widefield_kernels.compiled import load

KERNEL_WIDTH = 512  # that attention is compiled for with keys that are their own values
SCORES = 1 << 26  # at once, where it is CuPy's products
_TO_BF16 = "unsigned u = __float_as_uint(x); y = x != x ? 0x7fc0 : (u + 0x7fff + ((u >> 16) & 1)) >> 16"
_FROM_BF16 = "y = __uint_as_float((unsigned)x << 16)"
_COUNT = "if (!isfinite(x)) atomicAdd((unsigned long long *)&count[0], 1ULL)"


class Ops(Protocol):
    """Arrays are the GPU's own; `values` (channels, rows, columns) float32; `count` one int64 that grows."""

    def keys(self, keys: NDArray[np.float32]) -> Any: ...
    def attend(self, query: Any, keys: Any, out: Any, stream: Any) -> None: ...
    def levels(self, values: Any, pixels: Any, half: Any, count: Any, stream: Any) -> None: ...
    def infinite(self, values: Any, count: Any, stream: Any) -> None: ...
    def clear(self, count: Any, stream: Any) -> None: ...


class CupyOps:
    """Ops by CuPy. Attention computes in bfloat16 unless everything is float32."""

    def __init__(self, gpu: CupyGpu, precision: str) -> None:
        self.gpu, self.cupy = gpu, gpu.cupy
        self.half = precision != "f32"
        elementwise = self.cupy.ElementwiseKernel
        self._to_bf16 = elementwise("float32 x", "uint16 y", _TO_BF16, "widefield_to_bf16")
        self._from_bf16 = elementwise("uint16 x", "float32 y", _FROM_BF16, "widefield_from_bf16")
        self._count = elementwise("float32 x", "raw int64 count", _COUNT, "widefield_count")

    def keys(self, keys: NDArray[np.float32]) -> Any:
        """Frozen keys on the GPU, as `attend` takes them."""
        with self.gpu.device:
            found = self.cupy.asarray(np.ascontiguousarray(keys))
            return self._to_bf16(found) if self._by_kernel(found) and self.half else found

    def attend(self, query: Any, keys: Any, out: Any, stream: Any) -> None:
        with stream:
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
                self._launch("bf16", given, keys, made)
                self._from_bf16(made, into)
            else:
                self._launch("fp32", flat, keys, into)

    def levels(self, values: Any, pixels: Any, half: Any, count: Any, stream: Any) -> None:
        channels, rows, columns = values.shape
        strides = {"x_channel": rows * columns, "x_row": columns}
        planes = columns % 8 == 0 and values.data.ptr % 16 == 0
        extra = {} if planes else {"x_column": 1}
        kernel = self._planes if planes else self._any
        kernel(
            x_ptr=values, out_ptr=pixels, half_ptr=half, bad_ptr=count, rows=rows, columns=columns, **strides, **extra,
            out_row=columns * channels, half_row=-(-columns // 2) * channels, stream=stream,
        )  # fmt: skip

    def infinite(self, values: Any, count: Any, stream: Any) -> None:
        with stream:
            self._count(values, count)

    def clear(self, count: Any, stream: Any) -> None:
        with stream:
            count.fill(0)

    @cached_property
    def _planes(self) -> Any:
        return load("epilogue.planes.fp32", self.gpu.number)

    @cached_property
    def _any(self) -> Any:
        return load("epilogue.any.fp32", self.gpu.number)

    def _by_kernel(self, keys: Any) -> bool:
        return bool(keys.shape[-1] == KERNEL_WIDTH)

    def _launch(self, dtype: str, query: Any, keys: Any, out: Any) -> None:
        width = KERNEL_WIDTH
        steps = {f"{name}_{axis}": 0 for name in ("q", "k", "v", "out") for axis in ("batch", "head")}
        rows = {f"{name}_row": width for name in ("q", "k", "v", "out")}
        load(f"attention.{dtype}.d{width}.kv", self.gpu.number)(
            q_ptr=query, k_ptr=keys, v_ptr=keys, out_ptr=out, m_ptr=0, l_ptr=0, o_ptr=0, **steps, **rows, batches=1,
            heads=1, queries=len(query), keys=len(keys), reads=0, scale=1.0, constant=0.0,
        )  # fmt: skip
