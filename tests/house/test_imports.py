"""Imports point one way, and no two modules of a package import each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from house.places import ROOMS, sources, tracked

MAY_IMPORT = {
    "widefield_kernels": set(),
    "widefield": {"widefield_kernels"},
    "widefield_export": {"widefield", "widefield_kernels"},
    "widefield_bench": {"widefield", "widefield_kernels", "widefield_export"},
}
TAKEN = ("onnx.py", "tensorrt.py", "torch.py", "zarr.py", "numpy.py", "openvino.py", "safetensors.py", "click.py")


def imports(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported anywhere below `tree`, relative imports made absolute.

    `from a.b import c` is a.b.c: whether that is a module or a name in one, the reader decides.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if is_package else module.split(".")[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{stem}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            named = node.args[0] if node.args else None
            if isinstance(named, ast.Constant) and isinstance(named.value, str):
                yield node.lineno, named.value


def back_pointing(package: str, module: str, path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {(line, name.split(".")[0]) for line, name in imports(tree, module, is_package=path.stem == "__init__")}
    allowed = MAY_IMPORT[package] | {package}
    return [f"{path}:{line} imports {top}" for line, top in sorted(found) if top in ROOMS and top not in allowed]


@pytest.mark.parametrize("package", ROOMS)
def test_imports_point_one_way(package):
    modules = sources(package)
    assert modules, f"{package} has no modules"
    wrong = [line for module, path in modules.items() for line in back_pointing(package, module, path)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line",
    [
        "import widefield_export",
        "from widefield_export.program import Op",
        "def lazy():\n    import widefield_bench.store",
        "importlib.import_module('widefield_export.commands')",
    ],
)
def test_an_import_that_points_back_is_found(line, tmp_path):
    path = tmp_path / "planted.py"
    path.write_text(line)
    assert len(back_pointing("widefield", "widefield.planted", path)) == 1


def eager(tree: ast.Module) -> ast.Module:
    """What runs on import: functions and `if TYPE_CHECKING:` left out."""

    class Pruned(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return None

        visit_AsyncFunctionDef = visit_FunctionDef

        def visit_If(self, node):
            if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                return [self.visit(child) for child in node.orelse] or None
            return self.generic_visit(node)

    return Pruned().visit(tree)


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """A circle through each module that can reach itself: shortest first."""
    found = []
    for start in sorted(edges):
        paths, seen = [[start]], {start}
        while paths:
            path = paths.pop(0)
            if start in edges[path[-1]]:
                found.append([*path, start])
                break
            for after in sorted(edges[path[-1]] - seen):
                seen.add(after)
                paths.append([*path, after])
    return sorted(found, key=len)


def graph(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Which module imports which when it is imported itself. A package's __init__ counts where it is named."""
    edges = {}
    for module, path in modules.items():
        tree = eager(ast.parse(path.read_text(encoding="utf-8")))
        named = {name for _, name in imports(tree, module, is_package=path.stem == "__init__")}
        named = {name if name in modules else name.rpartition(".")[0] for name in named}
        edges[module] = {name for name in named if name in modules and name != module}
    return edges


@pytest.mark.parametrize("package", ROOMS)
def test_no_two_modules_import_each_other(package):
    found = circles(graph(sources(package)))
    assert not found, " -> ".join(found[0])


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})[0] == ["a", "b", "c", "a"]


def test_no_file_hides_a_library():
    assert not [name for name in tracked() if Path(name).name in TAKEN]
