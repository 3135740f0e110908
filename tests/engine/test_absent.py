"""On a machine without a GPU every module imports, and an engine that is not there is one line that says what to do."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from house.places import ROOMS, python, sources
from widefield.engine.available import find_driver
from widefield.model import EMBEDDED

OPEN = """
from pathlib import Path
from widefield.engine import EngineOptions, open_engine
from widefield.errors import WidefieldError
try:
    shapes = {{"query": (5, 96), "keys": (7, 96)}}
    open_engine(Path({path!r}), shapes, {{}}, EngineOptions({backend!r}, device="cuda:0"))
except WidefieldError as fault:
    print(fault)
"""
TENSORRT = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
WITH_TENSORRT = pytest.mark.skipif(
    not any(map(find_spec, TENSORRT)), reason="TensorRT-RTX is not installed: pip install widefield[rtx]"
)


@pytest.mark.skipif(find_driver().cuda is not None, reason="a GPU is here: engines may open")
@pytest.mark.parametrize(
    ("backend", "blocked", "said"),
    [
        ("trt", TENSORRT, "engine trt needs tensorrt; pip install 'widefield[trt]', or 'widefield[rtx]'"),
        pytest.param("trt", ("cupy",), "needs cupy; pip install 'widefield[gpu]'", marks=WITH_TENSORRT),
        ("auto", (*TENSORRT, "torch"), "engine ort cannot use a GPU"),
        ("tensorflow", (), "no engine 'tensorflow'; there are auto, ort"),
    ],
)
def test_an_engine_that_is_not_there_is_one_line(backend, blocked, said):
    done = python(OPEN.format(path=str(EMBEDDED / "attention.onnx"), backend=backend), blocked=blocked)
    assert done.stdout.count("\n") == 1 and said in done.stdout, done.stdout + done.stderr


IMPORT = """
import importlib, json, warnings
warnings.simplefilter("error", ImportWarning)
failed = {}
for name in json.loads(NAMES):
    try:
        importlib.import_module(name)
    except Exception as cause:
        failed[name] = repr(cause)
print(json.dumps(failed))
"""


@pytest.mark.parametrize("package", ROOMS)
def test_every_module_imports(package):
    """Commands and engines whose libraries are extras too: they import them where they use them."""
    names = [name for name in sources(package) if not name.endswith("__main__")]
    done = python(IMPORT.replace("NAMES", repr(json.dumps(names))))
    assert done.returncode == 0, done.stderr
    assert len(names) > 5 and json.loads(done.stdout.splitlines()[-1]) == {}
