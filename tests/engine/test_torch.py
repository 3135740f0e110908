"""Engine torch: every graph that is shipped, and whole decodes, against ONNX Runtime and diffusers' untiled decode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from families import ArraySource, decode_floats, half_dark, make
from widefield.attend import Attention
from widefield.bundle import Bundle, Component, open_bundle
from widefield.coder import TileCoder
from widefield.engine import EngineOptions, open_engine
from widefield.engine.graphs import read_graph
from widefield.engine.torch_engine import TorchEngine
from widefield.engine.torch_graph import build_module
from widefield.engine.torch_ops import OPERATIONS
from widefield.errors import BadBundle, MissingBackend
from widefield.geometry import Region
from widefield.model import EMBEDDED
from widefield.summary import Summary
from widefield.sweep import SweepOptions, measure
from widefield.tiles import input_shapes
from widefield_export.families import Decoder

HEIGHT, WIDTH = 41, 53
ORT, TORCH = EngineOptions("ort"), EngineOptions("torch")
FAMILIES = ["AutoencoderKL", "AutoencoderDC"]


def arrays(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, rough) -> tuple[object, Bundle]:
    return make(request.param), rough(request.param)


def test_a_decode_is_diffusers_untiled_one(family, tmp_path: Path):
    vae, bundle = family
    component = bundle.decoder
    source = ArraySource(half_dark(component.input_channels, HEIGHT, WIDTH))
    summary = measure(bundle, component, source, "exact", SweepOptions(2, 1 << 28, tmp_path, ORT))
    with torch.no_grad():
        truth = Decoder(vae).eval()(torch.from_numpy(source.array)[None])[0].numpy()
    found = decode_floats(bundle, component, source, summary, (20, 31), "torch")
    assert truth.std() > 0.02 and np.abs(found - truth).max() <= 1e-4


@pytest.fixture(scope="module")
def embedded() -> Bundle:
    return open_bundle(EMBEDDED)


def graph_shapes(path: Path, batch: int = 2) -> dict[str, tuple[int, ...]]:
    """Of a graph whose batch alone is open."""
    inputs = onnx.load(path, load_external_data=False).graph.input
    return {i.name: tuple(d.dim_value or batch for d in i.type.tensor_type.shape.dim) for i in inputs}


@pytest.mark.parametrize("file", ["denoiser.16x16.onnx", "text_encoder.onnx"])
def test_denoiser_and_text_encoder_agree_with_onnx_runtime(embedded, file):
    path = embedded.file(file)
    shapes = graph_shapes(path)
    feeds = arrays(shapes)
    if "tokens" in feeds:
        feeds["tokens"] = np.floor(np.abs(feeds["tokens"]) * 9)
    module = build_module(read_graph(path, {}), shapes, "f32")
    outputs = {name: np.empty(0) for name in read_graph(path, {}).outputs}
    wanted = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(list(outputs), feeds)
    found = module(*[torch.from_numpy(feeds[name]) for name in shapes])
    for want, got in zip(wanted, found, strict=True):
        np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-5 * np.abs(want).max())


def run_both(bundle: Bundle, component: Component, graph, options: EngineOptions, tile=(20, 31)):
    """(ONNX Runtime's results, those of `options`) on one graph with random frozen sites."""
    shapes = input_shapes(component, graph, 2, *tile)
    feeds = arrays(shapes)
    feeds |= {name: np.ones(shape, np.float32) for name, shape in shapes.items() if name in ("inside", "core")}
    rng = np.random.default_rng(1)
    parameters = {n: rng.random(s, dtype=np.float32) + np.float32(0.5) for n, s in graph.parameters.items()}
    results = []
    for choice in (ORT, options):
        engine = open_engine(bundle.file(graph.file), shapes, parameters, choice)
        into = {name: np.empty(0, np.float32) for name in graph.outputs}
        for name in into:
            groups = component.sites[int(name.split(".")[1])].groups if name.startswith("site.") else 0
            groups = 1 if name.endswith(".count") else groups
            shape = (2, groups) if groups else component.values[name].shape(2, *tile)
            into[name] = np.full(shape, np.nan, np.float32)
        engine.run(feeds, into)
        results.append(into)
        engine.close()
    return results


@pytest.mark.parametrize("direction", ["decoder", "encoder"])
@pytest.mark.parametrize("kind", ["interior", "border", "certified"])
def test_every_fused_graph_agrees_with_onnx_runtime(embedded, direction, kind):
    component = embedded.component(direction)
    for graph in getattr(component, kind):
        wanted, found = run_both(embedded, component, graph, TORCH, (8, 11))
        for name, want in wanted.items():
            np.testing.assert_allclose(
                found[name], want, rtol=2e-4, atol=1e-6 + 1e-5 * np.abs(want).max(), err_msg=name
            )


def test_bf16_is_40_db_from_float32(embedded):
    component = embedded.decoder
    for graph in component.interior:
        wanted, found = run_both(embedded, component, graph, EngineOptions("torch", "bf16"), (8, 11))
        for name, want in wanted.items():
            noise = np.mean((found[name] - want) ** 2) / np.mean(want**2)
            assert 0 < noise <= 1e-4, f"{name}: {10 * np.log10(1 / noise):.1f} dB"


def test_frozen_norms_biases_and_residuals_are_one_call_each(embedded):
    """Nothing is left between the convolutions of an interior graph but affines, crops and pixel shuffles."""
    component = embedded.decoder
    graph = component.interior[1]
    shapes = input_shapes(component, graph, 1, 16, 24)
    module = build_module(read_graph(embedded.file(graph.file), {}), shapes, "bf16")
    calls = [node for node in module.graph.nodes if node.op == "call_function"]
    affine = [node for node in calls if node.target is torch.ops.widefield.affine.default]
    conv = [node for node in calls if node.target is OPERATIONS["Conv"].call]
    bare = [node for node in conv if len(node.args) < 3 or node.args[2] is None]
    norms = sum(site.kind == "norm" for site in component.sites)
    assert len(affine) >= norms - 3 and len(bare) >= 0.7 * len(conv)
    assert not [node for node in calls if node.target is torch.sigmoid]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own, within
def test_inductor_compiles_a_graph_whole(embedded):
    """On a CPU it is not used; that it takes the module in one piece, own operations included, is what counts here."""
    component = embedded.decoder
    graph = component.border[0]
    shapes = input_shapes(component, graph, 1, 4, 6)
    feeds = arrays(shapes)
    results = []
    for compiled in (False, True):
        engine = TorchEngine(embedded.file(graph.file), shapes, {}, TORCH, compiled=compiled)
        results.append([x.clone() for x in engine.compute([torch.from_numpy(feeds[n]) for n in engine.inputs])])
    for eager, compiled in zip(*results, strict=True):
        assert torch.allclose(eager, compiled, rtol=1e-4, atol=1e-4)


def test_an_operation_that_torch_lacks_is_named(tmp_path):
    node = onnx.helper.make_node("Hardmax", ["x"], ["strange"])
    value = [onnx.helper.make_tensor_value_info(name, 1, [2, 3]) for name in ("x", "strange")]
    graph = onnx.helper.make_graph([node], "g", value[:1], value[1:])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "g.onnx")
    with pytest.raises(BadBundle, match="engine torch cannot run Hardmax, which makes strange"):
        open_engine(tmp_path / "g.onnx", {"x": (2, 3)}, {}, TORCH)


