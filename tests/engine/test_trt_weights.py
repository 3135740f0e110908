"""Weights of TensorRT are never copied by us: the parser gets addresses in the bundle's own file, as it is mapped; what
is built is the builder's memory; what is loaded is the cache's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file

from widefield.engine import trt_cache
from widefield.engine.available import find_driver
from widefield.engine.trt_bindings import make_logger
from widefield.engine.trt_build import build_engine
from widefield.engine.trt_graph import make_skeleton

ROWS, COLUMNS = 96, 160
CAPABILITIES = ("120",)


@pytest.fixture(scope="module")
def rtx():
    return pytest.importorskip(
        "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install widefield[rtx]"
    )


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    """y = x W1 W2, weights in a file beside the graph."""
    folder = tmp_path_factory.mktemp("weights")
    rng = np.random.default_rng(0)
    arrays = {
        "w1": rng.standard_normal((ROWS, COLUMNS)).astype(np.float32),
        "w2": rng.standard_normal((COLUMNS, ROWS)).astype(np.float32),
    }
    save_file(arrays, folder / "weights.safetensors")
    data = (folder / "weights.safetensors").read_bytes()
    tensors = []
    for name, array in arrays.items():
        tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=array.shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        about = {"location": "weights.safetensors", "offset": data.index(array.tobytes()), "length": array.nbytes}
        for key, value in about.items():
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
    nodes = [onnx.helper.make_node("MatMul", pair, [to]) for *pair, to in (("x", "w1", "h"), ("h", "w2", "y"))]
    ends = [onnx.helper.make_tensor_value_info(name, 1, [5, ROWS]) for name in ("x", "y")]
    made = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    onnx.save(onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 20)]), folder / "g.onnx")
    return folder / "g.onnx"


class Spy:
    """The module, whose parsers write down what file an initializer's address lies in, and where there."""

    def __init__(self, trt: Any) -> None:
        self.trt = trt
        self.handed: dict[str, tuple[str, int, int]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trt, name)

    def OnnxParser(self, *given: Any) -> Any:
        """Real, but for what it writes down."""
        parser, handed = self.trt.OnnxParser(*given), self.handed

        class Parser:
            def __getattr__(self, name: str) -> Any:
                return getattr(parser, name)

            def load_initializer(self, name: str, address: int, nbytes: int) -> bool:
                handed[name] = (*file_at(address), nbytes)
                return parser.load_initializer(name, address, nbytes)

        return Parser()


def file_at(address: int) -> tuple[str, int]:
    """(the file that is mapped at an address, the place in it), as the kernel has it."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, _, _, *path = line.split(maxsplit=5)
        start, stop = (int(part, 16) for part in span.split("-"))
        if start <= address < stop:
            return (path[0] if path else "nowhere"), int(offset, 16) + address - start
    return "nowhere", 0


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_the_parser_gets_addresses_in_the_bundles_file(rtx, graph, precision):
    skeleton, spy = make_skeleton(graph, {"x": (5, ROWS)}, {}, precision), Spy(rtx)
    plan, _ = build_engine(spy, skeleton, capabilities=CAPABILITIES)
    weights = str(graph.with_name("weights.safetensors"))
    assert {name: (weights, *place[1:]) for name, place in skeleton.places.items()} == spy.handed
    assert len(skeleton.places) == 2 and len(skeleton.model) < 2 * ROWS * COLUMNS, "none of them is in the graph"
    assert isinstance(plan.obj, rtx.IHostMemory), "what is built is the builder's, not copied"


@pytest.mark.skipif(find_driver().cuda is not None, reason="a GPU is here: the engine would load")
def test_an_engine_is_loaded_from_its_mapped_file(rtx, graph, tmp_path):
    """Without a GPU it does not load; that the mapping itself is taken, and read, is what can be seen here."""
    plan, _ = build_engine(rtx, make_skeleton(graph, {"x": (5, ROWS)}, {}, "f32"), capabilities=CAPABILITIES)
    content = bytes(plan)
    trt_cache.keep("a.engine", plan, tmp_path)
    del plan
    mapped = trt_cache.mapped("a.engine", tmp_path)
    assert mapped is not None and bytes(mapped) == content
    address = np.frombuffer(mapped, np.uint8).ctypes.data
    assert file_at(address) == (str(tmp_path / "a.engine"), 0)
    logger = make_logger(rtx)
    assert rtx.Runtime(logger).deserialize_cuda_engine(mapped) is None and logger.errors


def test_a_file_of_the_cache_that_is_empty_or_not_there_is_none(tmp_path):
    (tmp_path / "empty.engine").touch()
    assert trt_cache.mapped("empty.engine", tmp_path) is None and trt_cache.mapped("no.engine", tmp_path) is None
