"""Every kernel on a GPU: checked against its formula, launched by Triton and as compiled ahead of time, then timed.

    bench/device.sh                                                     compiles first; needs torch and triton
    python -m widefield_bench.kernels [--only 'norm.*'] [--out FOLDER]
    python -m widefield_bench.kernels --device cpu --quick              runs everything once, in Triton's interpreter
    python -m widefield_bench.kernels --compile bench/results/kernels-compiled.json      registers and shared memory

TFLOP/s are of the multiplications that attention needs, TB/s of bytes read once and written once; each stands beside
the measured ceiling of its kind: a bfloat16 product of 8192^3 and a copy on the device. What is wrong is not timed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from widefield_bench.common import about, child_environment, table, write_rows
from widefield_kernels.manifest import KernelFault, read_manifest

if TYPE_CHECKING:
    from widefield_bench.kernel_cases import Case

COLUMNS = ("form", "by", "error", "ms", "tflops", "tbps", "of_ceiling", "note")


@dataclass(slots=True)
class Run:
    """A run of the bench: where, how large, until when; and its rows so far."""

    device: str
    quick: bool
    ends: float  # on time.monotonic
    ceilings: dict[str, float]
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def late(self) -> bool:
        """Whether nothing further is to be begun."""
        return time.monotonic() > self.ends

    def add(self, form: str, by: str, **found: Any) -> None:
        """A row, which is also said on stderr: a run that is cut off has told what it knew."""
        self.rows.append({"form": form, "by": by, **found})
        said = {name: value for name, value in found.items() if value not in (None, "")}
        print(f"{form:28} {by:28} {said}", file=sys.stderr, flush=True)


def check(run: Run, only: Sequence[str]) -> set[tuple[str, str]]:
    """(form, by) of what is right, in rows of errors: Triton's form, and on a GPU the compiled one."""
    from widefield_bench.forms import compiled_form, instead
    from widefield_bench.kernel_cases import cases
    from widefield_kernels.compiled import load

    right: set[tuple[str, str]] = set()
    for build in cases("quick" if run.quick else "check", run.device):
        case = build()
        if not any(fnmatch(case.form, name) for name in only):
            continue
        check_one(run, case, "triton", right)
        if run.device == "cuda":
            try:
                act = compiled_form([load(form) for form in case.forms])
            except KernelFault as fault:
                run.add(case.form, "compiled", note=f"WRONG: {fault}")
                continue
            with instead(case.module, case.kernel, act):
                check_one(run, case, "compiled", right)
    return right


def check_one(run: Run, case: Case, by: str, right: set[tuple[str, str]]) -> None:
    """Launch, overwrite every result, launch again and compare: what is not written is found."""
    from triton.errors import TritonError

    try:
        for result in case.launch():
            result.fill_(float("nan") if result.is_floating_point() else 85)
        error = case.error(case.launch())
    except (KernelFault, TritonError) as fault:  # one kernel that cannot be launched is not all of them
        run.add(case.form, by, note=f"WRONG: {str(fault).strip().splitlines()[0]}")
        return
    run.add(case.form, by, error=error, note="" if error <= 1 else "WRONG")
    if error <= 1:
        right.add((case.form, by))


def measure(run: Run, right: set[tuple[str, str]]) -> None:
    """Rows of times, of all that is right and of its rivals."""
    from widefield_bench.forms import compiled_form, instead
    from widefield_bench.kernel_cases import cases
    from widefield_kernels.compiled import load

    for build in cases("quick" if run.quick else "time", run.device):
        case = build()
        work = case.flop, case.nbytes
        if (case.form, "triton") in right:
            time_one(run, case.form, "triton", case.launch, *work)
        if (case.form, "compiled") in right:
            with instead(case.module, case.kernel, compiled_form([load(form) for form in case.forms])):
                time_one(run, case.form, "compiled", case.launch, *work)
        if any(form == case.form for form, _ in right):
            for name, rival in case.rivals.items():
                time_one(run, case.form, name, rival, *work)
        del case, build  # what it holds on the device, before the next one takes as much


def time_one(run: Run, form: str, by: str, launch: Callable[[], Any], flop: float, nbytes: float) -> None:
    """One row. Where torch cannot, or no time is left, the row says so."""
    import torch

    from widefield_bench.gpu import Clock

    if run.late:
        run.add(form, by, note="not run: out of time")
        return
    try:
        ms = Clock(run.device, *((2, 0) if run.quick else ())).quantiles_ms(launch)
    except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as refusal:  # torch's word for "no such kernel here"
        said = str(refusal).strip().partition("\n")[0][:60]
        run.add(form, by, note=f"{'WRONG' if by in ('triton', 'compiled') else 'torch cannot'}: {said}")
        return
    rate = {"tflops": flop / ms[1] / 1e9} if flop else {"tbps": nbytes / ms[1] / 1e9}
    ((kind, value),) = rate.items()
    run.add(form, by, ms=ms[1], quantiles_ms=ms, of_ceiling=value / run.ceilings[kind], **rate)


def bench(options: argparse.Namespace) -> int:
    """Check, measure, write; the table is the last thing printed. 1 where anything is wrong."""
    import torch

    from widefield_bench.gpu import Clock, ceilings, describe
    from widefield_kernels.jit.interpreter import repair

    repair()
    torch.manual_seed(int(time.time()) if options.seed is None else options.seed)  # fresh inputs for every run
    ends = time.monotonic() + 60 * options.minutes
    clock = Clock(options.device, *((2, 0) if options.quick else ()))
    limits = ceilings(clock, side=64 if options.quick else 8192, nbytes=1 << (20 if options.quick else 32))
    run = Run(options.device, options.quick, ends, limits)
    print(f"ceilings: {limits}", file=sys.stderr, flush=True)
    right = check(run, options.only)
    measure(run, right)
    head = about() | {"gpu": describe(run.device), "ceilings": limits, "quick": run.quick}
    write_rows(options.out / "kernels.json", run.rows, head)
    wrong = [row for row in run.rows if row.get("note", "").startswith("WRONG")]
    print(table(run.rows, COLUMNS))
    card = head["gpu"].get("name", "a CPU, in the interpreter: the times mean nothing")
    print(f"{card}: copy {limits['tbps']:.3g} TB/s, bf16 product {limits['tflops']:.4g} TFLOP/s; {len(wrong)} wrong")
    return 1 if wrong else 0


def compile_all(target: Path) -> int:
    """Compile for all architectures, print the table, and keep what the manifest says of registers and memory."""
    environment = {name: value for name, value in child_environment().items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "widefield_kernels.jit.build", "--table"], env=environment, check=False
    )
    if done.returncode:
        return done.returncode
    manifest = read_manifest()
    fields = ("name", "capability", "num_warps", "registers", "spill_nbytes", "shared_nbytes")
    rows = [{name: getattr(entry, name) for name in fields} for entry in manifest.entries]
    write_rows(target, rows, about() | {"triton": manifest.triton})
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m widefield_bench.kernels", description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny inputs, each run a few times: to see it run")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="patterns of names (all)")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "build/device")), help="folder of JSON")
    parser.add_argument("--minutes", type=float, default=7.5, help="start nothing after these (%(default)s)")
    parser.add_argument("--seed", type=int, help="of the inputs; otherwise fresh ones")
    parser.add_argument("--compile", type=Path, metavar="FILE", help="compile instead, and keep the table here")
    options = parser.parse_args(arguments)
    if options.compile:
        return compile_all(options.compile)
    if options.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    return bench(options)


if __name__ == "__main__":
    sys.exit(main())
