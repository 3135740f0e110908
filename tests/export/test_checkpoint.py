"""Every form of a checkpoint gives back the weights and the scale that went in; every bad one says why in a line."""

import hashlib
import json
import re
import shutil
import socket
import struct
import warnings
from pathlib import Path

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # imports of other people's
    import diffusers
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

from safetensors.torch import load_file, save_file

from widefield.errors import BadCheckpoint
from widefield_export.checkpoint import _expected, load_autoencoder
from widefield_export.configs import KNOWN, PUBLISHED, WITNESSES

NARROW = {
    "block_out_channels": (8, 16, 24),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 4,
}
WAN = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [False]}
WAN |= {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0]}
DC_BLOCKS = {
    "block_out_channels": (8, 16),
    "layers_per_block": (1, 1),
    "block_types": ("ResBlock", "EfficientViTBlock"),
}
DC = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in DC_BLOCKS.items()}
DC |= {"attention_head_dim": 8, "encoder_qkv_multiscales": ((), (5,)), "decoder_qkv_multiscales": ((), (5,))}
DC |= {"latent_channels": 4, "decoder_norm_types": "rms_norm", "decoder_act_fns": "silu", "scaling_factor": 0.41407}
TINY = {
    "encoder_block_out_channels": (8, 8),
    "decoder_block_out_channels": (8, 8),
    "num_encoder_blocks": (1, 1),
    "num_decoder_blocks": (1, 1),
}
CONFIGS = {
    "AutoencoderKL": NARROW | {"latent_channels": 4, "scaling_factor": 0.5, "shift_factor": 0.25},
    "AutoencoderKLFlux2": NARROW | {"latent_channels": 4},
    "AutoencoderTiny": TINY,
    "AutoencoderDC": DC,
    "AutoencoderKLQwenImage": WAN,
    "AutoencoderKLWan": WAN,
}


def made(family: str, **changes):
    """A small autoencoder with random weights, the norms' and the statistics' included."""
    torch.manual_seed(0)
    vae = getattr(diffusers, family)(**(CONFIGS[family] | changes))
    for tensor in vae.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 1.0)
    return vae


def ldm_names(names) -> dict[str, str]:
    """From diffusers' names to LDM's, one rule a line: written apart from the exporter's."""
    names = list(names)
    top = max(int(n.split(".")[2]) for n in names if n.startswith("decoder.up_blocks."))
    renamed = {}
    for name in names:
        new = re.sub(r"decoder\.up_blocks\.(\d+)", lambda m: f"decoder.up.{top - int(m[1])}", name)
        new = new.replace("encoder.down_blocks.", "encoder.down.").replace("mid_block.attentions.0.", "mid.attn_1.")
        new = new.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        new = new.replace("resnets", "block").replace("samplers.0.conv", "sample.conv")
        new = new.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        new = new.replace("group_norm", "norm").replace("to_out.0", "proj_out")
        renamed[name] = re.sub(r"to_([qkv])\b", r"\1", new)
    return renamed


def as_ldm(state, prefix=""):
    """The same weights in LDM's layout, attention as 1 x 1 convolutions."""
    new = ldm_names(state)
    return {
        prefix + new[n]: (t[:, :, None, None] if "attn_1" in new[n] and t.ndim == 2 else t).clone()
        for n, t in state.items()
    }


def sparse(path: Path, shapes, dtype="F16") -> Path:
    """A safetensors file of zeros that takes no space on the disk."""
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + torch.Size(shape).numel() * 2
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return path


def check(loaded, vae, folder: Path, files) -> None:
    assert loaded.family == type(vae).__name__ == type(loaded.vae).__name__ == loaded.config["_class_name"]
    assert not loaded.vae.training
    wanted = vae.state_dict()
    found = loaded.vae.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert tensor.device.type == "cpu"
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=0)
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in loaded.vae.parameters())
    for name, value in json.loads(vae.to_json_string()).items():
        if name != "_diffusers_version":
            assert loaded.config[name] == value
    assert loaded.source_files == {f: hashlib.sha256((folder / f).read_bytes()).hexdigest() for f in files}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a checkpoint reached for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("family", CONFIGS)
