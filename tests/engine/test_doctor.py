"""`widefield doctor` and `widefield build`: what they find here, and what they say of what is not here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from house.places import python
from widefield.commands.build import build, graphs
from widefield.commands.doctor import doctor
from widefield.engine import available, trt_bindings
from widefield.engine.available import Driver, find_driver, verdicts
from widefield.errors import BadRequest
from widefield.model import EMBEDDED
from widefield.model import open as open_model

NO_DRIVER = Driver(None, (), "no NVIDIA driver: libcuda.so.1 is not there")
FULL = SimpleNamespace(__name__="tensorrt", __version__="11.4.0")
ONE_GPU = Driver((13, 0), ("Some GPU",), "", "90")


def test_doctor_prints_one_json_object_with_every_engine():
    done = CliRunner().invoke(doctor, ["--json"], catch_exceptions=False)
    about = json.loads(done.stdout)
    assert {(e["engine"], e["device"]) for e in about["engines"]} == {
        ("ort", "cpu"), ("openvino", "cpu"), ("torch", "cpu"), ("trt", "cuda:0"), ("torch", "cuda:0"), ("ort", "cuda:0")
    }  # fmt: skip
    assert all(e["works"] != bool(e["why"]) and e["works"] != bool(e["install"]) for e in about["engines"])
    speeds = about["ceilings"]["cpu, float32"]
    assert speeds["copy_gbps"] > 0.1 and speeds["product_gflops"] > 0.1


def test_doctor_says_a_line_for_every_engine():
    done = CliRunner().invoke(doctor, ["--no-measure"], catch_exceptions=False)
    assert done.exit_code == 0 and "ort on cpu         works (" in done.stdout
    assert "GB/s" not in done.stdout and len(done.stdout.splitlines()) == 9


def test_without_a_driver_nothing_else_is_to_blame():
    found = {v.engine: v for v in verdicts(NO_DRIVER) if v.device == "cuda:0"}
    assert {v.install for v in found.values()} == {"install NVIDIA's driver"} and len(found) == 3


def test_a_library_that_is_missing_is_named(monkeypatch):
    there = available.importlib.util.find_spec
    monkeypatch.setattr(
        available.importlib.util, "find_spec", lambda n: None if n in ("onnx", "openvino") else there(n)
    )
    found = {(v.engine, v.device): v for v in verdicts(ONE_GPU)}
    assert found["openvino", "cpu"].why == "openvino is not installed"
    assert found["torch", "cuda:0"].why == "onnx is not installed"
    assert found["torch", "cuda:0"].install == "pip install 'widefield[torch]'"


def test_tensorrt_rtx_is_not_said_to_run_where_it_has_no_code(monkeypatch):
    """Of its GPUs and others; TensorRT itself has code for whatever it runs on."""
    rtx = SimpleNamespace(__name__="tensorrt_rtx", __version__="1.7", ComputeCapability=SimpleNamespace(SM89=1))
    monkeypatch.setattr(available, "version_of", lambda *names: "1")
    for module, capability, works in ((rtx, "89", True), (rtx, "90", False), (FULL, "90", True)):
        monkeypatch.setattr(trt_bindings, "bindings", lambda module=module: module)
        found = next(v for v in verdicts(replace(ONE_GPU, capability=capability)) if v.engine == "trt")
        assert found.works is works
        assert works or ("does not build for sm_90" in found.why and found.install == "pip install 'widefield[trt]'")


@pytest.mark.skipif(find_driver().cuda is not None, reason="what is said where there is no driver")
def test_the_driver_is_asked_itself():
    assert find_driver() == NO_DRIVER


@pytest.mark.gpu
@pytest.mark.skipif(find_driver().cuda is None, reason="no NVIDIA driver")
def test_the_driver_names_its_gpus():
    assert find_driver().gpus and find_driver().cuda >= (12, 0)


def test_build_wants_a_gpu_or_a_capability(tmp_path):
    with pytest.raises(BadRequest, match="engine trt runs on a GPU"):
        CliRunner().invoke(build, ["--device", "cpu"], catch_exceptions=False)


def test_everything_that_a_run_opens_is_built():
    bundle = open_model(EMBEDDED).bundle
    found = list(graphs(bundle, (16, 24), 2))
    wanted = {graph.file: graph for graph in reversed(found)}
    streamed = {g.file for c in bundle.components.values() for g in (*c.interior, *c.border, *c.certified)}
    assert wanted.keys() == streamed | {"denoiser.16x16.onnx", "text_encoder.onnx"}
    assert wanted["decoder.border.1.onnx"].shapes["inside"][0] == 2
    assert wanted["decoder.certified.1.onnx"].shapes["inside"][0] == 1
    of_a_level = [graph.shapes["inside"][:3] for graph in found if graph.file == "encoder.border.0.onnx"]
    margin = 2 * bundle.encoder.margin_cells
    assert of_a_level == [(2, 1, 16 + margin), (1, 1, 32 + margin), (1, 1, 64 + margin)], "a drawing's own tiles"
    assert wanted["denoiser.16x16.onnx"].shapes["latent"][0] == 4, "and its own batch"
    assert wanted["decoder.interior.1.onnx"].frozen and not wanted["text_encoder.onnx"].frozen


def test_a_bundle_builds_for_a_gpu_that_is_not_here():
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install widefield[rtx]")
    asked = ["--capability", "89", "--precision", "f16", "--tile", "16x24", "--json"]
    done = CliRunner().invoke(build, asked, catch_exceptions=False)
    about = json.loads(done.stdout)
    assert len(about["engines"]) == 20 and all(engine["nbytes"] > 4096 for engine in about["engines"])


ASK = """
from pathlib import Path
from widefield.engine import EngineOptions, open_engine
from widefield.errors import MissingBackend
try:
    open_engine(Path("none.onnx"), {}, {}, EngineOptions("ENGINE", device="cuda:0"))
except MissingBackend as fault:
    print(fault)
"""
TENSORRT = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")


@pytest.mark.parametrize(
    ("engine", "blocked", "said"),
    [
        ("torch", ("torch",), "engine torch needs torch; pip install 'widefield[torch]'"),
        ("torch", ("onnx",), "engine torch needs onnx; pip install 'widefield[torch]'"),
        ("trt", ("onnx",), "engine trt needs onnx; pip install 'widefield[trt]'"),
    ],
)
def test_an_engine_without_its_library_is_one_line(engine, blocked, said, extras):
    assert python(ASK.replace("ENGINE", engine), blocked=blocked).stdout == f"{said}\n"
    assert {"torch", "trt", "rtx", "gpu"} <= extras


@pytest.fixture
def extras() -> set[str]:
    import tomllib

    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    return set(tomllib.loads(text)["project"]["optional-dependencies"])


def test_tensorrt_that_is_not_installed_is_one_line():
    code = """
from widefield.engine.trt_bindings import bindings
from widefield.errors import MissingBackend
try:
    bindings()
except MissingBackend as fault:
    print(fault)
"""
    done = python(code, blocked=TENSORRT)
    assert done.stdout.startswith("engine trt needs tensorrt; pip install 'widefield[trt]'") and done.stderr == ""
