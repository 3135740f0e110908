"""Where kernels run: on the GPU that is there, else in Triton's interpreter, whose bfloat16 is mended first."""

import os

import pytest
import torch

from widefield_kernels.jit.interpreter import interpreted, repair

repair()


@pytest.fixture(scope="session")
def device() -> str:
    """Where tensors for the kernels live."""
    return "cpu" if interpreted() else "cuda"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Interpreted kernels are many small operations: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def compiling() -> dict[str, str]:
    """The environment of a process that compiles kernels: an interpreted process cannot."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
