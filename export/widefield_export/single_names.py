"""Names of tensors in single files of SD3, FLUX.1, SANA and open_clip, to those of diffusers and transformers.

A rule is (pattern, new names): more than one name is a tensor that is split along its first axis, into equal parts, or
"square", as FLUX.1's linear1: three square parts and the rest. "swapped" halves change places: published models have
(shift, scale) where diffusers has (scale, shift). "turned" is a transposed matrix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from widefield_export.weights import Source

How = Literal["", "swapped", "turned", "square", "dropped"]


@dataclass(frozen=True, slots=True)
class Rename:
    """One rule: the whole name matches `pattern`; `names` are templates of the new ones."""

    pattern: str
    names: tuple[str, ...]
    how: How = ""


def _linear(old: str, *new: str, how: How = "") -> Rename:
    """A layer's weight and bias."""
    return Rename(rf"{old}\.(?P<kind>weight|bias)", tuple(rf"{name}.\g<kind>" for name in new), how)


def _scale(old: str, new: str) -> Rename:
    return Rename(rf"{old}\.(?:scale|weight)", (f"{new}.weight",))


def _qkv(old: str, new: str, names: tuple[str, ...] = ("to_q", "to_k", "to_v")) -> Rename:
    return _linear(old, *(f"{new}.{name}" for name in names))


