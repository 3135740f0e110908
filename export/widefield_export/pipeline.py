"""A whole checkpoint to the generating parts of a bundle: denoiser, text encoders, samplers, defaults.

denoiser.safetensors, denoiser.ROWSxCOLUMNS.onnx      the denoiser, a graph for each window
NAME.safetensors, NAME.onnx, NAME.tokenizer.json      a text encoder, NAME as its folder is called
schedules.safetensors                                 tables of samplers
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from widefield.errors import BadCheckpoint, BadRequest
from widefield_export.bases import NAMED, Base, base_of, defaults_of
from widefield_export.checkpoint import read_json
from widefield_export.components import TEXT_CLASSES, Part, from_folder
from widefield_export.configs.header import read_header
from widefield_export.denoisers import OUTPUT, Window, denoiser, native_window
from widefield_export.detect import detect
from widefield_export.families import latent_channels
from widefield_export.graph_onnx import write_graph
from widefield_export.samplers import NAMES, load_scheduler, write_samplers
from widefield_export.schedulers import COUNTS
from widefield_export.text_encoders import (
    Role,
    Rule,
    TextEncoder,
    encoder_entry,
    lengths,
    load_tokenizer,
    rule_of,
    save_tokenizer,
)  # fmt: skip

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"
_OPTIONAL = ("text_encoder_3",)  # SD3 does without its T5: zeros stand for it


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """`windows` in latents, none for the model's own; `sampler` as samplers.NAMES; `text`, a checkpoint's folder whose
    text encoders and tokenizers are taken; `counts` of steps to make tables for."""

    windows: tuple[Window, ...] = ()
    sampler: str | None = None
    text: Path | None = None
    counts: tuple[int, ...] = COUNTS


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds beside its autoencoder. `encoders` and folders of `tokenizers` by the encoders' folders.

    `missing` says why there is no text; `zeros` whether no negative prompt means zeros.
    """

    base: Base
    config: Mapping[str, Any]  # of the denoiser
    denoiser: Part
    scheduler: Any
    encoders: Mapping[str, Callable[[], Part]]
    tokenizers: Mapping[str, Path]
    zeros: bool
    missing: str = ""
    has_autoencoder: bool = True
    files: list[Path] = field(default_factory=list)  # that were read, to be hashed

    def check(self, vae: Any) -> None:
        """BadCheckpoint where the denoiser's latents are not the autoencoder's."""
        if vae is None:
            return
        config = self.config
        wanted = config["in_channels"] // (4 if self.base.name == "FLUX.1" else 1)
        if latent_channels(vae) != wanted:
            raise BadCheckpoint(
                f"found a denoiser of {wanted} channels and a {type(vae).__name__} of {latent_channels(vae)}; wanted "
                "one kind of latents; take both from the same model"
            )


def pipeline_options(
    windows: Sequence[str] = (), sampler: str | None = None, text: Path | None = None, counts: tuple[int, ...] = COUNTS
) -> PipelineOptions:
    """Options as they are typed. BadRequest for a window that is not ROWSxCOLUMNS, and for an unknown sampler."""
    if sampler is not None and sampler not in NAMES:
        raise BadRequest(f"found --sampler {sampler}; wanted one of {', '.join(NAMES)}")
    parsed = []
    for window in windows:
        rows, _, columns = window.lower().partition("x")
        if not (rows.isdecimal() and columns.isdecimal() and int(rows) and int(columns)):
            raise BadRequest(f"found --window {window}; wanted ROWSxCOLUMNS in latents, like 64x96")
        parsed.append(Window(int(rows), int(columns)))
    return PipelineOptions(tuple(dict.fromkeys(parsed)), sampler, text, counts)


def open_checkpoint(path: Path, options: PipelineOptions) -> Checkpoint | None:
    """What a checkpoint holds beside its autoencoder; None for an autoencoder alone, and for what is no checkpoint."""
    if path.is_dir():
        return open_folder(path, options)
    return open_file(path, options) if path.is_file() and path.suffix == ".safetensors" else None


def open_file(path: Path, options: PipelineOptions) -> Checkpoint | None:
    """A single file of a whole model or of its denoiser; None for another, which may be an autoencoder's."""
    found = detect(path, read_header(path))
    if found is None:
        return None
    rule = rule_of(found.variant.base)
    encoders: dict[str, Callable[[], Part]] = {}
    tokenizers: dict[str, Path] = {}
    missing = f"{path} holds no tokenizers"
    if options.text is not None:
        index = read_json(options.text / "model_index.json")
        encoders, tokenizers, missing = folder_text(options.text, index, rule)
        encoders |= {name: made for name, made in found.encoders.items() if name in encoders}
    scheduler = load_scheduler({**found.variant.scheduler, **found.prediction}, path)
    return Checkpoint(
        NAMED[found.variant.base],
        found.denoiser.model.config,
        found.denoiser,
        scheduler,
        encoders,
        tokenizers,
        zeros=found.variant.zeros,
        missing=missing,
        has_autoencoder=found.has_autoencoder,
        files=[path],
    )


