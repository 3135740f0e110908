"""Components of a checkpoint: the module without its weights, and where each weight is. Nothing is downloaded.

folder      config.json and safetensors beside it, whole, sharded or of one variant (checkpoint.py finds them)
weights     read one at a time, converted and written to the bundle, then mapped from there into the module
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from widefield.errors import BadCheckpoint, first_line
from widefield_export.checkpoint import read_json, some, weight_files
from widefield_export.configs.header import FLOATS, Stored, read_header
from widefield_export.empty import build
from widefield_export.weights import DTYPES, FLOAT32, Place, Source, mapped, write_weights

TEXT_CLASSES = (
    "CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel", "Gemma2Model", "GemmaModel",
)  # fmt: skip
# Old and new names of transformers' modules differ by what they are in; the rest of a name does not change.
_INSIDE = ("", "text_model.", "model.")
_LEFT = ("vision_model.", "visual_projection.", "logit_scale", "lm_head.", "decoder.")  # of larger models


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A module on the meta device, its weights by its own names, and the files they are in."""

    model: Any
    sources: Mapping[str, Source]
    files: tuple[Path, ...]

    def settle(self, path: Path, dtype: str = FLOAT32) -> dict[str, Place]:
        """Write the weights to `path` in `dtype`; the module then evaluates without gradients.

        It holds them, mapped into memory, where they are float32. Of weights stored in half precision it has only the
        shapes, in memory that nobody has read or written: enough to trace it.
        """
        places = write_weights(path, self.sources, DTYPES[dtype])
        held = mapped(path)
        if dtype != FLOAT32:
            held = {name: torch.empty(tensor.shape) for name, tensor in held.items()}
        self.model.load_state_dict(held, strict=False, assign=True)
        twins = tied_names(self.model)
        if twins:
            self.model.tie_weights()
        self.model.eval().requires_grad_(False)
        return places | {target: places[source] for target, source in twins.items()}

    @property
    def parameters(self) -> int:
        """How many numbers the weights are."""
        return sum(math.prod(source.shape) for source in self.sources.values())


def tied_names(model: Any) -> dict[str, str]:
    """Weights of a transformers model that are another one's under a second name: {second: first}."""
    tied = getattr(model, "_tied_weights_keys", None)
    names = model.state_dict().keys()
    pairs = tied.items() if isinstance(tied, Mapping) else ()
    return {target: source for target, source in pairs if target in names and source in names}


def sources_of(stored: Mapping[str, Stored]) -> dict[str, Source]:
    """Tensors as sources, without what is no weight of a component. BadCheckpoint for a quantised one."""
    kept = {n: s for n, s in stored.items() if not n.endswith(".position_ids") and not n.startswith(_LEFT)}
    return {name: _source(one) for name, one in kept.items()}


def arrange_names(model: Any, sources: Mapping[str, Source], where: Path | str) -> dict[str, Source]:
    """The weights by the module's names. BadCheckpoint for what is missing, left over, or of another shape."""
    found, problems = match_names(model, sources)
    if problems:
        raise BadCheckpoint(
            f"{where} has {some(problems)}; wanted the {len(model.state_dict())} tensors of its config, "
            f"{type(model).__name__}; take config and weights from the same model"
        )
    return found


def match_names(model: Any, sources: Mapping[str, Source]) -> tuple[dict[str, Source], list[str]]:
    """(the weights by the module's names, what does not fit)."""
    twins = tied_names(model)
    wanted = {n: tuple(t.shape) for n, t in model.state_dict().items() if n not in twins}
    found: dict[str, Source] = {}
    used: set[str] = set()
    problems: list[str] = []
    for name, shape in wanted.items():
        names = [name, *(target for target, source in twins.items() if source == name)]
        place = next((p for n in names for p in _spellings(n) if p in sources), None)
        if place is None:
            problems.append(f"no {name}")
        elif sources[place].shape != shape:
            problems.append(f"{place} of shape {sources[place].shape} instead of {shape}")
        else:
            found[name] = sources[place]
        used.update(p for n in names for p in _spellings(n))
    return found, [*problems, *(f"an unknown {name}" for name in sources if name not in used)]


def _spellings(name: str) -> list[str]:
    bare = next((name.removeprefix(p) for p in _INSIDE[1:] if name.startswith(p)), name)
    return [name, *(prefix + bare for prefix in _INSIDE)]


def _source(stored: Stored) -> Source:
    """One tensor of a file. BadCheckpoint for one that is no plain float: a quantised model."""
    if stored.dtype not in FLOATS:
        raise BadCheckpoint(
            f"{stored.name} in {stored.file} is {stored.dtype}; wanted {', '.join(FLOATS)}; take the model before it "
            "was quantised"
        )
    return Source(stored.shape, lambda: _read(stored))


def _read(stored: Stored) -> Tensor:
    """One tensor, mapped by itself: what was read of the file before it stays in nobody's memory."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(stored.file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(stored.name)
            return tensor
    except (SafetensorError, OSError) as cause:
        raise BadCheckpoint(
            f"{stored.file} is damaged ({first_line(cause)}); wanted safetensors; download it again"
        ) from cause


def from_folder(folder: Path, library: str, family: str, stem: str) -> Part:
    """A component of a diffusers pipeline's folder. `stem` begins the names of its weight files."""
    file = folder / "config.json"
    if not file.is_file():
        raise BadCheckpoint(f"{folder} has no config.json; wanted a {family} there; download the model again")
    config = read_json(file)
    config.pop("_class_name", None)
    model = build(library, family, config, file)
    more, weights = weight_files(folder, stem)
    stored: dict[str, Stored] = {}
    for shard in weights:
        stored |= read_header(shard)
    return Part(model, arrange_names(model, sources_of(stored), folder), (file, *more, *weights))
