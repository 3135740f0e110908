"""`widefield build` says how far it is, and in one line what is missing."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from cli.runner import run
from widefield.commands import build
from widefield.commands.progress import Reporter
from widefield.engine.available import find_driver


class Heard(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[str, int, int]] = []

    def talk(self, what: str, done: int, total: int) -> None:
        self.steps.append((what, done, total))


@pytest.fixture
def two_graphs(monkeypatch):
    """The smallest of the embedded bundle: what is shown here does not depend on how many there are."""
    plain = build.graphs

    def few(*given):
        return [
            graph for graph in plain(*given) if graph.file in ("decoder.interior.0.onnx", "encoder.interior.0.onnx")
        ]

    monkeypatch.setattr(build, "graphs", few)


def test_how_far_the_builder_is_is_told(two_graphs, monkeypatch, capsys):
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install widefield[rtx]")
    heard = Heard()
    monkeypatch.setattr(build, "reporter", lambda verb, quiet: heard)
    answer = run(capsys, "build", "--capability", "120", "--tile", "16x24")
    assert answer.status == 0, answer.err
    assert answer.out.startswith("2 engines, ")
    assert [line.split(":")[0] for line in answer.err.splitlines()] == [
        "decoder.interior.0.onnx bf16", "encoder.interior.0.onnx bf16"
    ]  # fmt: skip
    for file in ("decoder.interior.0.onnx", "encoder.interior.0.onnx"):
        of_it = [(done, total) for what, done, total in heard.steps if what.startswith(f"{file}: ")]
        assert of_it and all(0 <= done <= total for done, total in of_it), "TensorRT says how far it is"


@pytest.mark.skipif(find_driver().cuda is not None, reason="a GPU is here")
def test_without_a_gpu_it_is_one_line(two_graphs, capsys):
    there = any(map(find_spec, ("tensorrt", "tensorrt_rtx_bindings")))
    assert ("cuda:0" if there else "needs tensorrt; pip install") in run(capsys, "build").fault()
    assert "name cuda:0" in run(capsys, "build", "--device", "cpu").fault()
