"""OpenSeadragon comes from npm, in one version with one hash, and never in any other."""

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile

import pytest

from house.places import ROOT
from widefield.serve.assets import LIBRARY, VENDOR, has_viewer, load_assets

SETUP = (ROOT / "setup.py").read_text()
INTEGRITY = re.search(r'INTEGRITY = "(sha512-[^"]+)"', SETUP)[1]


@pytest.fixture
def checkout(tmp_path):
    """setup.py and what it needs, away from the checkout, and a folder for commands."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    page = tmp_path / "runtime/widefield/serve/page"
    page.mkdir(parents=True)
    for room in ("runtime/widefield", "kernels/k", "export/e", "bench/b"):
        (tmp_path / room).mkdir(parents=True, exist_ok=True)
        (tmp_path / room / "__init__.py").touch()
    (tmp_path / "bin").mkdir()
    return tmp_path


def npm_that(checkout, script: str) -> None:
    """Put a command called npm before all others."""
    path = checkout / "bin/npm"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def build(checkout, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{checkout / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "WIDEFIELD_KERNELS": "none", **environment}
    return subprocess.run(
        [sys.executable, "setup.py", "-q", *command], cwd=checkout, env=env, capture_output=True, text=True
    )


def test_another_package_under_that_name_is_not_used(checkout):
    with tarfile.open(checkout / "bin/other.tgz", "w:gz") as archive:
        member = tarfile.TarInfo("package/build/openseadragon/openseadragon.min.js")
        archive.addfile(member, io.BytesIO(b""))
    npm_that(checkout, 'cp "$(dirname "$0")/other.tgz" openseadragon-6.1.1.tgz')
    done = build(checkout, "build_viewer")
    assert done.returncode != 0 and "it is not used" in done.stderr and INTEGRITY in done.stderr
    assert not (checkout / "runtime/widefield/serve/page/openseadragon").exists()


def test_a_registry_that_cannot_be_reached_is_done_without_or_said(checkout):
    npm_that(checkout, "echo no network >&2; exit 1")
    done = build(checkout, "build_py")
    assert done.returncode == 0 and "the viewer is absent" in done.stdout and "no network" in done.stdout, done.stderr
    done = build(checkout, "build_py", WIDEFIELD_VIEWER="required")
    assert done.returncode != 0 and "did not fetch openseadragon@6.1.1" in done.stderr
    npm_that(checkout, "touch ../asked; exit 1")
    assert build(checkout, "build_py", WIDEFIELD_VIEWER="none").returncode == 0


@pytest.mark.skipif(not has_viewer(), reason="needs OpenSeadragon: python setup.py build_viewer")
def test_what_was_fetched_is_served_with_its_licence():
    assert (VENDOR / "integrity").read_text() == INTEGRITY
    assets = load_assets()
    assert LIBRARY in assets and b"openseadragon 6.1.1" in assets[LIBRARY].data[:200]
    assert b"Redistribution and use in source and binary forms" in assets["LICENSE.txt"].data


def test_nothing_of_it_is_in_the_repository():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "runtime/widefield/serve/page/viewer.js" in tracked and "openseadragon.min" not in tracked


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm, from Node.js")
def test_npm_has_it_still(checkout):
    done = build(checkout, "build_viewer")
    assert done.returncode == 0, done.stderr
    assert (checkout / "runtime/widefield/serve/page/openseadragon" / LIBRARY).stat().st_size > 300_000
