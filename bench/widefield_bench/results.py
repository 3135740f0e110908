"""Measured rows in files: every row knows its machine, versions, commit and command; newer rows replace older ones.

    {"rows": [{"section": "decode", "who": "tiled", "size_px": 2048, ..., "about": {"machine": ..., "commit": ...}}]}

`KEY` says which rows are of the same measurement. Files of `common.write_rows` say what their rows are about once; they
are read alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
FOLDER = Path(__file__).parents[1] / "results"
QUIET = 0.1
KEY = ("section", "name", "who", "size_px", "part", "by", "machines")
LABELS = {
    "untiled": "diffusers, untiled",
    "sliced": "diffusers, enable_slicing",
    "tiled": "diffusers, enable_tiling",
    "compiled": "diffusers, untiled, torch.compile",
    "whole ort": "exported whole, ONNX Runtime",
    "whole openvino": "exported whole, OpenVINO",
    "ort f32": "widefield, ONNX Runtime, float32",
    "openvino f32": "widefield, OpenVINO, float32",
    "openvino bf16": "widefield, OpenVINO, bfloat16",
}


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, each with its `about`; none where there is no file."""
    if not path.is_file():
        return []
    document = json.loads(path.read_text())
    return [{"about": document.get("about"), **row} for row in document["rows"]]


def merged(older: Iterable[Row], newer: Iterable[Row]) -> list[dict[str, Any]]:
    """All rows, of those with one key the newest, in the order in which they first came.

    A row that others disturbed, or of a run that failed, does not replace one of a quiet run.
    """
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in (*older, *newer):
        key = tuple(row.get(name) for name in KEY)
        if key not in found or quiet(row) or not quiet(found[key]):
            found[key] = dict(row)
    return list(found.values())


def quiet(row: Row) -> bool:
    """Whether a row's times mean something: it did not fail, and others took no more than QUIET of the cores.

    A row from before that was noted is taken at its worst: all that it did not use, others did.
    """
    if "failed" in row:
        return False
    others = row.get("others_share")
    if others is None and "cpu_seconds" not in row:
        return True  # no run of its own
    if others is None:
        others = 1 - row["cpu_seconds"] / row["seconds"] / row["threads"]
    return bool(others <= QUIET)


def write(path: Path, rows: Iterable[Row]) -> None:
    """A line a row. ValueError for a row that does not say what it is about."""
    lines = []
    for row in rows:
        lacking = {"machine", "versions", "commit", "command"} - (row.get("about") or {}).keys()
        if lacking:
            raise ValueError(f"a row of {path.name} lacks {', '.join(sorted(lacking))}: {row}")
        lines.append(json.dumps(row))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"rows": [\n  ' + ",\n  ".join(lines) + "\n]}\n")


def section(rows: Sequence[Row], name: str) -> list[Row]:
    """The rows of one section."""
    return [row for row in rows if row.get("section") == name]


def one(rows: Sequence[Row], **wanted: Any) -> Row | None:
    """The row that has these values; None where there is none, or it failed."""
    for row in rows:
        if all(row.get(name) == value for name, value in wanted.items()) and "failed" not in row:
            return row
    return None


def who_of(rows: Sequence[Row]) -> list[str]:
    """Whose rows there are, peers first, in the order of LABELS."""
    there = {row["who"] for row in rows}
    return [who for who in LABELS if who in there]
