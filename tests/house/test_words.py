"""What is written: docstrings, no place of this or that machine, a changelog for the version, the licence."""

import ast
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

from house.places import ROOMS, ROOT, sources, tracked

Defined = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
# A path of one machine, written so that this file does not contain it.
PLACES = re.compile(rb"/" rb"(?:work|root|home|Users)/[\w.]|(?<![\w)\]])\." rb"library\b")
TEXT = (".py", ".md", ".toml", ".txt", ".json", ".yml", ".cfg", "")


def undocumented(tree: ast.Module, declared: set[str] = frozenset()) -> list[str]:
    """Public names that say nothing: modules, classes, functions, and methods with more than one statement.

    A method of one statement is its own description; an override, and what a protocol asks for (`declared`), is
    described where it was declared.
    """
    overridden = {child.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for child in _public(node)}

    def within(owner: ast.Module | ast.ClassDef, prefix: str) -> list[str]:
        found = []
        for node in _public(owner):
            silent = ast.get_docstring(node) is None
            if isinstance(owner, ast.ClassDef) and not isinstance(node, ast.ClassDef):
                silent = silent and len(node.body) > 1 and node.name not in declared
                silent = silent and not (owner.bases and node.name in overridden)
            found += [f"{prefix}{node.name}"] if silent else []
            found += within(node, f"{prefix}{node.name}.") if isinstance(node, ast.ClassDef) else []
        return found

    silent_module = bool(tree.body) and ast.get_docstring(tree) is None
    return ["the module"] * silent_module + within(tree, "")


def _public(owner: ast.Module | ast.ClassDef) -> list[Defined]:
    return [node for node in owner.body if isinstance(node, Defined) and not node.name.startswith("_")]


def protocol_methods(trees: Iterable[ast.Module]) -> set[str]:
    """Names that any Protocol of a package declares."""
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return {child.name for node in nodes if "Protocol" in map(ast.unparse, node.bases) for child in _public(node)}


@pytest.mark.parametrize("package", ROOMS)
def test_every_public_name_says_what_it_is(package):
    trees = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in sources(package).items()}
    declared = protocol_methods(trees.values())
    silent = {module: undocumented(tree, declared) for module, tree in trees.items()}
    assert not [f"{module}: {', '.join(names)}" for module, names in silent.items() if names]


def test_a_silent_name_is_found():
    text = '"""Module."""\nclass A:\n    """A."""\n    def f(self):\n        a = 1\n        return a\ndef g(): pass'
    assert undocumented(ast.parse(text)) == ["A.f", "g"]


def test_nothing_tracked_names_a_place_on_one_machine():
    for name in tracked():
        path = ROOT / name
        if path.suffix in TEXT and path.stat().st_size < 1 << 20:
            found = PLACES.search(path.read_bytes())
            assert found is None, f"{name}: {found[0]!r}"


def test_a_place_on_one_machine_is_found():
    assert PLACES.search(b"see /" + b"work/main") and not PLACES.search(b"network/main, work/main")


def test_the_changelog_has_the_version(project):
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_library_says_the_same_version(project):
    line = f'__version__ = "{project["version"]}"'
    assert line in (ROOT / "runtime/widefield/__init__.py").read_text().splitlines()


def test_the_licence_is_the_one_that_is_named(project):
    assert project["license"] == "Apache-2.0"
    head = (ROOT / "LICENSE").read_text().split(maxsplit=4)[:4]
    assert head == ["Apache", "License", "Version", "2.0,"]


def test_requirements_are_thin(project):
    names = {re.split(r"[<>=!~ \[;]", requirement)[0] for requirement in project["dependencies"]}
    thin = {
        "numpy",
        "onnxruntime",
        "imagecodecs",
        "zarr",
        "google-crc32c",
        "safetensors",
        "tokenizers",
        "click",
        "rich",
    }
    assert names == thin


def test_what_ci_runs_is_executable_and_tracked():
    for name in (".ci/run", "scripts/check"):
        assert (ROOT / name).stat().st_mode & 0o111, name


def test_pinned_versions_are_those_of_the_extras(project):
    pins = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    wanted = " ".join(requirement for extra in project["optional-dependencies"].values() for requirement in extra)
    for name, _ in pins:
        assert re.search(rf"\b{re.escape(name)}\b", wanted), name


def test_pyproject_finds_every_room():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    rooms = [str(Path(room).relative_to(ROOT)) for room in ROOMS.values()]
    for where in (
        tools["setuptools"]["packages"]["find"]["where"],
        tools["mypy"]["mypy_path"],
        tools["pytest"]["ini_options"]["pythonpath"][: len(rooms)],
    ):
        assert sorted(where) == sorted(rooms)
    assert sorted(tools["mypy"]["packages"]) == sorted(ROOMS) and tools["mypy"]["strict"]
