"""Small, randomly initialised autoencoders of the real classes, and a decode that does not round.

Attention weights are enlarged so that the softmax is far from uniform, and norms get unlike gammas and betas: with
diffusers' initialisation a wrong attention or a swapped channel would hardly show.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray

from widefield.bundle import Bundle, Component
from widefield.coder import TileCoder
from widefield.engine import EngineOptions
from widefield.geometry import Region
from widefield.render import Grid
from widefield.summary import Summary

ROUGH = {
    "AutoencoderKL": lambda latent_channels=4: diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 24, 32), latent_channels=latent_channels, norm_num_groups=8, layers_per_block=1,
        shift_factor=0.1,
    ),
    "AutoencoderKLFlux2": lambda: diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 24, 32), latent_channels=4, norm_num_groups=8, layers_per_block=1,
    ),
    "AutoencoderTiny": lambda: diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
    ),
    "AutoencoderDC": lambda: diffusers.AutoencoderDC(
        latent_channels=8, attention_head_dim=8,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(16, 32, 32), decoder_block_out_channels=(16, 32, 32),
        encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 2),
        encoder_qkv_multiscales=((), (), (5,)), decoder_qkv_multiscales=((), (), (5,)),
        upsample_block_type="interpolate", downsample_block_type="stride_conv", scaling_factor=0.41407,
    ),
    "AutoencoderDC pixel shuffle": lambda: diffusers.AutoencoderDC(
        latent_channels=8, attention_head_dim=8,
        encoder_block_types=("ResBlock", "EfficientViTBlock"), decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(16, 32), decoder_block_out_channels=(16, 32),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        upsample_block_type="pixel_shuffle", downsample_block_type="pixel_unshuffle", scaling_factor=0.41407,
    ),
    "AutoencoderKLQwenImage": lambda: diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=16, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[False, True],
    ),
    "AutoencoderKLWan": lambda: diffusers.AutoencoderKLWan(
        base_dim=8, z_dim=16, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[False, True],
    ),
}  # fmt: skip


def make(name: str, seed: int = 0, **changes: Any) -> Any:
    """One of ROUGH, in evaluation mode, with weights that make every part count."""
    torch.manual_seed(seed)
    vae = ROUGH[name](**changes).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in vae.named_parameters():
            if parameter.ndim == 1 and any(part in key for part in ("norm", "bias")):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
            if "to_q" in key or "to_k" in key or "to_qkv" in key:
                parameter.mul_(2.5)
        for key, buffer in vae.named_buffers():
            if key.endswith("running_mean"):
                buffer.add_(0.3 * torch.randn(buffer.shape, generator=generator))
            elif key.endswith("running_var"):
                buffer.mul_(1.7)
    return vae


def half_dark(channels: int, height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """(channels, height, width): the left half nearly flat and low, the right half busy, with a drift downwards."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((channels, height, width)).astype(np.float32)
    x[:, :, : width // 2] = x[:, :, : width // 2] * 0.05 - 1.0
    return x + np.linspace(-0.5, 0.5, height, dtype=np.float32)[None, :, None]


class ArraySource:
    """An array (channels, height, width) as a component's input."""

    def __init__(self, array: NDArray[np.float32]) -> None:
        self.array = array
        self.channels, self.height, self.width = array.shape

    def read(self, region: Region) -> NDArray[np.float32]:
        out = np.zeros((self.channels, region.height, region.width), np.float32)
        part = region.clipped(Region(0, 0, self.height, self.width))
        if part:
            out[:, *part.shifted(-region.y0, -region.x0).slices] = self.array[:, *part.slices]
        return out


def decode_floats(
    bundle: Bundle,
    component: Component,
    source: ArraySource,
    summary: Summary,
    tile: tuple[int, int],
    engine: str = "ort",
    order: Callable[[list[Region]], list[Region]] = list,
    batch: int = 1,
) -> NDArray[np.float32]:
    """(channels, height, width) of the whole picture, tile by tile through the fused graphs, before quantisation."""
    coder = TileCoder(bundle, component, source, summary, tile, batch, EngineOptions(engine), interior_from=1)
    scale = component.output_scale
    out = np.full((component.output_channels, coder.height * scale, coder.width * scale), np.nan, np.float32)
    grid = Grid(coder.height, coder.width, scale, tile, scale * 64)
    try:
        for where in order([t for block in grid.blocks() for t in grid.tiles(block)]):
            kept = where.clipped(grid.picture).scaled(scale)
            part = coder([where])[0][:, *kept.shifted(-where.y0 * scale, -where.x0 * scale).slices]
            out[:, *kept.slices] = part
    finally:
        coder.close()
    return out
