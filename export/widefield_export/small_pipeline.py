"""The small text-to-image pipeline: an autoencoder, a denoiser, a text encoder with its own tokenizer, a scheduler.

Ordinary classes of diffusers and transformers in an ordinary StableDiffusionPipeline folder, so that it goes through
exactly the export that any checkpoint goes through. What the autoencoder is trained to make small:

    loss = mean |e| + 2 mean e^2 + 1/2 mean |grad e| + 1/2 mean |e at half size| + 1/4 mean |e at quarter size|
         + 2e-3 (mean_c (E[z_c^2] - 1)^2 + mean_c E[z_c]^2)
    e = decode(z + POSTERIOR_STD n) - x,    z = encode(x).mean,    n standard normal

Shapes   x: (n, 3, height, width) in [-1, 1]; z: (n, latent channels, height / 8, width / 8), of about unit deviation.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from widefield_export.small_tokenizer import vocabulary_files

POSTERIOR_STD = 0.03
TEXT_WIDTH = 128
TIME_WIDTH = 128
WINDOW = 16  # latents a side, of a whole picture of level 0 and of the windows of the others
# How the pipeline is best used, for `widefield export`; diffusers leaves it alone.
ADVICE = {
    "steps": 8, "guidance": 2.0, "strength": 0.6, "detail_steps": 4, "detail_guidance": 1.0, "detail_phases": 2,
    "growth": 4,
}  # fmt: skip


def build_autoencoder(latent_channels: int, channels: tuple[int, ...]) -> Any:
    """A fresh AutoencoderKL, f8, whose posterior has the same small width everywhere."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=latent_channels,
        sample_size=256,
    )
    with torch.no_grad():
        for matrix in (model.quant_conv, model.post_quant_conv):  # the matrices about the latents start as nothing
            matrix.weight.copy_(torch.eye(len(matrix.weight))[:, :, None, None])
            matrix.bias.zero_()
        # No gradient reaches the log variance, and nothing decays, so it stays where it is put.
        model.quant_conv.weight[latent_channels:] = 0
        model.quant_conv.bias[latent_channels:] = 2 * math.log(POSTERIOR_STD)
    return model.to(memory_format=torch.channels_last)


def autoencoder_losses(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss at the head of this file, and the mean square error alone."""
    with torch.autocast(pixels.device.type, torch.bfloat16):
        latents = model.encode(pixels).latent_dist.mean.float()
        error = model.decode(latents + POSTERIOR_STD * torch.randn_like(latents)).sample.float() - pixels
    square = error.pow(2).mean()
    slopes = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    half = F.avg_pool2d(error, 2)
    coarse = half.abs().mean() / 2 + F.avg_pool2d(half, 2).abs().mean() / 4
    moments = (latents.pow(2).mean((0, 2, 3)) - 1).pow(2).mean() + latents.mean((0, 2, 3)).pow(2).mean()
    loss = error.abs().mean() + 2 * square + slopes / 2 + coarse + 2e-3 * moments
    return loss, square.detach()


def build_denoiser(latent_channels: int, channels: tuple[int, ...] = (64, 96, 128)) -> Any:
    """A fresh UNet2DConditionModel for windows of 16 x 16 latents; attention in heads of 32 below the finest level.

    It has no middle, which at 4 x 4 latents would see what the blocks before and after it do, and is a fifth of it.
    """
    from diffusers import UNet2DConditionModel

    levels = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=WINDOW,
        in_channels=latent_channels,
        out_channels=latent_channels,
        layers_per_block=1,
        block_out_channels=channels,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * levels),
        up_block_types=(*("CrossAttnUpBlock2D",) * levels, "UpBlock2D"),
        mid_block_type=None,
        time_embedding_dim=TIME_WIDTH,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=tuple(width // 32 for width in channels),  # diffusers' name for the number of heads
        norm_num_groups=16,
    ).to(memory_format=torch.channels_last)


def build_text_encoder(tokenizer: Any) -> Any:
    """A fresh CLIPTextModel of two layers for this tokenizer."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=3 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            projection_dim=TEXT_WIDTH,
        )
    )


def build_scheduler() -> Any:
    """A flow's second-order steps, by the one scheduler for flows that StableDiffusionPipeline can call."""
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=1.0,
        final_sigmas_type="zero",
        steps_offset=1,  # means nothing to a flow; the pipeline warns of any other
    )


def build_pipeline(autoencoder: Any, denoiser: Any, text_encoder: Any, tokenizer: Any) -> Any:
    """A StableDiffusionPipeline of these parts."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        unet=denoiser,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_half(folder: Path, to: Path, autoencoder: Path | None = None) -> int:
    """Write a pipeline's folder again with weights in half precision and ADVICE; gives the bytes of all its weights.

    `autoencoder`, the folder of one whose decoder may have been trained on since.
    """
    from diffusers import AutoencoderKL, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float16, local_files_only=True)
    if autoencoder is not None:
        pipeline.vae = AutoencoderKL.from_pretrained(autoencoder, torch_dtype=torch.float16, local_files_only=True)
    pipeline.unet.register_to_config(sample_size=WINDOW)
    pipeline.scheduler = build_scheduler()
    pipeline.save_pretrained(to)
    for name, text in vocabulary_files(pipeline.tokenizer).items():
        (to / "tokenizer" / name).write_text(text, encoding="utf-8")
    for file in (index := to / "model_index.json", *to.glob("*/config.json")):
        told = json.loads(file.read_text()) | ({"_widefield": ADVICE} if file == index else {})
        told.pop("_name_or_path", None)  # a folder of this machine
        file.write_text(json.dumps(told, indent=2) + "\n")
    return sum(path.stat().st_size for path in to.rglob("*.safetensors"))
