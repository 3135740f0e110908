"""Read one ONNX file as plain data: operations in order, and constants as arrays that show the weights file itself.

Weights are mapped, not read: a denoiser of 10 GB costs what is looked at. Needs `onnx`.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from widefield.errors import BadBundle

FLOATS = {np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)}


@dataclass(frozen=True, slots=True)
class Step:
    """One operation: names of values in and out ("" where an optional one is left out), and its attributes."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GraphFile:
    """A graph with its frozen sites filled in. `parameters` says which constants those are."""

    path: Path
    steps: tuple[Step, ...]
    constants: Mapping[str, NDArray[Any]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: frozenset[str]

    def users(self) -> dict[str, list[Step]]:
        """The operations that read each value, in their order."""
        found: dict[str, list[Step]] = {}
        for step in self.steps:
            for name in dict.fromkeys(filter(None, step.inputs)):
                found.setdefault(name, []).append(step)
        return found


def read_graph(path: Path, parameters: Mapping[str, NDArray[Any]]) -> GraphFile:
    """The graph in a file. BadBundle where it is none, or its weights file is missing or too short."""
    model = load_model(path)
    files: dict[str, mmap.mmap] = {}
    constants: dict[str, NDArray[Any]] = {}
    for tensor in model.graph.initializer:
        given = parameters.get(tensor.name)
        constants[tensor.name] = _array(tensor, path, files) if given is None else np.ascontiguousarray(given)
    steps = tuple(
        Step(
            node.op_type, tuple(node.input), tuple(node.output),
            {a.name: _attribute(a) for a in node.attribute},
        )
        for node in model.graph.node
    )  # fmt: skip
    names = (tuple(v.name for v in values) for values in (model.graph.input, model.graph.output))
    inputs, outputs = names
    return GraphFile(path, steps, constants, inputs, outputs, frozenset(parameters) & constants.keys())


def load_model(path: Path) -> onnx.ModelProto:
    """The graph alone, its weights left where they are. BadBundle for anything that is no ONNX graph."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as cause:
        raise BadBundle(f"{path} is no ONNX graph: {cause}; copy or export again") from cause
    if not model.graph.node:
        raise BadBundle(f"{path} is no ONNX graph: it has no operations; copy or export again")
    return model


def external(tensor: onnx.TensorProto) -> tuple[str, int, int] | None:
    """(file, first byte, bytes) of a tensor that lies outside its graph."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    where = {entry.key: entry.value for entry in tensor.external_data}
    return where["location"], int(where.get("offset", 0)), int(where["length"])


def mapped(path: Path, files: dict[str, mmap.mmap], name: str) -> mmap.mmap:
    """The weights file `name` beside the graph `path`, mapped once; pages that are written to stay private."""
    if name not in files:
        try:
            with (path.parent / name).open("rb") as stream:
                files[name] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as cause:
            raise BadBundle(f"{path.parent / name}, which {path.name} reads, cannot be mapped: {cause}") from cause
    return files[name]


def _array(tensor: onnx.TensorProto, path: Path, files: dict[str, mmap.mmap]) -> NDArray[Any]:
    where = external(tensor)
    if where is None:
        array: NDArray[Any] = onnx.numpy_helper.to_array(tensor)
        return array
    name, offset, length = where
    file = mapped(path, files, name)
    if offset + length > len(file):
        raise BadBundle(f"{path.parent / name} ends before {tensor.name} does; copy or export the bundle again")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.frombuffer(file, dtype, int(np.prod(tensor.dims, dtype=np.int64)), offset).reshape(list(tensor.dims))


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return value if isinstance(value, int | float | str) else list(value)
