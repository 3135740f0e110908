"""A prompt's embeddings by tokenizer.json, ONNX graphs and NumPy equal those of diffusers' pipelines."""

import numpy as np
import pytest
import torch

from pipelines import make_pipeline
from widefield.bundle import Bundle
from widefield.engine import EngineOptions
from widefield.errors import BadCheckpoint, BadRequest
from widefield.prompt import embed
from widefield_export.pipeline import _write_text
from widefield_export.text_encoders import SANA_TOKENS, _instruction, load_tokenizer, rule_of
from widefield_export.whole import open_folder, pipeline_options

NAMES = tuple(
    pytest.param(name, marks=[pytest.mark.slow] if name in ("SD1.5", "FLUX.1-dev") else [])  # SD3 has their encoders
    for name in ("SD1.5", "SDXL", "SD3", "FLUX.1-dev", "SANA")
)
PROMPTS = {
    "short": ("the sea at dawn", None),
    "empty": ("", None),
    "negative": ("an harbour, at dusk", "a town with boats"),
    "long": ("the sea, " * 400 + "at dawn", "boats " * 400),
    "any letters": ("  The SEA ... zwölf Boote ~ 海", "x"),
}
ORT = EngineOptions("ort")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """(pipeline, bundle of its text alone), once a name."""
    made = {}

    def of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("text")
            pipeline = make_pipeline(name)
            pipeline.save_pretrained(folder / "checkpoint")
            opened = open_folder(folder / "checkpoint", pipeline_options())
            entry, tokens = _write_text(opened, rule_of(opened.base.name), folder, "float32")
            assert tokens == sum(block["tokens"] for block in entry["blocks"])
            made[name] = pipeline, Bundle(folder, {"name": name, "text": entry}, {})
        return made[name]

    return of


def theirs(name, pipe, prompt, negative):
    """[(text, pooled, mask) of the prompt, of the negative prompt], None for what the pipeline has not."""
    with torch.no_grad():
        if name == "SD1.5":
            text, other = pipe.encode_prompt(prompt, "cpu", 1, True, negative)
            found = [(text, None, None), (other, None, None)]
        elif name == "SANA":
            chi = _instruction().split("\n")
            text, mask, other, other_mask = pipe.encode_prompt(
                prompt, True, negative or "", complex_human_instruction=chi, device="cpu"
            )
            found = [(text, None, mask), (other, None, other_mask)]
        elif name == "FLUX.1-dev":
            both = [pipe.encode_prompt(p, None, device="cpu") for p in (prompt, negative or "")]
            found = [(text, pooled, None) for text, pooled, _ in both]
        else:
            more = {"prompt_3": None, "negative_prompt_3": None} if name == "SD3" else {}
            text, other, pooled, other_pooled = pipe.encode_prompt(
                prompt, prompt_2=None, negative_prompt=negative, device="cpu", **more
            )
            found = [(text, pooled, None), (other, other_pooled, None)]
    return [[None if part is None else part[0].float().numpy() for part in parts] for parts in found]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("name", NAMES)
def test_embeddings_are_the_pipelines_own(texts, name, prompt):
    pipe, bundle = texts(name)
    wanted = theirs(name, pipe, *PROMPTS[prompt])
    for found, parts in zip(embed(bundle, *PROMPTS[prompt], options=ORT), wanted, strict=True):
        for ours, other in zip((found.text, found.pooled, found.mask), parts, strict=True):
            assert (ours is None) == (other is None)
            if ours is not None:
                assert ours.shape == other.shape and ours.dtype == np.float32
                assert np.abs(ours - other).max() <= 1e-4
        assert found.text.std() > 0.1 or (name == "SDXL" and PROMPTS[prompt][1] is None)


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit_is_said(texts, name):
    _, bundle = texts(name)
    short, _ = embed(bundle, "at", options=ORT)
    assert short.cut == {} and short.told() is None
    long, other = embed(bundle, "the sea, " * 400 + "at dawn", options=ORT)
    assert set(long.cut) == {e.name for e in bundle.parts.text.encoders} and other.cut == {}
    assert "longer than the model reads: text_encoder left out" in long.told()
    assert all(text.endswith(", the sea, at dawn") for text in long.cut.values())


def test_what_is_cut_begins_where_the_tokens_end(texts):
    _, bundle = texts("SDXL")
    encoder = bundle.parts.text.encoders[0]
    found, _ = embed(bundle, "The " * (encoder.keep - 2) + "  Dawn, at", options=ORT)
    assert found.cut == {"text_encoder": "Dawn, at", "text_encoder_2": "Dawn, at"}
    assert embed(bundle, "The " * (encoder.keep - 2), options=ORT)[0].cut == {}


@pytest.mark.slow
def test_sd3_without_t5_reads_zeros_there(texts, tmp_path):
    pipe = make_pipeline("SD3")
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    pipe.save_pretrained(tmp_path / "checkpoint")
    opened = open_folder(tmp_path / "checkpoint", pipeline_options())
    entry, tokens = _write_text(opened, rule_of("SD3"), tmp_path)
    assert tokens == 11 + 256 and entry["blocks"][1] == {"encoders": [], "tokens": 256}
    found, _ = embed(Bundle(tmp_path, {"name": "b", "text": entry}, {}), "the sea", options=ORT)
    (text, pooled, _), _ = theirs("SD3", pipe, "the sea", None)
    assert np.abs(found.text - text).max() <= 1e-4 and np.abs(found.pooled - pooled).max() <= 1e-4


def test_sana_reads_an_instruction_and_keeps_little_of_it(texts):
    (encoder,) = texts("SANA")[1].parts.text.encoders
    assert encoder.keep == SANA_TOKENS < encoder.length and encoder.prefix.startswith("Given a user prompt")


def test_openvino_gives_the_same(texts):
    _, bundle = texts("SDXL")
    found, wanted = (embed(bundle, "the sea", "a", EngineOptions(engine))[0] for engine in ("openvino", "ort"))
    assert np.abs(found.text - wanted.text).max() <= 1e-4 and np.abs(found.pooled - wanted.pooled).max() <= 1e-4


def test_a_bundle_without_text_says_how_to_get_it(tmp_path):
    with pytest.raises(BadRequest, match=r"has no text encoders; .* --text FOLDER"):
        embed(Bundle(tmp_path, {"name": "b"}, {}), "the sea")


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(BadCheckpoint, match="does not exist; wanted the tokenizer"):
        load_tokenizer(tmp_path / "no")
    with pytest.raises(BadCheckpoint, match="holds no tokenizer that can be read"):
        load_tokenizer(tmp_path)
