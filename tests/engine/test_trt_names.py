"""Every attribute of TensorRT that our code uses exists in the real bindings: TensorRT 11's over stub libraries, RTX's.

What is used is read from the code itself: names on the module, and on the objects that the module's classes make.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from house.places import ROOMS

SOURCES = [ROOMS["widefield"] / "widefield/engine" / f"{name}.py" for name in ("trt", "trt_build", "trt_bindings")]
# What a variable of ours holds.
HOLDS = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "config": "IBuilderConfig",
    "_runtime": "Runtime", "_engine": "ICudaEngine", "_context": "IExecutionContext", "e": "ParserError",
    "kept": "ITimingCache", "layer": "ILayer", "query": "ITensor",
}  # fmt: skip
ONLY_RTX = {
    "ComputeCapability", "IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability"
}  # fmt: skip
OURS = {"ILayer.__class__", "ILayer.attention"}


def used(path: Path) -> set[str]:
    """ "Builder", "Builder.create_network", "BuilderFlag.TF32", ... by what the variables hold."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Attribute):
            continue
        chain = ast.unparse(node).removeprefix("self.").split(".")
        if chain[0] == "trt" and len(chain) > 1:
            found.add(".".join(chain[1:3]))
        elif chain[0] in HOLDS and len(chain) == 2:
            found.add(f"{HOLDS[chain[0]]}.{chain[1]}")
    return found - OURS


EVERY = sorted(set().union(*map(used, SOURCES)) - {"__name__", "__version__"})


def test_names_are_found_in_the_code():
    assert len(EVERY) > 30
    assert {"Builder", "IExecutionContext.execute_async_v3", "BuilderFlag.TF32", "ParserError.node_name"} <= set(EVERY)


CHECK = """
import importlib, json, sys
trt = importlib.import_module(sys.argv[1])
def there(name):
    value = trt
    for part in name.split("."):
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True
print(json.dumps([trt.__version__, [name for name in json.loads(sys.argv[2]) if not there(name)]]))
"""


def missing(module: str, names: list[str], environment: dict[str, str]) -> tuple[str, list[str]]:
    """(the module's version, which names it lacks), found in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", CHECK, module, json.dumps(names)],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    version, lacking = json.loads(done.stdout)
    return version, lacking


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_bindings") is None, reason="no tensorrt-cu13-bindings")
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc to compile stub libraries with")
def test_tensorrt_11_has_them(tmp_path):
    source = Path(__file__).with_name("stub_library.c")
    for name in ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11"):
        target = tmp_path / name
        subprocess.run(["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", target, source], check=True)
    names = [name for name in EVERY if name not in ONLY_RTX and not name.startswith("ComputeCapability")]
    version, lacking = missing("tensorrt_bindings", names, {"LD_LIBRARY_PATH": str(tmp_path)})
    assert version.startswith("11.") and not lacking


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="no TensorRT-RTX")
def test_tensorrt_rtx_has_them():
    _, lacking = missing("tensorrt_rtx_bindings", EVERY, {})
    assert not [name for name in lacking if not name.endswith("timing_cache")]
