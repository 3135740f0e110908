"""Launch a compiled kernel: neither torch nor triton nor CuPy, on the caller's stream, no memory taken.

    kernel = load("norm.apply.nhwc.bf16")                       for the first GPU; loads the code now
    kernel(x, scale, shift, residual, out, channels=128, ..., stream=stream)

Arguments are the kernel's own, as the manifest lists them: CuPy's arrays, or addresses, for pointers; Python numbers
for the rest. A launch is the code's parameters in their order and sizes, then the hidden pointers, which are zero; the
grid follows from the manifest's rule; a block is 32 threads a warp. Shapes and strides are the caller's business, as in
the kernel's file: checked here is what the code would read as something else (types, sizes, promised multiples).
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np

from widefield_kernels.driver import Device, Function, find_device
from widefield_kernels.manifest import BUILD, COMPILED, Entry, KernelFault, read_manifest, source_hash

# Of a launch argument, by its Triton type.
SCALARS: dict[str, Callable[[Any], np.generic]] = {
    "i8": np.int8, "u8": np.uint8, "i16": np.int16, "u16": np.uint16, "i32": np.int32, "u32": np.uint32,
    "i64": np.int64, "u64": np.uint64, "fp32": np.float32, "fp64": np.float64,
}  # fmt: skip
# Of an array, by its elements' Triton type: what dtypes it may have. NumPy has no bfloat16 of its own: 16 bits will do.
ELEMENTS = {
    "bf16": ("bfloat16", "uint16"), "fp16": ("float16",), "fp32": ("float32",), "fp64": ("float64",),
    "i8": ("int8",), "u8": ("uint8", "bool"), "i1": ("bool", "uint8"), "i32": ("int32",), "u32": ("uint32",),
    "i64": ("int64",), "u64": ("uint64",),
}  # fmt: skip
LARGEST_GRID = (2**31 - 1, 65535, 65535)


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """Code that is loaded on one device, and how to launch it there."""

    entry: Entry
    function: Function | None  # None where there is no GPU to load it on, and nothing will be launched
    grid: tuple[CodeType, CodeType, CodeType]

    def __call__(self, *arguments: Any, stream: Any = None, **named: Any) -> None:
        """Launch on `stream`: CuPy's, or a handle; None is the default stream. Returns at once.

        An empty grid launches nothing. KernelFault for what the code would misread, and for what the driver refuses.
        """
        values = bind(self.entry, arguments, named)
        parameters = pack(self.entry, values)
        blocks = self.blocks(values)
        if 0 in blocks:  # which the driver refuses
            return
        if self.function is None:
            raise KernelFault(f"{self.entry.name} is not loaded on any GPU; wanted one; load it by its name")
        handle = int(getattr(stream, "ptr", stream or 0))
        threads = (32 * self.entry.num_warps, 1, 1)
        self.function(blocks, threads, parameters, shared_nbytes=self.entry.shared_nbytes, stream=handle)

    def blocks(self, values: Mapping[str, Any]) -> tuple[int, int, int]:
        """The grid, from the arguments and constants. KernelFault where it is larger than a GPU takes."""
        names = {**self.entry.constants, **values}
        x, y, z = (int(eval(rule, GRID_SCOPE, names)) for rule in self.grid)
        if any(n > most or n < 0 for n, most in zip((x, y, z), LARGEST_GRID, strict=True)):
            raise KernelFault(f"{self.entry.name} would have a grid of {(x, y, z)}, wanted {LARGEST_GRID}; take a part")
        return x, y, z


def load(name: str, device: Device | int = 0, *, folder: Path = COMPILED) -> CompiledKernel:
    """The kernel of that name on a device.

    KernelFault where the driver, the GPU or the kernel is missing, there is no code for it, or it is of other sources.
    """
    gpu = device if isinstance(device, Device) else find_device(device)
    entry = choose(name, gpu.capability, folder)
    x, y, z = (grid_rule(rule) for rule in entry.grid)
    code = (folder / entry.file).read_bytes()
    return CompiledKernel(entry, gpu.load(code, entry.symbol, shared_nbytes=entry.shared_nbytes), (x, y, z))


def choose(name: str, capability: int, folder: Path = COMPILED) -> Entry:
    """The newest code of that name that the capability (times ten) runs. KernelFault where there is none."""
    manifest = read_manifest(folder)
    named = [entry for entry in manifest.entries if entry.name == name]
    if not named:
        names = ", ".join(sorted({entry.name for entry in manifest.entries}))
        raise KernelFault(f"no compiled kernel is called {name}; wanted one of {names}; or {BUILD}")
    fitting = [entry for entry in named if entry.runs_on(capability)]
    if not fitting:
        found = ", ".join(f"sm_{entry.capability}" for entry in named)
        raise KernelFault(f"{name} is compiled for {found}, wanted sm_{capability}; {BUILD} where triton knows it")
    entry = max(fitting, key=lambda entry: entry.capability)
    if entry.source != current_source(entry.module):
        raise KernelFault(f"{entry.file} is stale: jit/{entry.module}.py has changed since; {BUILD}")
    return entry


@cache
def current_source(module: str) -> str:
    """Read once a process."""
    return source_hash(module)


def bind(entry: Entry, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
    """Values by argument, in order. KernelFault where one is missing, given twice or unknown."""
    names = [name for name, _ in entry.arguments]
    given = dict(zip(names, arguments, strict=False))
    if len(arguments) > len(names) or given.keys() & named.keys() or {*given, *named} != set(names):
        raise KernelFault(
            f"{entry.name} found {len(arguments)} arguments and {sorted(named)}, wanted {', '.join(names)}"
        )
    given.update(named)
    return {name: given[name] for name in names}


def pack(entry: Entry, values: Mapping[str, Any]) -> tuple[np.generic, ...]:
    """The launch's parameters: each has the bytes that the code reads. KernelFault where a value has no such bytes."""
    packed = [_parameter(entry, name, kind, values[name]) for name, kind in entry.arguments]
    return (*packed, *[np.uint64(0)] * entry.hidden)


