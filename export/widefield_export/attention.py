"""A single-head global attention as a site whose keys and values are one thing: the tokens themselves.

With k = x Wk' + bk and v = x Wv' + bv, exactly (design: the constant q.bk leaves the softmax unchanged):

    softmax(q k' s) v  =  (softmax(Q x') x) Wv' + bv,      Q = s (x Wq' + bq) Wk

so the site keeps the tokens x alone, the query absorbs Wk and the scale, and the value projection moves behind the
attention, where a rewrite folds it into the output projection.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from widefield_export.lower import BATCH, Fx, Lowering, Value, origin_of, target_name, weight_array
from widefield_export.program import Axis

SHAPE_OPS = {"view", "reshape", "transpose", "permute", "contiguous", "to"}
SHAPE_OPS |= {"unsqueeze", "squeeze", "clone", "type_as", "flatten"}


def lower_attention(at: Lowering, node: Fx) -> Value:
    """The three inputs must be position-wise linear maps of one value, with one head."""
    if len(node.args) > 3 or node.kwargs.get("attn_mask") is not None or node.kwargs.get("is_causal"):
        raise at.fault(node, "has a mask")
    layouts = [at.value_of(node, "", like=a.meta["val"]).layout for a in node.args[:3]]  # type: ignore[union-attr]
    if len({*layouts}) != 1 or [axis for axis in layouts[0] if axis.role == "plain" and axis.size > 1][1:]:
        raise at.fault(node, "has several heads, or keys unlike its queries")
    sources, maps = zip(*(_linear_source(at, node, a) for a in node.args[:3]), strict=True)
    if len(set(sources)) != 1:
        raise at.fault(node, "draws queries, keys and values from different places")
    source: Value = at.env[sources[0]]
    (wq, bq), (wk, _), (wv, bv) = maps
    scale = node.kwargs.get("scale") or 1.0 / math.sqrt(wq.shape[0])
    width = wk.shape[1]
    tokens = _tokens(at, node, source)
    layout = tokens.layout
    absorbed = (wk.double().T @ wq.double() * scale).float()
    shift = (wk.double().T @ bq.double() * scale).float()
    prefix = origin_of(node) or node.name
    query = _linear(at, node, f"{node.name}.query", tokens, absorbed, shift, f"{prefix}.absorbed_query")
    attended = at.emit_as(node, f"{node.name}.attended", "attention", [query, tokens], layout, width=width)
    value = _linear(at, node, f"{node.name}.value", attended, wv, bv, f"{prefix}.value")
    return at.emit(node, "reshape", [value])


def _tokens(at: Lowering, node: Fx, source: Value) -> Value:
    """The source as (batch, cells, channels)."""
    roles = [axis.role for axis in source.layout]
    if roles == ["batch", "cells", "plain"]:
        return source
    if roles == ["batch", "plain", "rows", "columns"]:
        channels, rows = source.layout[1], source.layout[2]
        cells = Axis("cells", rows.size)
        flat = at.emit_as(node, f"{node.name}.flat", "reshape", [source], (BATCH, channels, cells))
        return at.emit_as(node, f"{node.name}.tokens", "transpose", [flat], (BATCH, cells, channels), order=[0, 2, 1])
    raise at.fault(node, f"attends over axes {roles}")


def _linear(at: Lowering, node: Fx, name: str, x: Value, weight: torch.Tensor, bias: torch.Tensor, key: str) -> Value:
    at.weights[f"{key}.weight"], at.weights[f"{key}.bias"] = weight_array(weight), weight_array(bias)
    layout = (*x.layout[:-1], Axis("plain", weight.shape[0]))
    return at.emit_as(node, name, "linear", [x], layout, weight=f"{key}.weight", bias=f"{key}.bias")


def _linear_source(at: Lowering, node: Fx, argument: Any) -> tuple[Fx, tuple[torch.Tensor, torch.Tensor]]:
    """Walk back through shape changes to the linear map; follow one piece of a split into its rows."""
    piece: tuple[int, int] | None = None
    while True:
        name = target_name(argument)
        if name == "getitem":
            index = argument.args[1]
            chunks = argument.args[0].meta["val"]
            widths = [next(s for s in (c.shape[-1], c.shape[1]) if isinstance(s, int) and s > 1) for c in chunks]
            piece = sum(widths[:index]), sum(widths[: index + 1])
            argument = argument.args[0].args[0]
        elif name in SHAPE_OPS:
            argument = argument.args[0]
        elif name == "linear" or (name == "conv2d" and argument.args[1].meta["val"].shape[2:] == (1, 1)):
            weight, bias = at.env[argument.args[1]], at.arg(argument, 2)
            weight = weight.reshape(weight.shape[0], -1)
            bias = torch.zeros(weight.shape[0]) if bias is None else bias
            rows = slice(*piece) if piece else slice(None)
            return argument.args[0], (weight[rows], bias[rows])
        else:
            raise at.fault(node, f"has an input that is no linear map of one value but {argument.target}")
