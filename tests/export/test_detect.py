"""Single files: the header tells the family, every weight arrives where diffusers has it, nothing is guessed."""

import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.loaders import single_file_utils as diffusers_own
from safetensors.torch import save_file

from models import DENOISERS, make_denoiser
from pipelines import clip, clip_tokenizer, make_pipeline, t5, word_tokenizer
from single_files import open_clip_file, single_file
from widefield.errors import BadCheckpoint
from widefield_export.bases import NAMED
from widefield_export.configs import single
from widefield_export.configs.header import Stored, read_header
from widefield_export.configs.single import LDM, VARIANTS, Encoder, Variant
from widefield_export.detect import detect
from widefield_export.empty import build
from widefield_export.whole import open_file, pipeline_options

BASES = {
    "SD1.5": "SD", "SDXL": "SDXL", "SD3": "SD3", "SD3.5": "SD3", "FLUX.1-dev": "FLUX.1", "FLUX.1-schnell": "FLUX.1",
    "SANA 2K": "SANA",
}  # fmt: skip
SMALL = tuple(
    Variant(f"small {name}", base, DENOISERS[name][1], next(v.scheduler for v in VARIANTS if v.base == base))
    for name, base in BASES.items()
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a checkpoint reached for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def small(monkeypatch):
    """Let the variants be as small as the tests' models."""
    monkeypatch.setattr(single, "VARIANTS", SMALL)
    monkeypatch.setattr(single, "SANA_SCALES", {8: 2})


def written(path, state, dtype=torch.float32) -> Path:
    save_file({name: tensor.to(dtype).contiguous().clone() for name, tensor in state.items()}, path)
    return path


def found_in(path):
    return detect(path, read_header(path))


@pytest.mark.parametrize("prefix", [LDM, ""])
@pytest.mark.parametrize("name", BASES)
def test_every_weight_arrives(small, tmp_path, name, prefix):
    model = make_denoiser(name)
    state = {prefix + key: tensor for key, tensor in single_file(BASES[name], model).items()}
    more = {"first_stage_model.x": torch.zeros(1), "model_ema.decay": torch.zeros(1)} if prefix else {}
    found = found_in(written(tmp_path / "model.safetensors", state | more))
    assert found.variant.name == f"small {name}" and found.has_autoencoder == bool(prefix) and not found.encoders
    wanted = model.state_dict()
    assert found.denoiser.sources.keys() == wanted.keys()
    for key, source in found.denoiser.sources.items():
        assert source.shape == tuple(wanted[key].shape)
        torch.testing.assert_close(source.read(), wanted[key], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["SD1.5", "SDXL", "SD3.5", "SANA 2K"])
def test_the_layouts_are_those_that_diffusers_reads(name):
    """FLUX.1's converter is left out: it has the width of the published model in it."""
    model = make_denoiser(name)
    state = {LDM + key: tensor for key, tensor in single_file(BASES[name], model).items()}
    match BASES[name]:
        case "SD3":
            found = diffusers_own.convert_sd3_transformer_checkpoint_to_diffusers(state)
        case "SANA":
            found = diffusers_own.convert_sana_transformer_to_diffusers(state)
        case _:
            found = diffusers_own.convert_ldm_unet_checkpoint(state, dict(model.config))
    wanted = model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def published(variant, side=32):
    """The header of a published model's file: its real names and shapes, and no weight."""
    config = dict(variant.config) | ({"sample_size": side} if variant.base == "SANA" else {})
    model = build("diffusers", NAMED[variant.base].family, config, variant.name)
    for name, buffer in model.named_buffers():  # as light as the parameters
        owner, _, key = name.rpartition(".")
        model.get_submodule(owner)._buffers[key] = buffer.to("meta")
    return {
        LDM + name: Stored(Path("model.safetensors"), LDM + name, "F16", tuple(tensor.shape))
        for name, tensor in single_file(variant.base, model, side=side).items()
    }


@pytest.mark.parametrize(
    "variant",
    [pytest.param(v, id=v.name, marks=[] if v.base != "SD3" else [pytest.mark.slow]) for v in VARIANTS],
)
def test_published_models_are_told_apart(variant):
    found = detect(Path("model.safetensors"), published(variant))
    assert found.variant is variant and found.denoiser.parameters > 5e8


def test_numbers_of_weights_are_those_that_are_published():
    """The configs' own check: SD 1.5 has 859.5 million weights in its UNet, FLUX.1-schnell 11.9 billion."""
    counts = {}
    for variant in VARIANTS:
        if variant.name in ("SD 1.5", "SDXL"):
            model = build("diffusers", NAMED[variant.base].family, variant.config, variant.name)
            counts[variant.name] = sum(p.numel() for p in model.parameters())
    assert counts == {"SD 1.5": 859_520_964, "SDXL": 2_567_463_684}


def test_text_encoders_come_from_the_file_and_tokenizers_from_a_folder(small, tmp_path, monkeypatch):
    pipe = make_pipeline("SDXL")
    pipe.save_pretrained(tmp_path / "folder")
    configs = [encoder.config.to_dict() for encoder in (pipe.text_encoder, pipe.text_encoder_2)]
    encoders = {
        "text_encoder": Encoder("CLIPTextModel", ("conditioner.embedders.0.transformer.",), configs[0]),
        "text_encoder_2": Encoder(
            "CLIPTextModelWithProjection", ("conditioner.embedders.1.model.",), configs[1], open_clip=True
        ),
    }
    monkeypatch.setattr(single, "VARIANTS", tuple(replace(v, encoders=encoders) for v in SMALL))
    first = {f"text_model.{name}": 2 * t for name, t in pipe.text_encoder.state_dict().items()}
    first["text_model.embeddings.position_ids"] = torch.arange(11)[None]
    second = {name: 3 * t for name, t in pipe.text_encoder_2.state_dict().items()}
    state = {LDM + key: t for key, t in single_file("SDXL", pipe.unet).items()}
    state |= {f"conditioner.embedders.0.transformer.{name}": t for name, t in first.items()}
    state |= {f"conditioner.embedders.1.model.{name}": t for name, t in open_clip_file(second).items()}
    path = written(tmp_path / "model.safetensors", state)

    opened = open_file(path, pipeline_options(text=tmp_path / "folder"))
    for name, wanted in (("text_encoder", pipe.text_encoder), ("text_encoder_2", pipe.text_encoder_2)):
        times = 2 if name == "text_encoder" else 3
        part = opened.encoders[name]()
        assert part.sources.keys() == wanted.state_dict().keys() and part.files == (path,)
        for key, source in part.sources.items():
            torch.testing.assert_close(source.read(), times * wanted.state_dict()[key], rtol=0, atol=0)
    assert opened.tokenizers["text_encoder_2"] == tmp_path / "folder" / "tokenizer_2" and opened.zeros is False
    without = open_file(path, pipeline_options())
    assert not without.encoders and "holds no tokenizers" in without.missing


def test_t5_may_have_one_name_or_two_for_its_words(small, tmp_path, monkeypatch):
    model = t5(20, word_tokenizer(77, start=False))
    encoder = Encoder("T5EncoderModel", ("text_encoders.t5xxl.transformer.",), model.config.to_dict())
    monkeypatch.setattr(single, "VARIANTS", tuple(replace(v, encoders={"text_encoder_2": encoder}) for v in SMALL))
    denoiser = {LDM + key: t for key, t in single_file("FLUX.1", make_denoiser("FLUX.1-dev")).items()}
    words = ("shared.weight", "encoder.embed_tokens.weight")
    for kept in (words, words[:1], words[1:]):
        state = {k: t for k, t in model.state_dict().items() if k not in words or k in kept}
        state = denoiser | {f"text_encoders.t5xxl.transformer.{k}": t for k, t in state.items()}
        path = written(tmp_path / "model.safetensors", state)
        part = found_in(path).encoders["text_encoder_2"]()
        places = part.settle(tmp_path / "w.safetensors")
        assert places[words[0]] == places[words[1]] and len(part.sources) == len(model.state_dict()) - 1
        torch.testing.assert_close(part.model.encoder.embed_tokens.weight, model.shared.weight, rtol=0, atol=0)


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda s: s.pop(LDM + "out.2.bias"), "nearly the denoiser of small SD1.5: no conv_out.bias"),
        (lambda s: s.update({LDM + "control": torch.zeros(1)}), "an unknown control"),
        (
            lambda s: s.update({LDM + "input_blocks.0.0.weight": torch.zeros(8, 9, 3, 3)}),
            r"conv_in.weight of shape \(8, 9, 3, 3\) instead of \(8, 4, 3, 3\)",
        ),
        (lambda s: s.update({"edm_mean": torch.zeros(4)}), "Playground 2.5, which is not exported"),
        (
            lambda s: s.update({LDM + single.MARKS["SD"]: torch.zeros(8, 1024)}),
            "SD 2, which predicts noise or velocity",
        ),
        (lambda s: s.update({LDM + "head.modulation": torch.zeros(4)}), "of Wan, which is not exported"),
        (
            lambda s: s.pop(LDM + single.MARKS["SD"]),
            "a denoiser of a layout that is not known",
        ),
    ],
)
def test_what_is_not_exactly_a_known_model_is_refused(small, tmp_path, change, why):
    state = {LDM + key: t for key, t in single_file("SD", make_denoiser("SD1.5")).items()}
    change(state)
    with pytest.raises(BadCheckpoint, match=why):
        found_in(written(tmp_path / "model.safetensors", state))


