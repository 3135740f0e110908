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

from house.places import ROOMS, environment

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


@pytest.fixture(scope="module")
def over_stubs(tmp_path_factory) -> dict[str, str]:
    """The environment in which TensorRT 11's bindings load, over libraries that have nothing in them."""
    if importlib.util.find_spec("tensorrt_bindings") is None:
        pytest.skip("no tensorrt-cu13-bindings")
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to compile stub libraries with")
    folder, source = tmp_path_factory.mktemp("stubs"), Path(__file__).with_name("stub_library.c")
    for name in ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11"):
        subprocess.run(["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name, source], check=True)
    return {"LD_LIBRARY_PATH": str(folder)}


def test_tensorrt_11_has_them(over_stubs):
    names = [name for name in EVERY if name not in ONLY_RTX and not name.startswith("ComputeCapability")]
    version, lacking = missing("tensorrt_bindings", names, over_stubs)
    assert version.startswith("11.") and not lacking


OURS_ON_THEIRS = """
import json, sys
import tensorrt_bindings as trt
from widefield.engine.trt_bindings import identity, is_rtx, make_logger
from widefield.engine.trt_build import make_monitor
heard = []
monitor = make_monitor(trt, lambda *step: heard.append(step))
assert isinstance(monitor, trt.IProgressMonitor)
monitor.phase_start("Building", None, 2)
monitor.phase_start("Tactics", "Building", 5)
goes_on = monitor.step_complete("Tactics", 0)
monitor.phase_finish("Tactics")
monitor.phase_finish("Building")
logger = make_logger(trt)
assert isinstance(logger, trt.ILogger)
for severity in (trt.ILogger.Severity.INFO, trt.ILogger.Severity.WARNING, trt.ILogger.Severity.ERROR):
    logger.log(severity, str(severity))
loads = trt.Runtime.deserialize_cuda_engine.__doc__
print(json.dumps([heard, goes_on, logger.errors, is_rtx(trt), identity(trt), loads]))
"""


def test_our_monitor_and_logger_are_tensorrt_11s(over_stubs):
    """Made of its own classes; what its builder would call is called."""
    done = subprocess.run(
        [sys.executable, "-c", OURS_ON_THEIRS], env={**environment(), **over_stubs}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    heard, goes_on, errors, rtx, identity, loads = json.loads(done.stdout)
    assert heard == [["Building", 0, 2], ["Tactics", 0, 5], ["Tactics", 1, 5], ["Tactics", 5, 5], ["Building", 2, 2]]
    assert goes_on is True and errors == ["Severity.ERROR"] and not rtx and identity.startswith("tensorrt 11.")
    assert "buffer" in loads.lower(), "an engine is loaded from whatever is memory: a mapped file"


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="no TensorRT-RTX")
def test_tensorrt_rtx_has_them():
    _, lacking = missing("tensorrt_rtx_bindings", EVERY, {})
    assert not [name for name in lacking if not name.endswith("timing_cache")]