def test_an_autoencoders_folder(tmp_path, family):
    vae = made(family)
    vae.save_pretrained(tmp_path)
    check(load_autoencoder(tmp_path), vae, tmp_path, ["config.json", "diffusion_pytorch_model.safetensors"])


def test_a_pipeline_folder(tmp_path):
    vae = made("AutoencoderKL")
    vae.save_pretrained(tmp_path / "vae")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "X"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    files = ["model_index.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
    check(load_autoencoder(tmp_path), vae, tmp_path, files)


def test_half_precision_and_the_variant_in_its_name(tmp_path):
    vae = made("AutoencoderKL").half()
    vae.save_pretrained(tmp_path, variant="fp16")
    files = ["config.json", "diffusion_pytorch_model.fp16.safetensors"]
    check(load_autoencoder(tmp_path), vae.float(), tmp_path, files)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards(tmp_path, variant):
    vae = made("AutoencoderKL")
    vae.save_pretrained(tmp_path, max_shard_size="60KB", variant=variant)
    files = sorted(p.name for p in tmp_path.iterdir())
    assert len(files) > 4
    check(load_autoencoder(tmp_path), vae, tmp_path, files)
    next(p for p in tmp_path.iterdir() if "-00002-of-" in p.name).unlink()
    with pytest.raises(BadCheckpoint, match=r"names .*00002-of.* which is missing; wanted every shard; "):
        load_autoencoder(tmp_path)


def test_full_precision_goes_before_a_variant_and_two_variants_are_refused(tmp_path):
    vae = made("AutoencoderKL")
    vae.save_pretrained(tmp_path)
    made("AutoencoderKL").half().save_pretrained(tmp_path, variant="fp16")
    check(load_autoencoder(tmp_path), vae, tmp_path, ["config.json", "diffusion_pytorch_model.safetensors"])
    (tmp_path / "diffusion_pytorch_model.safetensors").rename(tmp_path / "diffusion_pytorch_model.bf16.safetensors")
    with pytest.raises(BadCheckpoint, match=r"bf16.safetensors, .*fp16.safetensors; wanted one; rename the one to use"):
        load_autoencoder(tmp_path)


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
def test_a_folder_with_ldm_names_and_what_training_leaves(tmp_path, prefix):
    vae = made("AutoencoderKL")
    vae.save_config(tmp_path)
    state = as_ldm(vae.state_dict(), prefix)
    theirs = convert_ldm_vae_checkpoint(state, vae.config)  # so that the names made here are LDM's
    assert all(torch.equal(theirs[name], tensor) for name, tensor in vae.state_dict().items())
    state |= {f"{prefix}loss.logvar": torch.zeros(1)}
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    check(load_autoencoder(tmp_path), vae, tmp_path, ["config.json", "diffusion_pytorch_model.safetensors"])


def test_a_folder_with_the_names_of_early_diffusers(tmp_path):
    vae = made("AutoencoderKL")
    vae.save_config(tmp_path)
    early = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {
        re.sub(r"to_q|to_k|to_v|to_out\.0", lambda m: early[m[0]], n): t.clone() for n, t in vae.state_dict().items()
    }
    assert state.keys() != vae.state_dict().keys()
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    check(load_autoencoder(tmp_path), vae, tmp_path, ["config.json", "diffusion_pytorch_model.safetensors"])


def test_the_loaded_module_computes_what_the_saved_one_did(tmp_path):
    vae = made("AutoencoderKL").eval()
    vae.save_pretrained(tmp_path)
    z = torch.randn(1, 4, 5, 7)
    with torch.no_grad():
        torch.testing.assert_close(load_autoencoder(tmp_path).vae.decode(z).sample, vae.decode(z).sample)


# Single files. Real sizes, since the shapes are what is recognised; zeros, since a sparse file costs nothing.

SHAPES = {known.name: dict(_expected(known)) for known in KNOWN}


def full(name: str, prefix: str, *, ldm: bool) -> dict[str, tuple[int, ...]]:
    new = ldm_names(SHAPES[name]) if ldm else {n: n for n in SHAPES[name]}
    return {
        prefix + new[n]: (*shape, 1, 1) if "attn_1" in new[n] and len(shape) == 2 else shape
        for n, shape in SHAPES[name].items()
    }


@pytest.mark.parametrize(
    ("witness", "prefix", "ldm", "scaling", "shift"),
    [
        (0, "first_stage_model.", True, 0.18215, None),
        (1, "first_stage_model.", True, 0.18215, None),
        (2, "first_stage_model.", True, 0.13025, None),
        (2, "vae.", False, 0.13025, None),
        (3, "first_stage_model.", True, 0.13025, None),
        (4, "first_stage_model.", True, 1.5305, 0.0609),
        (5, "vae.", True, 0.3611, 0.1159),
        (5, "vae.", False, 0.3611, 0.1159),
    ],
)
def test_a_full_checkpoint_tells_its_scale(tmp_path, witness, prefix, ldm, scaling, shift):
    it = WITNESSES[witness]
    other = {it.tensor: (640, it.width or 64), "model.diffusion_model.out.2.bias": (4,)}
    path = sparse(tmp_path / "model.safetensors", other | full(it.known, prefix, ldm=ldm))
    loaded = load_autoencoder(path)
    assert (loaded.family, loaded.config["scaling_factor"], loaded.config["shift_factor"]) == (
        "AutoencoderKL",
        scaling,
        shift,
    )
    assert loaded.config["use_quant_conv"] == (loaded.config["latent_channels"] == 4)
    assert list(loaded.source_files) == ["model.safetensors"]


def test_a_single_file_keeps_its_weights(tmp_path):
    vae = diffusers.AutoencoderTiny(latent_channels=16)
    for prefix in ("", "vae."):
        state = {prefix + n: t.clone() for n, t in vae.state_dict().items()}
        save_file(state, tmp_path / "taef1.safetensors")
        check(load_autoencoder(tmp_path / "taef1.safetensors"), vae, tmp_path, ["taef1.safetensors"])


@pytest.mark.parametrize(("name", "family"), [("FLUX.2", "AutoencoderKLFlux2"), ("TAESD", "AutoencoderTiny")])
def test_a_single_file_that_is_like_no_other(tmp_path, name, family):
    loaded = load_autoencoder(sparse(tmp_path / "x.safetensors", full(name, "", ldm=False)))
    assert loaded.family == family


def test_flux2_in_its_publishers_names(tmp_path):
    shapes = full("FLUX.2", "", ldm=True)
    for old, side in (("quant_conv", "encoder"), ("post_quant_conv", "decoder")):
        for part in ("weight", "bias"):
            shapes[f"{side}.{old}.{part}"] = shapes.pop(f"{old}.{part}")
    shapes.pop("bn.num_batches_tracked")
    assert load_autoencoder(sparse(tmp_path / "x.safetensors", shapes)).family == "AutoencoderKLFlux2"


@pytest.mark.parametrize(("name", "alike"), [("SD", "SD and SDXL"), ("FLUX.1", "SD3 and FLUX.1")])
def test_an_autoencoder_alone_is_not_guessed(tmp_path, name, alike, monkeypatch):
    path = sparse(tmp_path / "ae.safetensors", full(name, "", ldm=True))
    with pytest.raises(BadCheckpoint, match=rf"tensors of {alike}, alike but for .*folder with its config.json"):
        load_autoencoder(path)
    monkeypatch.setitem(PUBLISHED, hashlib.sha256(path.read_bytes()).hexdigest(), name)
    wanted = next(k.config["scaling_factor"] for k in KNOWN if k.name == name)
    assert load_autoencoder(path).config["scaling_factor"] == wanted


def test_contradictory_and_foreign_witnesses_are_refused(tmp_path):
    shapes = full("SD", "first_stage_model.", ldm=True)
    flux = {WITNESSES[5].tensor: (128,)}
    with pytest.raises(BadCheckpoint, match="SD and SDXL, alike"):
        load_autoencoder(sparse(tmp_path / "a.safetensors", flux | shapes))
    playground = {WITNESSES[2].tensor: (640, 2048), "edm_mean": (4,)}
    with pytest.raises(BadCheckpoint, match="SD and SDXL, alike"):
        load_autoencoder(sparse(tmp_path / "b.safetensors", playground | shapes))


@pytest.mark.parametrize("change", ["missing", "surplus", "shape", "decoder only", "nothing like it"])
def test_an_unknown_file_is_refused(tmp_path, change):
    shapes = full("SD", "", ldm=True)
    match change:
        case "missing":
            del shapes["decoder.conv_out.bias"]
        case "surplus":
            shapes["decoder.time_mix.bias"] = (3,)
        case "shape":
            shapes["decoder.conv_in.weight"] = (512, 8, 3, 3)
        case "decoder only":
            shapes = {n: s for n, s in shapes.items() if n.startswith("decoder.")}
        case _:
            shapes = {"blocks.0.weight": (3, 5)}
    refused(
        sparse(tmp_path / "x.safetensors", shapes),
        r"\(against .*: (no|an unknown|.* of shape) .*\); wanted exactly the tensors of the autoencoder of SD, SDXL, ",
    )


# What is refused.


@pytest.fixture
def folder(tmp_path):
    made("AutoencoderKL").save_pretrained(tmp_path / "it")
    return tmp_path / "it"


WEIGHTS = "diffusion_pytorch_model.safetensors"


def refused(path: Path, pattern: str) -> None:
    with pytest.raises(BadCheckpoint, match=pattern) as caught:
        load_autoencoder(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.count(";") >= 2


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt", ".pth", ".PKL"])
def test_a_pickle_is_refused_unopened(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"\x80\x04not even read")
    path.chmod(0)
    refused(path, r"is a pickle, and reading a pickle runs the code in it; wanted \.safetensors; .* you trust")


def test_a_pickle_with_another_name_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    torch.save({"x": torch.zeros(3)}, path)
    refused(path, "is a pickle")


def test_a_folder_with_only_a_pickle_is_refused(folder):
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    refused(folder, r"diffusion_pytorch_model\.bin is a pickle")


def test_shards_that_are_pickles_are_refused(folder):
    (folder / WEIGHTS).rename(folder / "shard.bin")
    index = {"weight_map": {"x": "shard.bin"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    refused(folder, r"shard\.bin is a pickle")
    index["weight_map"]["x"] = "../it/shard.bin"
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    refused(folder, r"no usable weight_map")


def test_missing_paths_and_parts(tmp_path, folder):
    refused(tmp_path / "nowhere", "does not exist; wanted a diffusers folder or")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"is empty; wanted model_index\.json or config\.json there; download")
    (tmp_path / "x.gguf").write_bytes(b"")
    refused(tmp_path / "x.gguf", r"is a \.gguf file; wanted \.safetensors")
    (folder / WEIGHTS).unlink()
    refused(folder, f"has a config and no weights; wanted {WEIGHTS}")
    (folder / "config.json").unlink()
    (folder / "a.safetensors").write_bytes(b"")
    refused(folder, r"has a\.safetensors and no config\.json; .* give the \.safetensors file itself")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "X", "unet": ["a", "b"]}))
    refused(folder, r"model_index\.json lists unet; wanted a component vae")
    (folder / "model_index.json").write_text(json.dumps({"vae": ["diffusers", "AutoencoderKL"]}))
    refused(folder, r"vae does not exist; wanted model_index\.json or config\.json there")