def test_a_quantised_model_is_refused(small, tmp_path):
    state = {LDM + key: t for key, t in single_file("FLUX.1", make_denoiser("FLUX.1-dev")).items()}
    with pytest.raises(BadCheckpoint, match="is F8_E4M3; wanted F64, F32, F16, BF16; take the model before"):
        found_in(written(tmp_path / "model.safetensors", state, torch.float8_e4m3fn))


def test_a_sana_file_must_tell_its_size(small, tmp_path):
    state = single_file("SANA", make_denoiser("SANA 2K"))
    state.pop("pos_embed")
    with pytest.raises(BadCheckpoint, match="without pos_embed"):
        found_in(written(tmp_path / "model.safetensors", state))


def test_velocity_is_told_by_the_file(small, tmp_path):
    state = {LDM + key: t for key, t in single_file("SDXL", make_denoiser("SDXL")).items()}
    path = written(tmp_path / "model.safetensors", state | {"v_pred": torch.ones(1), "ztsnr": torch.ones(1)})
    config = open_file(path, pipeline_options()).scheduler.config
    assert config["prediction_type"] == "v_prediction" and config["rescale_betas_zero_snr"]


def test_an_autoencoders_own_file_is_left_to_its_reader(tmp_path):
    assert found_in(written(tmp_path / "vae.safetensors", {"decoder.conv_in.weight": torch.zeros(3, 4, 3, 3)})) is None


def test_clip_keeps_no_projection_that_its_class_has_not(small, tmp_path, monkeypatch):
    model = clip(8, clip_tokenizer(11))
    encoder = Encoder("CLIPTextModel", ("cond_stage_model.transformer.",), model.config.to_dict())
    monkeypatch.setattr(single, "VARIANTS", tuple(replace(v, encoders={"text_encoder": encoder}) for v in SMALL))
    state = {LDM + key: t for key, t in single_file("SD", make_denoiser("SD1.5")).items()}
    state |= {f"cond_stage_model.transformer.text_model.{k}": t for k, t in model.state_dict().items()}
    state["cond_stage_model.transformer.text_projection.weight"] = torch.zeros(8, 8)
    part = found_in(written(tmp_path / "model.safetensors", state)).encoders["text_encoder"]()
    assert part.sources.keys() == model.state_dict().keys()
