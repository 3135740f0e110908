"""Every number that a document shows, made from the committed results: a document says where, this says what.

    python -m widefield_bench.numbers            rewrites DOCUMENTS; a test runs `filled` on them

Between `<!-- numbers: NAME -->` and `<!-- end -->` stands what BLOCKS[NAME] makes of bench/results. To change a number,
measure it again; to change a sentence, change it here.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from widefield_bench import results
from widefield_bench.claims import claims
from widefield_bench.decode import MOST_DB
from widefield_bench.results import FOLDER, LABELS, Row, one, quiet, read, section, who_of
from widefield_bench.watch import time_split

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "docs/benchmarks.md", "docs/serving.md")
ENGINES = {"ort": "ONNX Runtime", "openvino": "OpenVINO"}
IDLE_LOAD = 0.6
BLOCK = re.compile(r"(<!-- numbers: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, folder: Path = FOLDER) -> str:
    """A document with every block made anew. KeyError for one that is not in BLOCKS."""
    return BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]](folder)}\n{found[3]}", text)


def rows_of(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; the first column is text, the others numbers."""
    head = [f"| {' | '.join(columns)} |", "|".join(["", "---", *["--:"] * (len(columns) - 1), ""])]
    return "\n".join([*head, *(f"| {' | '.join(line)} |" for line in lines)])


def number(value: float | None, digits: int = 3) -> str:
    """Three digits of a number, none of nothing."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:#.{digits}g}".rstrip(".")


def _prose(text: str) -> str:
    return textwrap.fill(text, 124, break_long_words=False, break_on_hyphens=False)


def about(found: Mapping[str, Any]) -> str:
    """A machine and its versions, as a sentence's parts."""
    machine, versions = found["machine"], found["versions"]
    names = {"python": "Python", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "torch": "PyTorch"}
    packages = ", ".join(f"{names.get(n, n)} {v}" for n, v in versions.items() if n in (*names, "diffusers"))
    return f"{machine['cpu']}, {machine['cores']} virtual cores, {packages}"


def decode(folder: Path) -> str:
    """Two sizes, side by side."""
    return _decodes(read(folder / "bench.json"), (2048, 4096))


def decode_rest(folder: Path) -> str:
    """The other sizes."""
    rows = read(folder / "bench.json")
    rest = sorted({row["size_px"] for row in section(rows, "decode")} - {2048, 4096})
    return "\n\n".join(_decodes(rows, rest[k : k + 2], cpu=True) for k in range(0, len(rest), 2))


def _decodes(rows: Sequence[Row], sizes: Sequence[int], *, cpu: bool = False) -> str:
    """With `cpu` by CPU time, else by wall time, where nobody disturbed it."""
    near = [row for row in section(rows, "quality") if row["size_px"] in sizes]
    rows = [row for row in section(rows, "decode") if row["size_px"] in sizes]
    unit, seconds = ("mpx_per_cpu_s", "cpu_seconds") if cpu else ("mpx_per_s", "seconds")
    columns = [""]
    for size in sizes:
        columns += [f"{size} x {size}: {'Mpx per CPU s' if cpu else 'Mpx/s'}", "over tiling", "peak MiB"]
    lines = []
    for who in who_of(rows):
        cells = []
        for size in sizes:
            row = one(rows, who=who, size_px=size)
            tiled = one(rows, who="tiled", size_px=size)
            if row is None:
                lost = next((r for r in rows if r["who"] == who and r["size_px"] == size), None)
                cells += ["failed" if lost else "", "", ""]
                continue
            told = cpu or quiet(row)
            times = tiled[seconds] / row[seconds] if tiled and told and (cpu or quiet(tiled)) else None
            speed = number(row[unit]) if told else "disturbed"
            cells += [speed, number(times, 2), number(row["peak_mib"])]
        checked = [row["psnr_db"] for row in near if row["who"] == who]
        lines.append([LABELS[who], *cells, _decibels(min(checked)) if checked else ""])
    return rows_of([*columns, "dB"], lines)


def _decibels(value: float) -> str:
    return "equal" if value >= MOST_DB else number(value)


def decode_about(folder: Path) -> str:
    """Where the table is from."""
    rows = section(read(folder / "bench.json"), "decode")
    commits = ", ".join(dict.fromkeys(row["about"]["commit"] for row in rows))
    return _prose(
        f"{about(rows[0]['about'])}; commits {commits}; {rows[0]['threads']} threads, whole runs in fresh processes, "
        "put together from several runs of `widefield bench`, most while other programs were halted (a time that they "
        "disturbed is named so), its rows in `bench/results/bench.json`. Ours measures the summary and writes "
        "a JPEG pyramid; the others only decode. dB: the least, from untiled."
    )


def failures(folder: Path) -> str:
    """Who failed, and how."""
    rows = [row for row in section(read(folder / "bench.json"), "decode") if "failed" in row]
    lines = [f"- {LABELS[r['who']]}, {r['size_px']} px, {r['limit']} allowed: {_said(r['failed'])}" for r in rows]
    return "\n".join(lines) or "Nobody failed."


