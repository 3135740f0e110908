"""What overflows in half precision is made again in float32, counted, and never written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from families import ArraySource, half_dark
from widefield.bundle import Bundle, open_bundle
from widefield.coder import TileCoder
from widefield.engine import Engine, EngineOptions, open_engine
from widefield.engine.guard import Guarded, is_finite
from widefield.errors import BadRequest
from widefield.geometry import Region
from widefield.model import EMBEDDED, Model
from widefield.summary import Summary
from widefield.sweep import SweepOptions, measure

F16 = EngineOptions("torch", "f16")


class Recorder(Engine):
    """Writes one value everywhere."""

    def __init__(self, value: float, name: str = "narrow") -> None:
        self.value, self.name, self.runs, self.closed = value, name, 0, 0

    def run(self, feeds, into):
        self.runs += 1
        for result in into.values():
            result[...] = self.value

    def close(self):
        self.closed += 1


@pytest.mark.parametrize("planted", [np.inf, -np.inf, np.nan])
def test_a_value_that_is_not_finite_is_replaced_and_counted(planted):
    narrow, wide = Recorder(planted), Recorder(2.0, "wide")
    engine = Guarded(narrow, lambda: wide)
    into = {"y": np.zeros((3, 5), np.float32)}
    engine.run({}, into)
    engine.run({}, into)
    assert (into["y"] == 2.0).all() and engine.redone == 2 and (narrow.runs, wide.runs) == (2, 2)
    engine.close()
    assert narrow.closed == wide.closed == 1


def test_what_is_finite_opens_nothing():
    engine = Guarded(Recorder(3e38), lambda: pytest.fail("opened"))
    engine.run({}, {"y": np.zeros((7, 9), np.float32)})  # whose sum is infinite
    engine.close()
    assert engine.redone == 0


@pytest.mark.parametrize("place", [(0, 0), (6, 8), (3, 4)])
def test_one_value_among_many_is_found(place):
    x = np.full((7, 9), 1e38, np.float32)
    assert is_finite(x)
    for planted in (np.inf, -np.inf, np.nan):
        x[place] = planted
        assert not is_finite(x)
    x[place], x[1, 1] = np.inf, -np.inf
    assert not is_finite(x)


def overflowing(path: Path) -> Path:
    """y = (256 x) (256 x) / 65536, whose middle is beyond half precision where x is 1 or more."""
    big, small = (onnx.numpy_helper.from_array(np.float32(v), n) for v, n in ((256.0, "big"), (2.0**-16, "small")))
    names = [("x", "big", "a"), ("a", "a", "b"), ("b", "small", "y")]
    nodes = [onnx.helper.make_node("MatMul", ["x", "eye"], ["x0"])]
    nodes += [onnx.helper.make_node("Mul", [p if p != "x" else "x0", q], [r]) for p, q, r in names]
    ends = [onnx.helper.make_tensor_value_info(name, 1, [2, 4]) for name in ("x", "y")]
    eye = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "eye")
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], [big, small, eye])
    onnx.save(onnx.helper.make_model(graph), path)
    return path


def test_an_overflow_in_f16_comes_out_as_float32_makes_it(tmp_path):
    engine = open_engine(overflowing(tmp_path / "g.onnx"), {"x": (2, 4)}, {}, F16)
    quiet, loud = np.full((2, 4), 0.5, np.float32), np.array([[0.5] * 4, [0.5, 3.0, 0.25, 0.5]], np.float32)
    for x, redone in ((quiet, 0), (loud, 1), (quiet, 1), (loud, 2)):
        into = {"y": np.empty((2, 4), np.float32)}
        engine.run({"x": x}, into)
        np.testing.assert_allclose(into["y"], x * x, rtol=2e-3)
        assert engine.redone == redone
    engine.close()


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(EMBEDDED)


def loud_summary(bundle: Bundle, source: ArraySource, folder: Path) -> Summary:
    """A summary whose last norm is so large that what it makes is beyond half precision."""
    found = measure(bundle, bundle.decoder, source, "exact", SweepOptions(2, 1 << 28, folder, EngineOptions("ort")))
    norms = [site.result for site in bundle.decoder.sites if site.kind == "norm"]
    last = f"{norms[-1]}.scale"
    return Summary({**found.arrays, last: found.arrays[last] * np.float32(3e5)}, found.moments, found.about)


def test_tiles_that_overflow_are_counted_and_are_what_float32_makes(bundle, tmp_path):
    source = ArraySource(half_dark(8, 16, 24))
    summary = loud_summary(bundle, source, tmp_path)
    tiles = [Region(0, x, 8, x + 8) for x in (0, 8, 16)]
    results = {}
    for precision in ("f32", "f16"):
        options = replace(F16, precision=precision)
        coder = TileCoder(bundle, bundle.decoder, source, summary, (8, 8), 1, options, certify=False)
        results[precision] = [coder([tile])[0] for tile in tiles]
        coder.close()
        assert (coder.engines.redone > 0) == (precision == "f16")
    for wide, narrow in zip(results["f32"], results["f16"], strict=True):
        assert np.isfinite(narrow).all()
        assert np.abs(narrow - wide).max() <= 0.02 * np.abs(wide).max()


def test_a_save_reports_what_it_made_again(bundle, tmp_path):
    latents = half_dark(8, 16, 24)
    summary = loud_summary(bundle, ArraySource(latents), tmp_path)
    summary = Summary(summary.arrays, summary.moments, {**summary.about, "bundle": bundle.digest})
    summary.save(tmp_path / "loud.safetensors")
    picture = Model(bundle).decode(latents, summary=str(tmp_path / "loud.safetensors"), engine="torch", precision="f16")
    saved = picture.save(tmp_path / "a.tif", workers=1)
    assert saved.redone > 0 and saved.as_dict()["calls_redone"] == saved.redone


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (EngineOptions("ort", "f16"), "engine ort runs in float32 only"),
        (EngineOptions("openvino", "f16"), "engine openvino does not run in f16; it runs in f32, bf16"),
        (EngineOptions("openvino", device="cuda:0"), "engine openvino runs on the CPU"),
        (EngineOptions("torch", device="gpu"), "no device 'gpu'; wanted cpu or cuda:N"),
        (EngineOptions("fast"), "no engine 'fast'; there are auto, ort"),
        (EngineOptions("torch", "f8"), "no precision 'f8'; there are f32, bf16, f16"),
    ],
)
def test_what_an_engine_cannot_do_is_one_line(options, said):
    with pytest.raises(BadRequest, match=said) as fault:
        options.resolved()
    assert "\n" not in str(fault.value)
