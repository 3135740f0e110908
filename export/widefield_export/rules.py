"""How each kind of ATen operation becomes an operation of a local program, or a fault that says why it may not."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch

from widefield_export.attention import lower_attention
from widefield_export.lower import Fx, Lowering, Rule, Value, origin_of, target_name, weight_array
from widefield_export.program import Op

RULES: dict[str, Rule] = {}


def rule(*targets: str) -> Callable[[Rule], Rule]:
    """Register a function for the ATen operations of these names, overloads alike."""

    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(targets, function))
        return function

    return add


@rule("conv2d", "conv3d")
def _conv(at: Lowering, node: Fx) -> Value:
    x, weight = at.arg(node, 0), at.arg(node, 1)
    bias, stride = at.arg(node, 2), at.arg(node, 3, [1, 1])
    padding, dilation, groups = at.arg(node, 4, [0, 0]), at.arg(node, 5, [1, 1]), at.arg(node, 6, 1)
    if weight.ndim == 5:  # one frame: the causal padding leaves only the last tap
        if x.frame is None or (weight.shape[2] > 1 and any(padding[:1])):
            raise at.fault(node, "is a 3-D convolution over more than one frame")
        folded = weight[:, :, -1]
        name = next(at.parameters[a.name][0] for a in node.all_input_nodes if at.env[a] is weight)
        at.weights.setdefault(name + ".frame", weight_array(folded))
        weight_name, weight = name + ".frame", folded
        stride, padding, dilation = stride[-2:], padding[-2:], dilation[-2:]
    else:
        weight_name = at.constant(node, weight, "weight")
    kernel = weight.shape[2:]
    pads = {(p + x.pad[0], k - s - p - x.pad[0]) for k, s, p in zip(kernel, stride, padding, strict=False)}
    if len(pads) != 1 or len(set(stride)) != 1 or any(d != 1 for d in dilation):
        raise at.fault(node, f"is not square or is dilated: kernel {tuple(kernel)}, stride {stride}")
    ((before, after),) = pads
    bias_name = None if bias is None else at.constant(node, bias, "bias")
    return at.emit(
        node, "conv", [x], weight=weight_name, bias=bias_name, stride=stride[0], groups=groups,
        before=before, after=after, kernel=kernel[0],
    )  # fmt: skip


@rule("pad", "constant_pad_nd")
def _pad(at: Lowering, node: Fx) -> Value:
    x, widths = at.arg(node, 0), at.arg(node, 1)
    mode, fill = at.arg(node, 2, "constant"), at.arg(node, 3, 0.0)
    mode = mode if isinstance(mode, str) else "constant"
    rank = len(x.layout) + (x.frame is not None)
    per_dim = {rank - 1 - i // 2: (widths[i], widths[i + 1]) for i in range(0, len(widths), 2)}
    spatial = {d: p for d, p in per_dim.items() if not x.drops(d) and x.layout[x.axis(d)].spatial}
    others = {d: p for d, p in per_dim.items() if d not in spatial and not x.drops(d) and p != (0, 0)}
    if mode != "constant" or x.pad != (0, 0):
        raise at.fault(node, f"pads with mode {mode!r}")
    if others:
        ((dim, (low, high)),) = others.items()
        if low != 0 or any(p != (0, 0) for p in spatial.values()):
            raise at.fault(node, f"pads by {widths}")
        return at.emit(node, "extend", [x], axis=x.axis(dim), count=high, fill=float(fill))
    if len(set(spatial.values())) > 1 or (fill not in (0, None) and any(spatial.values())):
        raise at.fault(node, f"pads rows and columns unlike, or with {fill}")
    return Value(x.name, x.layout, x.frame, next(iter(spatial.values()), (0, 0)))


@rule("group_norm")
def _group_norm(at: Lowering, node: Fx) -> Value:
    x, groups, gamma, beta, eps = (at.arg(node, i) for i in range(5))
    if gamma is None or beta is None:
        gamma = torch.ones(x.layout[1].size) if gamma is None else gamma
        beta = torch.zeros(x.layout[1].size) if beta is None else beta
    return at.emit(
        node, "norm", [x], groups=groups, eps=eps, channels=x.layout[1].size,
        gamma=at.constant(node, gamma, "gamma"), beta=at.constant(node, beta, "beta"),
    )  # fmt: skip


@rule("silu", "relu", "tanh", "rsqrt", "exp", "sigmoid", "sqrt")
def _unary(at: Lowering, node: Fx) -> Value:
    return at.emit(node, target_name(node), [at.arg(node, 0)])


@rule("silu_", "relu_")
def _unary_in_place(at: Lowering, node: Fx) -> Value:
    return at.emit(node, target_name(node).rstrip("_"), [at.arg(node, 0)])


@rule("clamp", "clamp_min", "hardtanh")
def _clamp(at: Lowering, node: Fx) -> Value:
    low, high = at.arg(node, 1), at.arg(node, 2)
    return at.emit(node, "clamp", [at.arg(node, 0)], low=low, high=high)


@rule("pow")
def _pow(at: Lowering, node: Fx) -> Value:
    if at.arg(node, 1) != 2:
        raise at.fault(node, f"raises to the power {at.arg(node, 1)}, where only squares have a rule")
    x = at.arg(node, 0)
    return at.emit(node, "mul", [x, x])


@rule("mean")
def _mean(at: Lowering, node: Fx) -> Value:
    x, dims, keep = at.arg(node, 0), at.arg(node, 1), at.arg(node, 2, False)
    axes = [x.axis(d) for d in dims]
    if any(x.layout[a].role != "plain" for a in axes):
        raise at.fault(node, "averages over positions and is no norm that the pass knows")
    return at.emit(node, "mean", [x], axes=axes, keep=keep)


@rule("linalg_vector_norm")
def _vector_norm(at: Lowering, node: Fx) -> Value:
    x, order, dims, keep = at.arg(node, 0), at.arg(node, 1, 2), at.arg(node, 2), at.arg(node, 3, False)
    axes = [x.axis(d) for d in dims or []]
    if order != 2 or not axes or any(x.layout[a].role != "plain" for a in axes):
        raise at.fault(node, f"is a norm of order {order} over positions or everything")
    return at.emit(node, "l2norm", [x], axes=axes, keep=keep)


@rule("add", "sub", "mul", "div", "add_", "mul_")
def _binary(at: Lowering, node: Fx) -> Value:
    kind = target_name(node).rstrip("_")
    left, right = at.arg(node, 0), at.arg(node, 1)
    if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("rounding_mode") is not None:
        raise at.fault(node, f"has the options {node.kwargs}")
    if isinstance(left, Value) and isinstance(right, Value):
        return at.emit(node, kind, [left, right])
    value, other, swapped = (left, right, False) if isinstance(left, Value) else (right, left, True)
    if swapped and kind in ("sub", "div"):
        raise at.fault(node, "has a constant on the left")
    if isinstance(other, torch.Tensor) and other.numel() > 1:
        return at.emit(node, kind, [value], constant=at.constant(node, _without_frame(value, other), "constant"))
    number = float(other)
    if number == (0.0 if kind in ("add", "sub") else 1.0):
        return at.renamed(node, value)
    return at.emit(node, kind, [value], number=number)


def _without_frame(value: Value, constant: torch.Tensor) -> torch.Tensor:
    """Drop the constant's frame axis, counted from the right, when the value has dropped its own."""
    if value.frame is None:
        return constant
    from_right = len(value.layout) + 1 - value.frame
    return constant.squeeze(-from_right) if constant.ndim >= from_right else constant


