"""The README's commands and code are run; what is shown and not run is at least what the command line takes."""

import os
import re
import shlex
import subprocess
import sys
import tomllib

import click
import pytest

from house.places import ROOT, environment

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
SHELL = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
INSTALL = ("python3 -m venv ", ". .venv/", "pip install ")


def parts(command: str, *, install: bool) -> list[str]:
    """The steps of an `a && b && c`: those that install, or the others."""
    return [step for step in command.split(" && ") if step.startswith(INSTALL) == install]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder like the checkout, in which the README's first command was run, less its installing."""
    where = tmp_path_factory.mktemp("readme")
    (where / "docs").symlink_to(ROOT / "docs")
    shim = where / "bin" / "widefield"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m widefield.cli "$@"\n')
    shim.chmod(0o755)
    path = {"PATH": f"{shim.parent}{os.pathsep}{os.environ['PATH']}"}
    command = " && ".join(parts(SHELL[0], install=False))
    done = subprocess.run(command, shell=True, cwd=where, env=environment() | path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return where


def test_the_first_command_makes_a_pyramid_that_others_read(folder):
    import tifffile

    with tifffile.TiffFile(folder / "coast.tif") as picture:
        series = picture.series[0]
        assert series.shape[:2] == (2048, 2048) and len(series.levels) >= 3
        assert series.asarray().std() > 15, "a coast has land and sea"


def test_the_lines_of_python_run(folder):
    (code,) = [block for kind, block in BLOCKS if kind == "python"]
    told = "\nassert part.shape == (256, 384, 3) and part.dtype == 'uint8', part.shape\n"
    done = subprocess.run(
        [sys.executable, "-c", code + told], cwd=folder, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "rocket.tif").stat().st_size > 10_000 and (folder / "photograph.tif").stat().st_size > 10_000


def test_it_opens_with_two_commands_that_install_and_run():
    first, second = (block for kind, block in BLOCKS[:2] if kind == "sh")
    assert parts(first, install=True)[-1] == "pip install ." and len(parts(first, install=False)) == 1
    assert parts(second.strip(), install=False) == ["scripts/check"]


def test_ci_installs_and_tests_as_the_readme_says():
    run = (ROOT / ".ci/run").read_text()
    *_, install = parts(SHELL[1], install=True)
    assert install.removeprefix("pip install ") in run and "exec scripts/check" in run


def test_the_check_runs_what_it_says():
    check = (ROOT / "scripts/check").read_text()
    commands = ("ruff check", "ruff format --check", "mypy", 'pytest -m "not slow and not gpu"')
    places = [check.index(f"-m {command}") for command in commands]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "line", [step for line in SHELL for step in line.split(" && ") if step.startswith("widefield ")]
)
def test_every_command_that_is_shown_is_one(line):
    from widefield.cli import widefield

    _, name, *arguments = shlex.split(line)
    with click.Context(widefield) as context:
        command = widefield.get_command(context, name)
        assert command is not None, name
        command.make_context(name, arguments, parent=context)  # raises UsageError for what it does not take


def test_every_option_that_is_named_is_one():
    from widefield.cli import widefield

    known = set()
    with click.Context(widefield) as context:
        for name in widefield.list_commands(context):
            command = widefield.get_command(context, name)
            known |= {option for parameter in command.params for option in parameter.opts}
    prose = re.sub(
        r"```.*?```|`(?:python|pip) [^`]*`|`--extra-index-url [^`]*`", "", README, flags=re.DOTALL
    )  # not ours
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", prose)) <= known


def test_every_extra_that_is_named_is_one(extras):
    named = re.findall(r"\.\[(\w+)\]", README)
    assert named and set(named) <= extras


def test_every_file_that_is_named_is_there():
    for name in re.findall(r"`((?:docs|scripts|export|bench|tests|\.ci)/[\w./]+)`", README):
        assert (ROOT / name).exists(), name
    for room in re.findall(r"^    ([\w/]+)/ ", README, re.MULTILINE):
        assert (ROOT / room).is_dir(), room


def test_it_asks_for_the_python_that_the_package_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"Python {project['requires-python'].removeprefix('>=')} or newer" in README


def test_the_numbers_in_its_prose_are_those_of_the_code():
    from widefield import certificate, options, plan, sampling
    from widefield.store.tiff import TiffStore

    prose = " ".join(README.split())
    fewest, most = sampling.default_cells(1, 1), sampling.default_cells(65536, 65536)
    default = options.RunOptions()
    for said in (
        f"{fewest} to {most:,} stratified squares of {sampling.CELL} x {sampling.CELL} latents",
        f"is exact up to {plan.EXACT_UP_TO_PX // 10**6} megapixels",
        f"on about {certificate.TILES} tiles",
        f"`--memory` (default {default.memory_nbytes >> 30} GiB)",
        f"JPEG of quality {default.quality}",
        f"`--codec lossless` is {TiffStore.lossless} in a `.tif`",
    ):
        assert said in prose, said
    assert TiffStore.codecs[0] == "jpeg"
