"""Everything static is in pyproject.toml. Here: the kernels, compiled for GPUs that need not be at hand.

    python setup.py build_kernels [--only PATTERN] [--capabilities 90,120]

A wheel is built with the compiled kernels in it where triton can be imported (`pip wheel --no-build-isolation .`).
Without triton it works too and says that they are absent; so does WIDEFIELD_KERNELS=none, and an editable install
never compiles. WIDEFIELD_KERNELS=required fails instead of doing without.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

from setuptools import Command, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
COMPILED = ROOT / "kernels/widefield_kernels/compiled"


class BuildKernels(Command):
    """Compile what has changed since the last time; see kernels/widefield_kernels/jit/build.py."""

    description = "compile the kernels for every GPU architecture, with triton"
    user_options: ClassVar = [
        ("only=", None, "names of kernels, as a pattern"),
        ("capabilities=", None, "architectures, with commas: 90,120"),
    ]

    def initialize_options(self) -> None:
        self.only, self.capabilities = "*", ""

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        command = [sys.executable, "-m", "widefield_kernels.jit.build", "--only", self.only, "--table"]
        if self.capabilities:
            command += ["--capabilities", *self.capabilities.split(",")]
        path = os.pathsep.join(filter(None, [str(ROOT / "kernels"), os.environ.get("PYTHONPATH")]))
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False)
        if done.returncode:
            raise SystemExit(done.returncode)


class BuildPy(build_py):
    """The packages, and the compiled kernels among them where they can be had."""

    def run(self) -> None:
        super().run()
        wish = os.environ.get("WIDEFIELD_KERNELS", "auto")
        if wish not in ("auto", "none", "required"):
            raise SystemExit(f"error: WIDEFIELD_KERNELS is {wish!r}, wanted auto, none or required; unset it")
        if self.editable_mode or wish == "none":
            return
        if importlib.util.find_spec("triton") is None:
            if wish == "required":
                raise SystemExit("error: triton cannot be imported; pip install triton, and --no-build-isolation")
            print("kernels are absent: triton cannot be imported; widefield works without them, on CPUs")
            return
        self.run_command("build_kernels")
        package = Path(self.build_lib) / "widefield_kernels" / "compiled"
        package.mkdir(exist_ok=True)
        for path in (COMPILED / "manifest.json", *sorted(COMPILED.glob("*.cubin"))):
            shutil.copyfile(path, package / path.name)


setup(cmdclass={"build_kernels": BuildKernels, "build_py": BuildPy})
