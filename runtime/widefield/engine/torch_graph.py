"""A graph with fixed shapes as one torch module, flat and static, for eager running or for Inductor to compile.

Every operation is run once on tensors that have a shape and no memory. What follows from constants and sizes alone is
computed now, so of all the arithmetic on shapes nothing is left; the rest becomes one torch.fx call each, in the
precision that `halves` says. Then a few patterns are made one call each (`torch_fusion`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from widefield.engine.graphs import GraphFile, Step
from widefield.engine.halves import runs_in_half
from widefield.engine.torch_fusion import fuse
from widefield.engine.torch_ops import OPERATIONS, Operation, converted
from widefield.errors import BadBundle

HALVES = {"bf16": torch.bfloat16, "f16": torch.float16}


def build_module(graph: GraphFile, shapes: Mapping[str, tuple[int, ...]], precision: str) -> GraphModule:
    """`forward(*inputs)` in the order of `graph.inputs` gives a tuple in the order of `graph.outputs`, all float32.

    BadBundle names an operation that torch does not run as ONNX says.
    """
    return _Builder(graph, HALVES.get(precision)).module(shapes)


class _Builder:
    """Values are tensors where they are known already, else nodes whose `meta` shows their shape and type."""

    def __init__(self, graph: GraphFile, half: torch.dtype | None) -> None:
        self.file, self.half = graph, half
        self.users = graph.users()
        self.fx = Graph()
        self.root = nn.Module()
        self.known: dict[str, Tensor] = {}
        self.nodes: dict[str, Node] = {}
        self.buffers: dict[tuple[int, torch.dtype], Node] = {}
        self.kept: list[Tensor] = []  # whose ids are keys

    def module(self, shapes: Mapping[str, tuple[int, ...]]) -> GraphModule:
        """See `build_module`."""
        for at, name in enumerate(self.file.inputs):
            node = self.fx.placeholder(f"input_{at}")
            node.meta["like"] = torch.empty(shapes[name], device="meta")
            self.nodes[name] = node
        for name, array in self.file.constants.items():
            self.known[name] = torch.from_numpy(array if array.flags.writeable else array.copy())
        for step in self.file.steps:
            try:
                self._add(step)
            except NotImplementedError as cause:
                raise BadBundle(
                    f"{self.file.path}: engine torch cannot run {step.kind}, which makes {step.outputs[0]} "
                    f"({str(cause).splitlines()[0]}); take --engine ort"
                ) from cause
        self.fx.output(tuple(self._typed(name, torch.float32) for name in self.file.outputs))
        fuse(self.root, self.fx)
        return GraphModule(self.root, self.fx)

    def _add(self, step: Step) -> None:
        if step.kind == "Shape":
            self.known[step.outputs[0]] = self._shape(step)
            return
        operation = OPERATIONS.get(step.kind)
        if operation is None:
            raise NotImplementedError("no rule for it")
        users = self.users.get(step.outputs[0], [])
        half = self.half is not None and runs_in_half(step, users, [self._in_half(name) for name in step.inputs])
        given = [self._given(step, operation, at, half=half) for at in range(len(step.inputs))]
        attributes = {**step.attributes, "num_outputs": len(step.outputs)} if step.kind == "Split" else step.attributes
        if any(isinstance(value, Node) for value in given):
            like = operation.call(*[_like(value) for value in given], **attributes)
            self._emit(step, operation, given, dict(attributes), like)
        else:
            self._keep(step, operation.call(*given, **attributes))

    def _emit(self, step: Step, operation: Operation, given: list[Any], attributes: dict[str, Any], like: Any) -> None:
        given = [self._buffer(value, value.dtype) if isinstance(value, Tensor) else value for value in given]
        node = self.fx.call_function(operation.call, tuple(given), attributes)
        node.meta["like"], node.meta["step"] = like, step
        if isinstance(like, Tensor):
            self.nodes[step.outputs[0]] = node
            return
        for at, name in enumerate(step.outputs):
            part = self.fx.call_function(_part, (node, at))
            part.meta["like"] = like[at]
            self.nodes[name] = part

    def _keep(self, step: Step, found: Any) -> None:
        for name, value in zip(step.outputs, found if isinstance(found, tuple) else (found,), strict=True):
            self.known[name] = value

    def _shape(self, step: Step) -> Tensor:
        value = self.nodes.get(step.inputs[0])
        shape = (self.known[step.inputs[0]] if value is None else value.meta["like"]).shape
        return torch.tensor(shape[step.attributes.get("start", 0) : step.attributes.get("end")], dtype=torch.int64)

    def _given(self, step: Step, operation: Operation, at: int, *, half: bool) -> Any:
        """An argument: numbers where the operation wants them fixed, a constant, or a node in the right precision."""
        name = step.inputs[at]
        if at in operation.fixed:
            return self.known[name].reshape(-1).tolist() if name else None
        if not name:
            return None
        wanted = self.half if half else torch.float32
        if self.half is None or wanted is None or not self._is_float(name) or step.kind in ("Cast", "CastLike"):
            return self.nodes.get(name, self.known.get(name))
        if name in self.known:
            known = self.known[name]
            return known if known.dtype == torch.float64 else known.to(wanted)
        return self._typed(name, wanted)

    def _typed(self, name: str, dtype: torch.dtype) -> Node:
        """A value as a node of that type; a conversion is made once."""
        if name in self.known:
            return self._buffer(self.known[name], dtype)
        node = self.nodes[name]
        if node.meta["like"].dtype == dtype or not node.meta["like"].is_floating_point():
            return node
        made: dict[torch.dtype, Node] = node.meta.setdefault("as", {})
        if dtype not in made:
            made[dtype] = self.fx.call_function(converted, (node, dtype))
            made[dtype].meta["like"] = node.meta["like"].to(dtype)
        return made[dtype]

    def _buffer(self, value: Tensor, dtype: torch.dtype) -> Node:
        """A constant of the module; equal ones are kept once."""
        key = id(value), dtype
        if key not in self.buffers:
            self.kept.append(value)
            name = f"constant_{len(self.buffers)}"
            self.root.register_buffer(name, value.to(dtype), persistent=False)
            node = self.fx.get_attr(name)
            node.meta["known"] = value
            node.meta["like"] = torch.empty(value.shape, dtype=dtype, device="meta")
            self.buffers[key] = node
        return self.buffers[key]

    def _is_float(self, name: str) -> bool:
        value = self.nodes[name].meta["like"] if name in self.nodes else self.known[name]
        return bool(value.is_floating_point())

    def _in_half(self, name: str) -> bool:
        return name in self.nodes and self.nodes[name].meta["like"].dtype == self.half


def _like(value: Any) -> Any:
    if isinstance(value, Node):
        return value.meta["like"]
    return value.to("meta") if isinstance(value, Tensor) else value


def _part(parts: tuple[Tensor, ...], at: int) -> Tensor:
    return parts[at]
