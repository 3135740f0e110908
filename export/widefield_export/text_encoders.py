"""Text encoders and tokenizers of a checkpoint to graphs and tokenizer.json, by the rule of the family's pipeline.

    SD1.x, SD2   text = last hidden state of CLIP
    SDXL         text = next to last hidden states of both CLIPs side by side; pooled of the second
    SD3          text = next to last of both CLIPs, filled up with zeros to T5's width, then T5; pooled of both CLIPs
    FLUX.1       text = T5; pooled = CLIP's
    SANA         text = Gemma with a mask, the prompt behind the pipeline's instruction

A graph takes token numbers as float32 (exact up to 2^24) and gives `hidden` (batch, tokens, width) or `pooled` or both.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from widefield.errors import BadCheckpoint
from widefield_export.graph_onnx import BATCH, Port

T5_TOKENS = {"SD3": 256, "FLUX.1": 512}  # what the pipelines read unless told otherwise
SANA_TOKENS = 300


@dataclass(frozen=True, slots=True)
class Role:
    """What a pipeline wants of one of its encoders. `hidden`: "last", "penultimate" or "" for none."""

    name: str  # of the encoder's folder
    tokenizer: str
    hidden: str
    pooled: bool
    tokens: int | None  # None: as many as its tokenizer says
    mask: bool = False
    prefix: str = ""
    lower: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """How a family reads a prompt: its encoders, their blocks of text, whose pooled states."""

    roles: tuple[Role, ...]
    blocks: tuple[tuple[str, ...], ...]
    pooled: tuple[str, ...] = ()


def rule_of(base: str) -> Rule:
    """The rule of a family: SD, SDXL, SD3, FLUX.1 or SANA."""
    first, second = ("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")
    match base:
        case "SD":
            return Rule((Role(*first, "last", False, None),), (("text_encoder",),))
        case "SDXL":
            both = (Role(*first, "penultimate", False, None), Role(*second, "penultimate", True, None))
            return Rule(both, (("text_encoder", "text_encoder_2"),), ("text_encoder_2",))
        case "SD3":
            roles = (
                Role(*first, "penultimate", True, None),
                Role(*second, "penultimate", True, None),
                Role("text_encoder_3", "tokenizer_3", "last", False, T5_TOKENS[base]),
            )
            blocks = (("text_encoder", "text_encoder_2"), ("text_encoder_3",))
            return Rule(roles, blocks, ("text_encoder", "text_encoder_2"))
        case "FLUX.1":
            pair = (Role(*first, "", True, None), Role(*second, "last", False, T5_TOKENS[base]))
            return Rule(pair, (("text_encoder_2",),), ("text_encoder",))
        case "SANA":
            role = Role(*first, "last", False, SANA_TOKENS, mask=True, prefix=_instruction(), lower=True)
            return Rule((role,), (("text_encoder",),))
    raise AssertionError(f"no rule for {base}")


def _instruction() -> str:
    """What SANA's pipeline puts before a prompt."""
    from diffusers import SanaPipeline

    lines = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    return "\n".join(lines or ())


class TextEncoder(nn.Module):
    """One encoder of transformers as `role` wants it: (tokens[, mask]) to (hidden, pooled), or one of them."""

    def __init__(self, model: Any, role: Role) -> None:
        super().__init__()
        self.model, self.role = model, role

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what comes out."""
        return ("hidden",) * bool(self.role.hidden) + ("pooled",) * self.role.pooled

    def inputs(self, length: int) -> tuple[Port, ...]:
        """The ports of what goes in."""
        return tuple(Port(name, (BATCH, length)) for name in ("tokens", "mask")[: 1 + self.role.mask])

    def forward(self, tokens: Tensor, *mask: Tensor) -> tuple[Tensor, ...]:
        """Results in the order of `outputs`."""
        ids = tokens.to(torch.int64)
        more: dict[str, Any] = {}
        if mask:
            more["attention_mask"] = mask[0].to(torch.int64)
        if self.role.hidden == "penultimate":
            more["output_hidden_states"] = True
        found = self.model(input_ids=ids, **more)
        results = []
        if self.role.hidden:
            penultimate = self.role.hidden == "penultimate"
            results.append(found.hidden_states[-2] if penultimate else found.last_hidden_state)
        if self.role.pooled:
            projected = getattr(found, "text_embeds", None)
            results.append(found.pooler_output if projected is None else projected)
        return tuple(results)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, offline. BadCheckpoint where there is none, or none that runs without Python code."""
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise BadCheckpoint(f"{folder} does not exist; wanted the tokenizer of the model; give a folder that has it")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as cause:
        raise BadCheckpoint(
            f"{folder} holds no tokenizer that can be read ({str(cause).splitlines()[0]}); wanted tokenizer.json, or "
            "vocab.json and merges.txt; download it again"
        ) from cause
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise BadCheckpoint(
            f"{folder} holds a {type(tokenizer).__name__}, which runs in Python alone; wanted one of the tokenizers "
            "library; save its fast form there"
        )
    return tokenizer


def save_tokenizer(tokenizer: Any, path: Path) -> None:
    """tokenizer.json, without padding or truncation: the rule in the manifest decides them."""
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_padding()
    plain.no_truncation()
    path.write_text(plain.to_str(), "utf-8")


def lengths(role: Role, tokenizer: Any) -> tuple[int, int]:
    """(tokens that the encoder reads, tokens that the denoiser gets)."""
    keep = int(role.tokens if role.tokens is not None else tokenizer.model_max_length)
    if not 1 < keep < 1 << 16:
        raise BadCheckpoint(
            f"found a tokenizer for {keep} tokens, {role.tokenizer}; wanted model_max_length in its config; mend it"
        )
    if not role.prefix:
        return keep, keep
    return len(tokenizer.encode(role.prefix)) + keep - 2, keep  # as SANA's pipeline counts


def pad_of(tokenizer: Any) -> int:
    """The number of the padding token."""
    if tokenizer.pad_token_id is None:
        raise BadCheckpoint(f"found no padding token in a {type(tokenizer).__name__}; wanted one; mend its config")
    return int(tokenizer.pad_token_id)


def encoder_entry(
    role: Role, model: Any, tokenizer: Any, files: Mapping[str, str], outputs: tuple[Port, ...]
) -> dict[str, Any]:
    """The encoder as the manifest has it; `files` are file, weights and tokenizer."""
    length, keep = lengths(role, tokenizer)
    widths = {port.name: int(port.shape[-1]) for port in outputs}
    return {
        "name": role.name, "family": type(model).__name__, **files, "length": length, "keep": keep,
        "pad": pad_of(tokenizer), "mask": role.mask, "prefix": role.prefix, "lower": role.lower,
        "hidden": widths.get("hidden", 0), "pooled": widths.get("pooled", 0),
    }  # fmt: skip
