"""A sampler's steps on a GPU that is a fake: what the host's own loop makes, one way there and one back."""

from __future__ import annotations

import numpy as np
import pytest

from device.fakes import FakeOps, Late
from device.machine import put_in
from widefield.bundle import Bundle, open_bundle
from widefield.device.steps import DeviceSteps
from widefield.engine import EngineOptions, open_engine
from widefield.model import EMBEDDED
from widefield.schedule import Step, guided, update

BATCH = 3
# Unlike in every coefficient; the second draws noise, the first and second keep a history.
STEPS = (
    Step(timestep=871.0, input_scale=0.6, a=0.9, b=-0.3, c=0.0, history_x=0.2, history_m=0.1, keep=0.1, noise=0.9),
    Step(timestep=433.5, input_scale=0.8, a=0.7, b=-0.2, c=0.25, history_x=-0.3, history_m=0.4, keep=0.3, noise=0.7),
    Step(timestep=12.0, input_scale=1.0, a=1.1, b=-0.4, c=0.0, history_x=0.0, history_m=0.0, keep=0.9, noise=0.1),
)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(EMBEDDED)


@pytest.fixture(scope="module")
def denoiser(bundle):
    """(path, shapes, the name of the result) of a window's graph."""
    part = bundle.parts.denoiser
    window = min(part.windows, key=lambda window: window.rows)
    return bundle.file(window.file), part.shapes(window, BATCH), part.output


def conditions(shapes, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    rest = {name: shape for name, shape in shapes.items() if name not in ("latent", "timestep", "guidance")}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in rest.items()}


def by_hand(denoiser, x: np.ndarray, told, guidance: float, noise) -> np.ndarray:
    """On the host, by the rules of `schedule`, with ONNX Runtime."""
    path, shapes, output = denoiser
    engine = open_engine(path, shapes, {}, EngineOptions("ort"))
    history = None
    for index, step in enumerate(STEPS):
        same = {"timestep": step.timestep, "guidance": guidance}
        feeds = {name: np.full(shapes[name], value, np.float32) for name, value in same.items() if name in shapes}
        found = []
        for given in told:
            into = np.empty(shapes["latent"], np.float32)
            full = np.concatenate([x, np.repeat(x[-1:], BATCH - len(x), 0)]) * np.float32(step.input_scale)
            engine.run({"latent": full, **feeds, **given}, {output: into})
            found.append(into[: len(x)])
        m = found[0] if len(found) == 1 else guided(found[0], found[1], guidance)
        x, history = update(step, x, m, noise(index) if step.c else None, history)
    engine.close()
    return x


@pytest.mark.parametrize(("windows", "prompts"), [(BATCH, 1), (1, 2), pytest.param(BATCH, 2, marks=pytest.mark.slow)])
def test_steps_are_those_of_the_host(denoiser, monkeypatch, tmp_path, windows, prompts):
    machine = put_in(monkeypatch, tmp_path)
    path, shapes, output = denoiser
    told = [conditions(shapes, seed) for seed in range(prompts)]
    steps = DeviceSteps(
        open_engine(path, shapes, {}, EngineOptions("trt", device="cuda:0")), machine.gpu, FakeOps(machine.gpu),
        shapes, output,
    )  # fmt: skip
    for seed in range(2):  # the second run finds what the first one left
        rng = np.random.default_rng(10 + seed)
        x, drawn = rng.standard_normal((2, windows, *shapes["latent"][1:])).astype(np.float32)
        found = steps(STEPS, x, told, 3.5, lambda index, drawn=drawn: drawn * np.float32(index))
        wanted = by_hand(denoiser, x, told, 3.5, lambda index, drawn=drawn: drawn * np.float32(index))
        assert found is not None and found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
    assert sum(entry[0] in ("enqueue", "launch") for entry in machine.gpu.log) == 2 * prompts * len(STEPS)
    assert any(entry[0] == "launch" for entry in machine.gpu.log), "it is replayed"
    assert sum(entry[0] == "download" for entry in machine.gpu.log) == 2 * 2, "one way back, and a count, for each run"


def test_what_is_not_finite_is_not_handed_on(denoiser, monkeypatch, tmp_path):
    machine = put_in(monkeypatch, tmp_path)
    path, shapes, output = denoiser
    engine = open_engine(path, shapes, {}, EngineOptions("trt", device="cuda:0"))
    steps = DeviceSteps(engine, machine.gpu, FakeOps(machine.gpu), shapes, output)
    x = np.ones(shapes["latent"], np.float32)
    x[1, 0, 2, 3] = np.inf
    told = [conditions(shapes, 0)]
    with np.errstate(invalid="ignore", over="ignore"):
        assert steps(STEPS, x, told, 1.0, lambda index: x) is None
    assert steps(STEPS, np.ones_like(x), told, 1.0, lambda index: np.ones_like(x)) is not None, "and the next one is"


def test_pinned_memory_is_not_overwritten_while_it_is_read(denoiser, monkeypatch, tmp_path):
    machine = put_in(monkeypatch, tmp_path)
    path, shapes, output = denoiser
    engine = open_engine(path, shapes, {}, EngineOptions("trt", device="cuda:0"))
    steps = DeviceSteps(engine, machine.gpu, FakeOps(machine.gpu), shapes, output)
    x = np.ones(shapes["latent"], np.float32)
    for _ in range(2):
        steps(STEPS, x, [conditions(shapes, 0)], 1.0, lambda index: x)
    late, last = Late(), None
    for at, entry in enumerate(machine.gpu.log):
        work = late.step(at, entry)
        if work is not None and entry[0] == "upload" and entry[1] == shapes["latent"] and entry[2] is steps.stream:
            assert last is None or last in late.host, "the copy before is over"
            last = at
    assert last is not None
