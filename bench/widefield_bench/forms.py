"""One launch, two forms: what a launcher hands to its Triton kernel, handed to the compiled kernel instead.

    with instead(norm, "apply_kernel", compiled_form([kernel])):
        norm.apply(x, scale, shift)

So every launcher, as it is, tests the compiled forms of its kernel too: that the manifest's arguments, constants and
grid are what the launcher passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from widefield_kernels.compiled import CompiledKernel
from widefield_kernels.manifest import KernelFault


@dataclass(frozen=True, slots=True)
class Launch:
    """A grid, and every parameter of the kernel by its name, tensors as they are."""

    grid: tuple[int, int, int]
    values: Mapping[str, Any]


class Recorder:
    """Stands where a @triton.jit function stood, and hands its launches to `act`."""

    def __init__(self, kernel: Any, act: Callable[[Launch], None]) -> None:
        self.names, self.act = list(kernel.arg_names), act

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        x, y, z = (*(grid if isinstance(grid, tuple) else (grid,)), 1, 1)[:3]

        def launch(*arguments: Any, **named: Any) -> None:
            values = dict(zip(self.names, arguments, strict=False))
            values |= {name: value for name, value in named.items() if name in self.names}
            self.act(Launch((int(x), int(y), int(z)), values))

        return launch


@contextmanager
def instead(module: ModuleType, kernel: str, act: Callable[[Launch], None]) -> Iterator[None]:
    """Within, the launchers of the module hand what they would launch to `act`."""
    plain = getattr(module, kernel)
    setattr(module, kernel, Recorder(plain, act))
    try:
        yield
    finally:
        setattr(module, kernel, plain)


def choose(kernels: Sequence[CompiledKernel], launch: Launch) -> tuple[CompiledKernel, dict[str, Any]]:
    """The kernel that was compiled for the launch's constants, and its arguments: addresses for tensors.

    KernelFault where there is none, or its grid is another.
    """
    for kernel in kernels:
        if all(launch.values[name] == value for name, value in kernel.entry.constants.items()):
            values = {name: _plain(launch.values[name]) for name, _ in kernel.entry.arguments}
            if kernel.blocks(values) != launch.grid:
                found = f"{kernel.entry.name} has the grid {kernel.blocks(values)}"
                raise KernelFault(f"{found}, wanted the launcher's {launch.grid}; see its variant's grid rule")
            return kernel, values
    wanted = {name: launch.values[name] for name in kernels[0].entry.constants}
    there = {kernel.entry.name: dict(kernel.entry.constants) for kernel in kernels}
    raise KernelFault(f"found {there}, wanted the launcher's {wanted}; see variants()")


def compiled_form(kernels: Sequence[CompiledKernel]) -> Callable[[Launch], None]:
    """Launch the compiled kernel that fits, on torch's current stream, in place of the Triton one."""

    def act(launch: Launch) -> None:
        import torch

        kernel, values = choose(kernels, launch)
        kernel(**values, stream=torch.cuda.current_stream().cuda_stream)

    return act


def _plain(value: Any) -> Any:
    return value.data_ptr() if hasattr(value, "data_ptr") else value
