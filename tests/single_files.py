"""Single .safetensors layouts that people publish, made from the modules of diffusers and transformers.

The way back of what the exporter does, written apart from its rules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip


def ldm_unet(state: Mapping[str, Tensor], layers: int) -> State:
    """A UNet2DConditionModel's tensors by LDM's names, without prefix."""
    attended = {int(m[1]) for n in state if (m := re.match(r"up_blocks\.(\d+)\.attentions", n))}

    def place(name: str) -> str:
        for old, new in _UNET.items():
            if name.startswith(old + "."):
                return new + name.removeprefix(old)
        way, block, kind, at, rest = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name).groups()
        first = int(block) * (layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + layers + 1}.0.{rest.replace('conv', 'op')}"
        if kind == "upsamplers":
            return f"output_blocks.{first + layers}.{1 + (int(block) in attended)}.{rest}"
        side, index = ("input", 1 + first + int(at)) if way == "down" else ("output", first + int(at))
        return f"{side}_blocks.{index}.{int(kind == 'attentions')}.{rest}"

    def inner(name: str) -> str:
        if not re.search(r"blocks\.\d+\.0\.|middle_block\.[02]\.", name) or ".op." in name:
            return name
        for old, new in _RESNET.items():
            name = re.sub(rf"\.{old}\.", f".{new}.", name)
        return name

    return {inner(place(name)): tensor for name, tensor in state.items()}


def _put(out: State, new: str, *parts: Tensor) -> None:
    out[new] = torch.cat(parts) if len(parts) > 1 else parts[0]


def _swap(tensor: Tensor) -> Tensor:
    first, second = tensor.chunk(2)
    return torch.cat([second, first])


def _blocks(state: Mapping[str, Tensor], prefix: str) -> range:
    return range(1 + max((int(n.split(".")[1]) for n in state if n.startswith(prefix + ".")), default=-1))


_TEXT_TIME = (
    ("time_text_embed.timestep_embedder", "t_embedder.mlp", "time_in"),
    ("time_text_embed.text_embedder", "y_embedder.mlp", "vector_in"),
    ("time_text_embed.guidance_embedder", "", "guidance_in"),
)


def sd3_file(state: Mapping[str, Tensor]) -> State:
    """An SD3Transformer2DModel's tensors as the published files name them, without prefix."""
    out: State = {"pos_embed": state["pos_embed.pos_embed"]}
    for kind in ("weight", "bias"):
        take = lambda name, kind=kind: state[f"{name}.{kind}"]  # noqa: E731
        _put(out, f"x_embedder.proj.{kind}", take("pos_embed.proj"))
        _put(out, f"context_embedder.{kind}", take("context_embedder"))
        for ours, theirs, _ in _TEXT_TIME[:2]:
            for at, layer in ((0, 1), (2, 2)):
                _put(out, f"{theirs}.{at}.{kind}", take(f"{ours}.linear_{layer}"))
        _put(out, f"final_layer.linear.{kind}", take("proj_out"))
        _put(out, f"final_layer.adaLN_modulation.1.{kind}", _swap(take("norm_out.linear")))
        blocks = _blocks(state, "transformer_blocks")
        for i in blocks:
            mine, x, c = f"transformer_blocks.{i}.", f"joint_blocks.{i}.x_block.", f"joint_blocks.{i}.context_block."
            attentions = ("attn", "attn2") if f"{mine}attn2.to_q.weight" in state else ("attn",)
            for a in attentions:
                _put(out, f"{x}{a}.qkv.{kind}", *(take(f"{mine}{a}.to_{p}") for p in "qkv"))
                _put(out, f"{x}{a}.proj.{kind}", take(f"{mine}{a}.to_out.0"))
            _put(out, f"{c}attn.qkv.{kind}", *(take(f"{mine}attn.add_{p}_proj") for p in "qkv"))
            _put(out, f"{x}adaLN_modulation.1.{kind}", take(f"{mine}norm1.linear"))
            _put(out, f"{x}mlp.fc1.{kind}", take(f"{mine}ff.net.0.proj"))
            _put(out, f"{x}mlp.fc2.{kind}", take(f"{mine}ff.net.2"))
            last = i == blocks[-1]
            norm = take(f"{mine}norm1_context.linear")
            _put(out, f"{c}adaLN_modulation.1.{kind}", _swap(norm) if last else norm)
            if not last:
                _put(out, f"{c}attn.proj.{kind}", take(f"{mine}attn.to_add_out"))
                _put(out, f"{c}mlp.fc1.{kind}", take(f"{mine}ff_context.net.0.proj"))
                _put(out, f"{c}mlp.fc2.{kind}", take(f"{mine}ff_context.net.2"))
    for name, tensor in state.items():
        if m := re.match(r"transformer_blocks\.(\d+)\.(attn2?)\.norm_(added_)?([qk])\.weight", name):
            side = "context_block" if m[3] else "x_block"
            out[f"joint_blocks.{m[1]}.{side}.{m[2]}.ln_{m[4]}.weight"] = tensor
    return out


