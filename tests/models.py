"""Small, randomly initialised denoisers of the real classes, with weights that make every part count."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

UNET = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "norm_num_groups": 4,
    "block_out_channels": (8, 16), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 2, "cross_attention_dim": 12,
}  # fmt: skip
SDXL = UNET | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 20, "attention_head_dim": (2, 4), "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 6,
    "projection_class_embeddings_input_dim": 48,
}  # fmt: skip
SD3 = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8,
    "num_attention_heads": 2, "joint_attention_dim": 20, "caption_projection_dim": 16, "pooled_projection_dim": 24,
    "pos_embed_max_size": 12,
}  # fmt: skip
FLUX = {
    "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 20, "pooled_projection_dim": 12, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
SANA = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2,
    "num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 20,
    "sample_size": 8, "patch_size": 1,
}  # fmt: skip
DENOISERS = {
    "SD1.5": ("UNet2DConditionModel", UNET),
    "LCM": ("UNet2DConditionModel", UNET | {"time_cond_proj_dim": 10}),
    "SDXL": ("UNet2DConditionModel", SDXL),
    "SD3": ("SD3Transformer2DModel", SD3),
    "SD3.5": ("SD3Transformer2DModel", SD3 | {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}),
    "FLUX.1-dev": ("FluxTransformer2DModel", FLUX | {"guidance_embeds": True}),
    "FLUX.1-schnell": ("FluxTransformer2DModel", FLUX),
    "SANA": ("SanaTransformer2DModel", SANA | {"qk_norm": "rms_norm_across_heads", "timestep_scale": 0.5}),
    "SANA 2K": ("SanaTransformer2DModel", SANA | {"interpolation_scale": 2}),
}


def make_denoiser(name: str, **changes: Any) -> Any:
    """One of DENOISERS, evaluating: attention far from uniform, norms unlike each other, no part that is zero."""
    kind, config = DENOISERS[name]
    torch.manual_seed(len(name))
    return roughened(getattr(diffusers, kind)(**(config | changes)))


def roughened(model: Any) -> Any:
    """The model, evaluating, with vectors shifted at random and queries enlarged: every part counts."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            elif any(part in key for part in ("to_q", "add_q_proj", "q_proj", ".q.")):
                parameter.mul_(2.0)
    return model.eval()