def open_folder(folder: Path, options: PipelineOptions) -> Checkpoint | None:
    """A diffusers pipeline's folder; None where it has no denoiser and so is an autoencoder's alone."""
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        return None
    index = read_json(index_file)
    entry = next((index[name] for name in ("transformer", "unet") if _named(index.get(name))), None)
    if entry is None:
        return None
    name = "transformer" if _named(index.get("transformer")) else "unet"
    config_file = folder / name / "config.json"
    if not config_file.is_file():
        raise BadCheckpoint(f"{index_file} names {name}, and {config_file} is missing; download the model again")
    base = base_of(str(entry[1]), read_json(config_file))
    if index.get("requires_aesthetics_score"):
        raise BadCheckpoint(
            f"{index_file} is of SDXL's refiner, which is told an aesthetic score; wanted SDXL's base; export that"
        )
    part = from_folder(folder / name, "diffusers", base.family, DIFFUSERS)
    scheduler_file = folder / "scheduler" / "scheduler_config.json"
    scheduler = load_scheduler(read_json(scheduler_file), scheduler_file)
    if options.text is not None:
        folder_index = read_json(options.text / "model_index.json")
        encoders, tokenizers, missing = folder_text(options.text, folder_index, rule_of(base.name))
    else:
        encoders, tokenizers, missing = folder_text(folder, index, rule_of(base.name))
    return Checkpoint(
        base,
        part.model.config,
        part,
        scheduler,
        encoders,
        tokenizers,
        zeros=bool(index.get("force_zeros_for_empty_prompt", False)),
        missing=missing,
        has_autoencoder=_named(index.get("vae")),
        files=[index_file, scheduler_file],
    )


def _named(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)


def folder_text(
    folder: Path, index: Mapping[str, Any], rule: Rule
) -> tuple[dict[str, Callable[[], Part]], dict[str, Path], str]:
    """(encoders, tokenizers, why there is no text) of a pipeline's folder. BadCheckpoint for an unknown class."""
    encoders: dict[str, Callable[[], Part]] = {}
    tokenizers: dict[str, Path] = {}
    for role in rule.roles:
        if not _named(index.get(role.name)) or not _named(index.get(role.tokenizer)):
            if role.name not in _OPTIONAL:
                return {}, {}, f"{folder} has no {role.name}"
            continue
        family = str(index[role.name][1])
        if family not in TEXT_CLASSES:
            raise BadCheckpoint(
                f"{folder} has {role.name} of class {family}; wanted one of {', '.join(TEXT_CLASSES)}; such text "
                "encoders are not exported"
            )
        encoders[role.name] = _lazily(folder / role.name, family)
        tokenizers[role.name] = folder / role.tokenizer
    return encoders, tokenizers, ""


def _lazily(folder: Path, family: str) -> Callable[[], Part]:
    return lambda: from_folder(folder, "transformers", family, TRANSFORMERS)


def write_parts(checkpoint: Checkpoint, folder: Path, options: PipelineOptions) -> dict[str, Any]:
    """Write everything that generates into `folder`; returns the manifest's keys for it (widefield.parts)."""
    rule = rule_of(checkpoint.base.name)
    text, tokens = _write_text(checkpoint, rule, folder)
    part = checkpoint.denoiser
    checkpoint.files.extend(part.files)
    entry, windows = _write_denoiser(checkpoint.base, part, folder, options.windows, tokens)
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
    defaults = defaults_of(checkpoint.base, part.model.config, checkpoint.scheduler)
    parts = {"denoiser": entry, "schedulers": schedulers, "defaults": {"sampler": schedulers["default"], **defaults}}
    return parts if text is None else {**parts, "text": text}


def _write_denoiser(
    base: Base, part: Part, folder: Path, windows: Sequence[Window], tokens: int
) -> tuple[dict[str, Any], tuple[Window, ...]]:
    weights = "denoiser.safetensors"
    windows = tuple(windows) or (native_window(part.model),)
    for window in windows:
        denoiser(part.model, window, tokens)  # refuses before weights are written
    places = part.settle(folder / weights)
    graphs, made = [], None
    spots = []
    for window in windows:
        made = denoiser(part.model, window, tokens)
        file = f"denoiser.{window}.onnx"
        write_graph(made.module, made.inputs, (OUTPUT,), folder / file, places=places, weights=weights, prefix="model")
        graphs.append({"rows": window.rows, "columns": window.columns, "file": file})
        spots.append(made.place)
    assert made is not None
    inputs: dict[str, Any] = {port.name: list(port.shape) for port in made.inputs}
    inputs["latent"] = [*inputs["latent"][:2], "rows", "columns"]
    entry = {
        "family": base.family, "base": base.name, "weights": weights, "dtype": "float32", "parameters": part.parameters,
        "cell": made.cell, "place": None if spots[0] is None else spots, "places": made.places, "windows": graphs,
        "inputs": inputs, "output": OUTPUT,
    }  # fmt: skip
    return entry, windows


def _write_text(checkpoint: Checkpoint, rule: Rule, folder: Path) -> tuple[dict[str, Any] | None, int]:
    """(the manifest's `text`, tokens that the denoiser gets): None where the checkpoint has no text encoders."""
    if not checkpoint.encoders:
        return None, checkpoint.base.tokens
    entries: dict[str, dict[str, Any]] = {}
    for role in rule.roles:
        if role.name in checkpoint.encoders:
            entries[role.name] = _write_encoder(checkpoint, role, folder)
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


def _write_encoder(checkpoint: Checkpoint, role: Role, folder: Path) -> dict[str, Any]:
    tokenizer = load_tokenizer(checkpoint.tokenizers[role.name])
    checkpoint.files.extend(sorted(p for p in checkpoint.tokenizers[role.name].iterdir() if p.is_file()))
    part = checkpoint.encoders[role.name]()
    checkpoint.files.extend(part.files)
    files = {
        "file": f"{role.name}.onnx", "weights": f"{role.name}.safetensors", "tokenizer": f"{role.name}.tokenizer.json",
    }  # fmt: skip
    places = part.settle(folder / files["weights"])
    length, _ = lengths(role, tokenizer)
    module = TextEncoder(part.model, role).eval()
    outputs = write_graph(
        module, module.inputs(length), module.outputs, folder / files["file"], places=places, weights=files["weights"],
        prefix="model",
    )  # fmt: skip
    save_tokenizer(tokenizer, folder / files["tokenizer"])
    return encoder_entry(role, part.model, tokenizer, files, outputs)
