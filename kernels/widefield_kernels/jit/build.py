"""Compile every kernel for every architecture, on a machine without a GPU.

    python -m widefield_kernels.jit.build              into kernels/widefield_kernels/compiled, with manifest.json
        --only 'norm.*' noise.fp32                     forms of kernels whose name matches
        --capabilities 90 120                          architectures
        -o FOLDER --table                              elsewhere; print registers and shared memory

`python setup.py build_kernels` is the same. What the manifest says is up to date is not compiled again: a form's key is
of its sources, its variant and Triton's version. Needs triton alone, which brings assemblers for all architectures.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path

from widefield_kernels.jit.variant import CAPABILITIES
from widefield_kernels.manifest import COMPILED, PACKAGE, Entry, KernelFault, Manifest, read_manifest, source_hash

KERNELS = ("attention", "blend", "noise", "norm", "epilogue")


@dataclass(frozen=True, slots=True)
class Job:
    """One form of a kernel for one architecture."""

    module: str
    name: str
    capability: int
    key: str

    @property
    def file(self) -> str:
        """Where its code goes, in the folder of compiled kernels."""
        return f"{self.name}.sm_{self.capability}.cubin"


def build(
    folder: Path = COMPILED,
    *,
    only: Sequence[str] = ("*",),
    capabilities: Sequence[int] = CAPABILITIES,
    processes: int | None = None,
) -> tuple[Manifest, int]:
    """(what the folder now holds, how many kernels were compiled for it). Files of no entry are removed.

    Called where triton can be imported and TRITON_INTERPRET is not set; processes of its own do the work.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = _held(folder)
    context = multiprocessing.get_context("spawn")  # a fork would take over triton's threads
    count = processes or len(os.sched_getaffinity(0))
    asked = [module for module in modules() if any(fnmatch(module, name.partition(".")[0]) for name in only)]
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        listed = pool.map(_jobs, asked, [tuple(capabilities)] * len(asked))
        jobs = [job for some in listed for job in some if any(fnmatch(job.name, name) for name in only)]
        if not jobs:
            raise KernelFault(
                f"no kernel is called {' or '.join(only)}; wanted a pattern that fits one of {', '.join(modules())}.*"
            )
        missing = [job for job in jobs if job.file not in held or held[job.file].key != job.key]
        made = pool.map(_compile, missing, [folder] * len(missing))
        entries = {entry.file: entry for entry in made}
    manifest = Manifest(version("triton"), tuple(entries.get(job.file) or held[job.file] for job in jobs))
    manifest.write(folder)
    for path in folder.glob("*.cubin"):
        if path.name not in {job.file for job in jobs}:
            path.unlink()
    return manifest, len(missing)


def modules() -> tuple[str, ...]:
    """The modules of jit/ that have kernels."""
    return tuple(name for name in KERNELS if (PACKAGE / "jit" / f"{name}.py").is_file())


def _held(folder: Path) -> dict[str, Entry]:
    """Entries of an earlier build whose code is still as it was written."""
    try:
        entries = read_manifest(folder).entries
    except KernelFault:
        return {}
    return {e.file: e for e in entries if _sha256(folder / e.file) == e.sha256}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _jobs(module: str, capabilities: tuple[int, ...]) -> list[Job]:
    from widefield_kernels.jit.cross import variants_of

    source, triton = source_hash(module), version("triton")
    found = []
    for capability in capabilities:
        for variant in variants_of(module, capability).values():
            described = [getattr(variant, name) for name in variant.__slots__ if name != "function"]
            key = repr((triton, source, capability, variant.function.__name__, described))
            found.append(Job(module, variant.name, capability, hashlib.sha256(key.encode()).hexdigest()))
    return found


def _compile(job: Job, folder: Path) -> Entry:
    from widefield_kernels.jit.cross import cross_compile, variants_of

    variant = variants_of(job.module, job.capability)[job.name]
    made = cross_compile(variant, job.capability)
    (folder / job.file).write_bytes(made.cubin)
    return Entry(
        name=job.name, capability=job.capability, exact=made.exact, module=job.module, source=source_hash(job.module),
        key=job.key, file=job.file, sha256=hashlib.sha256(made.cubin).hexdigest(), symbol=made.symbol,
        arguments=tuple(variant.signature.items()), hidden=made.hidden, constants=dict(variant.constants),
        divisible=variant.divisible, divisor=variant.divisor, grid=variant.grid, num_warps=variant.num_warps,
        shared_nbytes=made.shared_nbytes, registers=made.registers, spill_nbytes=made.spill_nbytes,
        stack_nbytes=made.stack_nbytes,
    )  # fmt: skip


def table(entries: Iterable[Entry]) -> str:
    """Registers and KiB of shared memory by kernel and architecture; spilled bytes where there are any."""
    rows: dict[str, dict[int, str]] = {}
    for e in entries:
        spilled = f" spills {e.spill_nbytes} B" if e.spill_nbytes else ""
        rows.setdefault(e.name, {})[e.capability] = f"{e.registers} / {e.shared_nbytes / 1024:.1f}{spilled}"
    columns = sorted({capability for row in rows.values() for capability in row})
    width = max(map(len, rows), default=0)
    head = " ".join(f"{f'sm_{capability}':>12}" for capability in columns)
    lines = [f"{name:{width}} " + " ".join(f"{row.get(c, ''):>12}" for c in columns) for name, row in rows.items()]
    return "\n".join([f"{'registers / KiB':{width}} {head}", *lines])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. 1 for what can be said in a line."""
    parser = argparse.ArgumentParser(prog="python -m widefield_kernels.jit.build", description="Compile the kernels.")
    parser.add_argument("-o", "--output", type=Path, default=COMPILED, help="folder (%(default)s)")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="patterns of names (all)")
    parser.add_argument("--capabilities", type=int, nargs="+", default=list(CAPABILITIES), choices=CAPABILITIES)
    parser.add_argument("--processes", type=int, help="how many at once (one for each core)")
    parser.add_argument("--table", action="store_true", help="print registers and shared memory")
    options = parser.parse_args(arguments)
    os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel cannot be compiled
    if importlib.util.find_spec("triton") is None:
        print("error: kernels are compiled by triton, which is not installed; pip install triton", file=sys.stderr)
        return 1
    began = time.monotonic()
    try:
        manifest, compiled = build(
            options.output, only=options.only, capabilities=options.capabilities, processes=options.processes
        )
    except KernelFault as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 1
    if options.table:
        print(table(manifest.entries))
    seconds = time.monotonic() - began
    print(f"{len(manifest.entries)} kernels, {compiled} of them compiled in {seconds:.1f} s, in {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
