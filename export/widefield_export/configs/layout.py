"""Names of tensors: from the layouts that people publish to the one that diffusers' modules have today.

    LDM        encoder.down.0.block.1, decoder.up.3.block.0, mid.attn_1.q    (levels of `up` count from the picture)
    diffusers  encoder.down_blocks.0.resnets.1, decoder.up_blocks.0.resnets.0, mid_block.attentions.0.to_q
    diffusers before 0.13  mid_block.attentions.0.query, .key, .value, .proj_attn

A full checkpoint has the autoencoder's tensors under a prefix. Attention weights may be 1 x 1 convolutions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

PREFIXES = ("", "first_stage_model.", "vae.")
Shapes = Mapping[str, tuple[int, ...]]

_TRAINING = ("loss.", "model_ema.")  # what a training run leaves beside the autoencoder
COUNTERS = ".num_batches_tracked"  # not a weight, and often left out
_LDM_MARK = "decoder.mid.block_1.norm1.weight"
_LDM = (
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.block\.", r".up_blocks.\1.resnets."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
    (r"^(?:encoder|decoder)\.((?:post_)?quant_conv)\.", r"\1."),  # FLUX.2
)
_EARLY = (
    (r"\.attentions\.0\.query\.", ".attentions.0.to_q."),
    (r"\.attentions\.0\.key\.", ".attentions.0.to_k."),
    (r"\.attentions\.0\.value\.", ".attentions.0.to_v."),
    (r"\.attentions\.0\.proj_attn\.", ".attentions.0.to_out.0."),
)


def diffusers_names(names: Iterable[str]) -> dict[str, str]:
    """Today's diffusers name of every name, which has no prefix any more."""
    names = tuple(names)
    ldm = _LDM_MARK in names
    levels = 1 + max((int(m[1]) for n in names if (m := re.match(r"decoder\.up\.(\d+)\.", n))), default=0)

    def renamed(name: str) -> str:
        if ldm:
            name = re.sub(r"^decoder\.up\.(\d+)\.", lambda m: f"decoder.up.{levels - 1 - int(m[1])}.", name)
        for pattern, new in _LDM if ldm else _EARLY:
            name = re.sub(pattern, new, name)
        return name

    return {name: renamed(name) for name in names}


def arrange(stored: Shapes, wanted: Shapes) -> tuple[dict[str, str], list[str]]:
    """({wanted name: stored name}, problems), under the prefix that leaves the fewest problems; none means it fits.

    A stored shape may have 1s behind the wanted one.
    """
    return min((_under(prefix, stored, wanted) for prefix in PREFIXES), key=lambda found: len(found[1]))


def _under(prefix: str, stored: Shapes, wanted: Shapes) -> tuple[dict[str, str], list[str]]:
    inside = [n for n in stored if n.startswith(prefix)]
    plain = {name: prefix + name for n in inside if not (name := n.removeprefix(prefix)).startswith(_TRAINING)}
    places = {new: plain[old] for old, new in diffusers_names(plain).items()}
    missing = [n for n in wanted if n not in places and not n.endswith(COUNTERS)]
    surplus = [places[n] for n in places if n not in wanted]
    both = {n: places[n] for n in wanted if n in places}
    unlike = [n for n in both if not _same(stored[both[n]], wanted[n])]
    problems = [
        *(f"no {n}" for n in missing),
        *(f"{both[n]} of shape {stored[both[n]]} instead of {wanted[n]}" for n in unlike),
        *(f"an unknown {n}" for n in surplus),
    ]
    return both, problems


def _same(stored: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return stored[: len(wanted)] == wanted and all(n == 1 for n in stored[len(wanted) :])
