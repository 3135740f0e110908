"""Weights stored in half precision: a bundle computes what that of a checkpoint rounded beforehand does."""

import copy
import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cli.runner import run
from families import ArraySource, decode_floats, half_dark, make
from pipelines import save_pipeline
from widefield.bundle import open_bundle
from widefield.engine import EngineOptions, open_engine
from widefield.errors import BadCheckpoint, BadRequest
from widefield.prompt import embed
from widefield.sweep import SweepOptions, measure
from widefield_export.commands import build_bundle, export_bundle
from widefield_export.weights import is_half, round_to_half
from widefield_export.whole import pipeline_options

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' NumPy
ORT = EngineOptions("ort")
ADVICE = {"steps": 4, "guidance": 2.5, "strength": 0.4, "detail_steps": 3, "detail_guidance": 1.5, "growth": 4}


@pytest.fixture(scope="module", params=["AutoencoderKL", "AutoencoderDC pixel shuffle"])
def twins(request, tmp_path_factory):
    """(bundle in half precision, bundle in float32 of the same autoencoder rounded before)."""
    made = []
    for weights in ("float16", "float32"):
        vae = make(request.param)
        if weights == "float32":
            round_to_half(vae)
        folder = tmp_path_factory.mktemp(weights)
        build_bundle(vae, folder, name="twin", source={}, weights=weights)
        made.append(open_bundle(folder))
    return made


@pytest.mark.parametrize("engine", ["ort", "openvino"])
@pytest.mark.parametrize("direction", ["decoder", "encoder"])
def test_an_autoencoder_computes_what_the_rounded_one_does(twins, direction, engine, tmp_path):
    results = []
    for bundle in twins:
        component = bundle.component(direction)
        scale = component.input_scale
        source = ArraySource(np.tanh(half_dark(component.input_channels, 13 * scale, 9 * scale)))
        summary = measure(bundle, component, source, "exact", SweepOptions(2, 1 << 28, tmp_path, EngineOptions(engine)))
        results.append(decode_floats(bundle, component, source, summary, (8, 5), engine))
    assert results[0].std() > 0.02
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=1e-6 * np.abs(results[1]).max())


def test_an_autoencoders_weights_are_half_but_for_what_was_computed_of_them(twins):
    half, full = twins
    assert (half.manifest["dtype"], full.manifest["dtype"]) == ("float16", "float32")
    with safe_open(half.file("weights.safetensors"), "np") as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert set(kinds.values()) <= {"F16", "F32"}
    exact = sum(np.prod(half.weight(*name.split("/", 1)).shape) for name, kind in kinds.items() if kind == "F16")
    assert exact > 0.6 * full.weights_nbytes / 4
    for name in kinds:
        np.testing.assert_array_equal(half.weight(*name.split("/", 1)), full.weight(*name.split("/", 1)))
    for graph in half.decoder.graphs:
        model = onnx.load(half.file(graph.file), load_external_data=False)
        stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16}
        casts = [node for node in model.graph.node if node.op_type == "Cast"]
        assert {node.input[0] for node in casts} == stored and len(casts) == len(stored)
        readers = [name for node in model.graph.node if node.op_type != "Cast" for name in node.input]
        assert not stored & set(readers)


def advise(checkpoint, advice):
    """Let a checkpoint say how it is best drawn with."""
    index = json.loads((checkpoint / "model_index.json").read_text())
    (checkpoint / "model_index.json").write_text(json.dumps(index | {"_widefield": advice}))


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """(bundle in half precision, bundle in float32 of the same checkpoint rounded before, its folder)."""
    folder = tmp_path_factory.mktemp("pipeline")
    save_pipeline("SD1.5", folder / "checkpoint")
    advise(folder / "checkpoint", ADVICE)
    asked = {"windows": ["10x6"], "counts": (1, 4)}
    export_bundle(folder / "checkpoint", folder / "half.wf", asked={**asked, "weights": "float16"})
    rounded = shutil.copytree(folder / "checkpoint", folder / "rounded")
    for file in rounded.rglob("*.safetensors"):
        save_file({name: tensor.half().float() for name, tensor in load_file(file).items()}, file)
    export_bundle(rounded, folder / "full.wf", asked=asked)
    return open_bundle(folder / "half.wf"), open_bundle(folder / "full.wf"), folder / "checkpoint"


