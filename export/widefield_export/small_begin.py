"""Begin training with a pipeline that was trained before, whose denoiser may be of another build.

Weights of the same name and shape are taken. Where the time embedding e(t) is narrower, both of its layers keep the
features that vary most, and what follows is fitted to what it was, as a function of one number takes few to follow:

    minimise over W', b'    mean_t |W' f'(t) + b' - (W f(t) + b)|^2 + RIDGE |W'|^2

with f a layer's input and f' the features that were kept of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from widefield.errors import BadRequest

TIMES = 1000
RIDGE = 1e-6


def load_text_encoder(folder: Path) -> Any:
    """A pipeline's CLIPTextModel in float32."""
    from transformers import CLIPTextModel

    return CLIPTextModel.from_pretrained(_part(folder, "text_encoder"), dtype=torch.float32, local_files_only=True)


@torch.no_grad()
def begin_denoiser(denoiser: Any, folder: Path) -> dict[str, float]:
    """Give a fresh UNet2DConditionModel what it can take of a pipeline's; says how many of its numbers it took, and how
    far off what is fitted is, of its deviation."""
    from diffusers import UNet2DConditionModel

    before = UNet2DConditionModel.from_pretrained(
        _part(folder, "unet"), torch_dtype=torch.float32, local_files_only=True
    )
    theirs, own = before.state_dict(), denoiser.state_dict()
    taken = {name: value for name, value in theirs.items() if name in own and own[name].shape == value.shape}
    denoiser.load_state_dict({**own, **taken})
    fitted = [
        name.removesuffix(".weight") for name in own if name.endswith("time_emb_proj.weight") and name not in taken
    ]
    worst = _narrow(denoiser, before, fitted) if fitted else 0.0
    count = sum(value.numel() for value in taken.values())
    return {"taken": count, "of": sum(value.numel() for value in own.values()), "worst_fit": round(worst, 6)}


def _narrow(denoiser: Any, before: Any, fitted: list[str]) -> float:
    """Fit a narrower time embedding, and the layers `fitted` that read it. Gives the largest error left."""
    waves = before.time_proj(torch.arange(TIMES, dtype=torch.float32))
    theirs, own = before.time_embedding, denoiser.time_embedding
    width = len(own.linear_1.weight)
    hidden = F.silu(theirs.linear_1(waves))
    kept = hidden.var(0).topk(width).indices
    own.linear_1.weight.copy_(theirs.linear_1.weight[kept])
    own.linear_1.bias.copy_(theirs.linear_1.bias[kept])
    embedded = theirs.linear_2(hidden)
    _fit(own.linear_2, hidden[:, kept], embedded[:, F.silu(embedded).var(0).topk(width).indices])
    features = F.silu(own(waves))
    return max(
        _fit(denoiser.get_submodule(name), features, before.get_submodule(name)(F.silu(embedded))) for name in fitted
    )


def _part(folder: Path, name: str) -> Path:
    if not (folder / name / "config.json").is_file():
        raise BadRequest(f"no {name} in {folder}; wanted a pipeline's folder to begin with; name another")
    return folder / name


def _fit(layer: Any, features: Tensor, target: Tensor) -> float:
    """Set a linear layer to the W', b' at the head of this file; gives the error that is left, of the deviation."""
    known = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    penalty = RIDGE * torch.eye(known.shape[1], dtype=torch.float64)
    penalty[-1, -1] = 0
    found = torch.linalg.solve(known.T @ known / len(known) + penalty, known.T @ target.double() / len(known)).float()
    layer.weight.copy_(found[:-1].T)
    layer.bias.copy_(found[-1])
    return float((layer(features) - target).pow(2).mean().sqrt() / target.std())
