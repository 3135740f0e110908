"""Denoisers of diffusers behind one set of inputs, so that the runtime calls them alike.

    latent     (batch, channels, rows, columns)  scaled by the schedule's input_scale, unpacked also for FLUX.1
    timestep   (batch,)                          as the schedule has it: 0 to 1000
    text       (batch, tokens, width)
    pooled     (batch, width)                    SDXL, SD3, FLUX.1
    sizes      (batch, 6)                        SDXL: (rows, columns) in px of original, crop's corner, target
    guidance   (batch,)                          models that were distilled with their guidance inside
    text_mask  (batch, tokens)                   SANA: 1 for a token, 0 for padding
    position   (2,)                              row and column of the window's first patch, for models that know places

The result, `prediction`, has the latent's shape. What pipelines compute around the module (patches, ids, scales of time
and guidance) is inside. Rows and columns are fixed, the batch is not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from widefield.errors import BadCheckpoint
from widefield_export.graph_onnx import BATCH, Port

CLASSES = ("UNet2DConditionModel", "SD3Transformer2DModel", "FluxTransformer2DModel", "SanaTransformer2DModel")
OUTPUT = "prediction"


@dataclass(frozen=True, slots=True)
class Window:
    """The shape of a window, in latents."""

    rows: int
    columns: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"


@dataclass(frozen=True, slots=True, eq=False)
class Denoiser:
    """A module whose forward takes `inputs` in their order. Its diffusers model is the attribute `model`.

    `cell` is the side of a patch in latents: windows are multiples of it. `place` is the position that the pipeline
    uses, and `places` how many rows and columns of patches the model knows, 0 for any; None where it knows no places.
    """

    module: nn.Module
    inputs: tuple[Port, ...]
    cell: int
    place: tuple[int, int] | None = None
    places: int | None = None
    about: dict[str, Any] = field(default_factory=dict)


def denoiser(model: Any, window: Window, tokens: int) -> Denoiser:
    """A diffusers model for one window and `tokens` of text. BadCheckpoint where it wants more than `inputs` above."""
    kind = type(model).__name__
    match kind:
        case "UNet2DConditionModel":
            made = _unet(model, window, tokens)
        case "SD3Transformer2DModel":
            made = _sd3(model, window, tokens)
        case "FluxTransformer2DModel":
            made = _flux(model, window, tokens)
        case "SanaTransformer2DModel":
            made = _sana(model, window, tokens)
        case _:
            raise BadCheckpoint(
                f"found a denoiser of class {kind}; wanted one of {', '.join(CLASSES)}; export one of these"
            )
    if window.rows % made.cell or window.columns % made.cell or min(window.rows, window.columns) < made.cell:
        raise BadCheckpoint(
            f"found a window of {window} latents for {kind}; wanted multiples of {made.cell}; choose others"
        )
    return made


def native_window(model: Any) -> Window:
    """The window that the model was trained on, in latents."""
    size = model.config.get("sample_size") or 128
    rows, columns = size if isinstance(size, (list, tuple)) else (size, size)
    return Window(int(rows), int(columns))


def _latent(channels: int, window: Window) -> Port:
    return Port("latent", (BATCH, channels, window.rows, window.columns))


class _Unet(nn.Module):
    def __init__(self, model: Any, *, added: bool, guided: bool) -> None:
        super().__init__()
        self.model, self.added, self.guided = model, added, guided

    def forward(self, latent: Tensor, timestep: Tensor, text: Tensor, *more: Tensor) -> tuple[Tensor]:
        rest = list(more)
        added = {"text_embeds": rest.pop(0), "time_ids": rest.pop(0)} if self.added else None
        condition = sinusoid(rest.pop(0), self.model.config.time_cond_proj_dim) if self.guided else None
        return (
            self.model(latent, timestep, text, timestep_cond=condition, added_cond_kwargs=added, return_dict=False)[0],
        )


def sinusoid(guidance: Tensor, width: int) -> Tensor:
    """(batch,) to (batch, width): how latent consistency models are told their guidance, (guidance - 1) in thousands.

    Source: arXiv 2310.04378, section 4.2, and the pipeline of latent consistency models.
    """
    half = width // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / (half - 1)))
    angles = (guidance - 1.0)[:, None] * 1000.0 * rates[None]
    wave = torch.cat([angles.sin(), angles.cos()], dim=1)
    return nn.functional.pad(wave, (0, width % 2))


def _unet(model: Any, window: Window, tokens: int) -> Denoiser:
    config = model.config
    added = config.addition_embed_type == "text_time"
    odd = {
        "addition_embed_type": None if added else config.addition_embed_type,
        "class_embed_type": config.class_embed_type,
        "num_class_embeds": config.num_class_embeds,
        "encoder_hid_dim_type": config.encoder_hid_dim_type,
    }
    for name, value in odd.items():
        if value is not None:
            raise BadCheckpoint(
                f"found a UNet with {name} {value}; wanted one of text alone; such inputs are not exported"
            )
    if config.in_channels != config.out_channels:
        raise BadCheckpoint(
            f"found a UNet from {config.in_channels} to {config.out_channels} channels, for inpainting or another "
            "picture beside; wanted as many out as in; take the model for text to image"
        )
    ports = [_latent(config.in_channels, window), Port("timestep", (BATCH,)), _text(config.cross_attention_dim, tokens)]
    if added:
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        ports += [Port("pooled", (BATCH, pooled)), Port("sizes", (BATCH, 6))]
    guided = config.time_cond_proj_dim is not None
    if guided:
        ports.append(Port("guidance", (BATCH,)))
    return Denoiser(_Unet(model, added=added, guided=guided).eval(), tuple(ports), 1)


def _text(width: Any, tokens: int) -> Port:
    if not isinstance(width, int):
        raise BadCheckpoint(f"found text of widths {width}; wanted one width; such models are not exported")
    return Port("text", (BATCH, tokens, width))


class _Sd3(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.places: list[Tensor] = []  # of the call under way
        model.pos_embed.cropped_pos_embed = lambda rows, columns: self.places[-1]

    def forward(
        self, latent: Tensor, timestep: Tensor, text: Tensor, pooled: Tensor, position: Tensor
    ) -> tuple[Tensor]:
        embed, size = self.model.pos_embed, self.model.config.pos_embed_max_size
        table = embed.pos_embed.reshape(size, size, -1)
        rows, columns = (side // embed.patch_size for side in latent.shape[-2:])
        first = position.to(torch.int64)
        table = table.index_select(0, first[0] + torch.arange(rows)).index_select(1, first[1] + torch.arange(columns))
        self.places.append(table.reshape(1, rows * columns, -1))
        try:
            return (self.model(latent, text, pooled, timestep, return_dict=False)[0],)
        finally:
            self.places.pop()


def _sd3(model: Any, window: Window, tokens: int) -> Denoiser:
    config = model.config
    size, cell = config.pos_embed_max_size, config.patch_size
    if max(window.rows, window.columns) > size * cell:
        raise BadCheckpoint(
            f"found a window of {window} latents; wanted sides up to {size * cell}, where this model's places end; "
            "choose a smaller one"
        )
    ports = (
        _latent(config.in_channels, window), Port("timestep", (BATCH,)), _text(config.joint_attention_dim, tokens),
        Port("pooled", (BATCH, config.pooled_projection_dim)), Port("position", (2,)),
    )  # fmt: skip
    place = ((size - window.rows // cell) // 2, (size - window.columns // cell) // 2)
    return Denoiser(_Sd3(model).eval(), ports, cell, place, size)


class _Turns(nn.Module):
    """The angles of FLUX.1's rotary embedding, of a window whose first patch is at `position`.

    Turning by a sum of angles is turning twice: the patches' own angles are constants made in float64, as diffusers
    makes them, and the position's are made in float32, so no float64 is left in the graph.
    """

    cosine: Tensor
    sine: Tensor
    down: Tensor
    along: Tensor
    inside: Tensor

    def __init__(self, embed: Any, rows: int, columns: int, tokens: int) -> None:
        super().__init__()
        self.original = embed
        ids = torch.zeros(tokens + rows * columns, 3)
        ids[tokens:, 1] = torch.arange(rows).repeat_interleave(columns)
        ids[tokens:, 2] = torch.arange(columns).repeat(rows)
        rates = [embed.theta ** (-torch.arange(0, width, 2).double() / width) for width in embed.axes_dim]
        rate = torch.cat(rates).repeat_interleave(2).float()
        axis = torch.repeat_interleave(torch.arange(3), torch.tensor(embed.axes_dim))
        inside = torch.zeros(tokens + rows * columns, 1)
        inside[tokens:] = 1.0
        cosine, sine = (part.float() for part in embed(ids))
        down, along = ((axis == k).float() * rate for k in (1, 2))
        for name, value in (("cosine", cosine), ("sine", sine), ("down", down), ("along", along), ("inside", inside)):
            self.register_buffer(name, value, persistent=False)
        self.position: list[Tensor] = []  # of the call under way

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        place = self.position[-1]
        angle = self.inside * (place[0] * self.down + place[1] * self.along)[None]
        cosine, sine = angle.cos(), angle.sin()
        return self.cosine * cosine - self.sine * sine, self.sine * cosine + self.cosine * sine


class _Flux(nn.Module):
    def __init__(self, model: Any, window: Window, tokens: int) -> None:
        super().__init__()
        self.model = model
        embed = model.pos_embed.original if isinstance(model.pos_embed, _Turns) else model.pos_embed
        self.turns = _Turns(embed, window.rows // 2, window.columns // 2, tokens)
        model.pos_embed = self.turns

    def forward(self, latent: Tensor, timestep: Tensor, text: Tensor, pooled: Tensor, *more: Tensor) -> tuple[Tensor]:
        batch, channels, rows, columns = latent.shape
        guidance = more[0] if self.model.config.guidance_embeds else None
        patches = latent.reshape(batch, channels, rows // 2, 2, columns // 2, 2).permute(0, 2, 4, 1, 3, 5)
        ids = torch.zeros(0, 3)
        self.turns.position.append(more[-1])
        try:
            out = self.model(
                patches.reshape(batch, rows * columns // 4, channels * 4), text, pooled, timestep / 1000, ids, ids,
                guidance, return_dict=False,
            )[0]  # fmt: skip
        finally:
            self.turns.position.pop()
        out = out.reshape(batch, rows // 2, columns // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return (out.reshape(batch, channels, rows, columns),)


def _flux(model: Any, window: Window, tokens: int) -> Denoiser:
    config = model.config
    if config.in_channels != model.out_channels:
        raise BadCheckpoint(
            f"found a FLUX.1 model from {config.in_channels} to {model.out_channels} channels, for filling or another "
            "picture beside; wanted as many out as in; take the model for text to image"
        )
    ports = [
        _latent(config.in_channels // 4, window), Port("timestep", (BATCH,)), _text(config.joint_attention_dim, tokens),
        Port("pooled", (BATCH, config.pooled_projection_dim)),
    ]  # fmt: skip
    if config.guidance_embeds:
        ports.append(Port("guidance", (BATCH,)))
    ports.append(Port("position", (2,)))
    return Denoiser(_Flux(model, window, tokens).eval(), tuple(ports), 2, (0, 0), 0)


class _Sana(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, latent: Tensor, timestep: Tensor, text: Tensor, text_mask: Tensor) -> tuple[Tensor]:
        out = self.model(
            latent, text, timestep * self.model.config.timestep_scale, encoder_attention_mask=text_mask,
            return_dict=False,
        )[0]  # fmt: skip
        return (out[:, : latent.shape[1]],)  # the other half, where there is one, is a variance


def _sana(model: Any, window: Window, tokens: int) -> Denoiser:
    config = model.config
    if config.guidance_embeds:
        raise BadCheckpoint("found a SANA-Sprint model, whose scheduler is no table; wanted SANA; export that")
    ports = (
        _latent(config.in_channels, window), Port("timestep", (BATCH,)), _text(config.caption_channels, tokens),
        Port("text_mask", (BATCH, tokens)),
    )  # fmt: skip
    return Denoiser(_Sana(model).eval(), ports, config.patch_size)
