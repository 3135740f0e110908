"""ONNX operations as functions of torch tensors, those that exported bundles have. Needs `torch`.

A function gets the inputs that vary as tensors, those listed in `fixed` as lists of Python numbers (None where left
out), and attributes by name. Sizes are static: nothing here looks at a tensor's values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Numbers = list[int]
DTYPES = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64,
          16: torch.bfloat16}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Operation:
    """`call` with inputs in order; `fixed` are the places of those that must be known before anything runs."""

    call: Callable[..., Any]
    fixed: tuple[int, ...] = ()


OPERATIONS: dict[str, Operation] = {}


def _operation(kind: str, *fixed: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        OPERATIONS[kind] = Operation(function, fixed)
        return function

    return add


_SAME: dict[str, Callable[..., Any]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Pow": torch.pow, "Max": torch.maximum, "Min": torch.minimum,
    "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Relu": torch.relu, "Exp": torch.exp, "Log": torch.log,
    "Sqrt": torch.sqrt, "Reciprocal": torch.reciprocal, "Sin": torch.sin, "Cos": torch.cos, "Neg": torch.neg,
    "Abs": torch.abs, "Erf": torch.erf, "MatMul": torch.matmul, "Equal": torch.eq, "Greater": torch.gt,
    "Less": torch.lt, "And": torch.logical_and, "Or": torch.logical_or, "Not": torch.logical_not,
    "IsNaN": torch.isnan, "Where": torch.where,
}  # fmt: skip
OPERATIONS.update({kind: Operation(call) for kind, call in _SAME.items()})


@_operation("Identity")
def _identity(x: Tensor) -> Tensor:
    return x


@_operation("Div")
def _div(x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


@_operation("Cast")
def _cast(x: Tensor, to: int, saturate: int = 1) -> Tensor:
    return x.to(DTYPES[to])


@_operation("CastLike")
def _cast_like(x: Tensor, like: Tensor, saturate: int = 1) -> Tensor:
    return x.to(like.dtype)


@_operation("Conv")
def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, strides: Sequence[int] = (1, 1),
    dilations: Sequence[int] = (1, 1), pads: Sequence[int] = (0, 0, 0, 0), group: int = 1,
    kernel_shape: Sequence[int] = (), auto_pad: str = "NOTSET",
) -> Tensor:  # fmt: skip
    if auto_pad not in ("NOTSET", "VALID"):
        raise NotImplementedError(f"Conv with auto_pad {auto_pad}")
    top, left, bottom, right = pads
    if (top, left) != (bottom, right):
        x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
    return F.conv2d(x, weight, bias, tuple(strides), (top, left), tuple(dilations), group)


@_operation("Gemm")
def _gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Tensor:  # fmt: skip
    a, b = (a.mT if transA else a), (b.mT if transB else b)
    return a @ b if c is None else torch.addmm(c, a, b, beta=beta, alpha=alpha)


@_operation("Einsum")
def _einsum(*tensors: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *tensors)


@_operation("Reshape", 1)
def _reshape(x: Tensor, shape: Numbers, *, allowzero: int = 0) -> Tensor:
    return x.reshape([x.shape[i] if size == 0 and not allowzero else size for i, size in enumerate(shape)])


@_operation("Expand", 1)
def _expand(x: Tensor, shape: Numbers) -> Tensor:
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(shape)))


@_operation("Transpose")
def _transpose(x: Tensor, perm: Sequence[int]) -> Tensor:
    return x.permute(tuple(perm))


@_operation("Unsqueeze", 1)
def _unsqueeze(x: Tensor, axes: Numbers) -> Tensor:
    for axis in sorted(a % (x.ndim + len(axes)) for a in axes):
        x = x.unsqueeze(axis)
    return x


@_operation("Squeeze", 1)
def _squeeze(x: Tensor, axes: Numbers | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


@_operation("Concat")
def _concat(*tensors: Tensor, axis: int) -> Tensor:
    return torch.cat(tensors, axis)


@_operation("Split", 1)
def _split(x: Tensor, sizes: Numbers | None = None, *, axis: int = 0, num_outputs: int = 0) -> tuple[Tensor, ...]:
    return torch.split(x, sizes or -(-x.shape[axis] // num_outputs), axis)


@_operation("Slice", 1, 2, 3, 4)
def _slice(
    x: Tensor, starts: Numbers, ends: Numbers, axes: Numbers | None = None, steps: Numbers | None = None
) -> Tensor:
    where = [slice(None)] * x.ndim
    axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            raise NotImplementedError(f"Slice with step {step}")
        where[axis] = slice(*slice(start, end, step).indices(x.shape[axis]))
    return x[tuple(where)]


@_operation("Gather")
def _gather(x: Tensor, index: Tensor, *, axis: int = 0) -> Tensor:
    axis %= x.ndim
    index = torch.where(index < 0, index + x.shape[axis], index)
    found = x.index_select(axis, index.reshape(-1))
    return found.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


@_operation("GatherND")
def _gather_nd(x: Tensor, index: Tensor, *, batch_dims: int = 0) -> Tensor:
    if batch_dims:
        raise NotImplementedError("GatherND with batch_dims")
    return x[tuple(index.unbind(-1))]


@_operation("DepthToSpace")
def _depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    batch, channels, rows, columns = x.shape
    x = x.reshape(batch, blocksize**2, channels // blocksize**2, rows, columns)
    return F.pixel_shuffle(x.transpose(1, 2).reshape(batch, channels, rows, columns), blocksize)


@_operation("SpaceToDepth")
def _space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    batch, channels, *_ = x.shape
    x = F.pixel_unshuffle(x, blocksize)
    deep = x.reshape(batch, channels, blocksize**2, *x.shape[2:]).transpose(1, 2)
    return deep.reshape(x.shape)


@_operation("Resize", 1, 2, 3)
def _resize(
    x: Tensor, region: list[float] | None, scales: list[float] | None, sizes: Numbers | None = None, **how: Any
) -> Tensor:
    """Nearest, by whole factors: any other is refused."""
    factors = scales or [after / before for after, before in zip(sizes or (), x.shape, strict=True)]
    whole = [int(factor) for factor in factors]
    known = how.get("mode", "nearest") == "nearest" and how.get("coordinate_transformation_mode") == "asymmetric"
    if not known or whole != list(factors) or whole[:2] != [1, 1]:
        raise NotImplementedError(f"Resize by {factors}, {how}")
    return F.interpolate(x, scale_factor=[float(factor) for factor in whole[2:]], mode="nearest")


@_operation("Pad", 1, 2, 3)
def _pad(
    x: Tensor, pads: Numbers, value: list[float] | None = None, axes: Numbers | None = None, *, mode: str = "constant"
) -> Tensor:
    axes = axes or list(range(x.ndim))
    sides = [(0, 0)] * x.ndim
    for at, axis in enumerate(axes):
        sides[axis] = pads[at], pads[at + len(axes)]
    flat = [size for pair in reversed(sides) for size in pair]
    return F.pad(x, flat, value=value[0] if value else 0.0)


@_operation("Clip", 1, 2)
def _clip(x: Tensor, low: list[float] | None = None, high: list[float] | None = None) -> Tensor:
    return x.clamp(low[0] if low else None, high[0] if high else None)


@_operation("Softmax")
def _softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return F.softmax(x, axis)


@_operation("Gelu")
def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


@_operation("ReduceSum", 1)
def _sum(x: Tensor, axes: Numbers | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return x.sum(axes or list(range(x.ndim)), keepdim=bool(keepdims))


@_operation("ReduceMean", 1)
def _mean(x: Tensor, axes: Numbers | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return x.mean(axes or list(range(x.ndim)), keepdim=bool(keepdims))


@_operation("ReduceL2", 1)
def _l2(x: Tensor, axes: Numbers | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, 2, axes or list(range(x.ndim)), keepdim=bool(keepdims))
    return norm


@_operation("ArgMax")
def _argmax(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return x.argmax(axis, keepdim=bool(keepdims))


@_operation("LayerNormalization")
def _layer_norm(
    x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:  # fmt: skip
    return F.layer_norm(x, x.shape[axis:], scale, shift, epsilon)


@_operation("InstanceNormalization")
def _instance_norm(x: Tensor, scale: Tensor, shift: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    variance, mean = torch.var_mean(x, list(range(2, x.ndim)), keepdim=True, correction=0)
    shape = (1, -1, *[1] * (x.ndim - 2))
    return (x - mean) * torch.rsqrt(variance + epsilon) * scale.reshape(shape) + shift.reshape(shape)


@_operation("BatchNormalization")
def _batch_norm(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float = 1e-5,
    momentum: float = 0.9, training_mode: int = 0,
) -> Tensor:  # fmt: skip
    return F.batch_norm(x, mean, variance, scale, shift, False, 0.0, epsilon)


@_operation("Range", 0, 1, 2)
def _range(start: list[Any], limit: list[Any], delta: list[Any]) -> Tensor:
    return torch.from_numpy(np.arange(start[0], limit[0], delta[0]))


@_operation("ConstantOfShape", 0)
def _constant_of_shape(shape: Numbers, *, value: Any = None) -> Tensor:
    fill = torch.zeros(1) if value is None else torch.from_numpy(np.array(value))
    return fill.expand(shape)


def converted(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in another precision: between operations, where ONNX has nothing."""
    return x.to(dtype)
