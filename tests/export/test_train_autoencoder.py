"""The embedded autoencoder: how it is trained, and the checkpoint that is committed."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("skimage")
pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:(diffusers|huggingface_hub|transformers).*")

from widefield_export import train_autoencoder, training_pictures  # noqa: E402
from widefield_export.reconstruction import psnr, reconstruct  # noqa: E402
from widefield_export.train_autoencoder import Trainer, TrainOptions  # noqa: E402

EMBEDDED = Path(__file__).parents[2] / "export" / "embedded"


def load(folder):
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder, local_files_only=True).eval()


@pytest.fixture(autouse=True)
def one_thread_and_torch_left_as_it_was():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


@pytest.fixture(scope="module")
def embedded():
    return load(EMBEDDED)


def tiny(out, **changes):
    """A run that takes a second: 8 channels, two 32-pixel crops a step, and lengths in steps."""
    settings = {
        "early_share": 0.0,
        "steps": 2,
        "sides": (32,),
        "side_odds": (1.0,),
        "batch_px": 2 * 32 * 32,
        "channels": (8, 8, 8, 16),
    }
    return TrainOptions(out=out, **(settings | changes))


def test_a_run_learns_from_finite_losses_resumes_and_loads_in_diffusers(tmp_path, monkeypatch):
    seen, train_step = [], Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda self: seen.append(train_step(self)) or seen[-1])
    Trainer(tiny(tmp_path)).run()
    first = json.loads((tmp_path / "training.json").read_text())
    Trainer(tiny(tmp_path, steps=5, resume=True, sheet=tmp_path / "sheet.png")).run()
    second = json.loads((tmp_path / "training.json").read_text())

    assert len(seen) == 5
    assert np.isfinite(seen).all()
    assert (first["steps"], second["steps"]) == (2, 5)
    assert second["wall_s"] >= first["wall_s"]
    assert len(second["commands"]) == 2
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    model = load(tmp_path)
    for name, crop in training_pictures.held_out_crops().items():
        assert psnr(crop, reconstruct(model, crop)) == pytest.approx(second["psnr_db"][name], abs=0.02)


def test_an_interrupted_run_equals_one_that_was_not(tmp_path):
    Trainer(tiny(tmp_path / "whole", steps=4)).run()
    broken = Trainer(tiny(tmp_path / "broken", steps=4))
    for _ in range(2):
        broken.train_step()
    broken.save()
    Trainer(tiny(tmp_path / "broken", steps=4, resume=True)).run()
    whole, parts = load(tmp_path / "whole").state_dict(), load(tmp_path / "broken").state_dict()
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=0, atol=0)


def test_resuming_nothing_is_one_line(tmp_path, capsys):
    assert train_autoencoder.main(["--resume", "--out", str(tmp_path)]) == 1
    assert re.fullmatch(r"error: nothing to resume: .*state\.pt is missing; .*\n", capsys.readouterr().err)


def test_training_never_sees_a_held_out_pixel(monkeypatch):
    blocks = {photo.file: photo.held_out for photo in training_pictures.PHOTOGRAPHS}
    assert training_pictures.UNSEEN not in blocks
    scenes, side = training_pictures.Scenes(), training_pictures.BLOCK_PX
    for picture, block in zip(scenes.pictures, blocks.values(), strict=True):
        picture.setflags(write=True)
        if block is not None:
            picture[block[0] : block[0] + side, block[1] : block[1] + side] = np.nan
    rng = np.random.default_rng(3)
    for crop_px in (96, 192):
        assert all(np.isfinite(scenes.crop(rng, crop_px)).all() for _ in range(100))


@pytest.mark.parametrize("side", [33, 96, 192])
def test_scenes_are_pictures(side):
    rng = np.random.default_rng(5)
    scenes = training_pictures.Scenes()
    for draw in (scenes.crop, scenes.dead_leaves, lambda r, s: training_pictures.fractal(r, s), scenes.scene):
        picture = draw(rng, side - side % 2 if draw == scenes.scene else side)
        assert picture.dtype == np.float32
        assert picture.shape[2] == 3
        assert picture.min() >= 0
        assert picture.max() <= 1


def test_psnr_of_a_known_error():
    flat = np.full((8, 16, 3), 0.5, np.float32)
    assert psnr(flat, flat + np.float32(0.1)) == pytest.approx(20, abs=1e-4)


def test_the_embedded_checkpoint_is_what_its_card_says(embedded):
    config = embedded.config
    assert config.block_out_channels == [16, 32, 48, 80]
    assert (config.latent_channels, config.norm_num_groups, config.layers_per_block) == (4, 4, 1)
    assert config.mid_block_add_attention
    assert config.use_quant_conv
    assert config.use_post_quant_conv
    assert config.shift_factor is None
    assert sum(p.numel() for p in embedded.parameters()) == 1_185_351
    assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for p in embedded.parameters())
    assert (EMBEDDED / "diffusion_pytorch_model.safetensors").stat().st_size < 5_000_000
    card, report = (EMBEDDED / "README.md").read_text(), json.loads((EMBEDDED / "training.json").read_text())
    for name in [photo.file for photo in training_pictures.PHOTOGRAPHS] + [training_pictures.UNSEEN]:
        assert name in card
    for decibels in report["psnr_db"].values():
        assert f"{decibels:.2f}" in card


# One dB under what was measured when the weights were committed (export/embedded/README.md).
FLOORS_DB = {"chelsea.png": 28.4, "astronaut.png": 25.9, "retina.jpg": 36.6, "camera.png": 26.7}


@pytest.mark.parametrize("name", FLOORS_DB)
def test_the_embedded_checkpoint_gives_held_out_pictures_back(embedded, name):
    crop = training_pictures.held_out_crops()[name]
    assert psnr(crop, reconstruct(embedded, crop)) > FLOORS_DB[name]


def test_scaled_latents_have_unit_deviation(embedded):
    pixels = training_pictures.Scenes().batch(np.random.default_rng(11), 16, 96)
    with torch.no_grad():
        posterior = embedded.encode(pixels).latent_dist
    assert (posterior.mean * embedded.config.scaling_factor).std().item() == pytest.approx(1, abs=0.1)
    torch.testing.assert_close(posterior.std, torch.full_like(posterior.std, 0.04))


def test_decoding_a_mosaic_does_not_spoil_its_parts(embedded):
    """Norms and attention look at everything; a part must come back about as well as alone."""
    scenes, rng = training_pictures.Scenes(), np.random.default_rng(13)
    parts = [scenes.crop(rng, 144) for _ in range(6)]
    alone = [reconstruct(embedded, part) for part in parts]
    mosaic, apart = (np.concatenate([np.concatenate(p[:3], 1), np.concatenate(p[3:], 1)], 0) for p in (parts, alone))
    together = reconstruct(embedded, mosaic)
    assert np.isfinite(together).all()
    assert psnr(mosaic, together) > psnr(mosaic, apart) - 1.0