_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
_D, _S = r"double_blocks\.(\d+)\.", r"transformer_blocks.\1."
_ONE, _SINGLE = r"single_blocks\.(\d+)\.", r"single_transformer_blocks.\1."
_TIME = "time_text_embed."
FLUX = (
    _linear("time_in.in_layer", _TIME + "timestep_embedder.linear_1"),
    _linear("time_in.out_layer", _TIME + "timestep_embedder.linear_2"),
    _linear("vector_in.in_layer", _TIME + "text_embedder.linear_1"),
    _linear("vector_in.out_layer", _TIME + "text_embedder.linear_2"),
    _linear("guidance_in.in_layer", _TIME + "guidance_embedder.linear_1"),
    _linear("guidance_in.out_layer", _TIME + "guidance_embedder.linear_2"),
    _linear("txt_in", "context_embedder"),
    _linear("img_in", "x_embedder"),
    _linear(_D + r"img_mod\.lin", _S + "norm1.linear"),
    _linear(_D + r"txt_mod\.lin", _S + "norm1_context.linear"),
    _qkv(_D + r"img_attn\.qkv", _S + "attn"),
    _qkv(_D + r"txt_attn\.qkv", _S + "attn", _ADDED),
    _scale(_D + r"img_attn\.norm\.query_norm", _S + "attn.norm_q"),
    _scale(_D + r"img_attn\.norm\.key_norm", _S + "attn.norm_k"),
    _scale(_D + r"txt_attn\.norm\.query_norm", _S + "attn.norm_added_q"),
    _scale(_D + r"txt_attn\.norm\.key_norm", _S + "attn.norm_added_k"),
    _linear(_D + r"img_mlp\.0", _S + "ff.net.0.proj"),
    _linear(_D + r"img_mlp\.2", _S + "ff.net.2"),
    _linear(_D + r"txt_mlp\.0", _S + "ff_context.net.0.proj"),
    _linear(_D + r"txt_mlp\.2", _S + "ff_context.net.2"),
    _linear(_D + r"img_attn\.proj", _S + "attn.to_out.0"),
    _linear(_D + r"txt_attn\.proj", _S + "attn.to_add_out"),
    _linear(_ONE + r"modulation\.lin", _SINGLE + "norm.linear"),
    _linear(
        _ONE + "linear1", *(_SINGLE + n for n in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")), how="square"
    ),
    _scale(_ONE + r"norm\.query_norm", _SINGLE + "attn.norm_q"),
    _scale(_ONE + r"norm\.key_norm", _SINGLE + "attn.norm_k"),
    _linear(_ONE + "linear2", _SINGLE + "proj_out"),
    _linear(r"final_layer\.linear", "proj_out"),
    _linear(r"final_layer\.adaLN_modulation\.1", "norm_out.linear", how="swapped"),
)  # fmt: skip

_J, _T = r"joint_blocks\.(\d+)\.", r"transformer_blocks.\1."
SD3 = (
    Rename("pos_embed", ("pos_embed.pos_embed",)),
    _linear(r"x_embedder\.proj", "pos_embed.proj"),
    _linear(r"t_embedder\.mlp\.0", _TIME + "timestep_embedder.linear_1"),
    _linear(r"t_embedder\.mlp\.2", _TIME + "timestep_embedder.linear_2"),
    _linear(r"y_embedder\.mlp\.0", _TIME + "text_embedder.linear_1"),
    _linear(r"y_embedder\.mlp\.2", _TIME + "text_embedder.linear_2"),
    _linear("context_embedder", "context_embedder"),
    _qkv(_J + r"x_block\.attn\.qkv", _T + "attn"),
    _qkv(_J + r"context_block\.attn\.qkv", _T + "attn", _ADDED),
    _qkv(_J + r"x_block\.attn2\.qkv", _T + "attn2"),
    _scale(_J + r"x_block\.attn\.ln_q", _T + "attn.norm_q"),
    _scale(_J + r"x_block\.attn\.ln_k", _T + "attn.norm_k"),
    _scale(_J + r"context_block\.attn\.ln_q", _T + "attn.norm_added_q"),
    _scale(_J + r"context_block\.attn\.ln_k", _T + "attn.norm_added_k"),
    _scale(_J + r"x_block\.attn2\.ln_q", _T + "attn2.norm_q"),
    _scale(_J + r"x_block\.attn2\.ln_k", _T + "attn2.norm_k"),
    _linear(_J + r"x_block\.attn\.proj", _T + "attn.to_out.0"),
    _linear(_J + r"context_block\.attn\.proj", _T + "attn.to_add_out"),
    _linear(_J + r"x_block\.attn2\.proj", _T + "attn2.to_out.0"),
    _linear(_J + r"x_block\.adaLN_modulation\.1", _T + "norm1.linear"),
    _linear(_J + r"context_block\.adaLN_modulation\.1", _T + "norm1_context.linear"),
    _linear(_J + r"x_block\.mlp\.fc1", _T + "ff.net.0.proj"),
    _linear(_J + r"x_block\.mlp\.fc2", _T + "ff.net.2"),
    _linear(_J + r"context_block\.mlp\.fc1", _T + "ff_context.net.0.proj"),
    _linear(_J + r"context_block\.mlp\.fc2", _T + "ff_context.net.2"),
    _linear(r"final_layer\.linear", "proj_out"),
    _linear(r"final_layer\.adaLN_modulation\.1", "norm_out.linear", how="swapped"),
)

_B = r"blocks\.(\d+)\."
SANA = (
    Rename("pos_embed", (), "dropped"),
    Rename(r"y_embedder\.y_embedding", (), "dropped"),
    _linear(r"x_embedder\.proj", "patch_embed.proj"),
    _linear(r"t_embedder\.mlp\.0", "time_embed.emb.timestep_embedder.linear_1"),
    _linear(r"t_embedder\.mlp\.2", "time_embed.emb.timestep_embedder.linear_2"),
    _linear(r"t_block\.1", "time_embed.linear"),
    _linear(r"y_embedder\.y_proj\.fc1", "caption_projection.linear_1"),
    _linear(r"y_embedder\.y_proj\.fc2", "caption_projection.linear_2"),
    _scale("attention_y_norm", "caption_norm"),
    Rename(_B + "scale_shift_table", (_T + "scale_shift_table",)),
    _qkv(_B + r"attn\.qkv", _T + "attn1"),
    _linear(_B + r"attn\.proj", _T + "attn1.to_out.0"),
    _linear(_B + r"cross_attn\.q_linear", _T + "attn2.to_q"),
    _qkv(_B + r"cross_attn\.kv_linear", _T + "attn2", ("to_k", "to_v")),
    _linear(_B + r"cross_attn\.proj", _T + "attn2.to_out.0"),
    _linear(_B + r"mlp\.inverted_conv\.conv", _T + "ff.conv_inverted"),
    _linear(_B + r"mlp\.depth_conv\.conv", _T + "ff.conv_depth"),
    _linear(_B + r"mlp\.point_conv\.conv", _T + "ff.conv_point"),
    _linear(r"final_layer\.linear", "proj_out"),
    Rename(r"final_layer\.scale_shift_table", ("scale_shift_table",)),
)

_R, _E = r"transformer\.resblocks\.(\d+)\.", r"text_model.encoder.layers.\1."
OPEN_CLIP = (
    Rename("positional_embedding", ("text_model.embeddings.position_embedding.weight",)),
    Rename(r"token_embedding\.weight", ("text_model.embeddings.token_embedding.weight",)),
    Rename("text_projection", ("text_projection.weight",), "turned"),
    Rename("logit_scale", (), "dropped"),
    _linear("ln_final", "text_model.final_layer_norm"),
    _linear(_R + "ln_1", _E + "layer_norm1"),
    _linear(_R + "ln_2", _E + "layer_norm2"),
    Rename(
        _R + r"attn\.in_proj_(?P<kind>weight|bias)",
        tuple(_E + rf"self_attn.{n}_proj.\g<kind>" for n in ("q", "k", "v")),
    ),
    _linear(_R + r"attn\.out_proj", _E + "self_attn.out_proj"),
    _linear(_R + r"mlp\.c_fc", _E + "mlp.fc1"),
    _linear(_R + r"mlp\.c_proj", _E + "mlp.fc2"),
)
LAYOUTS = {"SD3": SD3, "FLUX.1": FLUX, "SANA": SANA}


def renamed(sources: Mapping[str, Source], rules: tuple[Rename, ...]) -> tuple[dict[str, Source], list[str]]:
    """(weights by their new names, names that no rule has)."""
    found: dict[str, Source] = {}
    unknown: list[str] = []
    last = max((int(m[1]) for name in sources if (m := re.match(_J, name))), default=-1)
    for name, source in sources.items():
        rule, match = next(((r, m) for r in rules if (m := re.fullmatch(r.pattern, name))), (None, None))
        if rule is None or match is None:
            unknown.append(name)
            continue
        # The last block of SD3 reads its text for the last time: its norm only scales and shifts, like the final one.
        final = name.startswith(f"joint_blocks.{last}.context_block.adaLN_modulation.1.")
        how: How = "swapped" if final else rule.how
        names = [match.expand(template) for template in rule.names]
        found |= dict(zip(names, _parts(source, len(names), how), strict=True))
    return found, unknown


def _parts(source: Source, count: int, how: How) -> list[Source]:
    rows = source.shape[0] if source.shape else 1
    match how:
        case "dropped":
            return []
        case "turned":
            return [Source(source.shape[::-1], lambda: source.read().T)]
        case "swapped":
            return [Source(source.shape, lambda: torch.cat(source.read().chunk(2)[::-1]))]
        case "square":
            return _square(source)
    if count == 1:
        return [source]
    part = rows // count
    return [_slice(source, i * part, part) for i in range(count)]


def _square(source: Source) -> list[Source]:
    """q, k, v and mlp of FLUX.1's linear1: (3 d + mlp, d); mlp is 4 d, so a bias has 7 d."""
    side = source.shape[1] if len(source.shape) > 1 else source.shape[0] // 7
    sizes = [side, side, side, source.shape[0] - 3 * side]
    return [_slice(source, i * side, size) for i, size in enumerate(sizes)]


def _slice(source: Source, start: int, count: int) -> Source:
    def read() -> Tensor:
        return source.read()[start : start + count]

    return Source((count, *source.shape[1:]), read)
