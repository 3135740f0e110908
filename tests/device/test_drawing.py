"""Drawing on a machine whose GPU and TensorRT are fakes: the CPU's picture, each window there once, within the plan."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

import widefield
from widefield.buffers import MIB
from widefield.cascade import Cascade
from widefield.commands.build import graphs
from widefield.denoise import Denoiser
from widefield.device.coder import DeviceCoder
from widefield.device.engines import DeviceEngines
from widefield.device.plan import OF_LIBRARIES
from widefield.device.steps import DeviceSteps
from widefield.draw_plan import DrawPlan, plan_drawing
from widefield.drawing import Drawing
from widefield.engine import EngineOptions, trt
from widefield.errors import OverBudget
from widefield.generation import Generation, Recipe
from widefield.geometry import Region
from widefield.memo import Memo
from widefield.options import RunOptions

ON_GPU = {"device": "cuda:0", "engine": "trt", "device_memory_nbytes": 2 << 30}
ON_CPU = {"engine": "ort"}
SIZE = 300, 270  # two levels of 18 x 16 and 38 x 34 latents; the second is held to the first


@pytest.fixture(scope="module")
def drawn_by_the_cpu(model) -> np.ndarray:
    return np.asarray(model.generate("a coast", size=SIZE, seed=5, **ON_CPU))


def assert_alike(found: np.ndarray, wanted: np.ndarray) -> None:
    difference = np.abs(found.astype(int) - wanted.astype(int))
    assert found.std() > 5 and difference.max() <= 2 and (difference > 1).any(-1).mean() <= 1e-3


def generation(model: widefield.Model, size=(2400, 1700), **recipe) -> Generation:
    return Generation(model.bundle, "a coast", (size[1], size[0]), 5, Recipe(**recipe))


def test_a_picture_is_that_of_the_cpu(model, machine, drawn_by_the_cpu):
    picture = model.generate("a coast", size=SIZE, seed=5, **ON_GPU)
    assert [level.anchor > 0 for level in picture.generation.levels] == [False, True]
    assert_alike(np.asarray(picture), drawn_by_the_cpu)
    picture.close()
    names = [name.split(".")[0] for name in machine.trt.built]
    assert {"text_encoder", "denoiser", "decoder", "encoder"} == set(names)
    assert any(entry[0] == "launch" for entry in machine.gpu.log), "it is replayed"


def test_tiles_and_windows_stay_on_the_gpu_between_graphs_and_steps(model, machine, monkeypatch):
    """No coder and no denoiser is asked from the host; a phase's windows go there once and come back once."""
    monkeypatch.setattr(Denoiser, "_call", lambda *given: pytest.fail("a denoiser's call from the host"))
    monkeypatch.setattr(DeviceCoder, "_decode", lambda *given: pytest.fail("a tile's graph from the host"))
    runs = []
    plain = DeviceSteps.__call__

    def counted(self, steps, x, told, guidance, noise):
        before = len(machine.gpu.log)
        made = plain(self, steps, x, told, guidance, noise)
        mine = [entry for entry in machine.gpu.log[before:] if entry[-1] is self.stream]
        of_latents = [entry[0] for entry in mine if entry[0] in ("upload", "download") and entry[1] == self._host.shape]
        runs.append((len(steps), [entry[0] for entry in mine].count("step"), of_latents))
        return made

    monkeypatch.setattr(DeviceSteps, "__call__", counted)
    with model.generate("a coast", size=SIZE, seed=5, workers=1, phases=(1, 2), **ON_GPU) as picture:
        np.asarray(picture)
    assert len(runs) > 4 and max(steps for steps, *_ in runs) > 1
    for steps, taken, of_latents in runs:
        assert taken == steps and of_latents == ["upload", "download"]


def test_what_is_not_finite_is_taken_step_by_step(model, machine, drawn_by_the_cpu, monkeypatch):
    """By the guarded engine, from the host; the rest stays on the GPU."""
    plain, host = DeviceSteps.__call__, Denoiser._call
    spoiled, by_hand = [], []

    def some(self, steps, x, *given):
        spoiled.append(len(steps))
        if len(spoiled) == 2:
            x = np.full_like(x, np.inf)
        with np.errstate(all="ignore"):
            return plain(self, steps, x, *given)

    monkeypatch.setattr(DeviceSteps, "__call__", some)
    monkeypatch.setattr(Denoiser, "_call", lambda self, *given: (by_hand.append(1), host(self, *given))[1])
    picture = model.generate("a coast", size=SIZE, seed=5, workers=1, **ON_GPU)
    assert_alike(np.asarray(picture), drawn_by_the_cpu)
    picture.close()
    assert len(by_hand) == spoiled[1] < len(spoiled), "one run of steps"


def test_an_enlarged_picture_is_that_of_the_cpu(model, machine):
    y, x = np.mgrid[0:90, 0:120]
    pixels = np.stack([2 * x, 255 - y, 120 + 60 * np.sin(x * y / 300)], -1).astype(np.uint8)
    found, wanted = (
        np.asarray(model.upscale(pixels, scale=Fraction(3, 2), seed=3, **where)) for where in (ON_GPU, ON_CPU)
    )
    assert found.shape == (135, 180, 3)
    assert_alike(found, wanted)


