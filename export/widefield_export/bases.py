"""What checkpoints are of: the families, and what each does unless told otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from widefield.errors import BadCheckpoint


@dataclass(frozen=True, slots=True)
class Base:
    """A family of checkpoints. `tokens` of text where no tokenizer says; `scale`, pixels a latent, where no autoencoder
    does. `steps`, `guidance` and `strength` are the usual ones of its pipelines, not measured here."""

    name: str
    folder: str  # of the denoiser
    family: str
    tokens: int
    scale: int
    steps: int
    guidance: float
    strength: float


BASES = (
    Base("SD", "unet", "UNet2DConditionModel", 77, 8, 25, 7.5, 0.35),
    Base("SDXL", "unet", "UNet2DConditionModel", 77, 8, 30, 5.0, 0.35),
    Base("SD3", "transformer", "SD3Transformer2DModel", 77 + 256, 8, 28, 7.0, 0.5),
    Base("FLUX.1", "transformer", "FluxTransformer2DModel", 512, 8, 28, 3.5, 0.5),
    Base("SANA", "transformer", "SanaTransformer2DModel", 300, 32, 20, 4.5, 0.5),
)
NAMED = {base.name: base for base in BASES}


def base_of(family: str, config: Mapping[str, Any]) -> Base:
    """The family of a denoiser by its class and config. BadCheckpoint for a class that is not exported."""
    if family == "UNet2DConditionModel":
        return NAMED["SDXL" if config.get("addition_embed_type") == "text_time" else "SD"]
    for base in BASES:
        if base.family == family:
            return base
    known = ", ".join(dict.fromkeys(base.family for base in BASES))
    raise BadCheckpoint(
        f"found a denoiser of class {family}; wanted one of {known}; --autoencoder-only exports the rest without it"
    )


def guidance_kind(base: Base, config: Mapping[str, Any]) -> str:
    """How a model is guided: by a second call ("free"), by an input ("embedded"), or not at all ("none")."""
    if config.get("guidance_embeds") or config.get("time_cond_proj_dim") is not None:
        return "embedded"
    return "none" if base.name == "FLUX.1" else "free"


def defaults_of(base: Base, config: Mapping[str, Any], scheduler: Any) -> dict[str, Any]:
    """Steps, guidance and strength as the manifest has them.

    Distilled models show in their scheduler: LCM, TCD, or Euler with trailing timesteps (turbo, lightning);
    FLUX.1-schnell in having no guidance.
    """
    kind = guidance_kind(base, config)
    steps, guidance = base.steps, base.guidance
    name, spacing = type(scheduler).__name__, scheduler.config.get("timestep_spacing")
    few = name in ("LCMScheduler", "TCDScheduler") or (
        base.name in ("SD", "SDXL") and name.startswith("Euler") and spacing == "trailing"
    )
    if few:
        steps, guidance = 4, 8.5 if kind == "embedded" else 1.0
    elif kind == "none":
        steps, guidance = 4, 1.0
    return {"steps": steps, "guidance": guidance, "strength": base.strength, "guidance_kind": kind}
