"""A small autoencoder, and what it is trained to make small.

    loss = mean |d - x| + mean (d - x)^2 + 1/2 mean |grad d - grad x| + 2e-3 (mean_c (E[z_c^2] - 1)^2 + mean_c E[z_c]^2)
         + a mean (z_0..2 - colour means of 8 x 8 px)^2
    z = encode(x).mean,     d = decode(z + 0.04 n),  n standard normal: the posterior's width is fixed, not learnt

a, the anchor, is 1 when training starts and 0 for most of it. Without it all four latents first learn light, and
colour comes very late.

Shapes   x, d: (n, 3, height, width) in [-1, 1]; z: (n, 4, height / 8, width / 8), of about unit deviation.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

POSTERIOR_STD = 0.04


def build_autoencoder(channels: tuple[int, ...]) -> Any:
    """A fresh AutoencoderKL, f8 with 4 latent channels, whose posterior has the same small width everywhere."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=4,  # 8 would be two of 16 channels each, and two normalised values of an even picture are +-1
        latent_channels=4,
        sample_size=256,
    )
    with torch.no_grad():  # no gradient reaches the log variance, and nothing decays, so it stays where it is put
        model.quant_conv.weight[4:] = 0
        model.quant_conv.bias[4:] = 2 * math.log(POSTERIOR_STD)
    return model.to(memory_format=torch.channels_last)


def colour_means(pixels: Tensor) -> Tensor:
    """Light and two colour differences of every 8 x 8 pixels, each of about unit deviation: (n, 3, side / 8, .)."""
    red, green, blue = F.avg_pool2d(pixels, 8).unbind(1)
    return torch.stack([(red + green + blue) * 0.6, (red - blue) * 3, (green - (red + blue) / 2) * 4], 1)


def losses(model: Any, pixels: Tensor, anchor: float) -> tuple[Tensor, Tensor]:
    """The loss at the head of this file, and its first term alone; `anchor` is a."""
    latents = model.encode(pixels).latent_dist.mean
    error = model.decode(latents + POSTERIOR_STD * torch.randn_like(latents)).sample - pixels
    l1 = error.abs().mean()
    slopes = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    moments = (latents.pow(2).mean((0, 2, 3)) - 1).pow(2).mean() + latents.mean((0, 2, 3)).pow(2).mean()
    loss = l1 + error.pow(2).mean() + 0.5 * slopes + 2e-3 * moments
    if anchor > 0:
        loss = loss + anchor * F.mse_loss(latents[:, :3], colour_means(pixels))
    return loss, l1.detach()