def _said(why: str) -> str:
    return f"`{why.replace('`', '')[:160]}`"


def claimed(folder: Path) -> str:
    """Every claim, whether it holds, and why not."""
    lines = [
        [claim.wanted, claim.who, claim.found, "yes" if claim.holds else f"**no**: {claim.why}".rstrip(": ")]
        for claim in claims(read(folder / "bench.json"))
    ]
    return rows_of(["wanted", "who", "found", "holds"], lines)


def split(folder: Path) -> str:
    """Shares of the threads' time."""
    rows = [row for row in section(read(folder / "bench.json"), "split") if "split" in row]
    shares = [time_split(row) for row in rows]
    kinds = dict.fromkeys(kind for share in shares for kind in share if max(s.get(kind, 0) for s in shares) >= 0.005)
    lines = [[kind, *(f"{s.get(kind, 0):.1%}" for s in shares)] for kind in kinds]
    return rows_of([f"{rows[0]['size_px']} px", *(LABELS[row["who"]] for row in rows)], lines)


def scaling(folder: Path) -> str:
    """The model, its check, and the projection."""
    rows = read(folder / "bench.json")
    (model,) = section(rows, "scaling")
    fitted = ", ".join(f"{size:,}" for size in model["fitted_px"])
    said = _prose(
        f"Fitted to {LABELS[model['by']]}, squares of {fitted} px; one of {model['size_px']:,} px was predicted to "
        f"take {model['predicted_cpu_seconds']:.1f} CPU s and took {model['measured_cpu_seconds']:.1f} "
        f"({model['off']:+.1%}). "
        "**Projection**, nothing of this size was run: "
        f"{section(rows, 'projection')[0]['size_px']:,} x {section(rows, 'projection')[0]['size_px']:,} px."
    )
    lines = [
        [
            str(r["machines"]), f"{r['projected_hours']:,.1f} h", f"{r['projected_machine_hours']:,.0f}",
            number(r["stored_mb_per_s"]), f"{r['written_gb']:,.0f} GB", f"{r['planned_mib']:,} MiB",
        ]
        for r in section(rows, "projection")
    ]  # fmt: skip
    columns = ["machines like this one", "wall time", "machine hours", "MB/s stored", "stored", "memory planned each"]
    return said + "\n\n" + rows_of(columns, lines)


def roofline(folder: Path) -> str:
    """Parts under their ceilings."""
    rows = read(folder / "bench.json")
    (limit,) = section(rows, "ceiling")
    lines = [
        [r["part"], r["by"], number(r["gflops"]), number(r["flop_per_byte"]), f"{r['of_ceiling']:.0%} of {r['bound']}"]
        for r in section(rows, "roofline")
    ]
    said = _prose(
        f"Ceilings, measured with {limit['threads']} threads: a product of {limit['side']} x {limit['side']} float32 "
        f"matrices {limit['gflops']:.0f} GFLOP/s (by {limit['gflops_by']}), a copy {limit['gbps']:.1f} GB/s."
    )
    return said + "\n\n" + rows_of(["part", "by", "GFLOP/s", "FLOP/byte", "reaches"], lines)


def codecs(folder: Path) -> str:
    """What a stored pixel costs: ranges over the photographs."""
    rows = read(folder / "codecs.json")
    kinds = {"photograph": "photograph, bits a pixel", "decoded": "decoded picture, bits a pixel"}
    names = list(dict.fromkeys(row["codec"] for row in rows))
    lines = [
        [
            title,
            *(_range([r["bits_per_px"] for r in rows if (r["kind"], r["codec"]) == (kind, name)], 1) for name in names),
        ]
        for kind, title in kinds.items()
    ]
    lost = [[r["psnr_db"] for r in rows if (r["kind"], r["codec"]) == ("decoded", name)] for name in names]
    lines.append(["decoded picture, dB lost", *("none" if None in found else _range(found, 0) for found in lost)])
    return rows_of(["", *names], lines)


def _range(values: Sequence[float], digits: int) -> str:
    least, most = (f"{v:.{digits}f}" for v in (min(values), max(values)))
    return least if least == most else f"{least}-{most}"


def store(folder: Path) -> str:
    """Pyramids to the disk."""
    lines = [
        [
            f"`{r['form']}`, {r['side_px']:,} x {r['side_px']:,}", number(r["mpx_per_s"]),
            number(r["encoder_mpx_per_s"]), number(r["cpus_given"], 2),
            number(r["mpx_per_cpu_s"]), f"{r['bits_per_px']:.2f}", f"{r['rss_above_idle_mib']:.0f} MiB",
        ]
        for r in read(folder / "store.json")
    ]  # fmt: skip
    columns = [
        "",
        "Mpx/s",
        "the encoder alone",
        "on so many cores",
        "Mpx per CPU second",
        "bits a pixel",
        "memory above idle",
    ]
    return rows_of(columns, lines)