def _parameter(entry: Entry, name: str, kind: str, value: Any) -> np.generic:
    is_pointer = kind.startswith("*")
    number = _address(entry, name, kind[1:], value) if is_pointer else value
    divisor = 16 if is_pointer else entry.divisor
    if name in entry.divisible and number % divisor:
        raise KernelFault(f"{entry.name} found {name} = {number}, wanted a multiple of {divisor}; pad, or copy")
    try:
        return SCALARS["u64" if is_pointer else kind](number if kind.startswith("fp") else operator.index(number))
    except (OverflowError, TypeError, ValueError):
        raise KernelFault(f"{entry.name} found {name} = {value!r}, wanted {kind}; see jit/{entry.module}.py") from None


def _address(entry: Entry, name: str, kind: str, value: Any) -> int:
    if isinstance(value, int | np.integer):
        return int(value)
    dtype, address = getattr(value, "dtype", None), getattr(getattr(value, "data", None), "ptr", None)
    if str(dtype) not in ELEMENTS[kind] or address is None:
        found = f"{type(value).__name__} of {dtype}" if dtype else type(value).__name__
        raise KernelFault(f"{entry.name} found {name} = {found}, wanted a CuPy array of {' or '.join(ELEMENTS[kind])}")
    return int(address)


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


GRID_FUNCTIONS: dict[str, Any] = {"cdiv": _cdiv, "min": min, "max": max}
GRID_SCOPE = {"__builtins__": {}, **GRID_FUNCTIONS}
_GRID_NODES = (
    ast.Expression, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.UnaryOp, ast.USub, ast.Call,
    ast.Name, ast.Load, ast.Constant,
)  # fmt: skip


@cache
def grid_rule(expression: str) -> CodeType:
    """The expression, ready to evaluate. KernelFault for more than integer arithmetic and cdiv, min and max."""
    tree = ast.parse(expression, mode="eval")
    for node in ast.walk(tree):
        called = isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in GRID_FUNCTIONS)
        if not isinstance(node, _GRID_NODES) or called:
            raise KernelFault(f"the grid rule {expression!r} has {ast.unparse(node)!r}, wanted integer arithmetic")
    return compile(tree, f"<grid rule {expression}>", "eval")
