"""A signal that comes after an engine was closed in another thread is handled, and is no crash."""

import subprocess
import sys

import pytest

from cli.runner import ENVIRONMENT

CHILD = """
import signal, sys, threading
from pathlib import Path

from widefield.engine import EngineOptions, open_engine

engines = [open_engine(Path(sys.argv[1]), {"x": (3, 5)}, {}, EngineOptions(sys.argv[2]))]


def close():
    engines.pop().close()


closing = threading.Thread(target=close)
closing.start()
closing.join()
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background ignores it
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted", len(engines))
"""


@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_an_engine_closed_in_another_thread_leaves_signals_alone(tmp_path, engine):
    import onnx
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 5]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "r.onnx")
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "r.onnx"), engine],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (child.returncode, child.stdout) == (0, "interrupted 0\n"), child.stderr
