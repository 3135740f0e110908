"""One HTML file that needs nothing else: what was claimed and found, pictures, tables, and how it was measured."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from widefield_bench.claims import claims
from widefield_bench.plots import figures
from widefield_bench.results import LABELS, Row, section

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-size: 14px; margin: 1rem 0 } caption { text-align: left; padding: .3rem 0 }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top }
th:first-child, td:first-child, .text { text-align: left } svg { max-width: 100%; height: auto }
figure { margin: 1.5rem 0 } figcaption { font-size: 14px; color: #555 } .no { font-weight: bold }
"""
CAPTIONS = {
    "throughput": "CPU time, which others on the machine hardly change. Ours measures the summary, encodes and writes "
    "a JPEG pyramid; peers only decode. Imports, loading, "
    "exporting and torch.compile are not counted. A cross at the bottom is a run that failed; the table says how.",
    "memory": "The peak of the resident set above what the process held with everything loaded.",
    "quality": "Ours decoded to lossless tiles for this. Blended tiles are another picture; ours differ from it by "
    "float rounding where the summary is exact, and by the sample's errors where it is sampled.",
    "split": "Of all threads together: two that decode and one that encodes and writes.",
    "roofline": "Bytes are those that have to move at least once. What lies above the line is served from caches.",
    "scaling": "Projection: the fitted model and the plan of the largest picture, on so many machines like the one "
    "that was measured, which share nothing but the summary. Nothing of that size was run.",
}
DECODE = {
    "size_px": "px", "who": "", "mpx_per_s": "Mpx/s", "mpx_per_cpu_s": "Mpx / CPU s", "over_tiled_wall": "over tiled",
    "over_untiled_wall": "over untiled", "seconds": "s", "measure_seconds": "of which summary", "peak_mib": "peak MiB",
    "planned_mib": "planned MiB", "psnr_db": "dB from untiled", "failed": "failed",
}  # fmt: skip
PROJECTION = {
    "machines": "machines", "projected_hours": "hours", "projected_machine_hours": "machine hours",
    "stored_mb_per_s": "MB/s stored", "written_gb": "GB stored", "planned_mib": "MiB each", "pflop": "PFLOP",
}  # fmt: skip
ROOFLINE = {
    "part": "", "by": "by", "gflops": "GFLOP/s", "flop_per_byte": "FLOP/byte", "of_ceiling": "of its ceiling",
    "bound": "bound by",
}  # fmt: skip


def write_report(rows: Sequence[Row], path: Path) -> None:
    """The report of the rows."""
    path.write_text(document(rows), encoding="utf-8")


def document(rows: Sequence[Row]) -> str:
    """As HTML."""
    said = [
        f'<tr><td>{html.escape(c.who)}</td><td class="text">{html.escape(c.wanted)}</td><td>{html.escape(c.found)}</td>'
        f'<td class="{"yes" if c.holds else "no"}">{"yes" if c.holds else "no"}</td>'
        f'<td class="text">{html.escape(c.why)}</td></tr>'
        for c in claims(rows)
    ]
    drawn = [
        f"<figure>{svg}<figcaption>{html.escape(CAPTIONS[name])}</figcaption></figure>"
        for name, svg in figures(rows).items()
    ]
    near = {(r["who"], r["size_px"]): r["psnr_db"] for r in section(rows, "quality")}
    decodes: list[Row] = [{"psnr_db": near.get((r["who"], r["size_px"])), **r} for r in section(rows, "decode")]
    decodes.sort(key=lambda r: (r["size_px"], list(LABELS).index(r["who"])))
    return "\n".join(
        (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>Widefield: bench</title>',
            f"<style>{STYLE}</style><h1>Widefield: what a decode costs</h1>",
            *(f"<p>{html.escape(line)}</p>" for line in settings(rows)),
            '<h2>Claims</h2><table><tr><th>who</th><th class="text">wanted</th><th>found</th><th>holds</th>'
            '<th class="text">why not</th></tr>',
            *said,
            "</table>",
            *drawn,
            table("Decodes, side by side, in turns", DECODE, decodes),
            table("The largest picture, projected", PROJECTION, section(rows, "projection")),
            table("Parts under their ceilings", ROOFLINE, section(rows, "roofline")),
            "</html>",
        )
    )


def settings(rows: Sequence[Row]) -> list[str]:
    """A line for each machine, set of versions, commit and command that rows are from."""
    lines = []
    for row in rows:
        found = row["about"]
        machine, versions = found["machine"], found["versions"]
        packages = ", ".join(f"{name} {version}" for name, version in versions.items())
        line = (
            f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, Linux {machine['kernel']}; "
            f"{packages}; commit {found['commit']}; {found['command']}"
        )
        lines.append(line)
    return list(dict.fromkeys(lines))


def table(title: str, columns: dict[str, str], rows: Iterable[Row]) -> str:
    """HTML; empty where there are no rows. Columns that no row has are left out."""
    there = list(rows)
    names = [name for name in columns if any(row.get(name) is not None for row in there)]
    if not there:
        return ""
    head = "".join(f"<th>{html.escape(columns[name])}</th>" for name in names)
    body = "\n".join("<tr>" + "".join(_cell(row.get(n)) for n in names) + "</tr>" for row in there)
    return f"<table><caption>{html.escape(title)}</caption><tr>{head}</tr>\n{body}</table>"


def _cell(value: object) -> str:
    if isinstance(value, str):
        return f'<td class="text">{html.escape(LABELS.get(value, value))}</td>'
    if isinstance(value, float):
        return f"<td>{value:,.0f}</td>" if abs(value) >= 1000 else f"<td>{value:.3g}</td>"
    return f"<td>{'' if value is None else value}</td>"
