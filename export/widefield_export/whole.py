"""A whole checkpoint, opened: what it is of, and where its denoiser, text encoders, tokenizers and scheduler are.

A pipeline's folder says so in its model_index.json; of a single file its header does (detect.py). No weight is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from widefield.errors import BadCheckpoint, BadRequest
from widefield_export.bases import NAMED, Base, base_of
from widefield_export.checkpoint import read_json, some
from widefield_export.components import TEXT_CLASSES, Part, from_folder
from widefield_export.configs.header import read_header
from widefield_export.denoisers import Window
from widefield_export.detect import detect
from widefield_export.families import latent_channels
from widefield_export.samplers import NAMES, load_scheduler
from widefield_export.schedulers import COUNTS
from widefield_export.text_encoders import Rule, rule_of
from widefield_export.weights import DTYPES, FLOAT32

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"
ADVICE = ("steps", "guidance", "strength", "detail_steps", "detail_guidance", "detail_phases", "anchor", "growth")
_OPTIONAL = ("text_encoder_3",)  # SD3 does without its T5: zeros stand for it


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """`windows` in latents, none for the model's own; `sampler` as samplers.NAMES; `text`, a checkpoint's folder whose
    text encoders and tokenizers are taken; `counts` of steps to make tables for; `weights`, what they are stored in."""

    windows: tuple[Window, ...] = ()
    sampler: str | None = None
    text: Path | None = None
    counts: tuple[int, ...] = COUNTS
    weights: str = FLOAT32


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds beside its autoencoder. `encoders` and folders of `tokenizers` by the encoders' folders.

    `missing` says why there is no text; `zeros` whether no negative prompt means zeros; `advice` are defaults of
    generation that the checkpoint names itself, any of ADVICE.
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
    advice: Mapping[str, Any] = field(default_factory=dict)

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
    windows: Sequence[str] = (),
    sampler: str | None = None,
    text: Path | None = None,
    counts: tuple[int, ...] = COUNTS,
    weights: str = FLOAT32,
) -> PipelineOptions:
    """Options as they are typed. BadRequest for a window that is not ROWSxCOLUMNS, an unknown sampler or precision."""
    if weights not in DTYPES:
        raise BadRequest(f"found --weights {weights}; wanted one of {', '.join(DTYPES)}")
    if sampler is not None and sampler not in NAMES:
        raise BadRequest(f"found --sampler {sampler}; wanted one of {', '.join(NAMES)}")
    parsed = []
    for window in windows:
        rows, _, columns = window.lower().partition("x")
        if not (rows.isdecimal() and columns.isdecimal() and int(rows) and int(columns)):
            raise BadRequest(f"found --window {window}; wanted ROWSxCOLUMNS in latents, like 64x96")
        parsed.append(Window(int(rows), int(columns)))
    return PipelineOptions(tuple(dict.fromkeys(parsed)), sampler, text, counts, weights)


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
        zeros=bool(index.get("force_zeros_for_empty_prompt", base.name == "SDXL")),  # as its pipeline
        missing=missing,
        has_autoencoder=_named(index.get("vae")),
        files=[index_file, scheduler_file],
        advice=_advice(index.get("_widefield", {})),  # diffusers leaves keys alone that begin so
    )


def _advice(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a checkpoint says of its own use. BadCheckpoint for anything else."""
    unknown = [name for name in given if name not in ADVICE]
    if unknown:
        raise BadCheckpoint(
            f"_widefield of model_index.json has {some(unknown)}; wanted {', '.join(ADVICE)}; take it out"
        )
    return given


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
