"""What a single .safetensors file of a whole model is, by its header alone. It is refused rather than guessed.

A mark, one tensor that its layout alone has, gives the family; then names and shapes of all the denoiser's tensors must
be those of one published variant (configs/single.py). Where no tensor tells two models apart, a folder has to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from widefield.errors import BadCheckpoint
from widefield_export.bases import NAMED
from widefield_export.checkpoint import some
from widefield_export.components import Part, arrange_names, match_names, sources_of
from widefield_export.configs import single
from widefield_export.configs.header import Stored
from widefield_export.configs.layout import PREFIXES
from widefield_export.configs.single import FOREIGN, LDM, MARKS, Encoder, Variant
from widefield_export.empty import build
from widefield_export.single_names import LAYOUTS, OPEN_CLIP, renamed
from widefield_export.weights import Source

_CONTEXT = MARKS["SD"]  # (channels, text width)
_V_PREDICTION, _ZERO_SNR = "v_pred", "ztsnr"  # what people put into files of models that predict velocity


@dataclass(frozen=True, slots=True, eq=False)
class Single:
    """A recognised file. `encoders` are those that are in it; `prediction` changes the variant's scheduler."""

    variant: Variant
    denoiser: Part
    encoders: Mapping[str, Callable[[], Part]]
    has_autoencoder: bool
    prediction: Mapping[str, Any]


def detect(path: Path, tensors: Mapping[str, Stored]) -> Single | None:
    """What the file holds; None where it has no denoiser in a layout of single files.

    BadCheckpoint for a model that is not exported, and for one that is not exactly one of single.VARIANTS.
    """
    prefix = LDM if any(name.startswith(LDM) for name in tensors) else ""
    own = {name.removeprefix(prefix): stored for name, stored in tensors.items() if name.startswith(prefix)}
    for mark, model in FOREIGN.items():
        if mark in own or mark in tensors:
            raise _refused(path, f"the tensor {mark} of {model}, which is not exported")
    base = next((base for base, mark in MARKS.items() if mark in own), None)
    if base is None:
        if prefix:
            raise _refused(path, f"a denoiser of a layout that is not known ({some(sorted(own))})")
        return None
    _refuse_twins(path, base, own)
    variant, part = _variant(path, base, own)
    encoders = {
        name: found for name, encoder in variant.encoders.items() if (found := _encoder(path, encoder, tensors))
    }
    prediction: dict[str, Any] = {}
    if _V_PREDICTION in tensors:
        prediction["prediction_type"] = "v_prediction"
    if _ZERO_SNR in tensors:
        prediction |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    coded = any(name.startswith(prefix) for prefix in PREFIXES if prefix for name in tensors)
    return Single(variant, part, encoders, coded, prediction)


def _refused(path: Path, what: str) -> BadCheckpoint:
    names = ", ".join(variant.name for variant in single.VARIANTS)
    return BadCheckpoint(f"{path} has {what}; wanted one of {names}; a diffusers folder of the model may tell more")


def _refuse_twins(path: Path, base: str, own: Mapping[str, Stored]) -> None:
    """Models that no tensor tells from another."""
    if base == "SD" and own[_CONTEXT].shape[-1] == 1024:
        raise _refused(path, "the tensors of SD 2, which predicts noise or velocity, and no tensor tells which")


def _variant(path: Path, base: str, own: Mapping[str, Stored]) -> tuple[Variant, Part]:
    """The one variant of that family whose tensors these are, and its denoiser."""
    sources = sources_of(own)
    tried: dict[str, list[str]] = {}
    for variant in single.VARIANTS:
        if variant.base != base:
            continue
        config = dict(variant.config) | (_sana_size(path, own) if base == "SANA" else {})
        model = build("diffusers", NAMED[base].family, config, path)
        converted, unknown = _converted(base, sources, config)
        found, problems = match_names(model, converted)
        problems += [f"an unknown {name}" for name in unknown]
        if not problems:
            return variant, Part(model, found, (path,))
        tried[variant.name] = problems
    nearest = min(tried, key=lambda name: len(tried[name]))
    raise _refused(path, f"nearly the denoiser of {nearest}: {some(tried[nearest])}")


def _sana_size(path: Path, own: Mapping[str, Stored]) -> dict[str, Any]:
    if "pos_embed" not in own:
        raise _refused(path, "a SANA model without pos_embed, so nothing tells the size of its pictures")
    side = math.isqrt(own["pos_embed"].shape[-2])
    if side not in single.SANA_SCALES:
        raise _refused(path, f"a SANA model for {side} x {side} latents")
    return {"sample_size": side, "interpolation_scale": single.SANA_SCALES[side]}


def _converted(
    base: str, sources: Mapping[str, Source], config: Mapping[str, Any]
) -> tuple[dict[str, Source], list[str]]:
    """(weights by diffusers' names, names that have none)."""
    if base in LAYOUTS:
        return renamed(sources, LAYOUTS[base])
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    # It only moves values from one name to another, so sources do as well as tensors.
    asked = {"layers_per_block": 2, **config}
    found: dict[str, Source] = convert_ldm_unet_checkpoint({LDM + n: s for n, s in sources.items()}, asked)
    used = {id(source) for source in found.values()}
    return found, [name for name, source in sources.items() if id(source) not in used]


def _encoder(path: Path, encoder: Encoder, tensors: Mapping[str, Stored]) -> Callable[[], Part] | None:
    """How to load a text encoder from the file; None where it has not got it."""
    for prefix in encoder.prefixes:
        inside = {n.removeprefix(prefix): s for n, s in tensors.items() if n.startswith(prefix)}
        if inside:
            return lambda: _load_encoder(path, encoder, inside)
    return None


def _load_encoder(path: Path, encoder: Encoder, inside: Mapping[str, Stored]) -> Part:
    model = build("transformers", encoder.family, encoder.config, path)
    sources = sources_of(inside)
    if encoder.open_clip:
        sources, unknown = renamed(sources, OPEN_CLIP)
        if unknown:
            raise _refused(path, f"a text encoder with {some(unknown)}")
    elif encoder.family == "CLIPTextModel":  # files keep the projection that this class has not
        sources = {name: source for name, source in sources.items() if not name.startswith("text_projection.")}
    return Part(model, arrange_names(model, sources, path), (path,))
