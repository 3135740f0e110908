"""Patterns of a written graph that are better as one call. All are exact but for the order of roundings.

x scale + shift, and SiLU after it              affine(x, scale, shift): frozen GroupNorms
convolution + bias, then an affine              the bias goes into the shift
convolution + bias + residual                   affine(x, 1, bias, residual)
softmax(a b + mask) v                           scaled_dot_product_attention(a, b', v, mask)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, Node

import widefield.engine.torch_kernels  # noqa: F401 -- registers torch.ops.widefield
from widefield.engine.torch_ops import OPERATIONS, converted

AFFINE = torch.ops.widefield.affine.default
CONV, MATMUL, SOFTMAX = (OPERATIONS[kind].call for kind in ("Conv", "MatMul", "Softmax"))


def fuse(root: nn.Module, graph: Graph) -> None:
    """Rewrite the graph in place; new constants go into `root`."""
    for node in list(graph.nodes):
        if node.target is torch.add:
            _affine(root, graph, node) or _residual(root, graph, node)
        elif node.target is SOFTMAX:
            _attention(graph, node)
    graph.eliminate_dead_code()


def _affine(root: nn.Module, graph: Graph, add: Node) -> bool:
    product, shift = _split(add, torch.mul)
    if product is None or len(product.users) != 1:
        return False
    x, scale = _split(product, None)
    if x is None or scale is None or shift is None or x.meta["like"].ndim != 4:
        return False
    factor, offset = (_by_channel(node, x.meta["like"].shape[1]) for node in (scale, shift))
    if factor is None or offset is None:
        return False
    x, bias = _without_bias(graph, x)
    if bias is not None:
        offset = offset + factor * bias
    last, silu = _silu_of(add)
    _replace(root, graph, last, x, factor, offset, None, silu=silu)
    return True


def _residual(root: nn.Module, graph: Graph, add: Node) -> bool:
    arguments = [a for a in add.args if isinstance(a, Node) and a.meta["like"].shape == add.meta["like"].shape]
    if len(arguments) != 2 or arguments[0] is arguments[1]:
        return False
    for conv, other in (arguments, arguments[::-1]):
        x, bias = _without_bias(graph, conv)
        if bias is not None:
            _replace(root, graph, add, x, torch.ones_like(bias), bias, other, silu=False)
            return True
    return False


def _split(node: Node, wanted: Any) -> tuple[Node | None, Node | None]:
    """(the varying argument, the constant one) of a sum or a product; the first made by `wanted`, if that is given."""
    arguments = [a for a in node.args if isinstance(a, Node)]
    if node.target not in (torch.add, torch.mul) or len(arguments) != 2:
        return None, None
    for x, c in (arguments, arguments[::-1]):
        if c.op == "get_attr" and x.op != "get_attr" and (wanted is None or x.target is wanted):
            return x, c
    return None, None


def _by_channel(node: Node, channels: int) -> Tensor | None:
    """A constant (1, channels, 1, 1) or (channels, 1, 1) as float32 (channels,), as it was before it was rounded."""
    value: Tensor = node.meta["known"]
    shape = list(value.shape)
    return value.float().reshape(-1) if shape in ([1, channels, 1, 1], [channels, 1, 1]) else None


def _without_bias(graph: Graph, x: Node) -> tuple[Node, Tensor | None]:
    """(a convolution without its bias, that bias) where nothing else reads it; else (x, None)."""
    if x.target is not CONV or len(x.users) != 1 or len(x.args) < 3 or not isinstance(x.args[2], Node):
        return x, None
    bias: Tensor = x.args[2].meta["known"].float()
    x.args = x.args[:2]
    return x, bias


def _silu_of(x: Node) -> tuple[Node, bool]:
    """(x sigmoid(x), True) where x is used for that alone; else (x, False)."""
    users = list(x.users)
    sigmoid = next((user for user in users if user.target is torch.sigmoid), None)
    product = next((user for user in users if user.target is torch.mul), None)
    if len(users) != 2 or sigmoid is None or product is None or set(product.args) != {x, sigmoid}:
        return x, False
    return (product, True) if len(sigmoid.users) == 1 else (x, False)


def _replace(
    root: nn.Module, graph: Graph, last: Node, x: Node, scale: Tensor, shift: Tensor, added: Node | None, *, silu: bool
) -> None:
    with graph.inserting_before(last):
        vectors = []
        for value in (scale, shift):
            name = f"vector_{len(list(root.named_buffers(remove_duplicate=False)))}"
            root.register_buffer(name, value.contiguous(), persistent=False)
            vectors.append(graph.get_attr(name))
            vectors[-1].meta["known"] = value
            vectors[-1].meta["like"] = value.to("meta")
        node = graph.call_function(AFFINE, (x, *vectors, added, silu))
    node.meta["like"] = last.meta["like"]
    last.replace_all_uses_with(node)


def _attention(graph: Graph, softmax: Node) -> None:
    scores, mask = _source(softmax.args[0]), None
    if softmax.kwargs.get("axis", -1) != -1 or scores.meta["like"].ndim != 4:
        return
    if scores.target is torch.add:
        products = [a for a in map(_source, scores.args) if a.target is MATMUL]
        masks = [a for a in map(_source, scores.args) if a not in products]
        if len(products) != 1 or len(masks) != 1:
            return
        scores, mask = products[0], masks[0]
    last = _product_with_values(softmax)
    if scores.target is not MATMUL or len(scores.users) != 1 or last is None:
        return
    with graph.inserting_before(last):
        node = graph.call_function(_attended, (*scores.args, last.args[1], mask))
    node.meta["like"] = last.meta["like"]
    last.replace_all_uses_with(node)


def _source(node: Any) -> Any:
    """What a value was before its precision was changed."""
    return node.args[0] if isinstance(node, Node) and node.target is converted else node


def _product_with_values(softmax: Node) -> Node | None:
    """The product that takes the weights, NaN made 0 on the way (rows that see nothing) or not."""
    users = list(softmax.users)
    if len(users) == 2:
        made_zero = next((user for user in users if user.target is torch.where), None)
        if made_zero is None or not any(user.target is torch.isnan for user in users):
            return None
        users, softmax = list(made_zero.users), made_zero
    if len(users) == 1 and users[0].target is converted:
        (softmax,) = users
        users = list(softmax.users)
    return users[0] if len(users) == 1 and users[0].target is MATMUL and users[0].args[0] is softmax else None


def _attended(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """The scale is in query and keys."""
    if mask is not None:
        mask = mask.clamp(min=torch.finfo(query.dtype).min).to(query.dtype)
    return F.scaled_dot_product_attention(query, keys.mT, values, mask, scale=1.0)
