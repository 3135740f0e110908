"""What a bundle of a whole checkpoint holds beside its autoencoder. All of manifest.json's further keys, each optional:

denoiser     family       the diffusers class; `base`, what the checkpoint is of: "SDXL", "FLUX.1", ...
             weights      its safetensors file; `parameters`, how many; `dtype`, of the weights
             windows      one graph for each shape: rows, columns (latents), file, live_nbytes (activations)
             inputs       names and shapes, "batch", "rows" and "columns" where they are; widefield_export.denoisers
                          describes them
             cell         latents a patch, per side; `place`, for each window the position that the pipeline uses,
                          `places` how many the model knows per side (0: any); both null where it knows no places
text         encoders     in the order they run, each: name, family, file, weights, tokenizer (a tokenizer.json), length
                          (tokens that the graph takes), keep (tokens that the denoiser gets), pad, mask (whether the
                          graph takes one), prefix (before a prompt, not before a negative one), lower, hidden and
                          pooled (widths of its outputs, 0 for none)
             blocks       encoders whose hidden states stand side by side, and tokens; blocks follow each other, narrow
                          or empty ones filled up with zeros to `width`
             pooled       encoders whose pooled states stand side by side
             zeros        whether no negative prompt means zeros instead of the empty prompt
schedulers   file         tables of widefield.schedule, called NAME/COUNT and NAME/initial
             default      a name
             samplers     by name: class, config, keys: the NAME of the tables for each of the denoiser's windows
defaults     sampler, steps, guidance, strength; guidance_kind: "free" (two calls: prompt and negative), "embedded" (an
             input of the denoiser) or "none"; of levels that are not drawn from noise, and optional: detail_steps in
             detail_phases, detail_guidance (null: guidance), anchor (widefield.anchor) and growth, how many times the
             level below they are
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from widefield.errors import BadBundle, BadRequest
from widefield.schedule import Schedule, parse_schedule

if TYPE_CHECKING:
    from widefield.bundle import Bundle

BATCH, ROWS, COLUMNS = "batch", "rows", "columns"
GuidanceKind = Literal["free", "embedded", "none"]


@dataclass(frozen=True, slots=True)
class WindowGraph:
    """The denoiser at one window of rows x columns latents. `place` is the position that its pipeline uses."""

    rows: int
    columns: int
    file: str
    place: tuple[int, int] | None
    live_nbytes: int = 0


@dataclass(frozen=True, slots=True)
class DenoiserPart:
    """The denoiser. `shape` tells the inputs of one of its windows."""

    family: str
    base: str
    weights: str
    dtype: str
    parameters: int
    cell: int
    places: int | None
    windows: tuple[WindowGraph, ...]
    inputs: Mapping[str, tuple[int | str, ...]]
    output: str

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return int(self.inputs["latent"][1])

    def shapes(self, window: WindowGraph, batch: int) -> dict[str, tuple[int, ...]]:
        """Every input's shape for `batch` windows of that shape."""
        sides = {BATCH: batch, ROWS: window.rows, COLUMNS: window.columns}
        return {
            name: tuple(axis if isinstance(axis, int) else sides[axis] for axis in axes)
            for name, axes in self.inputs.items()
        }

    def window(self, rows: int, columns: int) -> WindowGraph:
        """The graph for that shape; BadRequest where there is none."""
        for window in self.windows:
            if (window.rows, window.columns) == (rows, columns):
                return window
        there = ", ".join(f"{w.rows}x{w.columns}" for w in self.windows)
        raise BadRequest(
            f"the bundle has no denoiser for windows of {rows}x{columns} latents; it has {there}; take one of these or "
            f"export with --window {rows}x{columns}"
        )


@dataclass(frozen=True, slots=True)
class EncoderPart:
    """One text encoder and its tokenizer."""

    name: str
    family: str
    file: str
    weights: str
    tokenizer: str
    length: int
    keep: int
    pad: int
    mask: bool
    prefix: str
    lower: bool
    hidden: int
    pooled: int


