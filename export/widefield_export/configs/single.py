"""Single .safetensors files of whole models: how to tell them by names of tensors, and the configs of those that people
publish. A file is taken for one of `VARIANTS` when its denoiser has exactly that one's tensors; else it is refused.

Numbers are those of the published models' config.json files; what is a class's default is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LDM = "model.diffusion_model."
MARKS = {  # base, by a tensor that its layout alone has
    "SDXL": "label_emb.0.0.weight",
    "SD": "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
    "SD3": "joint_blocks.0.context_block.adaLN_modulation.1.weight",
    "FLUX.1": "double_blocks.0.img_attn.norm.key_norm.scale",
    "SANA": "blocks.0.cross_attn.q_linear.weight",
}
FOREIGN = {  # layouts that share tensors with the above, and other models that people have
    "edm_mean": "Playground 2.5",
    "single_stream_modulation.lin.weight": "FLUX.2",
    "early_stream_modulations.image.lin.weight": "FLUX.3",
    "distilled_guidance_layer.in_proj.bias": "Chroma",
    "txt_in.text_norm.weight": "Qwen-Image 2.1",
    "txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.bias": "HunyuanVideo",
    "layers.0.adaLN_modulation.0.weight": "Z-Image",
    "cap_embedder.0.weight": "Lumina 2",
    "double_stream_blocks.0.block.adaLN_modulation.1.bias": "HiDream",
    "head.modulation": "Wan",
}


@dataclass(frozen=True, slots=True)
class Variant:
    """A published model. `encoders` by the names of their folders; `scheduler` as scheduler_config.json."""

    name: str
    base: str
    config: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    encoders: Mapping[str, Encoder] = field(default_factory=dict)
    zeros: bool = False


@dataclass(frozen=True, slots=True)
class Encoder:
    """A text encoder in a single file: under one of `prefixes`, in transformers' names or in those of `open_clip`."""

    family: str
    prefixes: tuple[str, ...]
    config: Mapping[str, Any]
    open_clip: bool = False


_L = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "projection_dim": 768,
    "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
}  # fmt: skip
_G = _L | {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "hidden_act": "gelu", "projection_dim": 1280,
}  # fmt: skip
_XXL = {
    "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu", "is_encoder_decoder": True, "tie_word_embeddings": False,
}  # fmt: skip
CLIP, CLIP_PROJECTED, T5 = "CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"
_FLUX_ENCODERS = {
    "text_encoder": Encoder(CLIP, ("text_encoders.clip_l.transformer.",), _L),
    "text_encoder_2": Encoder(T5, ("text_encoders.t5xxl.transformer.",), _XXL),
}
_SD3_ENCODERS = {
    "text_encoder": Encoder(CLIP_PROJECTED, ("text_encoders.clip_l.transformer.",), _L),
    "text_encoder_2": Encoder(CLIP_PROJECTED, ("text_encoders.clip_g.transformer.",), _G),
    "text_encoder_3": Encoder(T5, ("text_encoders.t5xxl.transformer.",), _XXL),
}
_SDXL_ENCODERS = {
    "text_encoder": Encoder(CLIP, ("conditioner.embedders.0.transformer.",), _L),
    "text_encoder_2": Encoder(CLIP_PROJECTED, ("conditioner.embedders.1.model.",), _G, open_clip=True),
}

_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_DPM = {"_class_name": "DPMSolverMultistepScheduler", **_BETAS}
_EULER = {"_class_name": "EulerDiscreteScheduler", **_BETAS, "timestep_spacing": "leading"}
_FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
_SANA_FLOW = {
    "_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True, "prediction_type": "flow_prediction",
    "flow_shift": 3.0,
}  # fmt: skip
_DYNAMIC = {
    "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256,
    "max_image_seq_len": 4096, "shift": 3.0,
}  # fmt: skip

_SD15 = {"sample_size": 64, "cross_attention_dim": 768}
_SDXL = {
    "sample_size": 128, "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20], "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
_SD3 = {
    "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192,
}  # fmt: skip
_SD35_LARGE = _SD3 | {
    "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm",
}  # fmt: skip
_SD35_MEDIUM = _SD3 | {
    "pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": list(range(13)),
}  # fmt: skip
_SANA_SMALL = {
    "num_attention_heads": 36, "num_layers": 28, "num_cross_attention_heads": 16, "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
}  # fmt: skip

VARIANTS = (
    Variant("SD 1.5", "SD", _SD15, _DPM, {"text_encoder": Encoder(CLIP, ("cond_stage_model.transformer.",), _L)}),
    Variant("SDXL", "SDXL", _SDXL, _EULER, _SDXL_ENCODERS, zeros=True),
    Variant("SD 3 medium", "SD3", _SD3, _FLOW | {"shift": 3.0}, _SD3_ENCODERS),
    Variant("SD 3.5 medium", "SD3", _SD35_MEDIUM, _FLOW | {"shift": 3.0}, _SD3_ENCODERS),
    Variant("SD 3.5 large", "SD3", _SD35_LARGE, _FLOW | {"shift": 3.0}, _SD3_ENCODERS),
    Variant("FLUX.1-dev", "FLUX.1", {"guidance_embeds": True}, _FLOW | _DYNAMIC, _FLUX_ENCODERS),
    Variant("FLUX.1-schnell", "FLUX.1", {}, _FLOW | {"shift": 1.0}, _FLUX_ENCODERS),
    Variant("SANA 1.6B", "SANA", {}, _SANA_FLOW),
    Variant("SANA 0.6B", "SANA", _SANA_SMALL, _SANA_FLOW),
)
SANA_SCALES = {16: None, 32: None, 64: 1.0, 128: 2.0}  # sample_size, which pos_embed shows: interpolation_scale
