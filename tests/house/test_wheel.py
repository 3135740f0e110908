"""What `pip install widefield` brings: the four packages, typed, with the embedded bundle and the licence, no tests.

Compiled kernels are left out here: tests/kernels/test_build.py has a wheel with them.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

from house.places import ROOMS, ROOT, tracked

EMBEDDED = "runtime/widefield/embedded/"
PAGE = "runtime/widefield/serve/page/"


BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
NO_TRITON = """
import importlib.util as util
plain = util.find_spec
util.find_spec = lambda name, *rest: None if name == "triton" else plain(name, *rest)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """What git tracks, away from the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    return source


def build(source: Path, out: Path, code: str, kernels: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "WIDEFIELD_KERNELS": kernels, "WIDEFIELD_VIEWER": "none"}
    command = [sys.executable, "-c", code, str(out)]
    return subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """The wheel of it, as one without Triton gets it."""
    out = tmp_path_factory.mktemp("wheel")
    done = build(source, out, NO_TRITON + BUILD, "auto")
    assert done.returncode == 0, done.stderr
    assert "kernels are absent: triton cannot be imported; widefield works without them, on CPUs" in done.stdout
    (built,) = out.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        yield archive


def shipped() -> set[str]:
    """What is to be in it, by git's list: all code of the four packages, their markers, and the embedded bundle."""
    inside = set()
    for package, room in ROOMS.items():
        top = room.relative_to(ROOT).as_posix() + "/"
        for name in tracked():
            if name.startswith(f"{top}{package}/") and (
                name.endswith((".py", "/py.typed")) or name.startswith((EMBEDDED, PAGE))
            ):
                inside.add(name.removeprefix(top))
    return inside


def test_it_holds_the_packages_and_nothing_else(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == shipped()


def test_the_packages_are_typed(wheel):
    assert {f"{package}/py.typed" for package in ROOMS} <= set(wheel.namelist())


def test_a_fresh_install_has_a_bundle_to_work_with(wheel):
    assert any(name.startswith(EMBEDDED) for name in tracked()), "no embedded bundle is committed"
    assert "widefield/embedded/manifest.json" in wheel.namelist()


def test_it_carries_the_licence_and_says_so(wheel):
    (licence,) = (name for name in wheel.namelist() if name.endswith(".dist-info/licenses/LICENSE"))
    assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    assert "License-Expression: Apache-2.0" in wheel.read(metadata).decode().splitlines()


def test_its_commands_are_there(wheel):
    (points,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    parser = ConfigParser()
    parser.read_string(wheel.read(points).decode())
    modules = {name.removesuffix(".py").replace("/", ".") for name in wheel.namelist()}
    for _, target in (*parser["console_scripts"].items(), *parser["widefield.commands"].items()):
        assert target.partition(":")[0] in modules, target
    assert parser["console_scripts"]["widefield"] == "widefield.cli:main"
    assert "export" in parser["widefield.commands"]


def test_it_is_small(wheel):
    assert Path(wheel.filename).stat().st_size < 20 << 20


@pytest.mark.parametrize(
    ("wish", "said"),
    [("required", "error: triton cannot be imported; pip install triton"), ("some", "wanted auto, none or required")],
)
def test_kernels_that_are_required_and_cannot_be_built_are_an_error(source, tmp_path, wish, said):
    done = build(source, tmp_path, NO_TRITON + BUILD, wish)
    assert done.returncode != 0 and said in done.stderr
    assert not list(tmp_path.glob("*.whl"))


def test_kernels_that_are_not_wanted_are_not_built(source, tmp_path):
    done = build(source, tmp_path, BUILD, "none")
    assert done.returncode == 0, done.stderr
    (built,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        assert not [name for name in archive.namelist() if "compiled/" in name]