def test_a_pipeline_computes_what_the_rounded_one_does(pipelines):
    latent = np.random.default_rng(1).standard_normal((2, 4, 10, 6)).astype(np.float32) * np.linspace(0.3, 2, 6)
    results = []
    for bundle in pipelines[:2]:
        both = embed(bundle, "the sea at dawn", "a town", ORT)
        part = bundle.parts.denoiser
        window = part.windows[0]
        engine = open_engine(bundle.file(window.file), part.shapes(window, 2), {}, ORT)
        feeds = {
            "latent": latent.astype(np.float32), "timestep": np.float32([981, 17]),
            "text": np.stack([c.text for c in both]),
        }  # fmt: skip
        into = {part.output: np.empty_like(feeds["latent"])}
        engine.run({name: np.ascontiguousarray(x) for name, x in feeds.items()}, into)
        engine.close()
        results.append((feeds["text"], into[part.output]))
    for found, wanted in zip(*results, strict=True):
        assert wanted.std() > 0.1
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


def test_a_pipeline_in_half_precision_says_so_and_takes_half_the_bytes(pipelines, capsys):
    half, full, _ = pipelines
    assert half.parts.denoiser.dtype == "float16" and full.parts.denoiser.dtype == "float32"
    for file in (half.parts.denoiser.weights, half.parts.text.encoders[0].weights):
        sizes = [sum(t.nbytes for t in load_file(bundle.file(file)).values()) for bundle in (half, full)]
        assert 2 * sizes[0] == sizes[1]
    assert "million weights in float16" in run(capsys, "inspect", half.path).out
    assert [run(capsys, "inspect", b.path, "--json").json()["dtype"] for b in (half, full)] == ["float16", "float32"]


def test_the_command_stores_halves_and_refuses_other_precisions(pipelines, tmp_path, capsys):
    checkpoint = pipelines[2]
    told = run(
        capsys, "export", checkpoint / "vae", "-o", tmp_path / "half.wf", "--weights", "float16", "--json"
    ).json()
    assert told["weights"] == "float16"
    assert open_bundle(tmp_path / "half.wf").manifest["dtype"] == "float16"
    fault = run(capsys, "export", checkpoint, "-o", tmp_path / "out.wf", "--weights", "int8").fault()
    assert "found --weights int8; wanted one of float32, float16" in fault
    with pytest.raises(BadRequest, match="found --weights half"):
        pipeline_options(weights="half")


def test_weights_beyond_halves_are_refused(pipelines, tmp_path):
    vae = make("AutoencoderKL")
    with torch.no_grad():
        vae.decoder.conv_in.bias[3] = 7e4
    before = copy.deepcopy(vae.state_dict())
    with pytest.raises(BadCheckpoint, match=r"decoder\.conv_in\.bias has weights up to 70000; float16 ends at 65504"):
        round_to_half(vae)
    assert torch.equal(vae.decoder.conv_in.bias, before["decoder.conv_in.bias"])
    checkpoint = shutil.copytree(pipelines[2], tmp_path / "checkpoint")
    file = checkpoint / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.bias"][0] = 1e5
    save_file(tensors, file)
    with pytest.raises(BadCheckpoint, match=r"conv_in\.bias has 1 weights that are NaN or infinite in F16"):
        export_bundle(checkpoint, tmp_path / "out.wf", asked={"weights": "float16"})
    assert not (tmp_path / "out.wf").exists()


def test_precision_is_told_by_bytes():
    assert is_half((3, 5), (0, 30)) and not is_half((3, 5), (8, 60))


def test_a_checkpoint_may_advise(pipelines, tmp_path):
    wanted = {"sampler": "dpmpp_2m", "guidance_kind": "free", **ADVICE}
    assert [bundle.manifest["defaults"] for bundle in pipelines[:2]] == [wanted, wanted]
    checkpoint = shutil.copytree(pipelines[2], tmp_path / "checkpoint")
    advise(checkpoint, {"step": 4})
    with pytest.raises(BadCheckpoint, match=r"_widefield of model_index\.json has step; wanted steps, guidance"):
        export_bundle(checkpoint, tmp_path / "no.wf", asked={"counts": (4,)})
