"""The samplers of a bundle: the checkpoint's own scheduler, and others that its config makes too."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from widefield.errors import BadCheckpoint
from widefield.schedule import Schedule
from widefield_export.denoisers import Window
from widefield_export.schedulers import COUNTS, SUPPORTED, pipeline_arguments, probe

NAMES = {
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "lcm": "LCMScheduler",
    "tcd": "TCDScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "flow_euler": "FlowMatchEulerDiscreteScheduler",
}
_OTHERS = ("dpmpp_2m", "euler", "euler_ancestral", "ddim")  # what an ordinary diffusion model can also be sampled with
FILE = "schedules.safetensors"


def load_scheduler(config: Mapping[str, Any], where: Path) -> Any:
    """The scheduler of a scheduler_config.json. BadCheckpoint for a class that diffusers has not."""
    import diffusers

    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if kind is None or not str(config["_class_name"]).endswith("Scheduler"):
        raise BadCheckpoint(
            f"{where} has class {config.get('_class_name')}; wanted a scheduler of diffusers {diffusers.__version__}"
        )
    with _quiet():
        return kind.from_config(dict(config))


def write_samplers(
    folder: Path,
    scheduler: Any,
    windows: Sequence[tuple[Window, int]],
    *,
    sigmas: bool,
    chosen: str | None = None,
    counts: Iterable[int] = COUNTS,
) -> dict[str, Any]:
    """Write the tables into `folder`; returns the manifest's `schedulers`.

    `windows` are (window, tokens of picture in it). `sigmas`: as FLUX.1's pipeline gives them. `chosen` becomes the
    default; otherwise the checkpoint's own scheduler where it is a table, else the first that is. BadCheckpoint where
    none is.
    """
    counts = tuple(counts)
    wanted = _candidates(scheduler, chosen)
    arrays: dict[str, Any] = {}
    samplers: dict[str, Any] = {}
    faults: list[str] = []
    for name, candidate in wanted.items():
        try:
            keys, made = _tables(name, candidate, windows, sigmas=sigmas, counts=counts)
        except BadCheckpoint as fault:
            if name == chosen:
                raise
            faults.append(str(fault))
            continue
        arrays |= made
        config = {k: v for k, v in dict(candidate.config).items() if not k.startswith("_")}
        samplers[name] = {"class": type(candidate).__name__, "config": config, "keys": keys}
    if not samplers:
        raise BadCheckpoint(f"no sampler can be made: {faults[0]}")
    save_file(arrays, folder / FILE)
    return {"file": FILE, "default": chosen or next(iter(samplers)), "samplers": samplers}


def own_name(scheduler: Any) -> str | None:
    """What a supported scheduler is called here."""
    return next((name for name, kind in NAMES.items() if kind == type(scheduler).__name__), None)


def _candidates(scheduler: Any, chosen: str | None) -> dict[str, Any]:
    """Schedulers to probe, by name, in order of preference."""
    own = own_name(scheduler)
    found = {} if own is None else {own: scheduler}
    config = dict(scheduler.config)
    flow = own == "flow_euler" or config.get("prediction_type") == "flow_prediction" or config.get("use_flow_sigmas")
    names = () if flow else _OTHERS
    if chosen is not None and chosen not in found:
        names = (chosen, *names)
    for name in names:
        if name not in found:
            found[name] = _other(name, config)
    if not found:
        raise BadCheckpoint(
            f"found {type(scheduler).__name__}, a flow that is no table; wanted one of {', '.join(SUPPORTED)}; export "
            "with --sampler flow_euler"
        )
    return found


def _other(name: str, config: Mapping[str, Any]) -> Any:
    """The scheduler that diffusers makes of another one's config: what that one left to its class's defaults, too.

    Latents are never clipped, whatever a class does by itself, and histories are one step long.
    """
    import diffusers

    fixed: dict[str, Any] = {}
    if name in ("ddim", "ddpm", "lcm", "tcd"):
        fixed = {"clip_sample": False, "thresholding": False}
    if name == "dpmpp_2m":
        fixed = {"solver_order": 2, "algorithm_type": "dpmsolver++"}
    left = [key for key in config.get("_use_default_values", ()) if key not in fixed]
    with _quiet():
        return getattr(diffusers, NAMES[name]).from_config({**config, "_use_default_values": left, **fixed})


def _tables(
    name: str, scheduler: Any, windows: Sequence[tuple[Window, int]], *, sigmas: bool, counts: tuple[int, ...]
) -> tuple[list[str], dict[str, Any]]:
    """(a key for each window, arrays by key/count). Windows share a key unless the shift depends on them."""
    dynamic = bool(scheduler.config.get("use_dynamic_shifting"))
    arrays: dict[str, Any] = {}
    keys: list[str] = []
    for window, tokens in windows:
        key = f"{name}@{window}" if dynamic else name
        if key not in keys:
            with _quiet():
                asked = pipeline_arguments(scheduler, tokens=tokens, sigmas=sigmas)
                found: Schedule = probe(scheduler, counts=counts, arguments=asked)
            arrays |= {f"{key}/{count}": table for count, table in found.tables.items()}
            arrays[f"{key}/initial"] = np.array([found.initial[count] for count in sorted(found.tables)])
        keys.append(key)
    return keys, arrays


def _quiet() -> warnings.catch_warnings[None]:
    """diffusers' schedulers mix NumPy and torch in ways that NumPy warns of."""
    return warnings.catch_warnings(action="ignore", category=DeprecationWarning)
