"""The pages of docs/ and of examples/: what is shown runs, or is at least a command; what is linked is there."""

import importlib.util
import re
import shlex
import subprocess
import sys

import click
import numpy as np
import pytest

from house.places import ROOT, environment
from widefield.cli import main, widefield

PAGES = sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
RUN = ("quickstart", "concepts", "extending", pytest.param("embedding", marks=pytest.mark.slow))  # whose Python is run
INSTALL = ("pip install ", "python3 -m venv ")
LARGEST_FIGURE = 150_000


def blocks(name: str, kind: str) -> list[str]:
    """The fenced blocks of a page, those that are marked so."""
    return re.findall(rf"```{kind}\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line) for line in text.splitlines() if line.startswith("widefield ")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Like the checkout, with latents of 96 x 72 cells in it; where the test is."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    y, x = np.mgrid[0:3:96j, 0:5:72j]
    np.save(tmp_path / "latents.npy", np.stack([np.sin(x * k + y) + x * y / 9 for k in range(8)]).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", RUN)
def test_the_python_of_a_page_runs(name, folder):
    code = "".join(blocks(f"docs/{name}.md", "python"))
    assert code
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", code]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_commands_of_the_quick_start_run(folder, capsys):
    text = (ROOT / "docs/quickstart.md").read_text(encoding="utf-8")
    found = commands(text[: text.index("## Checkpoints of yours")])
    for _, *arguments in found:
        if arguments[0] != "serve":
            assert main(arguments) == 0, (arguments, capsys.readouterr().err)
    made = {word for line in found for word in line if word.endswith((".tif", ".png", ".npy", ".zarr"))}
    assert len(found) >= 10 and {"coast.tif", "shore.png", "photograph.tif"} <= made
    assert not [name for name in made if not (folder / name).exists()]


@pytest.mark.parametrize("name", NAMES)
def test_every_command_that_is_shown_is_one(name):
    for text in blocks(name, "sh"):
        for _, command, *arguments in commands(text):
            with click.Context(widefield) as context:
                found = widefield.get_command(context, command)
                assert found is not None, command
                found.make_context(command, arguments, parent=context)  # raises UsageError for what it does not take


@pytest.mark.parametrize("name", NAMES)
def test_what_is_linked_is_there(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    linked = re.findall(r"\]\(([^)#]+)\)", text)
    near = re.findall(r"`([\w-]+\.md)`", text)
    far = re.findall(r"`((?:docs|examples|export|runtime|bench|tests|scripts)/[\w./-]+)`", text)
    for target in [*(t for t in linked if "://" not in t), *near]:
        assert ((ROOT / name).parent / target).exists(), target
    for target in far:
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("name", NAMES)
def test_extras_that_are_named_are_ones(name, extras):
    named = re.findall(r"widefield\[(\w+)\]|'\.\[(\w+)\]'", (ROOT / name).read_text(encoding="utf-8"))
    assert {a or b for a, b in named} <= extras


def test_the_index_names_every_page():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in NAMES:
        if name != "docs/README.md":
            assert f"({name.removeprefix('docs/')})" in index or f"(../{name})" in index, name
    assert "docs/README.md" in readme and "examples/" in readme


def test_figures_are_small_and_shown():
    shown = re.findall(r"\]\((figures/[\w.]+)\)", (ROOT / "docs/concepts.md").read_text(encoding="utf-8"))
    made = sorted(path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/figures/*.svg"))
    assert sorted(shown) == made and len(made) == 4
    for name in made:
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert text.startswith("<svg") and len(text) < LARGEST_FIGURE, name


# docs/commands.md


def words(text: str) -> str:
    """Without how lines are broken, which click's versions do unlike, and without -h: click keeps a command's help
    option as the first context asked for it, and tests ask without the group's."""
    return "".join(text.split()).replace("-h,--help", "--help")


def test_the_page_of_commands_is_what_would_be_written():
    spec = importlib.util.spec_from_file_location("commands_page", ROOT / "scripts/commands.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert words(module.PAGE.read_text(encoding="utf-8")) == words(module.page()), "run python scripts/commands.py"


def test_the_page_of_commands_has_what_help_prints(capsys):
    text = words((ROOT / "docs/commands.md").read_text(encoding="utf-8"))
    with click.Context(widefield) as context:
        names = widefield.list_commands(context)
    for name in names:
        main([name, "--help"])
        assert f"##{name}```text{words(capsys.readouterr().out)}```" in text, "run python scripts/commands.py"
