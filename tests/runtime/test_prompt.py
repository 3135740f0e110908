"""What is told of a prompt that is too long, and what a bundle's manifest may not say of its parts.

That embeddings equal those of diffusers' pipelines is in tests/export/test_text_encoders.py.
"""

import copy

import numpy as np
import pytest
from safetensors.numpy import save_file

from widefield.bundle import Bundle
from widefield.errors import BadBundle, BadRequest
from widefield.parts import load_schedule, parse_parts
from widefield.prompt import Conditioning, embed
from widefield.schedule import COLUMNS

ENCODER = {
    "name": "text_encoder", "family": "CLIPTextModel", "file": "t.onnx", "weights": "t.safetensors",
    "tokenizer": "t.tokenizer.json", "length": 7, "keep": 7, "pad": 0, "mask": False, "prefix": "", "lower": False,
    "hidden": 4, "pooled": 0,
}  # fmt: skip
MANIFEST = {
    "name": "small",
    "denoiser": {
        "family": "UNet2DConditionModel", "base": "SD", "weights": "d.safetensors", "dtype": "float32",
        "parameters": 9, "cell": 1, "place": None, "places": None, "output": "prediction",
        "windows": [{"rows": 6, "columns": 10, "file": "d.onnx"}],
        "inputs": {"latent": ["batch", 4, "rows", "columns"], "timestep": ["batch"], "text": ["batch", 7, 4]},
    },
    "text": {
        "encoders": [ENCODER], "blocks": [{"encoders": ["text_encoder"], "tokens": 7}], "width": 4, "pooled": [],
        "zeros": False,
    },
    "schedulers": {
        "file": "s.safetensors", "default": "euler",
        "samplers": {"euler": {"class": "EulerDiscreteScheduler", "config": {}, "keys": ["euler"]}},
    },
    "defaults": {"sampler": "euler", "steps": 2, "guidance": 7.5, "strength": 0.4, "guidance_kind": "free"},
}  # fmt: skip


def changed(path, value):
    manifest = copy.deepcopy(MANIFEST)
    owner = manifest
    for key in path[:-1]:
        owner = owner[key]
    owner[path[-1]] = value
    return manifest


def test_parts_are_what_the_manifest_says():
    parts = parse_parts(MANIFEST)
    window = parts.denoiser.window(6, 10)
    shapes = {"latent": (3, 4, 6, 10), "timestep": (3,), "text": (3, 7, 4)}
    assert parts.denoiser.shapes(window, 3) == shapes and parts.denoiser.channels == 4
    assert parts.text.encoders[0].hidden == 4 and parts.defaults.steps == 2
    assert parts.files == ("s.safetensors", "d.safetensors", "d.onnx", "t.safetensors", "t.onnx", "t.tokenizer.json")


def test_a_bundle_of_an_autoencoder_has_no_parts():
    parts = parse_parts({"name": "vae"})
    assert parts.denoiser is parts.text is parts.defaults is None and not parts.samplers and not parts.files


@pytest.mark.parametrize(
    "path, value",
    [
        (("denoiser", "windows"), []),
        (("denoiser", "place"), [[0, 0], [1, 1]]),
        (("denoiser", "inputs"), None),
        (("text", "pooled"), ["text_encoder_9"]),
        (("text", "encoders"), [ENCODER | {"more": 1}]),
        (("schedulers", "samplers"), ["euler"]),
        (("defaults", "guidance_kind"), "some"),
    ],
)
def test_garbled_parts_do_not_pass(path, value):
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        parse_parts(changed(path, value))


def test_what_was_cut_is_one_line():
    text = np.zeros((7, 4), np.float32)
    assert Conditioning(text, None, None, {}).told() is None
    told = Conditioning(text, None, None, {"text_encoder": "at dawn", "text_encoder_2": "dawn"}).told()
    assert told.endswith("longer than the model reads: text_encoder left out 'at dawn'; text_encoder_2 left out 'dawn'")


def test_a_damaged_tokenizer_is_named(tmp_path):
    (tmp_path / "t.tokenizer.json").write_text("{")
    with pytest.raises(BadBundle, match=r"t\.tokenizer\.json is no tokenizer .*; export it again"):
        embed(Bundle(tmp_path, MANIFEST, {}), "the sea")


def test_tables_are_read_by_their_keys(tmp_path):
    rng = np.random.default_rng(0)
    tables = {f"euler/{n}": rng.standard_normal((n, len(COLUMNS))) for n in (1, 2)}
    save_file(tables | {"euler/initial": np.array([14.0, 15.0]), "ddim/9": np.zeros(3)}, tmp_path / "s.safetensors")
    found = load_schedule(Bundle(tmp_path, MANIFEST, {}), "euler")
    assert sorted(found.tables) == [1, 2] and found.run(2).initial == 15.0
    with pytest.raises(BadRequest, match="small has no sampler 'ddim'; it has euler; name one of these"):
        load_schedule(Bundle(tmp_path, MANIFEST, {}), "ddim")
    (tmp_path / "s.safetensors").write_bytes(b"\0" * 30)
    with pytest.raises(BadBundle, match="damaged; export it again"):
        load_schedule(Bundle(tmp_path, MANIFEST, {}), "euler")
