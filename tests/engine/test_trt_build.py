"""Shipped graphs parse and build with TensorRT-RTX, which needs no GPU for that; skipped where it is not installed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from widefield.bundle import Bundle, open_bundle
from widefield.engine import trt_cache
from widefield.engine.trt_build import build_engine
from widefield.engine.trt_graph import make_skeleton
from widefield.errors import UnsupportedGraph, WidefieldError
from widefield.model import EMBEDDED
from widefield.tiles import input_shapes

CAPABILITIES = ("89", "120")


@pytest.fixture(scope="module")
def rtx():
    return pytest.importorskip(
        "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install widefield[rtx]"
    )


@pytest.fixture(scope="module")
def embedded() -> Bundle:
    return open_bundle(EMBEDDED)


def shapes_of(path: Path, batch: int = 2) -> dict[str, tuple[int, ...]]:
    inputs = onnx.load(path, load_external_data=False).graph.input
    return {i.name: tuple(d.dim_value or batch for d in i.type.tensor_type.shape.dim) for i in inputs}


def run(model: bytes, feeds: dict[str, np.ndarray], folder: Path) -> list[np.ndarray]:
    path = folder / "skeleton.onnx"
    path.write_bytes(model)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


@pytest.mark.parametrize("kind", ["interior", "border", "certified"])
def test_a_skeleton_says_what_the_graph_says(embedded, kind, tmp_path):
    """In float32 with frozen sites as inputs, and in f16 to half precision: on ONNX Runtime, which runs both."""
    component = embedded.decoder
    shutil.copy(embedded.file("weights.safetensors"), tmp_path)
    rng = np.random.default_rng(0)
    for graph in getattr(component, kind):
        shapes = input_shapes(component, graph, 1, 6, 9)
        feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        feeds |= {name: np.ones(shape, np.float32) for name, shape in shapes.items() if name in ("inside", "core")}
        frozen = {n: rng.random(s, dtype=np.float32) + np.float32(0.5) for n, s in graph.parameters.items()}
        path = embedded.file(graph.file)
        wide, narrow = (make_skeleton(path, shapes, graph.parameters, p) for p in ("f32", "f16"))
        assert set(wide.inputs) == set(narrow.inputs) == {*shapes, *frozen} and wide.outputs == graph.outputs
        exact, half = (run(s.model, {**feeds, **frozen}, tmp_path) for s in (wide, narrow))
        for name, a, b in zip(wide.outputs, exact, half, strict=True):
            assert a.shape == b.shape and b.dtype == np.float32
            error = np.abs(a - b).max() / max(1e-3, np.abs(a).max())
            assert error <= 0.02, name


@pytest.mark.parametrize("file", ["denoiser.16x16.onnx", "text_encoder.onnx"])
def test_products_are_in_half_and_types_agree(embedded, file):
    """ONNX's own type rules are as strict as TensorRT's: an operation's arguments are of one type."""
    path = embedded.file(file)
    model = onnx.load_from_string(make_skeleton(path, shapes_of(path), {}, "f16").model)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    products = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    half = onnx.TensorProto.FLOAT16
    assert len(products) > 10 and all(types[node.input[0]] == half == types[node.input[1]] for node in products)
    assert {value.type.tensor_type.elem_type for value in model.graph.output} == {onnx.TensorProto.FLOAT}


def casts(model: bytes) -> int:
    return sum(node.op_type == "Cast" for node in onnx.load_from_string(model).graph.node)


def test_a_float32_skeleton_has_no_casts_of_its_own(embedded):
    graph = embedded.decoder.interior[1]
    path, shapes = embedded.file(graph.file), input_shapes(embedded.decoder, graph, 1, 6, 9)
    before = casts(path.read_bytes())
    assert casts(make_skeleton(path, shapes, graph.parameters, "f32").model) == before
    assert casts(make_skeleton(path, shapes, graph.parameters, "bf16").model) > before


