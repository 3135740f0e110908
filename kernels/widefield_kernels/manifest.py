"""What the compiled kernels are: one entry for each form of a kernel and architecture, in compiled/manifest.json.

Written by widefield_kernels.jit.build, read by widefield_kernels.compiled; neither triton nor numpy here.

source     sha256 over jit/<module>.py and all that it imports from this package, so that a kernel that was compiled
           from other sources is found out
arguments  those of the launch in order, each with its Triton type; then come `hidden` pointers, all zero: Triton's
           scratch memory, which none of our kernels has
grid       expressions over arguments and constants, for x, y and z
exact      the code is for this capability alone (sm_90a and its like), else also for later minors of its major
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FORMAT = 1
PACKAGE = Path(__file__).parent
COMPILED = PACKAGE / "compiled"
MANIFEST = "manifest.json"
BUILD = "python setup.py build_kernels"


class KernelFault(Exception):
    """A compiled kernel that cannot be had or launched: what was found, what was wanted, what to do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One compiled kernel. Sizes in bytes; registers are of a thread, shared memory of a block."""

    name: str
    capability: int  # times ten
    exact: bool
    module: str
    source: str
    key: str  # sha256 of all that the code follows from
    file: str
    sha256: str
    symbol: str
    arguments: tuple[tuple[str, str], ...]
    hidden: int
    constants: Mapping[str, Any]
    divisible: tuple[str, ...]
    divisor: int
    grid: tuple[str, str, str]
    num_warps: int
    shared_nbytes: int
    registers: int
    spill_nbytes: int
    stack_nbytes: int

    def runs_on(self, capability: int) -> bool:
        """Code for 8.0 runs on 8.6; none for 8.6 on 8.0; and none for 9.0a on anything else."""
        if self.exact or capability // 10 != self.capability // 10:
            return capability == self.capability
        return self.capability <= capability


@dataclass(frozen=True, slots=True)
class Manifest:
    """All entries, and the version of Triton that made them."""

    triton: str
    entries: tuple[Entry, ...]

    @property
    def capabilities(self) -> tuple[int, ...]:
        """Architectures that there is code for."""
        return tuple(sorted({entry.capability for entry in self.entries}))

    def write(self, folder: Path) -> None:
        """Replace the folder's manifest at once."""
        head = {"format": FORMAT, "triton": self.triton, "capabilities": self.capabilities}
        lines = ",\n  ".join(json.dumps(asdict(entry)) for entry in self.entries)
        text = f'{json.dumps(head)[:-1]}, "entries": [\n  {lines}\n]}}\n'
        (folder / f"{MANIFEST}.new").write_text(text)
        (folder / f"{MANIFEST}.new").replace(folder / MANIFEST)


def read_manifest(folder: Path = COMPILED) -> Manifest:
    """The folder's manifest. KernelFault where there is none, or one of another format."""
    try:
        found = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        raise KernelFault(
            f"no compiled kernels in {folder}; wanted {MANIFEST}; with triton installed, {BUILD}"
        ) from None
    if found.get("format") != FORMAT:
        raise KernelFault(f"{folder / MANIFEST} has format {found.get('format')}, wanted {FORMAT}; {BUILD}")
    return Manifest(found["triton"], tuple(_entry(entry) for entry in found["entries"]))


def _entry(found: dict[str, Any]) -> Entry:
    arguments = tuple((name, kind) for name, kind in found["arguments"])
    x, y, z = found["grid"]
    return Entry(**(found | {"arguments": arguments, "divisible": tuple(found["divisible"]), "grid": (x, y, z)}))


def source_hash(module: str) -> str:
    """sha256, hexadecimal, over jit/<module>.py and what it imports from this package, directly or not."""
    seen: dict[str, bytes] = {}
    waiting = [f"jit.{module}"]
    while waiting:
        name = waiting.pop()
        path = PACKAGE.joinpath(*name.split(".")).with_suffix(".py")
        if name not in seen and path.is_file():
            seen[name] = path.read_bytes()
            waiting += _imports(seen[name])
    digest = hashlib.sha256()
    for name in sorted(seen):
        digest.update(f"{name} {len(seen[name])}\n".encode() + seen[name])
    return digest.hexdigest()


def _imports(source: bytes) -> list[str]:
    """Names below this package in import statements, by module and, where that may be a module too, by name."""
    prefix, found = f"{PACKAGE.name}.", []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name.removeprefix(prefix) for name in found if name.startswith(prefix)]
