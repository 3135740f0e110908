"""libcuda as fake_cuda.c has it, compiled here; and what it wrote down."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

from widefield_kernels.driver import Device, Driver

SOURCE = Path(__file__).with_name("fake_cuda.c")
needs_a_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler, cc, for a fake libcuda")


@cache
def compiled_library() -> Path:
    """Once a process."""
    target = Path(mkdtemp()) / "libcuda.so.1"
    flags = ("-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC")
    subprocess.run(["cc", *flags, "-o", target, SOURCE], check=True)
    return target


@dataclass(frozen=True)
class Launched:
    """One cuLaunchKernel; `parameters` are the bytes that the driver copied, of each."""

    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_nbytes: int
    stream: int
    parameters: tuple[bytes, ...]


class FakeDriver:
    """A machine with GPUs of one capability. There is one fake a process: a new one forgets what was before."""

    def __init__(self, capability: int = 90, gpus: int = 1) -> None:
        self.library = ctypes.CDLL(str(compiled_library()))
        self.library.fake_log.restype = ctypes.c_char_p
        self.library.fake_reset(gpus, capability)
        self.driver = Driver(str(compiled_library()))

    def device(self, number: int = 0) -> Device:
        """A GPU of it."""
        return Device(self.driver, number)

    def refuse(self, call: str, code: int) -> None:
        """Answer a call with a code from now on."""
        self.library.fake_refuse(call.encode(), code)

    def expect(self, sizes: Sequence[int], symbol: str = "") -> None:
        """What the code says of itself: bytes of its parameters, its only symbol."""
        self.library.fake_parameters(len(sizes), (ctypes.c_int * len(sizes))(*sizes))
        self.library.fake_symbol(symbol.encode())

    @property
    def depth(self) -> int:
        """Contexts that are still current in this thread."""
        return int(self.library.fake_depth())

    @property
    def calls(self) -> list[tuple[str, str]]:
        """(call, what it was told), in order."""
        lines = self.library.fake_log().decode().splitlines()
        return [(name, told) for name, _, told in (line.partition(" ") for line in lines)]

    @property
    def launches(self) -> list[Launched]:
        """Every launch."""
        return [_launched(told) for name, told in self.calls if name == "cuLaunchKernel"]


def _launched(told: str) -> Launched:
    grid, block, shared, stream, *rest = told.split(" ")
    numbers = [tuple(map(int, triple.split(","))) for triple in (grid, block)]
    parameters = tuple(bytes.fromhex(part) for part in rest[0].split(",")) if rest and rest[0] else ()
    return Launched(numbers[0], numbers[1], int(shared), int(stream), parameters)