@pytest.mark.parametrize("precision", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("direction", ["decoder", "encoder"])
def test_fused_graphs_build(rtx, embedded, direction, precision):
    component = embedded.component(direction)
    for graph in (*component.interior, *component.border):
        shapes = input_shapes(component, graph, 2, 16, 24)
        skeleton = make_skeleton(embedded.file(graph.file), shapes, graph.parameters, precision)
        plan, timing = build_engine(rtx, skeleton, capabilities=CAPABILITIES)
        assert len(plan) > 1 << 12 and isinstance(timing, bytes), graph.file


def test_certified_graphs_build(rtx, embedded):
    for graph in embedded.decoder.certified:
        shapes = input_shapes(embedded.decoder, graph, 1, 16, 24)
        skeleton = make_skeleton(embedded.file(graph.file), shapes, graph.parameters, "bf16")
        assert build_engine(rtx, skeleton, capabilities=CAPABILITIES)[0]


@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("file", ["denoiser.16x16.onnx", "text_encoder.onnx"])
def test_denoiser_and_text_encoder_build(rtx, embedded, file, precision):
    skeleton = make_skeleton(embedded.file(file), shapes_of(embedded.file(file)), {}, precision)
    heard: list[tuple[str, int, int]] = []
    plan, _ = build_engine(
        rtx, skeleton, capabilities=CAPABILITIES, progress=lambda *step: heard.append(step), workspace_nbytes=1 << 30
    )
    assert plan and heard and all(0 <= done <= total for _, done, total in heard)


def test_what_the_parser_refuses_is_listed_with_its_node(rtx, tmp_path):
    node = onnx.helper.make_node("Mystery", ["x"], ["y"], name="the_odd_one", domain="nowhere")
    ends = [onnx.helper.make_tensor_value_info(name, 1, [2, 3]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("nowhere", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets), tmp_path / "g.onnx")
    with pytest.raises(UnsupportedGraph, match="Mystery the_odd_one") as fault:
        build_engine(rtx, make_skeleton(tmp_path / "g.onnx", {"x": (2, 3)}, {}, "f32"), capabilities=CAPABILITIES)
    assert "\n" not in str(fault.value)


def test_a_capability_that_rtx_has_not_is_one_line(rtx, embedded):
    path = embedded.file("text_encoder.onnx")
    with pytest.raises(WidefieldError, match="TensorRT-RTX does not build for sm_90"):
        build_engine(rtx, make_skeleton(path, shapes_of(path), {}, "f32"), capabilities=("90",))


KEY = trt_cache.EngineKey("b" * 64, "decoder.interior.1.onnx", {"z": (1, 4, 9, 7)}, "bf16", "90", "tensorrt 11.4.0")


@pytest.mark.parametrize(
    "change",
    [
        {"bundle": "c" * 64}, {"graph": "decoder.border.1.onnx"}, {"shapes": {"z": (1, 4, 7, 9)}},
        {"precision": "f16"}, {"capability": "120"}, {"library": "tensorrt 11.5.0"},
    ],
)  # fmt: skip
def test_an_engine_is_kept_by_all_that_it_depends_on(change):
    from dataclasses import replace

    assert replace(KEY, **change).name != KEY.name == replace(KEY).name


def test_the_cache_is_where_it_was_told_and_files_are_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("WIDEFIELD_CACHE", str(tmp_path / "mine"))
    folder = trt_cache.cache_folder()
    assert folder == tmp_path / "mine" / "engines" and trt_cache.read("a.engine", folder) is None
    trt_cache.keep("a.engine", b"one", folder)
    trt_cache.keep("a.engine", b"three", folder)
    assert trt_cache.read("a.engine", folder) == b"three" and [p.name for p in folder.iterdir()] == ["a.engine"]


def test_a_bundle_is_known_by_its_manifest(tmp_path):
    (tmp_path / "g.onnx").write_bytes(b"graph")
    alone = trt_cache.bundle_identity(tmp_path / "g.onnx")
    (tmp_path / "manifest.json").write_text(json.dumps({"name": "a"}))
    assert trt_cache.bundle_identity(tmp_path / "g.onnx") != alone
