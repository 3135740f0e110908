"""Training the small pipeline: losses are their formulas, runs resume to the bit, what is saved loads in diffusers."""

import json
import re
import signal

import numpy as np
import pytest
import torch

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:(diffusers|huggingface_hub|transformers).*"),
    pytest.mark.filterwarnings("ignore:.*torch_dtype.*:FutureWarning"),
]

from widefield.errors import BadRequest  # noqa: E402
from widefield.geometry import Region  # noqa: E402
from widefield_export import linear_decoder, linear_encoder, small_pipeline, small_tokenizer, train_flow, train_worlds  # noqa: E402
from widefield_export.sample_sheet import PROMPTS, sample  # noqa: E402
from widefield_export.schedulers import probe  # noqa: E402
from widefield_export.train_flow import FlowOptions, FlowRun  # noqa: E402
from widefield_export.train_worlds import AutoencoderOptions, AutoencoderRun  # noqa: E402
from widefield_export.training_run import rate_at  # noqa: E402
from widefield_export.worlds import draw  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread_and_torch_left_as_it_was():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer.build_tokenizer(small_tokenizer.sample_captions(0, 2000))


@pytest.fixture(scope="module")
def small_vae(tmp_path_factory):
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("vae")
    small_pipeline.build_autoencoder(4, (8, 8, 8, 16)).save_pretrained(folder)
    return folder


def tiny(out, **changes):
    """A run of the autoencoder that takes a second."""
    settings = {
        "steps": 2, "latent_channels": 4, "channels": (16, 20, 32, 36), "pool": 3, "pool_side": 64, "new_every": 1,
        "sides": (32, 48), "side_odds": (0.5, 0.5), "batch_px": 2 * 32 * 32, "checks": 2, "basis": 3,
    }  # fmt: skip
    return AutoencoderOptions(out=out, **(settings | changes))


def tiny_flow(out, vae, **changes):
    """A run of the denoiser that takes a second or two."""
    settings = {
        "steps": 2, "autoencoder": vae, "channels": (32, 32), "pool": 5, "first": 3, "new_every": 2, "side_px": 64,
        "batch": 4, "checks": 2,
    }  # fmt: skip
    return FlowOptions(out=out, **(settings | changes))


def same_weights(a, b):
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=0, atol=0)