def test_a_pipeline_that_contradicts_itself(tmp_path, folder):
    folder.rename(tmp_path / "vae")
    (tmp_path / "model_index.json").write_text(json.dumps({"vae": ["diffusers", "AutoencoderTiny"]}))
    refused(tmp_path, r"says that vae is AutoencoderTiny, its config\.json AutoencoderKL; wanted one class")


@pytest.mark.parametrize("name", ["UNet2DConditionModel", "../x", None, ["AutoencoderKL"]])
def test_an_unknown_class_is_refused(folder, name):
    config = json.loads((folder / "config.json").read_text()) | {"_class_name": name}
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, r"has class .*; wanted one of AutoencoderKL, .*; export one of these")


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00\x01"])
def test_a_damaged_config_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    refused(folder, r"config\.json (cannot be read as JSON|holds a list)")


def test_a_config_that_builds_nothing_is_refused(folder):
    config = json.loads((folder / "config.json").read_text()) | {"norm_num_groups": 7}
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, r"no AutoencoderKL can be built from its config \(.*\); ")


def test_weights_of_another_config_are_refused(folder):
    config = json.loads((folder / "config.json").read_text()) | {"latent_channels": 6}
    (folder / "config.json").write_text(json.dumps(config))
    refused(
        folder, r"has encoder\.conv_out\.weight of shape \(8, 24, 3, 3\) instead of \(12, 24, 3, 3\), .* more; wanted"
    )


