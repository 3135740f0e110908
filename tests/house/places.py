"""The checkout as the tests of the house see it: its rooms, its tracked files, and how to run its code in a process."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {
    "widefield_kernels": ROOT / "kernels",
    "widefield": ROOT / "runtime",
    "widefield_export": ROOT / "export",
    "widefield_bench": ROOT / "bench",
}


@cache
def tracked() -> tuple[str, ...]:
    """Every file that git tracks and that is there, by its path in the repository."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return tuple(name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file())


def sources(package: str) -> dict[str, Path]:
    """Modules of a package by their dotted names, tracked by git or not yet."""
    top = ROOMS[package]
    found = {}
    for path in sorted((top / package).rglob("*.py")):
        parts = path.relative_to(top).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def environment() -> dict[str, str]:
    """This process's, with the checkout's rooms first on the path: an installed widefield is not asked."""
    rooms = os.pathsep.join(str(room) for room in ROOMS.values())
    return {**os.environ, "PYTHONPATH": rooms, "PYTHONDONTWRITEBYTECODE": "1"}


def python(code: str, *, blocked: tuple[str, ...] = (), cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter in which the `blocked` packages are not installed."""
    head = f"import sys\nfor name in {blocked!r}:\n    sys.modules[name] = None\n"
    return subprocess.run(
        [sys.executable, "-c", head + code], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=120
    )
