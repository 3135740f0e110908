"""What a single .safetensors file may hold: autoencoders whose config is known, and how to tell those of like shape.

A file is taken for one of `KNOWN` when the names and shapes of all its tensors are that one's. SD and SDXL are alike in
that, and so are SD3 and FLUX.1; what differs is the scale of their latents, which no tensor of the autoencoder shows.
Then another tensor of a full checkpoint (`WITNESSES`) or the hash of a published file (`PUBLISHED`) decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Known:
    """An autoencoder as people publish it. `config` is what differs from its class's defaults."""

    name: str
    family: str
    config: Mapping[str, Any]


_LEVELS = 4
_KL = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * _LEVELS,
    "up_block_types": ["UpDecoderBlock2D"] * _LEVELS,
    "layers_per_block": 2,
    "sample_size": 1024,
}
_KL16 = _KL | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}

KNOWN = (
    Known("SD", "AutoencoderKL", _KL | {"sample_size": 512, "scaling_factor": 0.18215}),
    Known("SDXL", "AutoencoderKL", _KL | {"scaling_factor": 0.13025}),
    Known("SD3", "AutoencoderKL", _KL16 | {"scaling_factor": 1.5305, "shift_factor": 0.0609}),
    Known("FLUX.1", "AutoencoderKL", _KL16 | {"scaling_factor": 0.3611, "shift_factor": 0.1159}),
    Known("FLUX.2", "AutoencoderKLFlux2", {}),
    Known("TAESD", "AutoencoderTiny", {"latent_channels": 4}),
    Known("TAEF1", "AutoencoderTiny", {"latent_channels": 16}),
)


@dataclass(frozen=True, slots=True)
class Witness:
    """A tensor outside the autoencoder that goes with one of `KNOWN`. `width`: its last dimension, if that matters."""

    known: str
    tensor: str
    width: int | None = None

    def seen(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether a checkpoint with tensors of these shapes has it."""
        shape = shapes.get(self.tensor)
        return shape is not None and (self.width is None or shape[-1:] == (self.width,))


_CONTEXT = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"  # (channels, text width)

WITNESSES = (
    Witness("SD", _CONTEXT, 768),
    Witness("SD", _CONTEXT, 1024),
    Witness("SDXL", _CONTEXT, 2048),
    Witness("SDXL", _CONTEXT, 1280),  # the refiner
    Witness("SD3", "model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.weight"),
    Witness("FLUX.1", "model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale"),
)
FOREIGN = ("edm_mean", "edm_std")  # Playground 2.5: SDXL's tensors, other latents

PUBLISHED = {
    "735e4c3a447a3255760d7f86845f09f937809baa529c17370d83e4c3758f3c75": "SD",  # vae-ft-mse-840000-ema-pruned
    "63aeecb90ff7bc1c115395962d3e803571385b61938377bc7089b36e81e92e2e": "SDXL",  # sdxl_vae
    "235745af8d86bf4a4c1b5b4f529868b37019a10f7c0b2e79ad0abca3a22bc6e1": "SDXL",  # sdxl-vae-fp16-fix
    "afc8e28272cd15db3919bacdb6918ce9c1ed22e96cb12c4d5ed0fba823529e38": "FLUX.1",  # ae
}
