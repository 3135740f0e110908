"""`import widefield` stays light, and what is not installed is one line that says what to install."""

import json

import pytest

from house.places import ROOT, python

HEAVY = (
    "onnxruntime", "openvino", "torch", "diffusers", "onnx", "zarr", "imagecodecs", "click", "rich", "safetensors",
    "triton", "cupy",
)  # fmt: skip


def loaded_by(statement: str) -> set[str]:
    """Top-level modules from outside the standard library that a statement brings into a fresh interpreter."""
    code = (
        "before = set(sys.modules)\n"
        f"{statement}\n"
        "tops = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "import json; print(json.dumps(sorted(tops - set(sys.stdlib_module_names))))"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_widefield_loads_numpy_at_most():
    assert loaded_by("import widefield") <= {"widefield", "widefield_kernels", "numpy"}


def test_importing_the_model_loads_no_engine_and_no_codec():
    assert not loaded_by("import widefield.model, widefield.store") & set(HEAVY)


def test_formulas_and_compiled_kernels_need_numpy_alone():
    names = ", ".join(f"widefield_kernels.{path.stem}" for path in (ROOT / "kernels/widefield_kernels").glob("*.py"))
    assert "widefield_kernels.compiled" in names
    assert loaded_by(f"import {names.replace('.__init__', '')}") <= {"widefield_kernels", "numpy"}


def test_help_loads_click_alone():
    loaded = loaded_by("from widefield.cli import main\ntry: main(['decode', '--help'])\nexcept SystemExit: pass")
    assert not loaded & (set(HEAVY) - {"click"}) and "numpy" not in loaded


ENGINE = """
from pathlib import Path
from widefield.engine import EngineOptions, open_engine
from widefield.errors import MissingBackend
try:
    open_engine(Path("no.onnx"), {}, {}, EngineOptions("BACKEND"))
except MissingBackend as fault:
    print(fault)
"""
PICTURE = """
from pathlib import Path
import numpy as np
from widefield.errors import MissingBackend
from widefield.store import PyramidWriter, StoreSpec, create_or_resume
try:
    with create_or_resume(Path("a.FORM"), StoreSpec(600, 300, "f" * 64, "lossless")) as store:
        writer = PyramidWriter(store, threads=1)
        for row, column in writer.missing():
            writer.put(row, column, np.zeros(store.tile_shape(0, row, column) + (3,), np.uint8))
        writer.close()
except MissingBackend as fault:
    print(fault)
"""
COMMAND = """
from widefield.cli import main
sys.exit(main(["export", "nowhere", "-o", "a.wf"]))
"""


@pytest.mark.parametrize("package, backend", [("onnxruntime", "ort"), ("openvino", "openvino")])
def test_an_engine_that_is_not_installed_names_an_extra_that_there_is(package, backend, extras):
    done = python(ENGINE.replace("BACKEND", backend), blocked=(package,))
    assert done.stdout == f"engine {backend} needs {package}; pip install 'widefield[{package}]'\n", done.stderr
    assert package in extras


def test_auto_does_without_openvino():
    code = "from widefield.engine import EngineOptions; print(EngineOptions().resolved().backend)"
    assert python(code, blocked=("openvino",)).stdout == "ort\n"


@pytest.mark.parametrize(
    "form, package, wanted",
    [("tif", "imagecodecs", "imagecodecs"), ("zarr", "imagecodecs", "imagecodecs"), ("zarr", "google_crc32c", "zarr")],
)
def test_a_codec_that_is_not_installed_is_named(form, package, wanted, tmp_path):
    done = python(PICTURE.replace("FORM", form), blocked=(package,), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and f"pip install {wanted}" in done.stdout


@pytest.mark.parametrize("package", ["torch", "diffusers"])
def test_export_without_its_libraries_names_its_extra(package, tmp_path, extras):
    (tmp_path / "nowhere").mkdir()
    (tmp_path / "nowhere" / "config.json").write_text((ROOT / "export/embedded/vae/config.json").read_text())
    weights = ROOT / "export/embedded/vae/diffusion_pytorch_model.safetensors"
    (tmp_path / "nowhere" / weights.name).symlink_to(weights)
    done = python(COMMAND, blocked=(package,), cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == "", done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert f"needs {package}" in done.stderr and "pip install 'widefield[export]'" in done.stderr
    assert "export" in extras


def test_compiled_kernels_need_a_driver_and_nothing_else():
    code = """
from widefield_kernels.driver import Driver
from widefield_kernels.manifest import KernelFault
try:
    Driver("libnowhere.so.1")
except KernelFault as fault:
    print(fault)
"""
    done = python(code, blocked=("cupy", "torch", "triton"))
    said = "compiled kernels need NVIDIA's driver: libnowhere.so.1 is not there; install it, or compute on the CPU\n"
    assert done.stdout == said, done.stderr
