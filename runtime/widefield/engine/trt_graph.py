"""An exported graph as TensorRT takes it: shapes fixed, frozen sites as inputs, precision written into the graph.

TensorRT 11 computes in the types that a graph says and in no others. So casts are put where `halves` wants a change;
casts of weights are folded by the builder. Weights stay where they are: the result is a skeleton and a list of places.
Frozen sites become inputs, so one engine serves every picture. Masks are an exception to `halves`: TensorRT fuses
attention where all of it is in half, so a mask is cut off at LOWEST, which is as good as minus infinity, and added so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from widefield.engine.graphs import Step, external, load_model
from widefield.engine.halves import masks, runs_in_half
from widefield.errors import BadBundle

HALVES = {"bf16": TensorProto.BFLOAT16, "f16": TensorProto.FLOAT16}
LOWEST = np.float32(-30000.0)
LOWEST_NAME = "widefield.lowest"
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A graph without weights. `places`: of each weight, its file, first byte and length."""

    path: Path
    model: bytes
    places: Mapping[str, tuple[str, int, int]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def make_skeleton(path: Path, shapes: Shapes, parameters: Shapes, precision: str) -> Skeleton:
    """The graph in `path` for inputs of `shapes` and frozen sites of the shapes in `parameters`."""
    model = load_model(path)
    graph = model.graph
    for value in graph.input:
        if value.name not in shapes:
            raise BadBundle(f"{path}: engine trt wants the shape of every input, {value.name} has none; name it")
        _fix(value, shapes[value.name])
    kept = [tensor for tensor in graph.initializer if tensor.name not in parameters]
    given = {tensor.name for tensor in graph.initializer} & set(parameters)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for name in sorted(given):
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(parameters[name])))
    if precision in HALVES:
        _write_halves(graph, _float_values(model), HALVES[precision])
    places = {tensor.name: place for tensor in graph.initializer if (place := external(tensor)) is not None}
    inputs, outputs = (tuple(value.name for value in values) for values in (graph.input, graph.output))
    return Skeleton(path, model.SerializeToString(), places, inputs, outputs)


def _fix(value: onnx.ValueInfoProto, shape: Iterable[int]) -> None:
    for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
        dim.Clear()
        dim.dim_value = size


def _float_values(model: onnx.ModelProto) -> set[str]:
    """Names of the values that are float32 before anything is changed."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    floats = {v.name for v in values if v.type.tensor_type.elem_type in FLOATS}
    return floats | {tensor.name for tensor in inferred.initializer if tensor.data_type in FLOATS}


class _Halves:
    """Casts by value and type, each made once, in the order in which they are first wanted."""

    def __init__(self, graph: onnx.GraphProto, floats: set[str], half: int) -> None:
        self.floats, self.half = floats, half
        self.constants = {tensor.name for tensor in graph.initializer}
        self.found: dict[str, int] = {}  # types of floats that are not float32
        self.made: dict[tuple[str, int], str] = {}
        self.nodes: list[onnx.NodeProto] = []

    def typed(self, name: str, wanted: int) -> str:
        """The value in that type."""
        if name not in self.floats or self.found.get(name, TensorProto.FLOAT) == wanted:
            return name
        key = name, wanted
        if key not in self.made:
            self.made[key] = f"{name}.{TensorProto.DataType.Name(wanted).lower()}"
            self.nodes.append(helper.make_node("Cast", [name], [self.made[key]], to=wanted))
        return self.made[key]


def _write_halves(graph: onnx.GraphProto, floats: set[str], half: int) -> None:
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer if tensor.data_type in FLOATS}
    work = _Halves(graph, floats, half)
    work.found.update(stored)
    results = {value.name for value in graph.output}
    users: dict[str, list[Step]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(Step(node.op_type, (), (), {}))
    constants = set(work.constants)
    for node in graph.node:
        step = Step(node.op_type, tuple(node.input), tuple(node.output), {})
        varying = [name for name in node.input if name and name not in constants]
        if not varying:
            constants.update(node.output)
        if node.op_type in ("Cast", "CastLike"):
            _follow_cast(node, work)
            continue
        readers = users.get(node.output[0], [])
        in_half = [work.found.get(name, TensorProto.FLOAT) == half for name in varying]
        masked = masks(step, readers) and any(in_half)
        wanted = half if varying and (masked or runs_in_half(step, readers, in_half)) else TensorProto.FLOAT
        if masked:
            _cut_off(node, work, half)
        _retype(node, work, wanted, results)
    del graph.node[:]
    graph.node.extend(work.nodes)
    del graph.value_info[:]
    graph.initializer.append(numpy_helper.from_array(LOWEST, LOWEST_NAME))


def _cut_off(node: onnx.NodeProto, work: _Halves, half: int) -> None:
    """No argument in float32 is below LOWEST: halves would make minus infinity of it."""
    for at, name in enumerate(node.input):
        if work.found.get(name, TensorProto.FLOAT) != half:
            cut = f"{name}.cut"
            if cut not in work.floats:
                work.nodes.append(helper.make_node("Max", [work.typed(name, TensorProto.FLOAT), LOWEST_NAME], [cut]))
                work.floats.add(cut)
            node.input[at] = cut


def _follow_cast(node: onnx.NodeProto, work: _Halves) -> None:
    """A cast of a weight to float32, or of numbers that are no floats, stays what it is."""
    work.nodes.append(node)
    to = next((attribute.i for attribute in node.attribute if attribute.name == "to"), None)
    like = work.found.get(node.input[1], TensorProto.FLOAT) if node.op_type == "CastLike" else to
    if like in FLOATS:
        work.found[node.output[0]] = int(like or TensorProto.FLOAT)


def _retype(node: onnx.NodeProto, work: _Halves, wanted: int, results: set[str]) -> None:
    """The node with its floats in the wanted type. What leaves the graph is cast back under its own name."""
    for at, name in enumerate(node.input):
        if name in work.floats and not (node.op_type == "Resize" and at):  # its factors are float32 in any case
            node.input[at] = work.typed(name, wanted)
    work.nodes.append(node)
    for at, name in enumerate(node.output):
        if name not in work.floats or wanted == TensorProto.FLOAT:
            continue
        if name in results:
            inner = f"{name}.inner"
            node.output[at] = inner
            work.nodes.append(helper.make_node("Cast", [inner], [name], to=TensorProto.FLOAT))
        else:
            work.found[name] = wanted
