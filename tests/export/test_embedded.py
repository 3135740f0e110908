"""The embedded bundle is what the export makes of the checkpoint in the repository, to the last bit; it is small."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open

import widefield
from widefield.bundle import open_bundle
from widefield_export.commands import export_bundle
from widefield_export.reconstruction import psnr, reconstruct
from widefield_export.small_pipeline import ADVICE
from widefield_export.worlds.pictures import draw_picture

CHECKPOINT = Path(__file__).parents[2] / "export" / "embedded"
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' NumPy


def test_the_embedded_bundle_is_the_export_of_the_checkpoint(tmp_path):
    export_bundle(CHECKPOINT, tmp_path / "made", asked={"weights": "float16"})
    made, shipped = open_bundle(tmp_path / "made"), widefield.open().bundle
    for key in ("source", "files", "components", "denoiser", "text", "schedulers", "defaults", "dtype"):
        left, right = (bundle.manifest["files" if key == "files" else key] for bundle in (made, shipped))
        assert left == right, f"{key}: export it again, and commit what changed"
    shipped.verify()


def test_the_embedded_bundle_takes_at_most_16_mb_of_the_wheel():
    bundle = widefield.open().bundle
    assert sum(entry["nbytes"] for entry in bundle.manifest["files"].values()) <= 18_000_000
    files = [path.read_bytes() for path in bundle.path.iterdir()]
    assert sum(len(zlib.compress(data, 6)) for data in files) <= 16_000_000


def test_what_drawing_has_open_has_at_most_25_mb_of_weights_in_float32():
    """Denoiser, decoder and encoder. The text encoder is closed before they open, and is smaller than any of them."""
    bundle = widefield.open().bundle
    assert bundle.parts.denoiser is not None and bundle.parts.text is not None
    coders = [graph.file for part in (bundle.decoder, bundle.encoder) for graph in part.border]
    denoiser = [window.file for window in bundle.parts.denoiser.windows]
    text = [encoder.file for encoder in bundle.parts.text.encoders]
    opened, before = (sum(4 * numbers(bundle.file(name)) for name in names) for names in ((*coders, *denoiser), text))
    assert before < 2_000_000 < opened <= 25_000_000


def numbers(graph: Path) -> int:
    """Of all weights that a graph names."""
    model = onnx.load(graph, load_external_data=False)
    return sum(math.prod(tensor.dims) for tensor in model.graph.initializer)


def test_the_embedded_bundle_draws_as_its_checkpoint_advises():
    defaults = widefield.open().bundle.parts.defaults
    assert {name: getattr(defaults, name) for name in ADVICE} == ADVICE
    assert 4 <= defaults.steps <= 8 and defaults.detail_steps <= defaults.steps


def test_the_card_tells_how_the_weights_were_made():
    cards, text = json.loads((CHECKPOINT / "training.json").read_text()), (CHECKPOINT / "README.md").read_text()
    for card in cards.values():
        assert card["commands"] and card["seed"] >= 0 and card["wall_s"] > 0 and card["machine"]["cpu"]
        assert f"{card['steps']:,} steps" in text
    assert f"{cards['flow']['loss_unseen']:.3f}" in text and f"{cards['autoencoder']['psnr_db_mean']:.1f} dB" in text


@pytest.fixture(scope="module")
def autoencoder():
    return AutoencoderKL.from_pretrained(CHECKPOINT / "vae", local_files_only=True).eval()


def fresh(count, side):
    """Pictures in [0, 1] that training never drew: its seed is 0, and 1,000,003 for what it measures itself on."""
    return [draw_picture(4242, k, side).pixels / np.float32(255) for k in range(count)]


def test_the_autoencoder_gives_fresh_worlds_back(autoencoder):
    found = [psnr(picture, reconstruct(autoencoder, picture)) for picture in fresh(8, 192)]
    assert np.mean(found) >= 27


def test_scaled_latents_have_about_unit_deviation(autoencoder):
    pixels = torch.from_numpy(np.stack(fresh(12, 128))).permute(0, 3, 1, 2) * 2 - 1
    with torch.no_grad():
        latents = autoencoder.encode(pixels).latent_dist.mean * autoencoder.config.scaling_factor
    assert latents.std().item() == pytest.approx(1, abs=0.15)


def test_decoding_a_mosaic_does_not_spoil_its_parts(autoencoder):
    """Norms and attention look at everything; a part must come back about as well as alone."""
    parts = fresh(6, 144)
    alone = [reconstruct(autoencoder, part) for part in parts]
    mosaic, apart = (np.concatenate([np.concatenate(p[:3], 1), np.concatenate(p[3:], 1)], 0) for p in (parts, alone))
    assert psnr(mosaic, reconstruct(autoencoder, mosaic)) > psnr(mosaic, apart) - 1.0


def test_weights_are_committed_in_half_precision_as_the_bundle_stores_them():
    with safe_open(CHECKPOINT / "vae" / "diffusion_pytorch_model.safetensors", "np") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert kinds == {"F16"} and widefield.open().bundle.manifest["dtype"] == "float16"