def test_missing_and_unknown_tensors_are_refused(folder):
    state = load_file(folder / WEIGHTS)
    state["decoder.extra"] = state.pop("decoder.conv_out.bias").clone()
    save_file(state, folder / WEIGHTS)
    refused(folder, r"has no decoder\.conv_out\.bias, an unknown decoder\.extra; wanted the \d+ tensors of its config")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder, bad):
    state = load_file(folder / WEIGHTS)
    state["decoder.conv_in.bias"][3] = bad
    save_file(state, folder / WEIGHTS)
    refused(folder, r"decoder\.conv_in\.bias in .* has 1 weights that are NaN or infinite; wanted finite ones")


def test_quantised_weights_are_refused(folder):
    state = load_file(folder / WEIGHTS)
    state["decoder.conv_in.weight"] = state["decoder.conv_in.weight"].to(torch.int8)
    save_file(state, folder / WEIGHTS)
    refused(folder, r"decoder\.conv_in\.weight in .* is I8; wanted F64, F32, F16, BF16; take the model before")


@pytest.mark.parametrize("kept", [0, 7, 8, 100, -1, -10_000])
def test_a_truncated_file_is_refused(folder, kept):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:kept])
    refused(folder, r"is truncated or no safetensors file: \d+ bytes; wanted \d+; download it again")
    shutil.copy(folder / WEIGHTS, folder.parent / "x.safetensors")
    refused(folder.parent / "x.safetensors", r"is truncated or no safetensors file")


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (b"{nope", "a header that is not JSON"),
        (b"[" * 100_000, "a header that is not JSON"),
        (b"\xff\xfe", "a header that is not JSON"),
        (b"[1]", "a header that is not a table"),
        (b'{"a": 3}', "no usable entry for a"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "4 bytes for a, F32"),
        (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}', "-4 bytes for a, F32"),
        (b"{}", "no tensors"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path, header, problem):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    refused(path, rf"(is damaged: it has|holds) {problem}")


def test_the_loaded_weights_do_not_change_with_the_file(folder):
    vae = load_autoencoder(folder).vae
    before = vae.decoder.conv_in.weight.clone()
    with (folder / WEIGHTS).open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(0)
        file.write(bytes(size))
    assert torch.equal(vae.decoder.conv_in.weight, before)
