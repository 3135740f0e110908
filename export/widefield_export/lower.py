"""From a `torch.export` graph to a local program: a rule for each kind of ATen operation (rules.py), an error for the
rest.

The graph is exported with symbolic batch, rows and columns, so the role of every axis of every value can be read off
its symbolic shape: `4*h` is the row axis at four pixels a cell, `h*w` the cells flattened. Frames (a fifth axis of
length one, in video autoencoders) are dropped, and their causal convolutions fold to two dimensions exactly: at the
first frame all taps but the last see zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import sympy
import torch
from numpy.typing import NDArray

from widefield.errors import UnsupportedGraph
from widefield_export.program import Axis, Layout, Op, Program

BATCH = Axis("batch", 1)
Fx = torch.fx.Node


class Value:
    """A value of the program under construction. `frame` is the axis that was dropped; `pad` waits for a convolution
    (low and high of rows and columns alike)."""

    __slots__ = ("frame", "layout", "name", "pad")

    def __init__(self, name: str, layout: Layout, frame: int | None, pad: tuple[int, int] = (0, 0)) -> None:
        self.name, self.layout, self.frame, self.pad = name, layout, frame, pad

    def axis(self, dim: int) -> int:
        """The program's axis for the graph's dimension."""
        rank = len(self.layout) + (self.frame is not None)
        dim %= rank
        if self.frame is None or dim < self.frame:
            return dim
        return dim - 1

    def drops(self, dim: int) -> bool:
        return self.frame is not None and dim % (len(self.layout) + 1) == self.frame


Rule = Callable[["Lowering", Fx], Any]


def target_name(node: Fx) -> str:
    """`conv2d` for aten.conv2d.default; Python's own operators by their name."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.split("::")[-1]
    return getattr(node.target, "__name__", str(node.target))


