"""The figures of docs/concepts.md, from the embedded checkpoint.

    python docs/figures/make.py [NAME...]      field, summary, plan, certificate: NAME.svg beside this file

`field` and `plan` are arithmetic: seconds. `summary` and `certificate` draw one picture and decode it some
twenty times: minutes. Needs the extra `bench`, for matplotlib.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

import widefield
from widefield.commands.plan import drawing, plan_of_size
from widefield.cone import cone
from widefield.generation import Generation, Recipe
from widefield.geometry import Region
from widefield.memo import Memo
from widefield.options import RunOptions
from widefield.sampling import default_cells
from widefield_bench.plots import BLACK, BLUE, GREY, ORANGE, SETTINGS, SKY

FOLDER = Path(__file__).parent
PROMPT, SIDE, LARGEST = "a temperate coast, from space", 1024, 524_288
CELLS, SEEDS = (16, 32, 64, 128, 256, 512, 1024), range(3)


def field(axes: Any) -> None:
    """Windows of each level: all of them, and those in the cone of a view in the middle."""
    bundle, options = widefield.open().bundle, RunOptions(engine="ort")
    generation = Generation(bundle, "", (LARGEST, LARGEST), 0, Recipe())
    fields = generation.cascade(Memo(0), generation.cascade_options(options.engine_options()))
    at = LARGEST // 2
    counted = cone(fields, Region(at, at, at + SIDE, at + SIDE)).levels
    levels = drawing(bundle, (LARGEST, LARGEST), options)["levels"]
    sides = [f"{level['cells'][1] * bundle.scale:,}" for level in levels]
    places = np.arange(len(levels))
    for shift, values, colour, label in (
        (-0.2, [_windows(fields, index, level) for index, level in enumerate(levels)], ORANGE, "of the whole level"),
        (0.2, [level.windows for level in counted], BLUE, f"for a view of {SIDE:,} x {SIDE:,} px of the last level"),
    ):
        bars = axes.bar(places + shift, values, 0.38, color=colour, label=label)
        axes.bar_label(bars, [f"{value:,}" for value in values], fontsize=8)
    axes.set_xticks(places, sides)
    axes.set(yscale="log", xlabel="side of the level, pixels", ylabel="windows, of all phases")
    axes.set(title=f"Windows that are denoised, {LARGEST:,} x {LARGEST:,} px", ylim=(0.7, None))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    axes.grid(visible=False, axis="x")
    axes.legend(frameon=False)


def _windows(fields: Any, index: int, level: dict[str, Any]) -> int:
    """Of all phases: counted where they are few, else what the grid of the first phase has, for each."""
    if level["windows"] > 50_000:
        return int(level["windows"])
    height, width = (side * fields.bundle.scale for side in level["cells"])
    return cone(fields, Region(0, 0, height, width), index).levels[index].windows


def plan(axes: Any) -> None:
    """Peak memory of a decode's plan, by side and budget, beside what the pixels alone take."""
    bundle = widefield.open().bundle
    sides = [1 << k for k in range(10, 20)]
    styles = (("512MiB", SKY, "s"), ("2GiB", BLUE, "o"), ("8GiB", BLACK, "^"))
    for memory, colour, marker in styles:
        options = RunOptions(engine="ort", workers=2, memory_nbytes=int(memory[:-3]) << (30 if "G" in memory else 20))
        peaks = [plan_of_size(bundle, (side, side), options).peak_nbytes() / 2**20 for side in sides]
        axes.plot(sides, peaks, color=colour, marker=marker, label=f"--memory {memory}")
    axes.plot(sides, [3 * side**2 / 2**20 for side in sides], color=ORANGE, linestyle=":", linewidth=2,
              label="the picture alone, 8-bit RGB")  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="side of the square picture, pixels", ylabel="MiB")
    axes.set(title="Peak memory of a decode, as planned for 2 workers and ONNX Runtime")
    axes.set_xticks(sides, [f"{side:,}" for side in sides], rotation=30)
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    axes.legend(frameon=False)


@cache
def latents() -> np.ndarray[Any, np.dtype[np.float32]]:
    """(channels, rows, columns) of a drawn picture of SIDE x SIDE px."""
    with tempfile.TemporaryDirectory() as folder:
        picture = widefield.open().generate(PROMPT, size=(SIDE, SIDE), seed=5, engine="ort")
        picture.save(Path(folder, "coast.tif"), latents=Path(folder, "coast.npy"))
        found: np.ndarray[Any, np.dtype[np.float32]] = np.load(Path(folder, "coast.npy"))
    return found


