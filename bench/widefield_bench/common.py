"""What every bench row carries: the machine, its load, versions, the commit and the command. And rows to files."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def machine() -> dict[str, Any]:
    """CPU model, the cores this process may use, memory in GiB, and the load averages of now."""
    memory_kib = int(_field(Path("/proc/meminfo"), "MemTotal").split()[0])
    return {
        "cpu": _field(Path("/proc/cpuinfo"), "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_kib / 2**20, 1),
        "kernel": platform.release(),
        "load_average": [float(n) for n in Path("/proc/loadavg").read_text().split()[:3]],
    }


def versions() -> dict[str, str]:
    """Of Python and of every package that the numbers depend on, where it is installed."""
    found = {"python": platform.python_version()}
    names = ("numpy", "onnxruntime", "openvino", "torch", "diffusers", "imagecodecs", "starlette", "uvicorn", "httpx")
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of the checkout, "-dirty" where the packages differ from it; "unknown" outside one."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "bench", "export", "kernels", "runtime")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}-dirty" if changed else head


def about() -> dict[str, Any]:
    """All of the above, and how the bench was called."""
    return {
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], head: Mapping[str, Any]) -> None:
    """`head` and the rows as one JSON object, a line a row."""
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"about": {json.dumps(head)},\n "rows": [\n  {lines}\n]}}\n')


def table(rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> str:
    """Rows as text, aligned right; a row that lacks a column leaves it empty."""
    names = list(columns)
    cells = [names, *[["" if row.get(n) is None else _short(row[n]) for n in names] for row in rows]]
    widths = [max(len(line[k]) for line in cells) for k in range(len(names))]
    return "\n".join("  ".join(text.rjust(w) for text, w in zip(line, widths, strict=True)) for line in cells)


def child_environment() -> dict[str, str]:
    """The environment for a fresh Python that finds the same packages."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def resident_nbytes(which: str = "VmRSS", process: int | str = "self") -> int:
    """This process's resident bytes, or another's: "VmRSS" now, "VmHWM" at most since `forget_peak`."""
    return int(_field(Path(f"/proc/{process}/status"), which).split()[0]) * 1024


def busy_seconds() -> float:
    """CPU seconds that everybody on this machine has spent since it was started."""
    user, nice, system, _, _, irq, softirq = (int(n) for n in _field(Path("/proc/stat"), "cpu", " ").split()[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


class Watched:
    """A process' memory while the context is open: `grown_nbytes` is the most that it took above what it had before."""

    def __init__(self, process: int | str = "self") -> None:
        self.process = process
        self.grown_nbytes = 0

    def __enter__(self) -> Watched:
        self.idle_nbytes = resident_nbytes("VmRSS", self.process)
        forget_peak(self.process)
        return self

    def __exit__(self, *_: object) -> None:
        self.grown_nbytes = resident_nbytes("VmHWM", self.process) - self.idle_nbytes


def forget_peak(process: int | str = "self") -> None:
    """Let VmHWM begin anew. (`ru_maxrss` will not do: a child starts with its parent's.)"""
    Path(f"/proc/{process}/clear_refs").write_text("5")


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _field(path: Path, name: str, mark: str = ":") -> str:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(mark)
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(HERE), *arguments], check=True, capture_output=True, text=True, timeout=30
    ).stdout.strip()
