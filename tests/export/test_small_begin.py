"""Training that begins with a pipeline: what fits is taken, a narrower time embedding says nearly the same."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel

from widefield.errors import BadRequest
from widefield_export import small_pipeline
from widefield_export.small_begin import begin_denoiser
from widefield_export.small_tokenizer import build_tokenizer, sample_captions
from widefield_export.train_flow import FlowOptions, FlowRun

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:(diffusers|huggingface_hub|transformers).*"),
    pytest.mark.filterwarnings("ignore:.*torch_dtype.*:FutureWarning"),
]


def wide_denoiser():
    """One as before: with a middle, and twice as wide a time embedding; its weights are not tiny."""
    torch.manual_seed(1)
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(32, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=small_pipeline.TEXT_WIDTH, attention_head_dim=(1, 1), norm_num_groups=16,
        time_embedding_dim=2 * small_pipeline.TIME_WIDTH,
    )  # fmt: skip


@torch.no_grad()
def test_what_fits_is_taken_and_times_are_told_apart_as_before(tmp_path):
    before = wide_denoiser()
    before.save_pretrained(tmp_path / "unet")
    torch.manual_seed(2)
    made = small_pipeline.build_denoiser(4, (32, 32))
    told = begin_denoiser(made, tmp_path)
    assert told["worst_fit"] < 0.1 and 0.8 * told["of"] < told["taken"] < told["of"]
    torch.testing.assert_close(made.conv_in.weight, before.conv_in.weight, rtol=0, atol=0)
    times = torch.tensor([0.0, 17.5, 600.0, 999.0])  # one that was not fitted, too
    name = "down_blocks.0.resnets.0.time_emb_proj"
    was, now = (
        of.get_submodule(name)(torch.nn.functional.silu(of.time_embedding(of.time_proj(times))))
        for of in (before, made)
    )
    assert (now - was).pow(2).mean().sqrt() < 0.1 * was.std()


@torch.no_grad()
def test_the_same_build_is_taken_whole(tmp_path):
    before = small_pipeline.build_denoiser(4, (32, 32))
    before.save_pretrained(tmp_path / "unet")
    made = small_pipeline.build_denoiser(4, (32, 32))
    told = begin_denoiser(made, tmp_path)
    assert told["taken"] == told["of"] and told["worst_fit"] == 0
    for one, other in zip(before.parameters(), made.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_run_begins_with_a_pipeline_and_its_card_says_so(tmp_path):
    autoencoder = small_pipeline.build_autoencoder(4, (8, 8, 8, 16))
    autoencoder.save_pretrained(tmp_path / "vae")
    tokenizer = build_tokenizer(sample_captions(0, 200))
    parts = small_pipeline.build_denoiser(4, (32, 32)), small_pipeline.build_text_encoder(tokenizer)
    small_pipeline.build_pipeline(autoencoder, *parts, tokenizer).save_pretrained(tmp_path / "before")
    (tmp_path / "before" / "training.json").write_text(json.dumps({"flow": {"steps": 3}}))
    small = {"channels": (32, 32), "pool": 3, "first": 2, "side_px": 64, "batch": 2, "checks": 2}
    options = FlowOptions(
        tmp_path / "flow", steps=1, autoencoder=tmp_path / "vae", begin=tmp_path / "before", **small
    )  # fmt: skip
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    run = FlowRun(options)
    torch.testing.assert_close(run.model["text"].state_dict(), parts[1].state_dict(), rtol=0, atol=0)
    run.run()
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
    assert json.loads((tmp_path / "flow" / "training.json").read_text())["begun_with"] == {"steps": 3}
    with pytest.raises(BadRequest, match=r"no unet in .*wanted a pipeline's folder"):
        begin_denoiser(parts[0], tmp_path)