def flux_file(state: Mapping[str, Tensor]) -> State:
    """A FluxTransformer2DModel's tensors as the published files name them, without prefix."""
    out: State = {}
    for kind in ("weight", "bias"):
        take = lambda name, kind=kind: state[f"{name}.{kind}"]  # noqa: E731
        for ours, _, theirs in _TEXT_TIME:
            for at, layer in (("in", 1), ("out", 2)):
                if f"{ours}.linear_1.weight" in state:
                    _put(out, f"{theirs}.{at}_layer.{kind}", take(f"{ours}.linear_{layer}"))
        _put(out, f"txt_in.{kind}", take("context_embedder"))
        _put(out, f"img_in.{kind}", take("x_embedder"))
        _put(out, f"final_layer.linear.{kind}", take("proj_out"))
        _put(out, f"final_layer.adaLN_modulation.1.{kind}", _swap(take("norm_out.linear")))
        for i in _blocks(state, "transformer_blocks"):
            mine, block = f"transformer_blocks.{i}.", f"double_blocks.{i}."
            _put(out, f"{block}img_mod.lin.{kind}", take(f"{mine}norm1.linear"))
            _put(out, f"{block}txt_mod.lin.{kind}", take(f"{mine}norm1_context.linear"))
            _put(out, f"{block}img_attn.qkv.{kind}", *(take(f"{mine}attn.to_{p}") for p in "qkv"))
            _put(out, f"{block}txt_attn.qkv.{kind}", *(take(f"{mine}attn.add_{p}_proj") for p in "qkv"))
            _put(out, f"{block}img_attn.proj.{kind}", take(f"{mine}attn.to_out.0"))
            _put(out, f"{block}txt_attn.proj.{kind}", take(f"{mine}attn.to_add_out"))
            for side, ff in (("img", "ff"), ("txt", "ff_context")):
                _put(out, f"{block}{side}_mlp.0.{kind}", take(f"{mine}{ff}.net.0.proj"))
                _put(out, f"{block}{side}_mlp.2.{kind}", take(f"{mine}{ff}.net.2"))
        for i in _blocks(state, "single_transformer_blocks"):
            mine, block = f"single_transformer_blocks.{i}.", f"single_blocks.{i}."
            _put(out, f"{block}modulation.lin.{kind}", take(f"{mine}norm.linear"))
            parts = (f"{mine}attn.to_q", f"{mine}attn.to_k", f"{mine}attn.to_v", f"{mine}proj_mlp")
            _put(out, f"{block}linear1.{kind}", *map(take, parts))
            _put(out, f"{block}linear2.{kind}", take(f"{mine}proj_out"))
    for name, tensor in state.items():
        if m := re.match(r"(single_)?transformer_blocks\.(\d+)\.attn\.norm_(added_)?([qk])\.weight", name):
            norm = f"norm.{'query' if m[4] == 'q' else 'key'}_norm.scale"
            side = "txt_attn." if m[3] else "img_attn."
            out[f"single_blocks.{m[2]}.{norm}" if m[1] else f"double_blocks.{m[2]}.{side}{norm}"] = tensor
    return out


