"""Denoisers as ONNX graphs equal diffusers' modules, called as diffusers' pipelines call them."""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionPipeline

from models import make_denoiser
from widefield.errors import BadCheckpoint
from widefield_export.denoisers import OUTPUT, Window, denoiser, native_window
from widefield_export.graph_onnx import write_graph
from widefield_export.weights import Source, mapped, write_weights

TOKENS, WINDOW = 5, Window(10, 6)
SLOW = ("LCM", "SDXL", "SD3", "FLUX.1-schnell", "SANA 2K")  # like their sisters but for an input, or in test_pipeline
NAMES = [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
    for name in ("SD1.5", "LCM", "SDXL", "SD3", "SD3.5", "FLUX.1-dev", "FLUX.1-schnell", "SANA", "SANA 2K")
]


def exported(name, folder, window=WINDOW):
    """(the diffusers model, what was made of it, the path of its graph)."""
    model = make_denoiser(name)
    theirs = copy.deepcopy(model)
    sources = {key: Source(tuple(t.shape), lambda t=t: t) for key, t in model.state_dict().items()}
    places = write_weights(folder / "w.safetensors", sources)
    model.load_state_dict(mapped(folder / "w.safetensors"), assign=True)
    made = denoiser(model, window, TOKENS)
    path = folder / "denoiser.onnx"
    write_graph(made.module, made.inputs, (OUTPUT,), path, places=places, weights="w.safetensors", prefix="model")
    return theirs, made, path


def feeds(made, batch, seed):
    """Unlike from place to place and from one of the batch to the next."""
    rng = np.random.default_rng(seed)
    found = {}
    for port in made.inputs:
        x = rng.standard_normal([batch if axis == "batch" else axis for axis in port.shape])
        match port.name:
            case "latent":
                x *= np.linspace(0.2, 2.5, x.shape[-1])
            case "timestep":
                x = np.linspace(7.0, 981.0, batch)
            case "guidance":
                x = 1.0 + np.arange(batch) * 2.5
            case "sizes":
                x = np.arange(1, 1 + x.size).reshape(x.shape) * 31.0
            case "text_mask":
                x = np.arange(x.shape[1])[None] < 2 + np.arange(batch)[:, None]
            case "position":
                x = made.place
        found[port.name] = np.asarray(x, np.float32)
    return found


