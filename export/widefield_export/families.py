"""The autoencoders of diffusers as two functions of (batch, channels, rows, columns): latents to picture, and back.

Latents are as the pipeline of the family hands them to its decoder, `output_type="latent"`, in the layout (C, H, W):
scaled and shifted for AutoencoderKL and AutoencoderDC, per channel for Qwen-Image and Wan, packed 2 x 2 and normalised
by the latent batch-norm for FLUX.2. The picture is in [-1, 1].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from widefield.errors import BadCheckpoint
from widefield_export.lower import Lowering
from widefield_export.program import Program
from widefield_export.rewrites import rewrite
from widefield_export.rules import RULES

FAMILIES = (
    "AutoencoderKL",
    "AutoencoderKLFlux2",
    "AutoencoderTiny",
    "AutoencoderDC",
    "AutoencoderKLQwenImage",
    "AutoencoderKLWan",
)


class Coder(nn.Module):
    """One direction of an autoencoder. The affine map between the pipeline's latents and the network's is inside."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.family = type(vae).__name__
        if self.family not in FAMILIES:
            raise BadCheckpoint(f"found an autoencoder of class {self.family}; there are {', '.join(FAMILIES)}")
        config = vae.config
        self.frames = self.family in ("AutoencoderKLQwenImage", "AutoencoderKLWan")
        self.packed = self.family == "AutoencoderKLFlux2"
        mean, std = latent_affine(vae)
        self.register_buffer("latent_mean", mean)
        self.register_buffer("latent_std", std)
        if self.frames and getattr(config, "patch_size", None) not in (None, 1):
            raise BadCheckpoint(
                f"found patch_size {config.patch_size} in {self.family}; only unpatched ones are supported"
            )


def latent_affine(vae: Any) -> tuple[Tensor, Tensor]:
    """(mean, std), each (1, C, 1, 1): the network's latents are `z * std + mean`."""
    config, family = vae.config, type(vae).__name__
    if family in ("AutoencoderKLQwenImage", "AutoencoderKLWan"):
        mean, std = torch.tensor(config.latents_mean), torch.tensor(config.latents_std)
    elif family == "AutoencoderKLFlux2":
        mean, std = vae.bn.running_mean, torch.sqrt(vae.bn.running_var + config.batch_norm_eps)
    elif family == "AutoencoderTiny":
        mean, std = torch.zeros(1), torch.ones(1)
    else:
        mean, std = torch.tensor([float(getattr(config, "shift_factor", None) or 0.0)]), torch.ones(1)
        if getattr(config, "latents_mean", None) and getattr(config, "latents_std", None):  # Playground 2.5
            mean, std = torch.tensor(config.latents_mean), torch.tensor(config.latents_std)
        std = std / config.scaling_factor
    return mean.detach().float().reshape(1, -1, 1, 1), std.detach().float().reshape(1, -1, 1, 1)


class Decoder(Coder):
    """Latents to a picture."""

    def forward(self, z: Tensor) -> Tensor:
        """(B, C, h, w) latents to (B, 3, h * scale, w * scale) in [-1, 1]."""
        if self.family != "AutoencoderTiny":
            z = z * self.latent_std + self.latent_mean
        if self.packed:
            z = nn.functional.pixel_shuffle(z, 2)
        picture = self.vae.decode(z[:, :, None] if self.frames else z, return_dict=False)[0]
        return picture[:, :, 0] if self.frames else picture  # type: ignore[no-any-return]


class Encoder(Coder):
    """A picture to latents."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to (B, C, H / scale, W / scale) latents: the mode of the posterior."""
        encoded = self.vae.encode(x[:, :, None] if self.frames else x, return_dict=False)[0]
        z = encoded if isinstance(encoded, Tensor) else encoded.mode()
        z = z[:, :, 0] if self.frames else z
        if self.packed:
            z = nn.functional.pixel_unshuffle(z, 2)
        return z if self.family == "AutoencoderTiny" else (z - self.latent_mean) / self.latent_std


def latent_channels(vae: Any) -> int:
    """Channels of the latents as a pipeline hands them over."""
    config = vae.config
    if type(vae).__name__ in ("AutoencoderKLQwenImage", "AutoencoderKLWan"):
        return int(config.z_dim)
    channels = int(config.latent_channels)
    return channels * 4 if type(vae).__name__ == "AutoencoderKLFlux2" else channels


def scale_factor(vae: Any) -> int:
    """Pixels a latent, per side."""
    config = vae.config
    match type(vae).__name__:
        case "AutoencoderKL":
            return int(2 ** (len(config.block_out_channels) - 1))
        case "AutoencoderKLFlux2":
            return int(2 ** len(config.block_out_channels))
        case "AutoencoderTiny":
            return int(2 ** (len(config.decoder_block_out_channels) - 1))
        case "AutoencoderDC":
            return int(vae.spatial_compression_ratio)
        case _:
            return int(2 ** len(config.temperal_downsample))


def localise(vae: Any, direction: str) -> Program:
    """The local program of `decoder` or `encoder`, rewritten; raises UnsupportedGraph for an unknown operation."""
    scale = scale_factor(vae)
    module = (Decoder if direction == "decoder" else Encoder)(vae).eval()
    batch = torch.export.Dim("batch", min=2, max=63)
    rows, columns = (torch.export.Dim(n, min=4, max=4096) for n in ("rows", "columns"))
    if direction == "decoder":
        example = torch.zeros(2, latent_channels(vae), 16, 24)
        shapes = ({0: batch, 2: rows, 3: columns},)
    else:
        example = torch.zeros(2, 3, 16 * scale, 24 * scale)
        shapes = ({0: batch, 2: scale * rows, 3: scale * columns},)
    with torch.no_grad():
        exported = torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)
    return rewrite(Lowering(exported, direction, RULES).run())
