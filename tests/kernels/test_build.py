"""Kernels cross-compiled for every architecture: what the code needs, what is in it, and when it is made again."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from house.places import ROOT
from widefield_kernels import compiled, manifest
from widefield_kernels.jit.variant import CAPABILITIES, SHARED_NBYTES

pytestmark = pytest.mark.timeout(1800)  # whoever asks for the matrix first waits for it: a minute or two on two cores
BIN = Path(pytest.importorskip("triton").__file__).parent / "backends/nvidia/bin"


def build(environment, folder: Path, *arguments: str, package: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the build in a process of its own, from the checkout or from a copy of the package."""
    environment = environment | {"PYTHONPATH": str(package or ROOT / "kernels")}
    command = [sys.executable, "-m", "widefield_kernels.jit.build", "-o", str(folder), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A copy of the kernels' package, to be changed."""
    top = tmp_path_factory.mktemp("package")
    leave = shutil.ignore_patterns("compiled", "__pycache__")
    shutil.copytree(ROOT / "kernels/widefield_kernels", top / "widefield_kernels", ignore=leave)
    return top


@pytest.fixture(scope="module")
def small(compiling, package) -> Path:
    """Two kernels for one architecture."""
    done = build(compiling, package / "out", "--only", "epilogue.any.*", "--capabilities", "90", package=package)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 kernels, 2 of them compiled")
    return package / "out"


def test_what_has_not_changed_is_not_compiled_again(small, package, compiling):
    again = build(compiling, small, "--only", "epilogue.any.*", "--capabilities", "90", package=package)
    assert again.stdout.startswith("2 kernels, 0 of them compiled"), again.stderr


def test_what_has_changed_is_stale_until_it_is_built(small, package, compiling):
    entry = compiled.choose("epilogue.any.fp32", 90, small)
    source = package / "widefield_kernels/jit/epilogue.py"
    plain = source.read_text()
    look = "from pathlib import Path; from widefield_kernels import compiled; "
    look += f"print(compiled.choose('epilogue.any.fp32', 90, Path({str(small)!r})).sha256)"

    def loaded() -> subprocess.CompletedProcess[str]:
        environment = compiling | {"PYTHONPATH": str(package)}
        return subprocess.run([sys.executable, "-c", look], env=environment, capture_output=True, text=True)

    source.write_text(plain.replace("BLOCK_Y, BLOCK_X = 4, 256", "BLOCK_Y, BLOCK_X = 4, 128"))
    assert source.read_text() != plain
    assert "epilogue.any.fp32.sm_90.cubin is stale: jit/epilogue.py has changed" in loaded().stderr
    again = build(compiling, small, "--only", "epilogue.any.fp32", "--capabilities", "90", package=package)
    assert again.stdout.startswith("1 kernels, 1 of them compiled"), again.stderr
    assert loaded().stdout.strip() not in ("", entry.sha256)
    assert {path.name for path in small.glob("*.cubin")} == {"epilogue.any.fp32.sm_90.cubin"}, (
        "what is not asked for goes"
    )


def test_damaged_code_is_made_again(small, package, compiling):
    (path,) = list(small.glob("*fp32.sm_90.cubin"))
    path.write_bytes(path.read_bytes()[:-1])
    again = build(compiling, small, "--only", "epilogue.any.fp32", "--capabilities", "90", package=package)
    assert again.stdout.startswith("1 kernels, 1 of them compiled"), again.stderr


def test_a_name_that_fits_none_is_an_error_in_one_line(tmp_path, compiling):
    done = build(compiling, tmp_path, "--only", "nothing", "--capabilities", "90")
    assert done.returncode == 1 and done.stderr.startswith("error: no kernel is called nothing; wanted")
    assert done.stderr.count("\n") == 1


def test_more_tensor_memory_than_there_is_is_refused(compiling):
    """Triton compiles it, to a trap."""
    script = (
        "from dataclasses import replace\n"
        "from widefield_kernels.jit.attention import variants\n"
        "from widefield_kernels.jit.cross import cross_compile\n"
        "form = next(v for v in variants(100) if v.name == 'attention.bf16.d512.kv')\n"
        "cross_compile(replace(form, constants={**form.constants, 'BLOCK_M': 64}), 100)\n"
    )
    environment = compiling | {"PYTHONPATH": str(ROOT / "kernels")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode != 0
    assert "KernelFault: attention.bf16.d512.kv for sm_100 wants 576 columns of tensor memory" in done.stderr


def test_without_triton_the_build_says_so(tmp_path, compiling):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nplain = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'triton' else plain(name, *rest)\n"
    )
    environment = compiling | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "kernels")])}
    command = [sys.executable, "-m", "widefield_kernels.jit.build", "-o", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: kernels are compiled by triton, which is not installed; pip install triton\n"


def test_the_hash_covers_what_a_kernel_imports(package, compiling):
    code = "from widefield_kernels.manifest import source_hash as h; print(h('norm'), h('epilogue'))"

    def hashes() -> list[str]:
        environment = compiling | {"PYTHONPATH": str(package)}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        ).stdout.split()

    before = hashes()
    with (package / "widefield_kernels/jit/variant.py").open("a") as file:
        file.write("# changed\n")
    after = hashes()
    assert len(set(before + after)) == 4, "norm imports variant.py, and so does epilogue"


