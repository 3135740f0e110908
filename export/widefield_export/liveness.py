"""How many bytes of activations an exported program has alive together, at most: what a plan has to leave room for.

Operations run in the order of the graph. A result lives until its last use, and a view as long as what it is a view of;
transposes are no views here, because engines copy them. Parameters and inputs are counted by whoever owns them.
"""

from __future__ import annotations

from typing import Any

import torch

_COPIED = {"permute", "transpose", "t"}


def live_nbytes(exported: Any, batch: int) -> int:
    """Of a `torch.export.ExportedProgram` that was traced with `batch`: bytes for one of a batch, in float32."""
    owner: dict[Any, Any] = {}
    last: dict[Any, Any] = {}
    for node in exported.graph.nodes:
        if node.op == "call_function":
            owner[node] = _owner(node, owner)
        for used in node.all_input_nodes:
            if used in owner:
                last[owner[used]] = node
    alive = peak = 0
    for node in exported.graph.nodes:
        if owner.get(node) is node:
            alive += _elements(node)
        peak = max(peak, alive)
        ended = {owner[used] for used in node.all_input_nodes if used in owner and last[owner[used]] is node}
        alive -= sum(_elements(value) for value in ended)
    return 4 * -(-peak // batch)


def _owner(node: Any, owner: dict[Any, Any]) -> Any:
    """The node whose memory a result lies in: its own, or that of what it is a view of."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return owner.get(node.args[0], node) if node.args else node  # getitem of several results
    name = str(target).split(".")[1]  # aten.permute.default
    views = any(result.alias_info is not None for result in target._schema.returns)
    if views and name not in _COPIED and node.all_input_nodes:
        return owner.get(node.all_input_nodes[0], node)
    return node


def _elements(node: Any) -> int:
    """Of all its results; symbolic sizes at the numbers they were traced with."""
    values = node.meta.get("val")
    tensors = values if isinstance(values, tuple | list) else (values,)
    return sum(_numel(value) for value in tensors if isinstance(value, torch.Tensor))


def _numel(value: torch.Tensor) -> int:
    total = 1
    for size in value.shape:
        total *= int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)
    return total
