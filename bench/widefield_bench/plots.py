"""Pictures of measured rows, each an SVG as text. matplotlib is imported here alone (the extra `bench`).

Colours are of Okabe and Ito, which colour-blind people tell apart; every line has a marker and a dash of its own too.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from widefield_bench.results import LABELS, Row, section, who_of
from widefield_bench.watch import KINDS, MEASURING, time_split

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE, GREY = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999",
)  # fmt: skip
STYLES: dict[str, dict[str, Any]] = {
    "untiled": {"color": BLACK, "marker": "o", "linestyle": ":"},
    "sliced": {"color": GREY, "marker": "x", "linestyle": ":"},
    "tiled": {"color": ORANGE, "marker": "s", "linestyle": ":"},
    "compiled": {"color": PURPLE, "marker": "^", "linestyle": ":"},
    "whole ort": {"color": SKY, "marker": "v", "linestyle": "-."},
    "whole openvino": {"color": GREEN, "marker": "P", "linestyle": "-."},
    "ort f32": {"color": SKY, "marker": "D", "linestyle": "-"},
    "openvino f32": {"color": BLUE, "marker": "*", "linestyle": "-"},
    "openvino bf16": {"color": RED, "marker": "h", "linestyle": "-"},
}
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "path", "svg.hashsalt": "widefield", "font.size": 10, "axes.grid": True, "grid.alpha": 0.3,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
}  # fmt: skip


def figures(rows: Sequence[Row]) -> dict[str, str]:
    """SVG by name, of everything that the rows can show."""
    drawn = {name: draw(rows) for name, draw in DRAWINGS.items()}
    return {name: svg for name, svg in drawn.items() if svg is not None}


def _drawn(draw: Callable[[Figure, Any], None], height: float = 4.2) -> str:
    """A figure with one pair of axes and room for a legend on the right, as an <svg> element."""
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(9.6, height), layout="constrained")
        draw(figure, figure.add_subplot())
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return "\n".join(line.rstrip() for line in text[text.index("<svg") :].splitlines()) + "\n"


def _by_size(axes: Any, decodes: Sequence[Row], value: str, title: str, unit: str) -> None:
    """A line a way; sizes at which one failed are crosses at the bottom."""
    sizes = sorted({row["size_px"] for row in decodes})
    measured = [row[value] for row in decodes if value in row]
    floor = min(measured) / 1.6
    for who in who_of(decodes):
        mine = sorted((r for r in decodes if r["who"] == who and value in r), key=lambda r: r["size_px"])
        style = {"linewidth": 2.2 if "f32" in who or "bf16" in who else 1.5, "markersize": 7, **STYLES[who]}
        axes.plot([r["size_px"] for r in mine], [r[value] for r in mine], label=LABELS[who], **style)
        lost = [r["size_px"] for r in decodes if r["who"] == who and "failed" in r]
        if lost:
            axes.plot(
                lost, [floor] * len(lost), color=STYLES[who]["color"], marker="X", linestyle="", markersize=9,
                label=f"  failed: {LABELS[who]}",
            )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="side of the square picture, pixels", ylabel=unit, title=title)
    axes.xaxis.set(major_locator=FixedLocator(sizes), minor_locator=NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.yaxis.set(major_locator=LogLocator(10, (1, 2, 5)), minor_locator=NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.3g}" if y < 1000 else f"{y:,.0f}"))


def throughput(rows: Sequence[Row]) -> str | None:
    """Megapixels a CPU second, by size: what others on the machine hardly change."""
    decodes = section(rows, "decode")

    def draw(figure: Figure, axes: Any) -> None:
        threads = decodes[0]["threads"]
        title = f"Decoding latents to pixels, {threads} threads: higher is cheaper"
        _by_size(axes, decodes, "mpx_per_cpu_s", title, "megapixels per CPU second")
        figure.legend(loc="outside right upper", frameon=False, fontsize=9)

    return _drawn(draw) if any("seconds" in row for row in decodes) else None


def memory(rows: Sequence[Row]) -> str | None:
    """Peak memory beside the loaded program, by size, and what the pixels alone would take."""
    decodes = section(rows, "decode")

    def draw(figure: Figure, axes: Any) -> None:
        _by_size(axes, decodes, "peak_mib", "Peak memory of a decode: lower is less", "MiB above the idle process")
        sizes = sorted({row["size_px"] for row in decodes})
        values = [3 * 4 * n * n / 2**20 for n in sizes]
        axes.plot(sizes, values, color=BLACK, alpha=0.5, linewidth=1, label="the picture in float32, alone")
        figure.legend(loc="outside right upper", frameon=False, fontsize=9)

    return _drawn(draw) if any("peak_mib" in row for row in decodes) else None


def roofline(rows: Sequence[Row]) -> str | None:
    """Rates of parts against FLOP per byte, under the measured ceilings."""
    points, limits = section(rows, "roofline"), section(rows, "ceiling")
    colours = {"torch": ORANGE, "ort": SKY, "openvino": BLUE, "numpy": GREEN}
    markers = "os^vDPh*X"

    def draw(figure: Figure, axes: Any) -> None:
        limit = limits[0]
        knee = limit["gflops"] / limit["gbps"]
        x = [
            min(p["flop_per_byte"] for p in points) / 2,
            knee,
            max(2 * knee, *(p["flop_per_byte"] * 2 for p in points)),
        ]
        ceiling = [min(limit["gflops"], v * limit["gbps"]) for v in x]
        axes.plot(x, ceiling, color=BLACK, linewidth=2,
                  label=f"ceiling: product {limit['gflops']:.0f} GFLOP/s, copy {limit['gbps']:.1f} GB/s")  # fmt: skip
        names = list(dict.fromkeys(p["part"] for p in points))
        for p in points:
            axes.plot(p["flop_per_byte"], p["gflops"], linestyle="", markersize=8, alpha=0.9, markeredgecolor="white",
                      color=colours[p["by"]], marker=markers[names.index(p["part"])])  # fmt: skip
        for by in dict.fromkeys(p["by"] for p in points):
            axes.plot([], [], linestyle="", marker="s", markersize=8, color=colours[by], label=f"by {by}")
        for name in names:
            marker = markers[names.index(name)]
            axes.plot([], [], linestyle="", marker=marker, color=GREY, markersize=8, label=name)
        axes.set(xscale="log", yscale="log", xlabel="intensity, FLOP per byte that has to move", ylabel="GFLOP/s",
                 title=f"Parts of a decode under the machine's ceilings, {limit['threads']} threads")  # fmt: skip
        figure.legend(loc="outside right upper", frameon=False, fontsize=9)

    return _drawn(draw, 4.6) if points and limits else None


def split(rows: Sequence[Row]) -> str | None:
    """Shares of the threads' time, by kind of work: a bar for each of ours."""
    bars = [row for row in section(rows, "split") if "split" in row]
    kinds = (MEASURING, *KINDS)
    colours = dict(zip(kinds, (YELLOW, BLUE, RED, PURPLE, GREY, "#BBBBBB", GREEN, SKY, ORANGE, BLACK), strict=True))

    def draw(figure: Figure, axes: Any) -> None:
        left = [0.0] * len(bars)
        for kind in kinds:
            values = [100 * time_split(row).get(kind, 0.0) for row in bars]
            if max(values) >= 0.05:
                axes.barh(range(len(bars)), values, 0.6, left, color=colours[kind], edgecolor="white", label=kind)
            for k, value in enumerate(values):
                if value >= 4:
                    axes.text(left[k] + value / 2, k, f"{value:.0f} %", ha="center", va="center", fontsize=9,
                              bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5})  # fmt: skip
            left = [a + b for a, b in zip(left, values, strict=True)]
        axes.set_yticks(range(len(bars)), [LABELS[row["who"]].replace(", ", "\n") for row in bars])
        axes.set(xlim=(0, 100), xlabel="% of the time that threads were at work",
                 title=f"Where the time goes, {bars[0]['size_px']} x {bars[0]['size_px']} px")  # fmt: skip
        axes.grid(visible=False, axis="y")
        figure.legend(loc="outside right upper", frameon=False, fontsize=9)

    return _drawn(draw, 1.6 + 0.8 * len(bars)) if bars else None