@rule("upsample_nearest2d", "_upsample_nearest_exact2d")
def _upsample(at: Lowering, node: Fx) -> Value:
    x = at.arg(node, 0)
    out = at.value_of(node, node.name)
    ratios = {o.size // i.size for i, o in zip(x.layout[2:], out.layout[2:], strict=True)}
    if len(ratios) != 1 or out.layout[2].size % x.layout[2].size:
        raise at.fault(node, "enlarges rows and columns by unlike or broken factors")
    return at.emit(node, "upsample", [x], factor=ratios.pop())


@rule("pixel_shuffle", "pixel_unshuffle")
def _shuffle(at: Lowering, node: Fx) -> Value:
    kind = "depth_to_space" if target_name(node) == "pixel_shuffle" else "space_to_depth"
    return at.emit(node, kind, [at.arg(node, 0)], factor=at.arg(node, 1))


@rule("linear")
def _linear(at: Lowering, node: Fx) -> Value:
    x, weight, bias = at.arg(node, 0), at.arg(node, 1), at.arg(node, 2)
    name = at.constant(node, weight, "weight")
    return at.emit(node, "linear", [x], weight=name, bias=None if bias is None else at.constant(node, bias, "bias"))


@rule("cat")
def _cat(at: Lowering, node: Fx) -> Value:
    values, dim = at.arg(node, 0), at.arg(node, 1, 0)
    axis = values[0].axis(dim)
    if values[0].layout[axis].role != "plain":
        raise at.fault(node, "joins values along the picture")
    return at.emit(node, "concat", values, axis=axis)


@rule("chunk", "split", "split_with_sizes", "unbind")
def _chunk(at: Lowering, node: Fx) -> list[Value]:
    x, count, dim = at.arg(node, 0), at.arg(node, 1), at.arg(node, 2, 0)
    if target_name(node) == "unbind":
        raise at.fault(node, "has no rule")
    axis = x.axis(dim)
    pieces, start = [], 0
    for index, piece in enumerate(node.meta["val"]):
        out = at.value_of(node, f"{node.name}.{index}", like=piece)
        stop = start + out.layout[axis].size
        if x.layout[axis].role != "plain":
            raise at.fault(node, f"cuts the picture into {count}")
        at.ops.append(
            Op("slice", out.name, (x.name,), out.layout, {"axis": axis, "start": start, "stop": stop}, origin_of(node))
        )
        pieces.append(out)
        start = stop
    return pieces


@rule("getitem")
def _getitem(at: Lowering, node: Fx) -> Value:
    picked: Value = operator.getitem(at.arg(node, 0), at.arg(node, 1))
    return picked


@rule("slice")
def _slice(at: Lowering, node: Fx) -> Value:
    x: Value = at.arg(node, 0)
    dim = at.arg(node, 1, 0)
    start, stop, step = at.arg(node, 2, 0) or 0, at.arg(node, 3), at.arg(node, 4, 1)
    if x.drops(dim):
        return x
    axis = x.axis(dim)
    out = at.value_of(node, node.name)
    if out.layout == x.layout:
        return x
    size = x.layout[axis].size
    if x.layout[axis].role != "plain" or step != 1:
        raise at.fault(node, f"cuts the picture: [{start}:{stop}:{step}]")
    start, stop, _ = slice(start, stop).indices(size)
    return at.emit(node, "slice", [x], axis=axis, start=start, stop=stop)


@rule("repeat_interleave")
def _repeat_interleave(at: Lowering, node: Fx) -> Value:
    x, repeats, dim = at.arg(node, 0), at.arg(node, 1), at.arg(node, 2)
    axis = x.axis(dim)
    if x.layout[axis].role != "plain":
        raise at.fault(node, "repeats positions")
    return at.emit(node, "repeat", [x], axis=axis, repeats=repeats)


@rule("view", "reshape", "unflatten", "flatten", "unsqueeze", "squeeze", "select", "_unsafe_view")
def _reshape(at: Lowering, node: Fx) -> Value:
    x = at.arg(node, 0)
    if target_name(node) == "select" and not x.drops(at.arg(node, 1)) and x.layout[x.axis(at.arg(node, 1))].size != 1:
        raise at.fault(node, "picks one of several")
    return at.renamed(node, x)


@rule("transpose", "permute", "movedim")
def _transpose(at: Lowering, node: Fx) -> Value:
    x = at.arg(node, 0)
    rank = len(x.layout) + (x.frame is not None)
    marked = torch.empty(list(range(2, rank + 2)), device="meta")  # unlike sizes tell where each dimension went
    source = [size - 2 for size in node.target(marked, *node.args[1:]).shape]  # type: ignore[operator]
    out = at.value_of(node, node.name)
    kept = [x.axis(dim) for dim in source if not x.drops(dim)]
    if [x.layout[axis] for axis in kept] != list(out.layout):  # a frame axis took the place of another unit axis
        return at.renamed(node, x)
    return at.renamed(node, x) if kept == sorted(kept) else at.emit(node, "transpose", [x], order=kept)


@rule("dropout", "clone", "alias", "contiguous", "to", "detach", "type_as", "_to_copy", "expand_as", "expand", "float")
def _same(at: Lowering, node: Fx) -> Value:
    """Nothing changes: evaluation mode, one dtype; broadcasting is implied by the operation that follows."""
    x = at.arg(node, 0)
    if target_name(node) == "dropout" and at.arg(node, 2, False):
        raise at.fault(node, "is in training mode; call .eval() first")
    return x  # type: ignore[no-any-return]


@rule("matmul", "bmm")
def _matmul(at: Lowering, node: Fx) -> Value:
    left, right = at.arg(node, 0), at.arg(node, 1)
    if not isinstance(left, Value) or not isinstance(right, Value):
        raise at.fault(node, "multiplies by a constant")
    if left.layout[-1].role == "cells" and right.layout[-2].role == "cells":
        return at.emit(node, "cell_sum", [left, right])
    if left.layout[-1].role == "plain" and not any(axis.spatial for axis in left.layout):
        return at.emit(node, "apply", [left, right])
    raise at.fault(node, "mixes positions in a way that is no linear attention")


rule("scaled_dot_product_attention")(lower_attention)
