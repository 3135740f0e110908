"""Denoisers and text encoders of every family parse and build with TensorRT-RTX in bf16 and float32. Minutes: slow."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from models import DENOISERS
from pipelines import make_pipeline
from widefield.engine.trt_build import build_engine
from widefield.engine.trt_graph import make_skeleton
from widefield_export.commands import export_bundle

PIPELINES = ("SD1.5", "SDXL", "SD3", "FLUX.1-dev", "SANA")


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    inputs = onnx.load(path, load_external_data=False).graph.input
    return {i.name: tuple(d.dim_value or 2 for d in i.type.tensor_type.shape.dim) for i in inputs}


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_every_graph_that_generates_builds(name, tmp_path):
    rtx = pytest.importorskip(
        "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install widefield[rtx]"
    )
    assert name in DENOISERS
    make_pipeline(name).save_pretrained(tmp_path / "checkpoint")
    export_bundle(tmp_path / "checkpoint", tmp_path / "b.wf", asked={"windows": ("16x24",)})
    paths = sorted((tmp_path / "b.wf").glob("denoiser*.onnx")) + sorted((tmp_path / "b.wf").glob("text*.onnx"))
    assert len(paths) >= 2
    for path in paths:
        for precision in ("f32", "bf16"):
            skeleton = make_skeleton(path, shapes_of(path), {}, precision)
            plan, _ = build_engine(rtx, skeleton, capabilities=("89", "120"))
            assert plan, path.name
