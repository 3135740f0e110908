"""A whole checkpoint to the generating parts of a bundle: denoiser, text encoders, samplers, defaults.

denoiser.safetensors, denoiser.ROWSxCOLUMNS.onnx      the denoiser, a graph for each window
NAME.safetensors, NAME.onnx, NAME.tokenizer.json      a text encoder, NAME as its folder is called
schedules.safetensors                                 tables of samplers
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from widefield.errors import BadCheckpoint
from widefield_export.bases import Base, defaults_of
from widefield_export.components import Part
from widefield_export.denoisers import OUTPUT, Window, denoiser, native_window
from widefield_export.graph_onnx import write_graph
from widefield_export.samplers import write_samplers
from widefield_export.text_encoders import (
    Role,
    Rule,
    TextEncoder,
    encoder_entry,
    lengths,
    load_tokenizer,
    rule_of,
    save_tokenizer,
)
from widefield_export.whole import Checkpoint, PipelineOptions


def write_parts(checkpoint: Checkpoint, folder: Path, options: PipelineOptions) -> dict[str, Any]:
    """Write everything that generates into `folder`; returns the manifest's keys for it (widefield.parts)."""
    rule = rule_of(checkpoint.base.name)
    text, tokens = _write_text(checkpoint, rule, folder, options.weights)
    part = checkpoint.denoiser
    checkpoint.files.extend(part.files)
    entry, windows = _write_denoiser(checkpoint.base, part, folder, options, tokens)
    if text is not None:
        _check_widths(text, entry["inputs"])
    cell = entry["cell"]
    schedulers = write_samplers(
        folder,
        checkpoint.scheduler,
        [(window, window.rows * window.columns // cell**2) for window in windows],
        sigmas=checkpoint.base.name == "FLUX.1",
        chosen=options.sampler,
        counts=options.counts,
    )
    defaults = defaults_of(checkpoint.base, part.model.config, checkpoint.scheduler) | dict(checkpoint.advice)
    parts = {"denoiser": entry, "schedulers": schedulers, "defaults": {"sampler": schedulers["default"], **defaults}}
    return parts if text is None else {**parts, "text": text}


def _write_denoiser(
    base: Base, part: Part, folder: Path, options: PipelineOptions, tokens: int
) -> tuple[dict[str, Any], tuple[Window, ...]]:
    weights = "denoiser.safetensors"
    windows = options.windows or (native_window(part.model),)
    for window in windows:
        denoiser(part.model, window, tokens)  # refuses before weights are written
    places = part.settle(folder / weights, options.weights)
    graphs, made = [], None
    spots = []
    for window in windows:
        made = denoiser(part.model, window, tokens)
        file = f"denoiser.{window}.onnx"
        written = write_graph(
            made.module, made.inputs, (OUTPUT,), folder / file, places=places, weights=weights, prefix="model"
        )
        graphs.append(
            {"rows": window.rows, "columns": window.columns, "file": file, "live_nbytes": written.live_nbytes}
        )
        spots.append(made.place)
    assert made is not None
    inputs: dict[str, Any] = {port.name: list(port.shape) for port in made.inputs}
    inputs["latent"] = [*inputs["latent"][:2], "rows", "columns"]
    entry = {
        "family": base.family, "base": base.name, "weights": weights, "dtype": options.weights,
        "parameters": part.parameters, "cell": made.cell, "place": None if spots[0] is None else spots,
        "places": made.places, "windows": graphs, "inputs": inputs, "output": OUTPUT,
    }  # fmt: skip
    return entry, windows


def _write_text(checkpoint: Checkpoint, rule: Rule, folder: Path, dtype: str) -> tuple[dict[str, Any] | None, int]:
    """(the manifest's `text`, tokens that the denoiser gets): None where the checkpoint has no text encoders."""
    if not checkpoint.encoders:
        return None, checkpoint.base.tokens
    entries: dict[str, dict[str, Any]] = {}
    for role in rule.roles:
        if role.name in checkpoint.encoders:
            entries[role.name] = _write_encoder(checkpoint, role, folder, dtype)
    blocks, tokens = [], []
    for names in rule.blocks:
        there = [name for name in names if name in entries]
        roles = [role for role in rule.roles if role.name in names]
        kept = {int(entries[name]["keep"]) for name in there} or {int(roles[0].tokens or 0)}
        if len(kept) > 1:
            raise BadCheckpoint(f"found {' and '.join(there)} of unlike lengths {sorted(kept)}; wanted one; mend them")
        tokens.append(kept.pop())
        blocks.append({"encoders": there, "tokens": tokens[-1]})
    text: dict[str, Any] = {
        "encoders": list(entries.values()), "blocks": blocks, "width": _text_width(checkpoint.config),
        "pooled": list(rule.pooled), "zeros": checkpoint.zeros,
    }  # fmt: skip
    return text, sum(tokens)


def _check_widths(text: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    """BadCheckpoint where the encoders' states are not what the denoiser takes."""
    widths = {encoder["name"]: encoder for encoder in text["encoders"]}
    found = {
        "text": max(sum(widths[name]["hidden"] for name in block["encoders"]) for block in text["blocks"]),
        "pooled": sum(widths[name]["pooled"] for name in text["pooled"]),
    }
    wanted = {name: inputs[name][-1] if name in inputs else 0 for name in found}
    filled = any(not block["encoders"] for block in text["blocks"])  # with zeros, so less is enough
    if found["pooled"] != wanted["pooled"] or (found["text"] != wanted["text"] and not filled):
        raise BadCheckpoint(
            f"found text encoders that give {found['text']} and {found['pooled']} pooled numbers, and a denoiser for "
            f"{wanted['text']} and {wanted['pooled']}; wanted alike; take them from the same model"
        )


def _text_width(config: Any) -> int:
    for name in ("cross_attention_dim", "joint_attention_dim"):
        if config.get(name) is not None and config.get("caption_channels") is None:
            return int(config[name])
    return int(config["caption_channels"])


def _write_encoder(checkpoint: Checkpoint, role: Role, folder: Path, dtype: str) -> dict[str, Any]:
    tokenizer = load_tokenizer(checkpoint.tokenizers[role.name])
    checkpoint.files.extend(sorted(p for p in checkpoint.tokenizers[role.name].iterdir() if p.is_file()))
    part = checkpoint.encoders[role.name]()
    checkpoint.files.extend(part.files)
    files = {
        "file": f"{role.name}.onnx", "weights": f"{role.name}.safetensors", "tokenizer": f"{role.name}.tokenizer.json",
    }  # fmt: skip
    places = part.settle(folder / files["weights"], dtype)
    length, _ = lengths(role, tokenizer)
    module = TextEncoder(part.model, role).eval()
    written = write_graph(
        module, module.inputs(length), module.outputs, folder / files["file"], places=places, weights=files["weights"],
        prefix="model",
    )  # fmt: skip
    save_tokenizer(tokenizer, folder / files["tokenizer"])
    return encoder_entry(role, part.model, tokenizer, files, written.outputs)