def test_what_is_no_graph_is_refused(tmp_path):
    (tmp_path / "g.onnx").write_bytes(b"\x00\x01 not a graph")
    with pytest.raises(BadBundle, match="is no ONNX graph"):
        open_engine(tmp_path / "g.onnx", {}, {}, TORCH)


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is said where there is no GPU")
def test_a_gpu_that_is_not_there_is_one_line(embedded):
    with pytest.raises(MissingBackend, match="engine torch cannot use cuda:0") as fault:
        open_engine(embedded.file("attention.onnx"), {}, {}, EngineOptions("torch", device="cuda"))
    assert "\n" not in str(fault.value)


def test_workers_run_side_by_side(embedded, tmp_path):
    """Four threads on one engine: each gets its own results."""
    from concurrent.futures import ThreadPoolExecutor

    component = embedded.decoder
    source = ArraySource(half_dark(component.input_channels, 40, 64))
    summary: Summary = measure(embedded, component, source, "sampled", SweepOptions(2, 1 << 28, tmp_path, ORT), cells=4)
    coder = TileCoder(embedded, component, source, summary, (8, 8), 1, EngineOptions("torch", workers=4), certify=False)
    tiles = [Region(y, x, y + 8, x + 8) for y in range(0, 40, 8) for x in range(0, 64, 16)]
    alone = [coder([tile])[0] for tile in tiles]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda tile: coder([tile])[0], tiles))
    coder.close()
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_attention_in_torch_takes_every_query():
    """More of them than ONNX Runtime takes in one block."""
    rng = np.random.default_rng(0)
    keys, query = rng.standard_normal((256, 32), np.float32), rng.standard_normal((1, 1444, 32), np.float32)
    results = []
    for options in (ORT, TORCH):
        attention = Attention(EMBEDDED / "attention.onnx", keys, options)
        assert attention.rows < query.shape[1]
        results.append(attention(query))
        attention.close()
    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=1e-5)