def pictures(count, height, width, seed):
    """Smooth colours with some noise, (count, 3, height, width) in [-1, 1]."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(-1, 1, (count, 3, height // 8, width // 8))).float()
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    return (0.8 * smooth + 0.1 * torch.from_numpy(rng.standard_normal(smooth.shape)).float()).clamp(-1, 1)


def test_components_are_uncorrelated_of_unit_deviation_and_the_best_linear_code():
    pixels = pictures(3, 40, 24, 0)
    got = linear_encoder.principal_components(pixels, 5)(pixels)
    assert got.shape == (3, 5, 5, 3)
    flat = got.transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(flat.mean(1), torch.zeros(5).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(flat @ flat.T / flat.shape[1], torch.eye(5).double(), rtol=0, atol=2e-3)
    squares = pixels.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(45, 192).double()
    centred = squares - squares.mean(0)
    best = torch.linalg.svdvals(centred)[5:].pow(2).sum()
    basis = torch.linalg.lstsq(flat.T, centred).solution
    assert (centred - flat.T @ basis).pow(2).sum().item() == pytest.approx(best.item(), rel=1e-3)


@pytest.mark.parametrize(("latents", "channels"), [(8, (16, 32, 64, 96)), (4, (12, 16, 20, 24))])
def test_an_encoder_starts_as_its_components_and_can_be_trained(latents, channels):
    pixels = pictures(3, 64, 40, 1)
    components = linear_encoder.principal_components(pixels, latents)
    model = small_pipeline.build_autoencoder(latents, channels)
    linear_encoder.make_linear(model.encoder, components)
    got, want = model.encode(pixels).latent_dist, components(pixels)
    # The variance of a group is K^2 and what its latents add, a few parts in K^2.
    torch.testing.assert_close(got.mean, want, rtol=0.02, atol=0.01)
    torch.testing.assert_close(got.std, torch.full_like(got.std, small_pipeline.POSTERIOR_STD))
    small_pipeline.autoencoder_losses(model, pixels)[0].backward()
    for name in ("conv_in", "conv_out", "down_blocks.1.resnets.0.conv2", "mid_block.attentions.0.to_out.0"):
        assert model.encoder.get_submodule(name).weight.grad.abs().sum() > 0, name


def test_least_squares_finds_the_convolution_that_made_its_targets():
    inputs, weight, bias = torch.randn(2, 3, 11, 7), torch.randn(4, 3, 3, 3), torch.randn(4)
    targets = torch.nn.functional.conv2d(inputs, weight, bias, padding=1)
    found, offset = linear_decoder.least_squares(inputs, targets, ridge=1e-7)
    torch.testing.assert_close(found, weight, rtol=0, atol=1e-3)
    torch.testing.assert_close(offset, bias, rtol=0, atol=1e-3)
    damped, _ = linear_decoder.least_squares(inputs, targets, ridge=0.3)
    assert damped.norm() < 0.9 * weight.norm()


def test_a_decoder_starts_linear_and_better_than_squares_of_one_colour():
    torch.manual_seed(2)
    pixels = pictures(6, 64, 48, 3)
    components = linear_encoder.principal_components(pixels, 8)
    model = small_pipeline.build_autoencoder(8, (16, 32, 64, 96))
    linear_encoder.make_linear(model.encoder, components)
    fitted = linear_decoder.make_linear_decoder(model.decoder, components, pixels)
    with torch.no_grad():
        given_back = model.decode(model.encode(pixels).latent_dist.mean).sample
        one_by_one = model.decode(model.encode(pixels[2:3]).latent_dist.mean).sample
    torch.testing.assert_close(given_back, fitted, rtol=0.02, atol=0.02)
    torch.testing.assert_close(one_by_one[0], given_back[2], rtol=0, atol=0.02)
    means = torch.nn.functional.avg_pool2d(pixels, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert (given_back - pixels).pow(2).mean() < 0.7 * (means - pixels).pow(2).mean()


def test_an_encoder_too_narrow_to_be_linear_is_refused():
    model = small_pipeline.build_autoencoder(8, (16, 16, 64, 96))
    components = linear_encoder.principal_components(pictures(2, 32, 32, 2), 8)
    with pytest.raises(BadRequest, match=r"found channels \[16, 16, 64, 96\] in 4 groups; 8 latents want"):
        linear_encoder.make_linear(model.encoder, components)
    model = small_pipeline.build_autoencoder(8, (16, 32, 24, 96))
    with pytest.raises(BadRequest, match=r"found channels \[96, 24, 32, 16\] in 4 groups; wanted \[32, 32, 12, 12\]"):
        linear_decoder.make_linear_decoder(model.decoder, components, pictures(2, 32, 32, 2))


def test_a_flow_of_a_perfect_denoiser_loses_nothing_and_time_runs_from_picture_to_noise():
    latents, noise = torch.randn(3, 2, 4, 6), torch.randn(3, 2, 4, 6)
    times = torch.tensor([0.0, 0.25, 1.0])
    seen = {}

    def denoiser(x, t, context):
        seen["x"], seen["t"] = x, t
        return type("Out", (), {"sample": noise - latents})

    nothing = torch.zeros(3)
    loss = train_flow.flow_loss(denoiser, latents, torch.zeros(3, 1, 1), times, noise, torch.randn(3, 2, 4, 6), nothing)
    assert loss.item() == 0
    torch.testing.assert_close(seen["x"][0], latents[0])
    torch.testing.assert_close(seen["x"][1], 0.75 * latents[1] + 0.25 * noise[1])
    torch.testing.assert_close(seen["x"][2], noise[2])
    assert seen["t"].tolist() == [0, 250, 1000]


def test_from_the_level_below_one_step_of_a_perfect_denoiser_gives_the_picture():
    latents, noise, below = torch.randn(3, 2, 2, 4, 6)
    times, share = torch.tensor([0.25, 0.6]), torch.tensor([0.125, 1.0])
    seen = {}

    def denoiser(x, t, context):
        time = t[:, None, None, None] / 1000
        seen["x"], seen["end"] = x, x - time * (x - latents) / time
        return type("Out", (), {"sample": (x - latents) / time})

    loss = train_flow.flow_loss(denoiser, latents, torch.zeros(2, 1, 1), times, noise, below, share)
    assert loss.item() < 1e-10
    torch.testing.assert_close(seen["x"][1], 0.4 * below[1] + 0.6 * noise[1])
    mixed = 0.875 * latents[0] + 0.125 * below[0]
    torch.testing.assert_close(seen["x"][0], 0.75 * mixed + 0.25 * noise[0])
    torch.testing.assert_close(seen["end"], latents)


def test_what_is_trained_from_is_what_the_cascade_enlarges():
    from families import ArraySource
    from widefield.fields import Resized

    pixels = pictures(1, 32, 48, 7)
    small = torch.nn.functional.avg_pool2d(pixels, 4)[0].numpy()
    enlarged = Resized(ArraySource(small), 32, 48).read(Region(0, 0, 32, 48))
    inner = slice(None), slice(8, -8), slice(8, -8)  # beyond its edge torch has no pixels, the cascade the last ones
    np.testing.assert_allclose(train_flow.coarse(pixels, 0.0)[0].numpy()[inner], enlarged[inner], atol=1e-6)
    blurred = train_flow.coarse(pixels, 0.8)
    assert blurred.diff(dim=-1).abs().mean() < 0.9 * train_flow.coarse(pixels, 0.0).diff(dim=-1).abs().mean()


def test_close_views_are_mostly_trained_from_a_strength_and_wide_ones_from_noise():
    torch.manual_seed(0)
    (near, share), (far, none) = (train_flow.draw_times(torch.full((4000,), scale)) for scale in (2.0, 64.0))
    assert all(t.min() >= 0 and t.max() < 1 for t in (near, far))
    assert (near < 0.65).float().mean() > 0.8 and (far > 0.65).float().mean() > 0.35
    assert [(t < 0.05).any().item() and (t > 0.95).any().item() for t in (near, far)] == [True, True]
    assert not none.any() and 0.2 < (share > 0).float().mean() < 1 / 3
    started = share > 0
    torch.testing.assert_close(share[started], ((near[started] - 0.2) / 0.4).clamp(0, 1))


def test_a_run_that_is_told_to_stop_saves_first(tmp_path, small_vae):
    run = FlowRun(tiny_flow(tmp_path, small_vae, steps=50))
    step = run.train_step

    def told():
        step()
        signal.raise_signal(signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    run.train_step = told
    run.run()
    card = json.loads((tmp_path / "training.json").read_text())
    assert (card["steps"], card["finished"]) == (1, False) and (tmp_path / "state.pt").exists()
    assert signal.getsignal(signal.SIGTERM) is handler


def test_the_rate_warms_up_holds_and_cools():
    assert rate_at(1e-3, 0, 0) < 1e-5
    assert rate_at(1e-3, 500, 0.3) == rate_at(1e-3, 900, 0.7) == 1e-3
    assert rate_at(1e-3, 900, 1.0) == pytest.approx(2e-5)


def test_an_autoencoder_run_saves_resumes_to_the_bit_and_loads(tmp_path):
    from diffusers import AutoencoderKL

    AutoencoderRun(tiny(tmp_path / "whole", steps=4, sheet=tmp_path / "sheet.png")).run()
    broken = AutoencoderRun(tiny(tmp_path / "broken", steps=4))
    broken.train_step()
    broken.train_step()
    broken.save()
    AutoencoderRun(tiny(tmp_path / "broken", steps=4, resume=True)).run()
    whole, parts = (AutoencoderKL.from_pretrained(tmp_path / name / "vae") for name in ("whole", "broken"))
    same_weights(whole.state_dict(), parts.state_dict())
    assert whole.config.scaling_factor == parts.config.scaling_factor
    card = json.loads((tmp_path / "broken" / "training.json").read_text())
    assert (card["steps"], card["seed"], card["finished"], len(card["commands"])) == (4, 0, True, 2)
    assert [entry["step"] for entry in card["history"]] == [0, 2, 4] and np.isfinite(card["psnr_db_mean"])
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_training_the_decoder_alone_leaves_latents_alone(tmp_path):
    from diffusers import AutoencoderKL

    AutoencoderRun(tiny(tmp_path, steps=2)).run()
    before = AutoencoderKL.from_pretrained(tmp_path / "vae")
    AutoencoderRun(tiny(tmp_path, steps=5, resume=True, decoder_only=True)).run()
    after = AutoencoderKL.from_pretrained(tmp_path / "vae")
    same_weights(train_worlds.encoder_weights(before), train_worlds.encoder_weights(after))
    assert before.config.scaling_factor == after.config.scaling_factor
    moved = [n for n, w in before.state_dict().items() if not torch.equal(w, after.state_dict()[n])]
    assert moved and all(name.startswith(("decoder.", "post_quant_conv.")) for name in moved)


def test_a_flow_run_saves_resumes_to_the_bit_and_samples(tmp_path, small_vae):
    from diffusers import StableDiffusionPipeline

    FlowRun(tiny_flow(tmp_path / "whole", small_vae, steps=4)).run()
    broken = FlowRun(tiny_flow(tmp_path / "broken", small_vae, steps=4))
    broken.train_step()
    broken.train_step()
    broken.save()
    FlowRun(tiny_flow(tmp_path / "broken", small_vae, steps=4, resume=True)).run()
    whole, parts = (
        StableDiffusionPipeline.from_pretrained(tmp_path / name / "pipeline", local_files_only=True)
        for name in ("whole", "broken")
    )
    for part in ("unet", "text_encoder", "vae"):
        same_weights(getattr(whole, part).state_dict(), getattr(parts, part).state_dict())
    pictures = [sample(whole, text, seed=4, steps=2, guidance=2.0, side=64) for text in ("dunes", "dunes", "a sea")]
    assert pictures[0].shape == (64, 64, 3)
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])
    assert probe(whole.scheduler, counts=(4, 8)) is not None
    card = json.loads((tmp_path / "broken" / "training.json").read_text())
    assert card["pictures_drawn"] > 3 and np.isfinite(card["loss_unseen"])


def test_the_pipeline_that_ships_fits_in_16_megabytes(tmp_path, tokenizer):
    autoencoder = small_pipeline.build_autoencoder(8, AutoencoderOptions(tmp_path).channels)
    parts = small_pipeline.build_denoiser(8), small_pipeline.build_text_encoder(tokenizer)
    small_pipeline.build_pipeline(autoencoder, *parts, tokenizer).save_pretrained(tmp_path / "full")
    nbytes = small_pipeline.save_half(tmp_path / "full", tmp_path / "half")
    assert nbytes < 16_000_000
    index = json.loads((tmp_path / "half" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["scheduler"][1] == "DPMSolverMultistepScheduler"
    assert {"vae", "unet", "text_encoder", "tokenizer", "scheduler"} <= set(index)


def test_the_tokenizer_takes_any_text_and_its_files_agree(tmp_path, tokenizer):
    from transformers import CLIPTokenizer

    ids = tokenizer("a volcanic archipelago at dawn").input_ids
    assert tokenizer.convert_ids_to_tokens(ids)[2:4] == ["volcanic</w>", "archipelago</w>"]
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    odd = "Zürich — 42 «ponies»!"
    assert tokenizer.decode(tokenizer(odd).input_ids, skip_special_tokens=True).replace(" ", "") == "zürich—42«ponies»!"
    assert train_flow.tokens_of(tokenizer, ["sea " * 99, ""]).shape == (2, small_tokenizer.MAX_TOKENS)
    assert max(len(tokenizer(text).input_ids) for text in small_tokenizer.sample_captions(9, 500)) < 36
    for name, text in small_tokenizer.vocabulary_files(tokenizer).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    plain = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for text in (odd, *small_tokenizer.sample_captions(10, 50)):
        assert plain(text).input_ids == tokenizer(text).input_ids


def test_the_sheets_last_prompts_are_of_what_is_held_out():
    words = {"fjords": "fjord", "dusk": "at dusk", "reefs": "lagoons", "ice": "icy", "volcanoes": "volcanic"}

    def says(prompt, concept):
        return words.get(concept, concept) in prompt.replace("at sunset", "at dusk")

    held_out = [any(all(says(p, c) for c in pair) for pair in draw.HELD_OUT) for p in PROMPTS]
    assert held_out == [False] * (len(PROMPTS) - 6) + [True] * 6


@pytest.mark.parametrize("module", [train_worlds, train_flow])
def test_faults_are_one_line(module, tmp_path, small_vae, capsys):
    extra = ["--autoencoder", str(small_vae)] if module is train_flow else []
    assert module.main(["--resume", "--out", str(tmp_path), *extra]) == 1
    assert re.fullmatch(r"error: no[^\n]*; [^\n]*train without --resume first\n", capsys.readouterr().err)
    if extra:
        assert module.main(["--autoencoder", str(tmp_path), "--out", str(tmp_path)]) == 1
        assert re.fullmatch(r"error: no autoencoder in [^\n]*; run train_worlds first\n", capsys.readouterr().err)
