"""What a command has to say: numbers that people read, and one JSON object for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click


def show_nbytes(nbytes: int) -> str:
    """ "1.5 GiB"; whole numbers without a point."""
    value, unit = float(nbytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if value >= 100 or value == int(value) else f"{value:.1f} {unit}"


def show_count(count: int, what: str) -> str:
    """ "1 tile", "2 tiles"."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def show_seconds(seconds: float) -> str:
    """ "0.4 s", "59 s", "12 min 5 s", "3 h 20 min", "2 d 4 h"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size} {unit} {rest} {smaller}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


def show_speed(px: int, seconds: float) -> str:
    """ "3.41 Mpx/s"."""
    return f"{px / 1e6 / max(seconds, 1e-9):.3g} Mpx/s"


def print_json(document: Mapping[str, Any]) -> None:
    """The one object that a command prints with --json."""
    click.echo(json.dumps(document, indent=2))