@dataclass(frozen=True, slots=True)
class Block:
    """`tokens` of text: the hidden states of these encoders, side by side; zeros where there are none."""

    encoders: tuple[str, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class TextPart:
    """How a prompt becomes what the denoiser is given."""

    encoders: tuple[EncoderPart, ...]
    blocks: tuple[Block, ...]
    width: int
    pooled: tuple[str, ...]
    zeros: bool


@dataclass(frozen=True, slots=True)
class Sampler:
    """A scheduler of diffusers as tables. `keys` name them, one for each window of the denoiser."""

    name: str
    family: str
    config: Mapping[str, Any]
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Defaults:
    """What to do where nobody says."""

    sampler: str
    steps: int
    guidance: float
    strength: float
    guidance_kind: GuidanceKind
    detail_steps: int = 2
    detail_guidance: float | None = None
    growth: int = 2
    detail_phases: int = 2
    anchor: float = 3 / 16  # three quarters of what windows overlap


@dataclass(frozen=True, slots=True)
class Parts:
    """All of the above; None for what the bundle has not."""

    denoiser: DenoiserPart | None
    text: TextPart | None
    samplers: Mapping[str, Sampler]
    schedules_file: str
    defaults: Defaults | None

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that is named."""
        files = [self.schedules_file] if self.schedules_file else []
        if self.denoiser:
            files += [self.denoiser.weights, *(w.file for w in self.denoiser.windows)]
        for encoder in self.text.encoders if self.text else ():
            files += [encoder.weights, encoder.file, encoder.tokenizer]
        return tuple(files)


def parse_parts(manifest: Mapping[str, Any]) -> Parts:
    """The parts of a manifest. KeyError, TypeError, ValueError or AttributeError for what is garbled."""
    denoiser, text, schedulers = (manifest.get(key) for key in ("denoiser", "text", "schedulers"))
    defaults = manifest.get("defaults")
    samplers = {} if schedulers is None else {name: _sampler(name, e) for name, e in schedulers["samplers"].items()}
    return Parts(
        None if denoiser is None else _denoiser(denoiser),
        None if text is None else _text(text),
        samplers,
        "" if schedulers is None else str(schedulers["file"]),
        None if defaults is None else _defaults(defaults),
    )


def _denoiser(entry: Mapping[str, Any]) -> DenoiserPart:
    places = entry["place"] or [None] * len(entry["windows"])
    windows = tuple(
        WindowGraph(
            int(w["rows"]),
            int(w["columns"]),
            str(w["file"]),
            None if p is None else (int(p[0]), int(p[1])),
            int(w.get("live_nbytes", 0)),
        )
        for w, p in zip(entry["windows"], places, strict=True)
    )
    if not windows:
        raise ValueError("a denoiser's windows")
    return DenoiserPart(
        str(entry["family"]), str(entry["base"]), str(entry["weights"]), str(entry["dtype"]), int(entry["parameters"]),
        int(entry["cell"]), entry["places"], windows,
        {name: tuple(axes) for name, axes in entry["inputs"].items()}, str(entry["output"]),
    )  # fmt: skip


def _text(entry: Mapping[str, Any]) -> TextPart:
    encoders = tuple(EncoderPart(**e) for e in entry["encoders"])
    known = {encoder.name for encoder in encoders}
    blocks = tuple(Block(tuple(b["encoders"]), int(b["tokens"])) for b in entry["blocks"])
    pooled = tuple(entry["pooled"])
    for name in (*pooled, *(name for block in blocks for name in block.encoders)):
        if name not in known:
            raise ValueError(f"the text encoder {name}")
    return TextPart(encoders, blocks, int(entry["width"]), pooled, bool(entry["zeros"]))


def _sampler(name: str, entry: Mapping[str, Any]) -> Sampler:
    return Sampler(name, str(entry["class"]), dict(entry["config"]), tuple(map(str, entry["keys"])))


def _defaults(entry: Mapping[str, Any]) -> Defaults:
    if entry["guidance_kind"] not in ("free", "embedded", "none"):
        raise ValueError(f"guidance of kind {entry['guidance_kind']}")
    detail = entry.get("detail_guidance")
    return Defaults(
        str(entry["sampler"]), int(entry["steps"]), float(entry["guidance"]), float(entry["strength"]),
        entry["guidance_kind"], int(entry.get("detail_steps", 2)), None if detail is None else float(detail),
        int(entry.get("growth", 2)), int(entry.get("detail_phases", 2)),
        float(entry.get("anchor", 3 / 16)),
    )  # fmt: skip


def load_schedule(bundle: Bundle, name: str, window: int = 0) -> Schedule:
    """The tables of one sampler, for the denoiser's window of that index. BadRequest for an unknown name."""
    from safetensors import SafetensorError, safe_open

    samplers = bundle.parts.samplers
    if name not in samplers:
        there = ", ".join(samplers) or "none"
        raise BadRequest(f"{bundle.name} has no sampler {name!r}; it has {there}; name one of these")
    path: Path = bundle.file(bundle.parts.schedules_file)
    prefix = f"{samplers[name].keys[window]}/"
    try:
        with safe_open(path, framework="numpy") as tensors:
            arrays = {k.removeprefix(prefix): tensors.get_tensor(k) for k in tensors.keys() if k.startswith(prefix)}  # noqa: SIM118
    except SafetensorError as cause:
        raise BadBundle(f"{path}: {cause}; the bundle is damaged; export it again") from cause
    return parse_schedule(name, arrays)