def decoded(**options: Any) -> Any:
    """The picture of those latents."""
    return widefield.open().decode(latents(), engine="ort", **options)


@cache
def exact() -> np.ndarray[Any, np.dtype[np.float64]]:
    """Its pixels with an exact summary."""
    with decoded(summary="exact") as picture:
        return np.asarray(picture, np.float64)


def summary(axes: Any) -> None:
    """PSNR of decodes with sampled summaries, by the number of squares."""
    every = []
    for cells in CELLS:
        found = []
        for seed in SEEDS:
            with decoded(summary="sampled", cells=cells, seed=seed) as picture:
                error = np.mean((np.asarray(picture, np.float64) - exact()) ** 2)
            found.append(10 * np.log10(255**2 / error))
        axes.plot([cells] * len(found), found, "o", color=BLUE, alpha=0.8)
        every.append(float(np.median(found)))
    axes.plot(CELLS, every, color=BLUE, label="median of three seeds")
    default = default_cells(*latents().shape[1:])
    axes.axvline(default, color=ORANGE, linestyle="--", label=f"{default}: what a sample of this size has by default")
    axes.set(xscale="log", xlabel="squares of 4 x 4 latents", ylabel="PSNR to the decode with an exact summary, dB")
    axes.set(title=f"Sampled against exact summary, {SIDE:,} x {SIDE:,} px")
    axes.set_xticks(CELLS, [f"{cells:,}" for cells in CELLS])
    axes.minorticks_off()
    axes.legend(frameon=False)


def certificate(axes: Any) -> None:
    """Differences of means between a sample and all, by norm, in standard deviations of the group."""
    with decoded(summary="exact") as whole, decoded(summary="sampled", cells=256, tile=(16, 16)) as sample:
        true, found = whole.summary().moments, sample.summary().moments
        with tempfile.TemporaryDirectory() as folder:
            said = sample.save(Path(folder, "coast.tif")).certificate
    sites = [site for site in widefield.open().bundle.decoder.sites if site.kind == "norm"]
    off, known = [], []
    for site in sites:
        deviation = np.sqrt(true[f"{site.result}.variance"])
        off.append(np.max(np.abs(found[f"{site.result}.mean"] - true[f"{site.result}.mean"]) / deviation))
        known.append(np.max(found[f"{site.result}.mean_error"] / deviation))
    places = np.arange(1, len(sites) + 1)
    axes.bar(places, known, 0.6, color=SKY, label="standard error that the sample knew, largest of the groups")
    axes.plot(places, off, "o", color=BLACK, label="off from all of the picture, largest of the groups")
    told = f"certificate: means within {said.mean:.2g}, +- {said.error:.2g}, from {said.tiles} tiles"
    axes.axhline(said.mean, color=ORANGE, linestyle="--", label=told)
    axes.set(xlabel="norm of the decoder, from the first to the last", ylabel="standard deviations of the group")
    axes.set(title=f"Means that were frozen, against true ones, {SIDE:,} x {SIDE:,} px", ylim=(0, 1.45 * said.mean))
    axes.set_xticks(places)
    axes.grid(visible=False, axis="x")
    axes.legend(frameon=False, loc="upper left")


FIGURES: dict[str, Callable[[Any], None]] = {
    "field": field, "summary": summary, "plan": plan, "certificate": certificate,
}  # fmt: skip


def drawn(draw: Callable[[Any], None]) -> str:
    """A figure as an <svg> element."""
    with matplotlib.rc_context({**SETTINGS, "axes.prop_cycle": matplotlib.cycler(color=[GREY])}):
        figure = Figure(figsize=(8.6, 4.4), layout="constrained")
        draw(figure.add_subplot())
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return "\n".join(line.rstrip() for line in text[text.index("<svg") :].splitlines()) + "\n"


if __name__ == "__main__":
    for name in sys.argv[1:] or FIGURES:
        (FOLDER / f"{name}.svg").write_text(drawn(FIGURES[name]), encoding="utf-8")
        print(FOLDER / f"{name}.svg")