def quality(rows: Sequence[Row]) -> str | None:
    """Decibels from the untiled decode, at the largest size that was checked."""
    checked = section(rows, "quality")
    size = max((row["size_px"] for row in checked), default=0)
    bars = [row for who in who_of(checked)[::-1] for row in checked if row["who"] == who and row["size_px"] == size]

    def draw(_: Figure, axes: Any) -> None:
        axes.barh(range(len(bars)), [row["psnr_db"] for row in bars], 0.6,
                  color=[STYLES[row["who"]]["color"] for row in bars])  # fmt: skip
        for k, row in enumerate(bars):
            same = "the same picture" if not row["largest_difference"] else f"{row['psnr_db']:.1f} dB"
            more = "" if not row["largest_difference"] else f", at most {row['largest_difference']} of 255 off"
            axes.text(row["psnr_db"] + 0.8, k, same + more, va="center", fontsize=9)
        axes.set_yticks(range(len(bars)), [LABELS[row["who"]] for row in bars])
        axes.set(xlim=(0, 135), xlabel="PSNR against diffusers' untiled decode, dB: higher is nearer",
                 title=f"The same picture? {size} x {size} px, before any lossy codec")  # fmt: skip
        axes.set_xticks(range(0, 101, 10))
        axes.grid(visible=False, axis="y")

    return _drawn(draw, 1.4 + 0.42 * len(bars)) if bars else None