def origin_of(node: Fx) -> str:
    """The innermost module that the operation came from, as `decoder.mid_block.attentions.0`."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def weight_array(tensor: torch.Tensor) -> NDArray[np.float32]:
    """A constant of the checkpoint in float32, contiguous."""
    return np.ascontiguousarray(tensor.detach().to(torch.float32).cpu().numpy())


class Lowering:
    """Walks the exported graph once. `env` holds a Value, a tensor (a constant), a list of them, or a number."""

    def __init__(self, exported: torch.export.ExportedProgram, name: str, rules: Mapping[str, Rule]) -> None:
        self.graph = exported.graph
        self.name = name
        self.rules = rules
        self.env: dict[Fx, Any] = {}
        self.ops: list[Op] = []
        self.weights: dict[str, NDArray[np.float32]] = {}
        self.symbols: tuple[sympy.Symbol, ...] = ()
        constants = {**exported.state_dict, **exported.constants}
        self.parameters: dict[str, tuple[str, torch.Tensor]] = {
            spec.arg.name: (spec.target, constants[spec.target])
            for spec in exported.graph_signature.input_specs
            if spec.target is not None
        }

    def run(self) -> Program:
        """The whole program; operations that the output does not need are never looked at."""
        output = next(node for node in self.graph.nodes if node.op == "output")
        result = output.args[0][0]
        needed = self._needed(result)
        source: Value | None = None
        for node in self.graph.nodes:
            if node not in needed:
                continue
            if node.op == "placeholder" and node.name in self.parameters:
                self.env[node] = self.parameters[node.name][1]
            elif node.op == "placeholder":
                shape = node.meta["val"].shape
                self.symbols = tuple(next(iter(shape[d].node.expr.free_symbols)) for d in (0, 2, 3))
                source = self.value_of(node, node.name)
                self.env[node] = source
            else:
                self.env[node] = self._lower(node)
        final = self.env[result]
        if source is None or not isinstance(final, Value) or final.pad != (0, 0):
            raise UnsupportedGraph(f"{self.name}: the output is not a picture that depends on the input")
        return Program(self.name, source.name, final.name, source.layout, self.ops, self.weights).pruned()

    def _needed(self, result: Fx) -> set[Fx]:
        needed, pending = set[Fx](), [result]
        while pending:
            node = pending.pop()
            if node not in needed:
                needed.add(node)
                pending.extend(node.all_input_nodes)
        return needed

    def _lower(self, node: Fx) -> Any:
        name = target_name(node)
        inputs = [self.env[arg] for arg in node.all_input_nodes]
        if name in ("sym_size", "mul", "add", "sub", "floordiv", "neg", "sym_sum") and not any(
            isinstance(x, Value | torch.Tensor) for x in inputs
        ):
            return None  # arithmetic on sizes: layouts say it all
        if name == "sym_size":
            return None
        if not any(isinstance(x, Value | list) for x in inputs):
            return node.target(*self.plain(node.args), **self.plain(node.kwargs))  # type: ignore[operator]
        if name not in self.rules:
            raise UnsupportedGraph(
                f"{self.name}: no rule for {node.target} (node {node.name}, module {origin_of(node) or 'unknown'}); "
                f"rules exist for {', '.join(sorted(self.rules))}"
            )
        return self.rules[name](self, node)

    def plain(self, args: Any) -> Any:
        """Arguments with nodes replaced by what they stand for."""
        return torch.fx.node.map_arg(args, lambda node: self.env[node])

    def fault(self, node: Fx, what: str) -> UnsupportedGraph:
        return UnsupportedGraph(
            f"{self.name}: {node.target} {what} (node {node.name}, module {origin_of(node) or 'unknown'})"
        )

    def axis(self, size: Any, node: Fx) -> Axis:
        """The role of one dimension, read off its symbolic size."""
        if isinstance(size, int):
            return Axis("plain", size)
        expression = sympy.expand(size.node.expr)
        batch, rows, columns = self.symbols
        if expression.is_Integer:
            return Axis("plain", int(expression))
        free = expression.free_symbols
        if free == {batch} and expression == batch:
            return BATCH
        for role, symbols, root in (("rows", {rows}, 1), ("columns", {columns}, 1), ("cells", {rows, columns}, 2)):
            if free == symbols:
                product = sympy.Mul(*symbols)
                factor = sympy.simplify(expression / product)
                scale = sympy.root(factor, root)
                if factor.is_Integer and scale.is_Integer:
                    return Axis(role, int(scale))  # type: ignore[arg-type]
        raise self.fault(node, f"has an axis of size {expression}, which is no multiple of the picture's")

    def value_of(self, node: Fx, name: str, like: torch.Tensor | None = None) -> Value:
        """A Value with the layout of the node's result, frames dropped."""
        shape = (node.meta["val"] if like is None else like).shape
        axes = [self.axis(size, node) for size in shape]
        frame = None
        if len(axes) == 5 and [a.role for a in axes[3:]] == ["rows", "columns"]:
            frame = next((d for d in (2, 1) if axes[d] == Axis("plain", 1)), None)
        return Value(name, tuple(a for d, a in enumerate(axes) if d != frame), frame)

    def emit(self, node: Fx, kind: str, args: Sequence[Value], *, suffix: str = "", **attrs: Any) -> Value:
        """Add an operation whose result is the node's own."""
        for arg in args:
            if arg.pad != (0, 0) and kind != "conv":
                raise self.fault(node, "follows a padding, where only a convolution may")
        out = self.value_of(node, node.name + suffix)
        self.ops.append(Op(kind, out.name, tuple(a.name for a in args), out.layout, attrs, origin_of(node)))
        return out

    def emit_as(self, node: Fx, name: str, kind: str, args: Sequence[Value], layout: Layout, **attrs: Any) -> Value:
        """Add an operation in between, with a layout of our own."""
        self.ops.append(Op(kind, name, tuple(a.name for a in args), layout, attrs, origin_of(node)))
        return Value(name, layout, None)

    def constant(self, node: Fx, tensor: torch.Tensor, suffix: str) -> str:
        """Keep a tensor; parameters keep their name in the checkpoint."""
        for argument in node.all_input_nodes:
            if argument.name in self.parameters and self.env[argument] is tensor:
                name = self.parameters[argument.name][0]
                break
        else:
            name = f"{node.name}.{suffix}"
        self.weights.setdefault(name, weight_array(tensor))
        return name

    def renamed(self, node: Fx, source: Value) -> Value:
        """The same data under the node's own shape: only frames or unit axes came or went."""
        out = self.value_of(node, source.name)
        return out if out.layout == source.layout else self.emit(node, "reshape", [source])

    def arg(self, node: Fx, index: int, default: Any = None) -> Any:
        return self.plain(node.args[index]) if len(node.args) > index else default
