"""A torch module with fixed shapes but for its batch, to one ONNX file whose weights stay in a safetensors file.

torch.export traces it, torch.onnx translates it, onnxscript folds what is constant. Weights keep their names and are
never read: an initialiser called as one of `places` points there instead, and is cast where it is stored in half
precision. What a module computes from shapes alone (sinusoids, masks) is in the ONNX file itself.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from widefield_export.liveness import live_nbytes
from widefield_export.to_onnx import IR_VERSION, OPSET
from widefield_export.weights import Place, is_half

BATCH = "batch"
_LARGEST_BATCH = 63
_TALKERS = ("torch.onnx._internal.exporter._registration", "onnxscript.optimizer._constant_folding", "onnx_ir")


@dataclass(frozen=True, slots=True)
class Port:
    """An input or an output: float32, `shape` with "batch" where the batch is."""

    name: str
    shape: tuple[int | str, ...]

    def example(self, batch: int) -> Tensor:
        """Zeros of that shape."""
        return torch.zeros([batch if axis == BATCH else int(axis) for axis in self.shape])


@dataclass(frozen=True, slots=True)
class Written:
    """A graph's outputs, and how many bytes of activations one of a batch has alive together."""

    outputs: tuple[Port, ...]
    live_nbytes: int


class _Call(nn.Module):
    """A module by its arguments' places: their number is then no part of its signature."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = self.inner(*inputs)
        return result


def write_graph(
    module: nn.Module,
    inputs: Sequence[Port],
    outputs: Sequence[str],
    path: Path,
    *,
    places: Mapping[str, Place],
    weights: str,
    prefix: str,
) -> Written:
    """Write `module` to `path`. `forward` takes the inputs in their order and gives a tuple.

    `places` are the weights by their names within the module's attribute `prefix`, in the file `weights` beside it.
    """
    import onnx_ir as ir

    batch = torch.export.Dim(BATCH, min=2, max=_LARGEST_BATCH)  # tracing with 1 would fix it
    examples = tuple(port.example(2) for port in inputs)
    dynamic = tuple({port.shape.index(BATCH): batch} if BATCH in port.shape else {} for port in inputs)
    with torch.no_grad(), _quiet():
        exported = torch.export.export(_Call(module), examples, dynamic_shapes=(dynamic,), strict=False)
        shapes = [tuple(result.meta["val"].shape) for result in _results(exported)]
        live = live_nbytes(exported, 2)
        program = torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
            input_names=[port.name for port in inputs],
            output_names=list(outputs),
        )
        assert program is not None
        model: Any = program.model
        stored = {f"inner.{prefix}.{name}": place for name, place in places.items()}
        for name, value in model.graph.initializers.items():
            if name in stored:
                value.const_value = None  # keeps the folder's hands off
        _fold(model)
    for name, value in list(model.graph.initializers.items()):
        if name in stored:
            offset, length = stored[name]
            half = is_half(value.shape.numpy(), stored[name])
            value.const_value = ir.ExternalTensor(
                weights,
                offset,
                length,
                dtype=ir.DataType.FLOAT16 if half else value.dtype,
                shape=value.shape,
                name=name,
                base_dir=path.parent,
            )
            if half:
                _cast(model.graph, value)
    _strip(model)
    ir.save(model, path)
    ports = tuple(Port(name, (BATCH, *map(int, shape[1:]))) for name, shape in zip(outputs, shapes, strict=True))
    return Written(ports, live)


def _cast(graph: Any, weight: Any) -> None:
    """Make float32 of a weight in half precision, before anything that reads it."""
    import onnx_ir as ir

    made = ir.Value(name=f"{weight.name}.float32", shape=weight.shape, type=ir.TensorType(ir.DataType.FLOAT))
    weight.type = ir.TensorType(ir.DataType.FLOAT16)
    ir.convenience.replace_all_uses_with(weight, made)
    node = ir.Node("", "Cast", [weight], [ir.AttrInt64("to", ir.DataType.FLOAT)], outputs=[made])
    graph.insert_before(graph[0], node)


def _results(exported: Any) -> list[Any]:
    """The nodes that an exported program returns. Their shapes are known without computing anything."""
    return list(exported.graph.output_node().args[0])


def _fold(model: Any) -> None:
    """Compute what is constant, once. Without onnxscript's rewriting rules: they take 1e-15 for 0 and leave it out."""
    from onnx_ir.passes import common
    from onnxscript import optimizer

    optimizer.inline(model)
    for _ in range(2):
        optimizer.fold_constants(model)
        optimizer.remove_unused_nodes(model)
    for tidy in (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.NameFixPass(),
    ):
        tidy(model)


def _strip(model: Any) -> None:
    """Remove what tells of this machine and of the trace: a tenth of the file is left."""
    model.ir_version = IR_VERSION
    model.producer_name = "widefield"
    model.producer_version = None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in (*node.inputs, *node.outputs):
            if value is not None:
                value.metadata_props.clear()
    for function in model.functions.values():
        function.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' notes on their own insides from the user."""
    levels = {name: logging.getLogger(name).level for name in _TALKERS}
    for name in _TALKERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