def scaling(rows: Sequence[Row]) -> str | None:
    """Seconds by megapixels: measured, predicted, and projected to the largest picture."""
    models, far = section(rows, "scaling"), section(rows, "projection")

    def draw(figure: Figure, axes: Any) -> None:
        model = models[0]
        mine = [r for r in section(rows, "decode") if r["who"] == model["by"] and "seconds" in r]
        mine.sort(key=lambda r: r["size_px"])
        fitted = [r for r in mine if r["size_px"] in model["fitted_px"]]
        mpx = [r["size_px"] ** 2 / 1e6 for r in fitted]
        axes.plot(
            mpx,
            [r["cpu_seconds"] / model["cores_used"] for r in fitted],
            "o",
            color=BLUE,
            markersize=8,
            label="measured, fitted",
        )
        x = model["size_px"] ** 2 / 1e6
        axes.plot(
            x,
            model["measured_cpu_seconds"] / model["cores_used"],
            "s",
            color=GREEN,
            markersize=8,
            label="measured, not fitted",
        )
        predicted, label = model["predicted_cpu_seconds"] / model["cores_used"], f"predicted there: {model['off']:+.1%}"
        axes.plot(x, predicted, "x", color=BLACK, markersize=9, markeredgewidth=2, label=label)
        most = far[0]["size_px"] ** 2 / 1e6
        axes.plot(
            [x, most],
            [model["predicted_cpu_seconds"] / model["cores_used"], far[0]["projected_seconds"]],
            "--",
            color=RED,
            linewidth=1,
        )
        for row, marker, colour in zip(far, "^Dv", (RED, ORANGE, PURPLE), strict=False):
            count, hours = row["machines"], row["projected_hours"]
            label = f"projection, {count} machine{'s' * (count > 1)}: {hours:,.1f} h"
            axes.plot(
                most, row["projected_seconds"], color=colour, marker=marker, linestyle="", markersize=9, label=label
            )
        axes.set(xscale="log", yscale="log", xlabel="megapixels", ylabel="wall time on a machine that is left alone",
                 title=f"Time of a whole decode, {LABELS[model['by']]}; dashed is projected")  # fmt: skip
        axes.yaxis.set(major_locator=FixedLocator([1, 10, 60, 600, 3600, 36_000, 360_000]), minor_locator=NullLocator())
        names = {1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h", 36_000: "10 h", 360_000: "100 h"}
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: names.get(round(y), "")))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
        figure.legend(loc="outside right upper", frameon=False, fontsize=9)

    return _drawn(draw) if models and far else None


DRAWINGS: dict[str, Callable[[Sequence[Row]], str | None]] = {
    "throughput": throughput,
    "memory": memory,
    "quality": quality,
    "split": split,
    "roofline": roofline,
    "scaling": scaling,
}