def as_pipelines_call_it(name, model, x):
    """The module's result by the arguments that diffusers' own pipelines give it."""
    t = {key: torch.from_numpy(value) for key, value in x.items()}
    latent, time, text = t["latent"], t["timestep"], t["text"]
    batch, channels, rows, columns = latent.shape
    if name in ("SD1.5", "LCM", "SDXL"):
        added = {"text_embeds": t["pooled"], "time_ids": t["sizes"]} if name == "SDXL" else None
        scale = StableDiffusionPipeline.get_guidance_scale_embedding
        condition = scale(None, t["guidance"] - 1, embedding_dim=10) if name == "LCM" else None
        return model(latent, time, text, timestep_cond=condition, added_cond_kwargs=added)[0]
    if name.startswith("SD3"):
        return model(latent, text, t["pooled"], time)[0]
    if name.startswith("SANA"):
        return model(latent, text, time * model.config.timestep_scale, encoder_attention_mask=t["text_mask"])[0]
    packed = FluxPipeline._pack_latents(latent, batch, channels, rows, columns)
    ids = FluxPipeline._prepare_latent_image_ids(batch, rows // 2, columns // 2, "cpu", torch.float32)
    out = model(packed, text, t["pooled"], time / 1000, ids, torch.zeros(TOKENS, 3), t.get("guidance"))[0]
    return FluxPipeline._unpack_latents(out, rows * 8, columns * 8, 8)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """`exported`, once a name."""
    made = {}

    def of(name):
        if name not in made:
            made[name] = exported(name, tmp_path_factory.mktemp("graph"))
        return made[name]

    return of


@pytest.mark.parametrize("name", NAMES)
def test_a_denoisers_graph_is_the_module(name, graphs):
    theirs, made, path = graphs(name)
    session = onnxruntime.InferenceSession(path)
    assert [i.name for i in session.get_inputs()] == [port.name for port in made.inputs]
    assert all(i.type == "tensor(float)" for i in session.get_inputs())
    for batch in (1, 3):
        x = feeds(made, batch, batch)
        with torch.no_grad():
            wanted = as_pipelines_call_it(name, theirs, x).numpy()
        (found,) = session.run(None, x)
        assert found.shape == x["latent"].shape and wanted.std() > 0.05
        assert np.abs(found - wanted).max() <= 1e-4
    stored = {t.name for t in onnx.load(path, load_external_data=False).graph.initializer if t.data_location}
    weights = {f"inner.model.{key}" for key, _ in theirs.named_parameters()}
    assert len(weights - stored) <= 1 and path.stat().st_size < 300_000


@pytest.mark.parametrize("name", ["SD3.5", "FLUX.1-dev"])
def test_a_window_may_lie_elsewhere(name):
    """Two windows side by side know of their places what one wide window knows."""
    wide = denoiser(make_denoiser(name), Window(4, 12), TOKENS)
    narrow = denoiser(make_denoiser(name), Window(4, 6), TOKENS)
    top, left = wide.place
    if name == "SD3.5":
        whole = made_places(wide, (top, left))
        parts = [made_places(narrow, (top, left + shift)) for shift in (0, 3)]
        joined = torch.cat([part.reshape(2, 3, -1) for part in parts], 1)
        torch.testing.assert_close(joined, whole.reshape(2, 6, -1), rtol=0, atol=0)
        return
    whole = torch.stack(turned(wide, (0.0, 0.0)))[:, TOKENS:].reshape(2, 2, 6, -1)
    parts = [torch.stack(turned(narrow, (0.0, shift)))[:, TOKENS:].reshape(2, 2, 3, -1) for shift in (0.0, 3.0)]
    torch.testing.assert_close(torch.cat(parts, 2), whole, rtol=0, atol=1e-6)
    text = [torch.stack(turned(narrow, place))[:, :TOKENS] for place in ((0.0, 0.0), (5.0, 40.0))]
    torch.testing.assert_close(*text, rtol=0, atol=0)


def made_places(made, place):
    seen = []
    embed = made.module.model.pos_embed
    hook = embed.register_forward_hook(lambda *_: seen.append(made.module.places[-1]))
    x = {port.name: port.example(1) for port in made.inputs} | {"position": torch.tensor(place, dtype=torch.float32)}
    with torch.no_grad():
        made.module(*(x[port.name] for port in made.inputs))
    hook.remove()
    return seen[0]


def turned(made, place):
    made.module.turns.position.append(torch.tensor(place))
    return made.module.turns(None)


@pytest.mark.parametrize("name", ["SD3.5", "FLUX.1-dev"])
def test_a_model_serves_windows_of_more_than_one_shape(name):
    """What was made for one shape stays with it: asking for the first again gives the same."""
    model = make_denoiser(name)
    x = feeds(denoiser(make_denoiser(name), WINDOW, TOKENS), 2, 5)
    given = [torch.from_numpy(value) for value in x.values()]
    with torch.no_grad():
        wanted = denoiser(make_denoiser(name), WINDOW, TOKENS).module(*given)[0]
        denoiser(model, Window(4, 8), TOKENS)
        torch.testing.assert_close(denoiser(model, WINDOW, TOKENS).module(*given)[0], wanted, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["SD3.5", "FLUX.1-dev"])
def test_position_reaches_the_graph(name, graphs):
    _, made, path = graphs(name)
    session = onnxruntime.InferenceSession(path)
    x = feeds(made, 2, 0)
    first, moved = (session.run(None, x | {"position": np.float32(p)})[0] for p in ((0, 0), (6, 2)))
    assert np.abs(first - moved).max() > 1e-3


@pytest.mark.parametrize(
    "name, changes, window, why",
    [
        ("SD1.5", {"in_channels": 9}, WINDOW, "from 9 to 4 channels"),
        ("SD1.5", {"class_embed_type": "timestep"}, WINDOW, "class_embed_type timestep"),
        ("FLUX.1-dev", {"in_channels": 32, "out_channels": 16}, WINDOW, "from 32 to 16 channels"),
        ("FLUX.1-dev", {}, Window(9, 6), "multiples of 2"),
        ("SD3", {}, Window(26, 6), "sides up to 24"),
        ("SANA", {"guidance_embeds": True}, WINDOW, "SANA-Sprint"),
    ],
)
def test_what_is_not_exported_is_said(name, changes, window, why):
    with pytest.raises(BadCheckpoint, match=why):
        denoiser(make_denoiser(name, **changes), window, TOKENS)


def test_another_class_is_refused_by_name():
    with pytest.raises(BadCheckpoint, match="class Linear; wanted one of UNet2DConditionModel"):
        denoiser(torch.nn.Linear(1, 1), WINDOW, TOKENS)


def test_the_native_window_is_the_models_own():
    assert native_window(make_denoiser("SD1.5", sample_size=(8, 14))) == Window(8, 14)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(BadCheckpoint, match="down has 1 weights that are NaN or infinite in F16"):
        write_weights(
            tmp_path / "w.safetensors",
            {"down": Source((2,), lambda: torch.tensor([1.0, 1e6]))},
            torch.float16,
        )
