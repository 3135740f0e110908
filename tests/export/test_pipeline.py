"""A whole checkpoint by command to a bundle, and what the bundle computes: diffusers' own pipeline, before decode."""

import json
import shutil
from contextlib import closing

import numpy as np
import pytest
import torch

from cli.runner import run
from models import DENOISERS
from pipelines import save_pipeline
from single_files import open_clip_file, single_file
from widefield.bundle import open_bundle
from widefield.engine import EngineOptions
from widefield.errors import BadCheckpoint, BadRequest
from widefield.generation import Generation, Recipe
from widefield.geometry import Region
from widefield.memo import Memo
from widefield.parts import load_schedule
from widefield.prompt import embed
from widefield_export.commands import _tell_generation, export_bundle
from widefield_export.pipeline import _check_widths
from widefield_kernels.noise import normal_reference

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' NumPy

ORT = EngineOptions("ort")
ROWS, COLUMNS, STEPS, SEED = 10, 6, 5, 3
OTHERS = [pytest.param(n, marks=pytest.mark.slow) for n in ("SD1.5", "SD3", "FLUX.1-dev", "SANA")]
PROMPT, NEGATIVE = "the sea at dawn", "a town"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(pipeline, its folder, its bundle), once a name."""
    made = {}

    def of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("pipeline")
            pipeline = save_pipeline(name, folder / "checkpoint")
            pipeline.set_progress_bar_config(disable=True)
            asked = {"windows": [f"{ROWS}x{COLUMNS}"], "counts": (1, 4, STEPS)}
            export_bundle(folder / "checkpoint", folder / "bundle.wf", asked=asked)
            made[name] = pipeline, folder / "checkpoint", open_bundle(folder / "bundle.wf")
        return made[name]

    return of


def ours(bundle, guidance):
    """The latents of a picture of one window, as Model.generate draws them."""
    scale = bundle.scale
    recipe = Recipe(steps=STEPS, guidance=guidance, negative=NEGATIVE, phases=1)
    generation = Generation(bundle, PROMPT, (ROWS * scale, COLUMNS * scale), SEED, recipe)
    assert [(level.height, level.width) for level in generation.levels] == [(ROWS, COLUMNS)]
    with closing(generation.cascade(Memo(0), generation.cascade_options(ORT))) as cascade:
        return cascade.latents[0].read(Region(0, 0, ROWS, COLUMNS))[None]


@pytest.mark.filterwarnings("ignore:the prompt is longer than the model reads:UserWarning")  # tiny encoders read little
@pytest.mark.parametrize("name", ["SDXL", *OTHERS])
def test_one_window_is_the_pipelines_own_picture(exported, name):
    pipe, checkpoint, bundle = exported(name)
    channels, guidance = bundle.latent_channels, 3.5
    given = torch.from_numpy(normal_reference(SEED, 0, 0, channels, (0, 0, ROWS, COLUMNS)))[None]
    if name == "SD1.5":
        assert bundle.parts.defaults.sampler == "dpmpp_2m"  # PNDM is no table
        import diffusers

        saved = diffusers.PNDMScheduler.from_pretrained(checkpoint / "scheduler")
        pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(saved.config)
    if name == "FLUX.1-dev":
        given = pipe._pack_latents(given, 1, channels, ROWS, COLUMNS)
    asked = {"height": ROWS * pipe.vae_scale_factor, "width": COLUMNS * pipe.vae_scale_factor}
    if name == "SANA":
        asked = {"height": ROWS * 32, "width": COLUMNS * 32, "use_resolution_binning": False}
        pipe.vae_scale_factor = 32
    if name == "FLUX.1-dev":
        asked |= {"guidance_scale": guidance}
    else:
        asked |= {"guidance_scale": guidance, "negative_prompt": NEGATIVE}
    wanted = pipe(PROMPT, num_inference_steps=STEPS, latents=given, output_type="latent", **asked).images
    if name == "FLUX.1-dev":
        wanted = pipe._unpack_latents(wanted, asked["height"], asked["width"], pipe.vae_scale_factor)
    found = ours(bundle, guidance)
    assert found.shape == wanted.shape and wanted.std() > 0.3
    difference = np.abs(found - wanted.numpy()).max()
    print(f"{name}: max |diff| {difference:.1e} of {np.abs(wanted.numpy()).max():.1f}")
    assert difference <= 1e-3


def test_a_pipelines_bundle_tells_what_it_can_do(exported, capsys):
    _, _, bundle = exported("SDXL")
    about = run(capsys, "inspect", bundle.path, "--verify", "--json").json()
    assert about["can"] == ["decode", "encode", "generate", "upscale"] and about["verified"]
    generation = about["generation"]
    assert generation["base"] == "SDXL" and generation["denoiser"]["windows"] == [[ROWS, COLUMNS]]
    assert generation["denoiser"]["dtype"] == "float32"
    assert generation["samplers"]["euler"] == {"class": "EulerDiscreteScheduler", "steps": [1, 4, STEPS]}
    assert set(generation["samplers"]) == {"euler", "dpmpp_2m", "euler_ancestral", "ddim"}
    assert generation["defaults"] == {
        "sampler": "euler", "steps": 4, "guidance": 1.0, "strength": 0.35, "guidance_kind": "free",
        "detail_steps": 2, "detail_guidance": None, "detail_phases": 2, "anchor": 0.1875, "growth": 2,
    }  # fmt: skip
    files = {
        "unet/config.json",
        "text_encoder_2/model.safetensors",
        "scheduler/scheduler_config.json",
        "model_index.json",
    }
    assert files <= set(about["source"])
    text = run(capsys, "inspect", bundle.path).out
    for line in ("can", "SDXL, UNet2DConditionModel, 0.09 million weights in float32, windows of 10x6 latents"):
        assert line in text
    assert "CLIPTextModelWithProjection, reads 11 tokens" in text
    assert "euler, 4 steps, guidance 1, strength 0.35" in text


def test_an_autoencoders_bundle_cannot_generate(capsys):
    about = run(capsys, "inspect", "--json").json()
    if about["generation"] is None:
        assert about["can"] == ["decode", "encode"]
    else:  # the embedded checkpoint is a whole one
        assert "generate" in about["can"]


def test_a_window_that_is_not_there_is_told(exported):
    with pytest.raises(BadRequest, match="no denoiser for windows of 8x8 latents; it has 10x6"):
        exported("SDXL")[2].parts.denoiser.window(8, 8)
    with pytest.raises(BadRequest, match="no sampler 'heun'; it has euler, dpmpp_2m"):
        load_schedule(exported("SDXL")[2], "heun")


@pytest.mark.parametrize(
    "options, why",
    [
        (("--window", "10"), "wanted ROWSxCOLUMNS"),
        (("--sampler", "heun"), "found --sampler heun; wanted one of euler"),
    ],
)
def test_wrong_options_write_nothing(exported, tmp_path, capsys, options, why):
    assert why in run(capsys, "export", exported("SDXL")[1], "-o", tmp_path / "out.wf", *options).fault()
    assert not list(tmp_path.iterdir())


def test_bad_pipelines(exported, tmp_path, capsys):
    checkpoint = shutil.copytree(exported("SDXL")[1], tmp_path / "copy")
    out = tmp_path / "out.wf"
    weights = checkpoint / "unet" / "diffusion_pytorch_model.safetensors"
    pickle = weights.rename(weights.with_suffix(".bin"))
    assert "is a pickle" in run(capsys, "export", checkpoint, "-o", out).fault()
    pickle.rename(weights)
    config = checkpoint / "unet" / "config.json"
    before = config.read_text()
    config.write_text(json.dumps(json.loads(before) | {"cross_attention_dim": 24}))
    assert "instead of" in run(capsys, "export", checkpoint, "-o", out).fault()
    config.write_text(before)
    index = json.loads((checkpoint / "model_index.json").read_text())
    for change, why in (
        ({"unet": ["diffusers", "PixArtTransformer2DModel"]}, "--autoencoder-only exports the rest"),
        ({"text_encoder": ["transformers", "BertModel"]}, "has text_encoder of class BertModel; wanted one of CLIP"),
    ):
        (checkpoint / "model_index.json").write_text(json.dumps(index | change))
        assert why in run(capsys, "export", checkpoint, "-o", out).fault()
    (checkpoint / "model_index.json").write_text(json.dumps(index))
    for change, why in (
        ({"requires_aesthetics_score": True}, "SDXL's refiner"),
        ({"text_encoder": ["transformers", "CLIPTextModelWithProjection"]}, "no text_projection.weight"),
    ):
        (checkpoint / "model_index.json").write_text(json.dumps(index | change))
        assert why in run(capsys, "export", checkpoint, "-o", out).fault()
    (checkpoint / "model_index.json").write_text(json.dumps(index))
    vae = checkpoint / "vae" / "config.json"
    vae.write_text(json.dumps(json.loads(vae.read_text()) | {"_class_name": "AutoencoderTiny"}))
    assert "says that vae is AutoencoderKL" in run(capsys, "export", checkpoint, "-o", out).fault()
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.slow
def test_a_single_file_with_a_folders_tokenizers(exported, tmp_path, monkeypatch):
    """SDXL in one file, autoencoder from the folder: the same weights give the same bundle of parts."""
    from dataclasses import replace

    from safetensors.torch import save_file

    from widefield_export.configs import single

    pipe, checkpoint, bundle = exported("SDXL")
    variant = next(v for v in single.VARIANTS if v.name == "SDXL")
    configs = [pipe.text_encoder.config.to_dict(), pipe.text_encoder_2.config.to_dict()]
    encoders = {n: replace(e, config=c) for (n, e), c in zip(variant.encoders.items(), configs, strict=True)}
    tiny = replace(variant, config=DENOISERS["SDXL"][1], encoders=encoders)
    monkeypatch.setattr(single, "VARIANTS", (tiny,))
    state = {single.LDM + k: t for k, t in single_file("SDXL", pipe.unet).items()}
    first = {
        f"conditioner.embedders.0.transformer.text_model.{k}": t for k, t in pipe.text_encoder.state_dict().items()
    }
    second = open_clip_file(pipe.text_encoder_2.state_dict())
    state |= first | {f"conditioner.embedders.1.model.{k}": t for k, t in second.items()}
    save_file({k: t.contiguous().clone() for k, t in state.items()}, tmp_path / "sdxl.safetensors")
    asked = {"windows": [f"{ROWS}x{COLUMNS}"], "text": checkpoint, "counts": (4,)}
    export_bundle(tmp_path / "sdxl.safetensors", tmp_path / "b.wf", autoencoder=checkpoint, asked=asked)
    found = open_bundle(tmp_path / "b.wf")
    files = lambda b: {n: e["sha256"] for n, e in b.manifest["files"].items()}  # noqa: E731
    same = ["denoiser.10x6.onnx", "text_encoder.onnx", "text_encoder_2.safetensors", "denoiser.safetensors"]
    assert {n: files(found)[n] for n in same} == {n: files(bundle)[n] for n in same}
    without = {"windows": [f"{ROWS}x{COLUMNS}"], "counts": (4,)}
    export_bundle(tmp_path / "sdxl.safetensors", tmp_path / "c.wf", asked=without)
    bare = open_bundle(tmp_path / "c.wf")
    assert bare.parts.text is None and not bare.components and bare.scale == 8
    with pytest.raises(BadRequest, match="--text FOLDER"):
        embed(bare, PROMPT)


def test_encoders_of_another_model_are_refused():
    text = {
        "encoders": [{"name": "text_encoder", "hidden": 12, "pooled": 0}],
        "blocks": [{"encoders": ["text_encoder"], "tokens": 7}], "pooled": [],
    }  # fmt: skip
    _check_widths(text, {"text": ["batch", 7, 12]})
    for inputs in ({"text": ["batch", 7, 16]}, {"text": ["batch", 7, 12], "pooled": ["batch", 4]}):
        with pytest.raises(BadCheckpoint, match="take them from the same model"):
            _check_widths(text, inputs)


def test_a_bundle_without_text_is_told(capsys):
    manifest = {
        "denoiser": {"base": "SDXL", "windows": [{"rows": 8, "columns": 12}]},
        "schedulers": {"default": "euler", "samplers": {"euler": {}, "ddim": {}}},
    }
    _tell_generation(manifest)
    told = capsys.readouterr().out
    assert "generates as SDXL in windows of 8x12 latents, sampler euler (ddim too)\nno prompts: " in told
    _tell_generation(manifest | {"text": {}})
    assert "no prompts" not in capsys.readouterr().out
    _tell_generation({})
    assert capsys.readouterr().out == ""
