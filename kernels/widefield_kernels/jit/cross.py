"""One kernel for one architecture, by Triton's cross-compiler, and what its assembler said of it. No GPU is asked.

Read off the PTX: the launch's parameters, of which those after our own are Triton's (two pointers to scratch memory,
in Triton 3.6 to 3.9), and whether the code is for one capability alone. Read off ptxas -v: registers and spills.
Refused: kernels with scratch memory, clusters, or parameters of another size than the manifest would say; and those
that want more tensor memory than there is, which Triton compiles to a trap without a word.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import tempfile
from dataclasses import dataclass
from typing import Any

from widefield_kernels.jit.variant import Variant
from widefield_kernels.manifest import KernelFault

# Of a launch argument, by its Triton type: what PTX calls it. A pointer is .u64.
PTX_TYPES = {"i8": "u8", "u8": "u8", "i16": "u16", "u16": "u16", "i32": "u32", "u32": "u32", "i64": "u64", "u64": "u64",
             "fp32": "f32", "fp64": "f64"}  # fmt: skip
TENSOR_MEMORY = 512  # columns of a streaming multiprocessor, on sm_100


@dataclass(frozen=True, slots=True)
class Compiled:
    """Machine code, and what has to be known to launch it."""

    cubin: bytes
    symbol: str
    exact: bool
    hidden: int
    shared_nbytes: int
    registers: int
    spill_nbytes: int
    stack_nbytes: int


def variants_of(module: str, capability: int) -> dict[str, Variant]:
    """By their names, which begin with the module's. KernelFault for others, and for one that fits not its kernel."""
    found: dict[str, Variant] = {}
    try:
        kernels = importlib.import_module(f"widefield_kernels.jit.{module}")
    except ModuleNotFoundError as cause:
        raise KernelFault(
            f"jit/{module}.py needs {cause.name}, which is not installed; pip install {cause.name}"
        ) from cause
    for variant in kernels.variants(capability):
        given, wanted = {*variant.signature, *variant.constants}, set(variant.function.arg_names)
        ordered = [name for name in variant.function.arg_names if name in variant.signature]
        if variant.name in found or variant.name.partition(".")[0] != module:
            raise KernelFault(f"jit/{module}.py has a variant {variant.name}, wanted other names that begin {module}.")
        if given != wanted or set(variant.signature) & set(variant.constants) or ordered != list(variant.signature):
            raise KernelFault(
                f"{variant.name} gives {[*variant.signature, *variant.constants]}, wanted each of "
                f"{variant.function.arg_names} once, in that order; see jit/{module}.py"
            )
        found[variant.name] = variant
    return found


def cross_compile(variant: Variant, capability: int) -> Compiled:
    """Compile, and read off what the manifest needs."""
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import compile as compile_kernel

    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, "enable_fp_fusion": True}
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as cache, knobs.cache.scope(), knobs.compilation.scope(), knobs.nvidia.scope():
        knobs.cache.dir, knobs.compilation.disable_line_info, knobs.nvidia.dump_ptxas_log = cache, True, True
        with contextlib.redirect_stdout(said):
            kernel = compile_kernel(
                _source(variant), target=GPUTarget("cuda", capability, 32), options=options | dict(variant.options)
            )
    meta, ptx = kernel.metadata, kernel.asm["ptx"]
    if meta.global_scratch_size or meta.profile_scratch_size or meta.num_ctas != 1 or meta.launch_cooperative_grid:
        raise KernelFault(
            f"{variant.name} for sm_{capability} wants scratch memory, clusters or cooperation; avoid them"
        )
    if meta.tmem_size > TENSOR_MEMORY:
        raise KernelFault(
            f"{variant.name} for sm_{capability} wants {meta.tmem_size} columns of tensor memory, there are "
            f"{TENSOR_MEMORY}; take smaller blocks"
        )
    return Compiled(
        cubin=kernel.asm["cubin"],
        symbol=meta.name,
        exact=bool(re.search(r"^\.target sm_\d+[af]", ptx, re.MULTILINE)),
        hidden=_hidden(variant, ptx),
        shared_nbytes=meta.shared,
        **_resources(said.getvalue()),
    )


def _source(variant: Variant) -> Any:
    from triton.compiler import ASTSource

    names = variant.function.arg_names
    kinds = {name: variant.signature.get(name, "constexpr") for name in names}
    hints = {}
    for name in variant.divisible:
        divisor = 16 if kinds[name].startswith("*") else variant.divisor
        hints[(names.index(name),)] = [["tt.divisibility", divisor]]
    return ASTSource(fn=variant.function, signature=kinds, constexprs=dict(variant.constants), attrs=hints)


def _hidden(variant: Variant, ptx: str) -> int:
    """How many pointers follow our own arguments; KernelFault where those differ from what a launch would pass."""
    entry = re.search(r"\.entry\s+\w+\s*\((.*?)\)", ptx, re.DOTALL)
    found = re.findall(r"\.param\s+\.(\w+)", entry.group(1)) if entry else []
    wanted = ["u64" if kind.startswith("*") else PTX_TYPES.get(kind, "?") for kind in variant.signature.values()]
    rest = found[len(wanted) :]
    if found[: len(wanted)] != wanted or set(rest) - {"u64"}:
        raise KernelFault(f"{variant.name} takes {found}, wanted {wanted} and then pointers; this Triton differs")
    return len(rest)


def _resources(said: str) -> dict[str, int]:
    """Of `ptxas -v`: bytes of stack frame, bytes of spill stores and loads together, registers."""
    memory = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said)
    used = re.search(r"Used (\d+) registers", said)
    if memory is None or used is None:
        raise KernelFault(f"ptxas said {said[:200]!r}, wanted registers and spills; this Triton differs")
    stack, stores, loads = (int(n) for n in memory.groups())
    return {"registers": int(used.group(1)), "spill_nbytes": stores + loads, "stack_nbytes": stack}