def drawing(folder: Path) -> str:
    """What it costs: a cold viewport, four of them in the least memory, whole pictures."""
    found = read(folder / "drawing.json")
    named = {
        "cold": "1024 x 1024 px of {}, cold",
        "views": "512 x 512 px of {}, four of them",
        "whole": "{} px, into a .tif",
    }
    lines = [
        [
            named[r["what"]].format("{:,} x {:,}".format(*r["size"])),
            ENGINES[r["engine"]], number(r["seconds"]), f"{r['units']:,}" if "units" in r else "",
            f"{r['actual_mib']} of {r.get('budget_mib', r['planned_mib'])}" if "actual_mib" in r else "",
        ]
        for r in found
        if r["what"] in named
    ]  # fmt: skip
    columns = ["", "engine", "seconds", "window-steps and tiles", "peak MiB above idle, of"]
    return (
        rows_of(columns, lines) + "\n\n" + _prose(f"{about(found[0]['about'])}; commit {found[0]['about']['commit']}.")
    )


def looks(folder: Path) -> str:
    """What levels are to the ones below, and whether windows show."""
    lines = [
        [
            f"{r['prompt']}, {level['size_px'][0]} px", f"{level['correlation']:.3f}", f"{level['detail']:.1f}",
            *(
                ", ".join(f"{s:.3f} +- {e:.3f}" for s, e in zip(level[n], level[f"{n}_error"], strict=True))
                if n in level else ""
                for n in ("seams", "crossings")
            ),
        ]
        for r in read(folder / "drawing.json") if r["what"] == "looks"
        for level in r["levels"]
    ]  # fmt: skip
    return rows_of(
        ["", "correlation with the level below", "detail", "gradient where windows fade", "where four do"], lines
    )


def serving(folder: Path) -> str:
    """Many viewers at once."""
    found = read(folder / "serving.json")
    lines = [
        [
            f"{r['what']}, {r['size'][0]:,} x {r['size'][1]:,} px", ENGINES.get(r["engine"], ""),
            str(r["viewers"]), f"{r['requests']:,}", f"{r['statuses'].get('503', 0):,}", f"{r['tiles']:,}",
            number(r["requests_per_s"]), number(r["p50_ms"]), number(r["p99_ms"]),
            f"{r['grown_mib']} of {r['budget_mib']:,}",
        ]
        for r in found
    ]  # fmt: skip
    columns = [
        "", "engine", "viewers", "requests", "answered 503", "tiles", "requests/s", "p50 ms", "p99 ms", "MiB more, of",
    ]  # fmt: skip
    where = found[0]["about"]
    busy = where["machine"]["load_average"][0]
    others = ", other programs were at work" if busy > IDLE_LOAD else ""
    said = f"{about(where)}; commit {where['commit']}; load average of the minute before: {busy:.2f}{others}."
    return rows_of(columns, lines) + "\n\n" + _prose(said)


def prompts(folder: Path) -> str:
    """Effects of concepts."""
    rows = {row["concept"]: row["effect"] for row in read(folder / "prompts.json") if "concept" in row}
    alone = [name for name in rows if "rainforest at dusk" not in name]
    both = ", ".join(f"{effect:.1f}" for name, effect in rows.items() if "rainforest at dusk" in name)
    columns = [*alone, "rainforest, dusk together, which it never saw"]
    return rows_of(columns, [[*(f"{rows[name]:.1f}" for name in alone), both]])


def likeness(folder: Path) -> str:
    """How like its pictures are to what it learnt from."""
    rows = {row["pictures"]: row for row in read(folder / "prompts.json") if "pictures" in row}
    drawn, enlarged, floor = (rows[name] for name in ("drawn", "level 0, bicubic", "floor"))
    return _prose(
        f"Beside {drawn['count']} fresh worlds of {drawn['side_px']} x {drawn['side_px']} px that it learnt from the "
        f"like of, its pictures are too smooth: light's power falls as frequency to {drawn['slope']:.1f} (worlds: "
        f"{drawn['slope'] - drawn['slope_off']:.1f}; its own first level enlarged bicubically: "
        f"{enlarged['slope']:.1f}), and energies of 8 x 8 squares are off by {drawn['patches']:.1f} decades "
        f"({enlarged['patches']:.1f} bicubically, {floor['patches']:.1f} between worlds)."
    )


BLOCKS: dict[str, Callable[[Path], str]] = {
    "decode": decode,
    "decode-rest": decode_rest,
    "decode-about": decode_about,
    "failures": failures,
    "claims": claimed,
    "split": split,
    "scaling": scaling,
    "roofline": roofline,
    "codecs": codecs,
    "store": store,
    "drawing": drawing,
    "looks": looks,
    "serving": serving,
    "prompts": prompts,
    "likeness": likeness,
}


def main() -> int:
    """Rewrite the documents, and the pictures of docs/benchmarks; say which changed."""
    from widefield_bench.plots import figures

    for name in DOCUMENTS:
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = filled(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"{name}: rewritten", file=sys.stderr)
    for name, svg in figures(results.read(FOLDER / "bench.json")).items():
        path = ROOT / "docs" / "benchmarks" / f"{name}.svg"
        path.parent.mkdir(exist_ok=True)
        path.write_text(svg, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
