"""What `widefield inspect` says of a bundle's denoiser, text encoders and samplers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from widefield.bundle import Bundle

Rows = list[tuple[str, str]]


def abilities(bundle: Bundle) -> list[str]:
    """The commands that the bundle has everything for."""
    has = set(bundle.components) | ({"denoiser"} if bundle.parts.denoiser else set())
    needs = {
        "decode": {"decoder"},
        "encode": {"encoder"},
        "generate": {"denoiser", "decoder"},
        "upscale": {"denoiser", "decoder", "encoder"},
    }
    return [command for command, parts in needs.items() if parts <= has]


def about_generation(bundle: Bundle) -> dict[str, Any] | None:
    """Denoiser, text, samplers and defaults, for JSON; None for a bundle of an autoencoder alone."""
    from widefield.parts import load_schedule

    parts = bundle.parts
    if parts.denoiser is None:
        return None
    denoiser = parts.denoiser
    text = parts.text
    samplers = {}
    for name, sampler in parts.samplers.items():
        run = load_schedule(bundle, name)
        samplers[name] = {"class": sampler.family, "steps": sorted(run.tables)}
    return {
        "base": denoiser.base,
        "denoiser": {
            "family": denoiser.family,
            "parameters": denoiser.parameters,
            "dtype": denoiser.dtype,
            "weights_nbytes": _nbytes(bundle, denoiser.weights),
            "windows": [[window.rows, window.columns] for window in denoiser.windows],
            "inputs": {name: list(axes) for name, axes in denoiser.inputs.items()},
        },
        "text": None
        if text is None
        else {
            encoder.name: {
                "family": encoder.family,
                "tokens": encoder.keep,
                "weights_nbytes": _nbytes(bundle, encoder.weights),
            }
            for encoder in text.encoders
        },
        "samplers": samplers,
        "defaults": None
        if parts.defaults is None
        else {name: getattr(parts.defaults, name) for name in parts.defaults.__slots__},
    }


def _nbytes(bundle: Bundle, file: str) -> int:
    return int(bundle.manifest["files"][file]["nbytes"])


def rows_of(generation: Mapping[str, Any]) -> Rows:
    """A line for each part."""
    denoiser, text, defaults = (generation[key] for key in ("denoiser", "text", "defaults"))
    windows = ", ".join(f"{rows}x{columns}" for rows, columns in denoiser["windows"])
    rows = [
        (
            "denoiser",
            f"{generation['base']}, {denoiser['family']}, {denoiser['parameters'] / 1e6:.3g} million weights in "
            f"{denoiser['dtype']}, windows of {windows} latents",
        )
    ]
    if text is None:
        rows.append(("prompts", "none: no text encoders; export with --text FOLDER"))
    else:
        rows += [(name, f"{encoder['family']}, reads {encoder['tokens']} tokens") for name, encoder in text.items()]
    for name, sampler in generation["samplers"].items():
        steps = sampler["steps"]
        rows.append((f"sampler {name}", f"{sampler['class']}, {steps[0]} to {steps[-1]} steps"))
    if defaults is not None:
        kinds = {
            "free": f"guidance {defaults['guidance']:g}",
            "embedded": f"guidance {defaults['guidance']:g}, an input of the model",
            "none": "no guidance",
        }
        rows.append(
            (
                "defaults",
                f"{defaults['sampler']}, {defaults['steps']} steps, {kinds[defaults['guidance_kind']]}, strength "
                f"{defaults['strength']:g}",
            )
        )
    return rows
