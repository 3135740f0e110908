"""How well an autoencoder gives pictures back: numbers, and a sheet to look at.

    PSNR = -10 log10 mean (a - b)^2

Shapes   pictures (height, width, 3) float32 in [0, 1]; sides are multiples of the autoencoder's factor.
Units    dB, peak 1, after clipping.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.float32]


@torch.no_grad()
def reconstruct(model: Any, picture: Picture) -> Picture:
    """Encode and decode (height, width, 3) through the posterior's mean."""
    pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].to(model.device) * 2 - 1
    decoded = model.decode(model.encode(pixels).latent_dist.mean).sample
    return np.asarray((decoded[0].permute(1, 2, 0).float().cpu().numpy() / 2 + 0.5).clip(0, 1), np.float32)


def psnr(a: Picture, b: Picture) -> float:
    """Peak signal to noise ratio of two pictures in [0, 1], dB."""
    return float(-10 * np.log10(np.mean((a.astype(np.float64) - b) ** 2) + 1e-12))


def contact_sheet(pairs: Iterable[tuple[Picture, Picture]]) -> Image.Image:
    """Every original above its reconstruction, side by side on black."""
    pairs = list(pairs)
    height = max(original.shape[0] for original, _ in pairs)
    columns = []
    for original, given_back in pairs:
        pad = ((0, height - original.shape[0]), (0, 8), (0, 0))
        columns.append(np.concatenate([np.pad(original, pad), np.pad(given_back, pad)], 0))
    return Image.fromarray((np.concatenate(columns, 1) * 255 + 0.5).astype(np.uint8))
