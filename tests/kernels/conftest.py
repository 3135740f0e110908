"""Where kernels run, a GPU or Triton's interpreter with bfloat16 mended; and kernels compiled for all architectures.

The latter take a minute or two once, and are kept in pytest's cache, where only what has changed is compiled again.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from house.places import ROOT
from made_once import alone
from widefield_kernels.jit.interpreter import interpreted, repair
from widefield_kernels.manifest import Manifest, read_manifest

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


@pytest.fixture(scope="session")
def matrix_folder(pytestconfig, compiling) -> Path:
    """All kernels, compiled for all architectures."""
    folder = Path(pytestconfig.cache.mkdir("kernels"))
    command = [sys.executable, "-m", "widefield_kernels.jit.build", "-o", str(folder), "--table"]
    environment = compiling | {"PYTHONPATH": str(ROOT / "kernels")}
    with alone(folder.with_name("kernels.lock")):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return folder


@pytest.fixture(scope="session")
def matrix(matrix_folder) -> Manifest:
    """What was found of them."""
    return read_manifest(matrix_folder)
