"""A sheet of a pipeline's samples: one row of pictures for each few prompts, to look at while it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

COLUMNS = 6
# The last six are of compositions that training never draws (worlds/draw.py, HELD_OUT).
PROMPTS = (
    "a volcanic archipelago at dawn, from space",
    "a desert with dunes",
    "an icy fjord coast",
    "a rainforest river delta",
    "mountains at night, city lights",
    "islands from far above, cloudy",
    "green mountains with snow, from high above",
    "a savanna plain with a winding river",
    "coral reefs and lagoons, a satellite picture",
    "a temperate coast at dusk, from high above",
    "canyons in the desert at sunrise",
    "a frozen coast at night",
    "sand dunes at night",
    "a fjord coast at sunset",
    "turquoise lagoons at dawn",
    "a rainforest at dusk",
    "icy volcanic islands, from space",
    "a river delta at night",
)


@torch.no_grad()
def sample(pipeline: Any, prompt: str, *, seed: int, steps: int, guidance: float, side: int) -> NDArray[np.float32]:
    """A picture (side, side, 3) in [0, 1]: noise from `seed`, the scheduler's steps, guidance against no caption."""
    scheduler, unet, vae = pipeline.scheduler, pipeline.unet, pipeline.vae
    context = torch.cat(pipeline.encode_prompt(prompt, unet.device, 1, True)[::-1])  # without the caption, with it
    shape = (1, unet.config.in_channels, side // 8, side // 8)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(unet.device)
    scheduler.set_timesteps(steps)
    for time in scheduler.timesteps:
        without, given = unet(latents.expand(2, -1, -1, -1), time, context).sample.chunk(2)
        latents = scheduler.step(without + guidance * (given - without), time, latents).prev_sample
    pixels = vae.decode(latents / vae.config.scaling_factor).sample[0].permute(1, 2, 0)
    return np.asarray((pixels.float().cpu().numpy() / 2 + 0.5).clip(0, 1), np.float32)


def sample_sheet(
    pipeline: Any, prompts: Sequence[str], *, seed: int, steps: int = 12, guidance: float = 3.0, side: int = 256
) -> Image.Image:
    """One picture a prompt, each from its own seed."""
    pictures = [
        sample(pipeline, prompt, seed=seed * 1000 + k, steps=steps, guidance=guidance, side=side)
        for k, prompt in enumerate(prompts)
    ]
    pictures += [np.zeros_like(pictures[0])] * (-len(pictures) % COLUMNS)
    rows = [np.concatenate(pictures[k : k + COLUMNS], 1) for k in range(0, len(pictures), COLUMNS)]
    return Image.fromarray((np.concatenate(rows) * 255 + 0.5).astype(np.uint8))
