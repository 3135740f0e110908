"""Every graph that runs open, of a bundle of every family, parses and builds with TensorRT-RTX. Minutes: slow."""

from __future__ import annotations

import pytest

from models import DENOISERS
from pipelines import make_pipeline
from widefield.bundle import open_bundle
from widefield.commands.build import graphs
from widefield.engine.trt_build import build_engine
from widefield.engine.trt_graph import make_skeleton
from widefield_export.commands import export_bundle

PIPELINES = ("SD1.5", "SDXL", "SD3", "FLUX.1-dev", "SANA")


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_every_graph_of_a_bundle_builds(name, tmp_path):
    """Decoder, encoder, denoisers and text encoders, in bf16 and float32, for an RTX 40 and an RTX 50."""
    rtx = pytest.importorskip(
        "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install widefield[rtx]"
    )
    assert name in DENOISERS
    make_pipeline(name).save_pretrained(tmp_path / "checkpoint")
    export_bundle(tmp_path / "checkpoint", tmp_path / "b.wf", asked={"windows": ("16x24",)})
    bundle = open_bundle(tmp_path / "b.wf")
    kinds = set()
    for graph in graphs(bundle, (10, 14), 2):
        kinds.add(graph.file.split(".")[0].rstrip("_0123456789"))
        for precision in ("f32", "bf16"):
            skeleton = make_skeleton(bundle.file(graph.file), graph.shapes, graph.frozen, precision)
            plan, _ = build_engine(rtx, skeleton, capabilities=("89", "120"))
            assert len(plan) > 1 << 12, graph.file
    assert {"decoder", "encoder", "denoiser", "text_encoder"} <= kinds