def sana_file(state: Mapping[str, Tensor], side: int) -> State:
    """A SanaTransformer2DModel's tensors as the published files name them, for pictures of side x side latents."""
    width, text = state["patch_embed.proj.weight"].shape[0], state["caption_projection.linear_1.weight"].shape[1]
    out: State = {
        "pos_embed": torch.zeros(1, side * side, width, device=state["patch_embed.proj.bias"].device),
        "y_embedder.y_embedding": torch.zeros(300, text, device=state["patch_embed.proj.bias"].device),
        "attention_y_norm.weight": state["caption_norm.weight"],
        "final_layer.scale_shift_table": state["scale_shift_table"],
    }
    names = {
        "x_embedder.proj": "patch_embed.proj", "t_embedder.mlp.0": "time_embed.emb.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_embed.emb.timestep_embedder.linear_2", "t_block.1": "time_embed.linear",
        "y_embedder.y_proj.fc1": "caption_projection.linear_1", "y_embedder.y_proj.fc2": "caption_projection.linear_2",
        "final_layer.linear": "proj_out",
    }  # fmt: skip
    inner = {
        "attn.proj": "attn1.to_out.0", "cross_attn.q_linear": "attn2.to_q", "cross_attn.proj": "attn2.to_out.0",
        "mlp.inverted_conv.conv": "ff.conv_inverted", "mlp.depth_conv.conv": "ff.conv_depth",
        "mlp.point_conv.conv": "ff.conv_point",
    }  # fmt: skip
    for i in _blocks(state, "transformer_blocks"):
        mine, block = f"transformer_blocks.{i}.", f"blocks.{i}."
        names |= {block + theirs: mine + ours for theirs, ours in inner.items()}
        out[f"{block}scale_shift_table"] = state[f"{mine}scale_shift_table"]
        _put(out, f"{block}attn.qkv.weight", *(state[f"{mine}attn1.to_{p}.weight"] for p in "qkv"))
        for kind in ("weight", "bias"):
            _put(out, f"{block}cross_attn.kv_linear.{kind}", *(state[f"{mine}attn2.to_{p}.{kind}"] for p in "kv"))
    for theirs, ours in names.items():
        out |= {f"{theirs}.{k}": state[f"{ours}.{k}"] for k in ("weight", "bias") if f"{ours}.{k}" in state}
    return out


def open_clip_file(state: Mapping[str, Tensor]) -> State:
    """A CLIPTextModelWithProjection's tensors by open_clip's names, without prefix."""
    out: State = {
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "text_projection": state["text_projection.weight"].T.contiguous(),
        "logit_scale": torch.ones(()),
    }
    for kind in ("weight", "bias"):
        out[f"ln_final.{kind}"] = state[f"text_model.final_layer_norm.{kind}"]
        for i in range(1 + max(int(m[1]) for n in state if (m := re.match(r"text_model\.encoder\.layers\.(\d+)", n)))):
            mine, block = f"text_model.encoder.layers.{i}.", f"transformer.resblocks.{i}."
            _put(out, f"{block}attn.in_proj_{kind}", *(state[f"{mine}self_attn.{p}_proj.{kind}"] for p in "qkv"))
            pairs = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2"}
            pairs |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
            for theirs, ours in pairs.items():
                out[f"{block}{theirs}.{kind}"] = state[f"{mine}{ours}.{kind}"]
    return out


def single_file(base: str, model: object, *, side: int = 8) -> State:
    """A denoiser in the layout of its family's single files, without prefix."""
    state = dict(model.state_dict())  # type: ignore[attr-defined]
    match base:
        case "SD" | "SDXL":
            return ldm_unet(state, model.config.layers_per_block)  # type: ignore[attr-defined]
        case "SD3":
            return sd3_file(state)
        case "FLUX.1":
            return flux_file(state)
    return sana_file(state, side)