def test_the_matrix_is_whole(matrix):
    by_name: dict[str, set[int]] = {}
    for entry in matrix.entries:
        by_name.setdefault(entry.name, set()).add(entry.capability)
    modules = {entry.module for entry in matrix.entries}
    assert modules == {path.stem for path in (ROOT / "kernels/widefield_kernels/jit").glob("*.py")} & {
        "attention", "blend", "noise", "norm", "epilogue"
    }  # fmt: skip
    assert set().union(*by_name.values()) == set(CAPABILITIES)
    assert {name: found for name, found in by_name.items() if found != set(CAPABILITIES)} == {}


def test_nothing_spills(matrix):
    assert {e.file: e.spill_nbytes for e in matrix.entries if e.spill_nbytes} == {}


def test_shared_memory_fits_each_architecture(matrix):
    assert {e.file: e.shared_nbytes for e in matrix.entries if e.shared_nbytes > SHARED_NBYTES[e.capability]} == {}


def test_every_launch_ends_in_tritons_two_pointers(matrix):
    assert {e.hidden for e in matrix.entries} == {2}


def test_grid_rules_can_be_evaluated(matrix):
    for entry in matrix.entries:
        values = {**entry.constants, **{name: 1 for name, kind in entry.arguments if not kind.startswith("*")}}
        grid = tuple(compiled.grid_rule(rule) for rule in entry.grid)
        assert min(compiled.CompiledKernel(entry, None, grid).blocks(values)) >= 1, entry.name


def sass(path: Path) -> str:
    """Machine code, disassembled."""
    return subprocess.run([BIN / "nvdisasm", "-c", path], capture_output=True, text=True, check=True).stdout


def test_attention_uses_hoppers_matrix_units(matrix, matrix_folder):
    plain = [e for e in matrix.entries if e.module == "attention" and e.capability == 90 and "fp32" not in e.name]
    assert plain or not (ROOT / "kernels/widefield_kernels/jit/attention.py").is_file()
    assert [e.name for e in plain if not re.search(r"\bHGMMA\.", sass(matrix_folder / e.file))] == []


def test_wide_loads_where_multiples_are_promised(matrix, matrix_folder):
    entry = compiled.choose("norm.apply.nhwc.bf16", 90, matrix_folder)
    code = sass(matrix_folder / entry.file)
    assert re.search(r"\bLDG\.E\.128\b", code) and re.search(r"\bSTG\.E\.128\b", code)
    assert not re.search(r"\bLDG\.E\.U16\b", code)


def test_a_wheel_carries_what_is_compiled(compiling, tmp_path):
    """Built where triton is, without isolation; here with one kernel for one architecture."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "kernels", "runtime", "export", "bench"):
        path = ROOT / name
        leave = shutil.ignore_patterns("compiled", "__pycache__", "*.egg-info", "embedded")
        shutil.copytree(path, source / name, ignore=leave) if path.is_dir() else shutil.copy(path, source / name)
    setup = (source / "setup.py").read_text()
    narrow = setup.replace('self.only, self.capabilities = "*", ""', 'self.only, self.capabilities = "noise.*", "90"')
    assert narrow != setup
    (source / "setup.py").write_text(narrow)
    code = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=source, env=compiling, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {n for n in archive.namelist() if n.startswith("widefield_kernels/compiled/")}
        entries = json.loads(archive.read("widefield_kernels/compiled/manifest.json"))["entries"]
    assert entries and inside == {
        f"widefield_kernels/compiled/{n}" for n in ("manifest.json", *(e["file"] for e in entries))
    }
    assert entries[0]["source"] == manifest.source_hash("noise"), "what is installed is not stale"