def test_levels_that_share_a_summary_share_what_their_tiles_go_through(model, machine):
    """Of five levels three are measured; the last two and the third are one set, of all three."""
    made = generation(model, growth=2)
    engine = EngineOptions("trt", device="cuda:0")
    cascade: Cascade = made.cascade(Memo(64 << 20), made.cascade_options(engine))
    last = len(cascade.levels) - 1
    tile = 32, 32
    summary = None
    coders = []
    for index in range(cascade.measured_level, last + 1):
        summary = summary or cascade.summary("decoder", index)
        engines = cascade._engines_of(model.bundle.decoder, index, summary, tile)
        assert isinstance(engines, DeviceEngines)
        coders.append(engines.slots())
    assert last > cascade.measured_level and len(set(map(id, coders))) == 1
    taken = machine.gpu.alive_nbytes
    cascade.close()
    coders.clear()
    del engines
    assert machine.gpu.alive_nbytes < taken, "they are given back"


@pytest.mark.slow
def test_a_saved_drawing_keeps_to_what_was_planned_for_the_gpu(model, machine, tmp_path):
    """Levels drawn, then decoded: the fake gives no more than it was told, and gave no more than the plans' arrays."""
    options = {"seed": 5, "codec": "lossless", "tile": (24, 24), **ON_GPU}
    picture = model.generate("a coast", size=(700, 560), **options)
    plan = picture.draw_plan(lazily=False)
    arrays = sum(b.nbytes for b in plan.buffers if b.place == "device" and b.name not in OF_LIBRARIES)
    drawing = Drawing(picture.generation, tmp_path / "levels", picture.options.engine_options(workers=2), plan)
    stored = drawing.draw()
    assert 0 < machine.gpu.peak_nbytes <= arrays <= machine.gpu.limit_nbytes == plan.pool_nbytes
    assert machine.gpu.alive_nbytes == 0, "denoiser, coders and the block that they computed in are given back"
    saved = picture.save(tmp_path / "coast.tif")
    assert saved.path == tmp_path / "coast.tif" and machine.gpu.limit_nbytes < plan.pool_nbytes
    by_cpu = Drawing(picture.generation, tmp_path / "host", EngineOptions("ort", workers=2)).draw()
    last = max(stored)
    whole = Region(0, 0, stored[last].height, stored[last].width)
    found, wanted = (of[last].read(whole) for of in (stored, by_cpu))
    assert np.abs(found - wanted).max() <= 1e-3 * np.abs(wanted).max()


def test_what_was_built_ahead_is_not_built_again(model, machine, monkeypatch):
    """But for the decoder of the first level, which is smaller than a tile."""
    for graph in graphs(model.bundle, (128, 128), 1):
        trt.ready_engine(machine.trt, model.bundle.file(graph.file), graph.shapes, graph.frozen, "f32", "90")
    machine.trt.built.clear()
    with model.generate("a coast", size=SIZE, seed=5, **ON_GPU) as picture:
        np.asarray(picture)
    assert machine.trt.built == ["decoder.border.0.onnx", "decoder.border.1.onnx"]


# The plan.


def drawing_plan(model: widefield.Model, *, lazily: bool = False, recipe: dict | None = None, **changes) -> DrawPlan:
    options = RunOptions(
        memory_nbytes=4 << 30, engine="trt", device="cuda:0", precision="bf16", device_memory_nbytes=8 << 30, workers=4
    )
    return plan_drawing(generation(model, **(recipe or {})), replace(options, **changes), lazily=lazily)


def test_the_plan_has_the_gpus_buffers_and_no_activations_of_the_host(model):
    plan, by_cpu = drawing_plan(model), drawing_plan(model, device="cpu", engine="ort", precision="f32")
    on_gpu = [b for b in plan.buffers if b.place == "device"]
    assert sum(b.nbytes for b in on_gpu) == plan.peak_device_nbytes == plan.as_dict()["peak_device_nbytes"]
    assert all(b.nbytes > 0 for b in on_gpu) and plan.pool_nbytes > plan.peak_device_nbytes - (700 << 20)
    names, of_cpu = ({b.name for b in of.buffers if b.place == "host"} for of in (plan, by_cpu))
    assert of_cpu - names == {"denoiser's activations", "autoencoder's activations"}
    assert names - of_cpu == {"pinned tiles and windows"}
    assert by_cpu.peak_device_nbytes == 0 and by_cpu.pool_nbytes is None


def test_a_lazy_read_has_engines_of_each_measured_level_on_the_gpu(model):
    """Deeper ones add none."""
    few, many = (drawing_plan(model, lazily=True, recipe={"growth": n}) for n in (4, 2))
    assert many.peak_device_nbytes > few.peak_device_nbytes
    larger = drawing_plan(model, lazily=True, recipe={"growth": 2, "size": (38400, 27200)})
    assert larger.peak_device_nbytes == many.peak_device_nbytes


def test_too_little_of_the_gpu_is_refused_with_what_would_do(model):
    with pytest.raises(OverBudget, match=r"the GPU may give 64 MiB, drawing needs \d+ MiB of it") as fault:
        drawing_plan(model, device_memory_nbytes=64 * MIB)
    enough = fault.value.smallest_nbytes
    assert drawing_plan(model, device_memory_nbytes=enough).peak_device_nbytes <= enough


def test_float32_takes_more_of_the_gpu_than_bf16(model):
    half, whole = (drawing_plan(model, precision=precision).peak_device_nbytes for precision in ("bf16", "f32"))
    assert half < whole
