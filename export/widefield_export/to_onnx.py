"""Write segments of a program as ONNX graphs that share one weights file.

Frozen sites are initialisers, so that an engine which specialises on a picture's summary can fold them into the
convolutions before them; every other weight is a slice of the bundle's safetensors file. Batch, rows and columns are
symbolic; an engine fixes them. A weight that is stored in half precision is cast, once, when an engine loads the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from widefield_export.emit import CORE, INSIDE, MASK_LAYOUT, WHOLE, Walk
from widefield_export.onnx_backend import OnnxBackend
from widefield_export.program import Layout, Margin, Program, Site
from widefield_export.segments import Segment
from widefield_export.weights import is_half

OPSET = 20
IR_VERSION = 10


def dims(layout: Layout, prefix: str) -> list[int | str]:
    """Symbolic names for what a tile changes."""
    return ["batch" if a.role == "batch" else a.size if a.role == "plain" else f"{prefix}.{a.role}" for a in layout]


@dataclass(frozen=True, slots=True)
class Graph:
    """A written graph: the model, and what it reads from outside itself."""

    model: onnx.ModelProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: dict[str, tuple[int, ...]]


def write_segment(
    program: Program,
    segment: Segment,
    *,
    masked: bool,
    measured: Sequence[Site],
    steps: Mapping[int, int] | None = None,
    margins: dict[str, Margin] | None = None,
    offsets: Mapping[str, tuple[int, int]],
    weights_file: str,
) -> Graph:
    """The segment as one ONNX model. `offsets` gives each weight's first byte and length in `weights_file`.

    Inputs are the segment's, and `inside` (batch, 1, rows, columns) where `masked`; outputs are the segment's, and the
    partial statistics of the measured sites called `site.INDEX.mean` and so on. `margins`: of its values; results
    then have none. By default those of the whole program.
    """
    half = frozenset(n for n, a in program.weights.items() if n in offsets and is_half(a.shape, offsets[n]))
    backend = OnnxBackend(program, half)
    layouts = program.layouts()
    given = {name: name for name in segment.inputs}
    walk = Walk(program, backend, given, INSIDE if masked else None, CORE if steps is not None else None, margins)
    results = walk.run(segment)
    if margins is not None:
        results = {name: walk.at_margin(name, WHOLE) for name in results}
    for site in measured:
        found = walk.measure(site) if steps is None else walk.certify(site, steps[site.index])
        results |= {f"site.{site.index}.{key}": value for key, value in found.items()}
    for name, handle in results.items():
        if handle != name:
            backend.node("Identity", [handle], name=name)
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, dims(layouts[n], n)) for n in segment.inputs]
    if masked:
        inputs.append(helper.make_tensor_value_info(INSIDE, TensorProto.FLOAT, dims(MASK_LAYOUT, INSIDE)))
    if steps is not None:
        inputs.append(helper.make_tensor_value_info(CORE, TensorProto.FLOAT, dims(MASK_LAYOUT, CORE)))
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in results]
    tensors = [
        helper.make_tensor(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape, a.tobytes(), raw=True)
        for n, a in backend.initializers.items()
    ]
    tensors += [_external(n, s, offsets[n], weights_file) for n, s in backend.external.items()]
    start = min(place for place, _ in offsets.values())
    tensors += [_placeholder(n, s, start, weights_file) for n, s in backend.parameters.items()]
    used = _reachable(backend.nodes, list(results))
    graph = helper.make_graph(used, program.name, inputs, outputs, [t for t in tensors if _is_read(t.name, used)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    model.producer_name = "widefield"
    names = tuple(i.name for i in inputs if _is_read(i.name, used) or i.name in segment.inputs)
    while len(model.graph.input) and any(i.name not in names for i in model.graph.input):
        model.graph.input.remove(next(i for i in model.graph.input if i.name not in names))
    return Graph(model, names, tuple(results), backend.parameters)


def _reachable(nodes: list[onnx.NodeProto], results: list[str]) -> list[onnx.NodeProto]:
    wanted = set(results)
    kept = []
    for node in reversed(nodes):
        if node.output[0] in wanted:
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]


def _is_read(name: str, nodes: list[onnx.NodeProto]) -> bool:
    return any(name in node.input for node in nodes)


def _external(name: str, shape: tuple[int, ...], place: tuple[int, int], file: str) -> onnx.TensorProto:
    kind = TensorProto.FLOAT16 if is_half(shape, place) else TensorProto.FLOAT
    tensor = onnx.TensorProto(name=name, data_type=kind, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", str(place[0])), ("length", str(place[1]))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _placeholder(name: str, shape: tuple[int, ...], start: int, file: str) -> onnx.TensorProto:
    """A frozen site: an engine puts the summary's values here before it optimises the graph. Until then it shows some
    bytes of the weights file, so that every reader of ONNX can load the graph."""
    return _external(name, shape, (start, 4 * int(np.prod(shape, dtype=np.int64))), file)
