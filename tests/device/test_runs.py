"""Whole runs with --device cuda:0 on a machine whose GPU and TensorRT are fakes: the results of the CPU, as planned."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from device.machine import Machine
from families import ArraySource, half_dark
from widefield import coder_engines
from widefield.coder import NEVER, TileCoder
from widefield.device import shared_engines, values_coder
from widefield.device.coder import DeviceCoder
from widefield.device.plan import LIBRARIES_NBYTES, WEIGHTS
from widefield.engine import EngineOptions
from widefield.geometry import Region
from widefield.sweep import SweepOptions, measure

ON_GPU = {"device": "cuda:0", "engine": "trt", "device_memory_nbytes": 4 << 30}
ON_CPU = {"engine": "ort"}


def photograph(height: int, width: int) -> np.ndarray:
    """Dark and rough to the right, bright and smooth to the left."""
    rng = np.random.default_rng(height)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    smooth = np.stack([220 * (1 - x), 255 * y * (1 - x), 90 + 60 * np.cos(5 * x * y)], -1)
    return np.clip(smooth + rng.normal(size=smooth.shape) * 50 * x[..., None], 0, 255).astype(np.uint8)


def kinds(machine: Machine) -> list[str]:
    return [entry[0] for entry in machine.gpu.log]


def computing(machine: Machine) -> int:
    return sum(kind in ("enqueue", "launch") for kind in kinds(machine))


@pytest.mark.parametrize("batch", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_an_encode_is_that_of_the_cpu(model, machine, batch):
    pixels = photograph(333, 470)
    about = {"summary": "sampled", "cells": 8, "tile": (11, 16), "batch": batch}
    encoding = model.encode(pixels, **about, **ON_GPU)
    found, wanted = np.asarray(encoding), np.asarray(model.encode(pixels, **about, **ON_CPU))
    assert found.shape == wanted.shape and np.abs(found - wanted).max() <= 1e-4
    assert computing(machine) > 6 and "levels" not in kinds(machine), "values, not pixels, came back"


def test_an_encode_of_which_a_part_is_not_finite_is_made_again_on_the_gpu(model, machine, monkeypatch):
    """In float32: the same engine without half precision."""
    pixels = photograph(200, 330)
    about = {"summary": "sampled", "cells": 8, "tile": (11, 16)}
    wanted = np.asarray(model.encode(pixels, **about, **ON_CPU))
    plain, spoiled = DeviceCoder._finished, []

    def finished(self, batch, slot):
        if slot is not None and len(spoiled) == 1:
            slot.host_made["counts"][0] = 3
        spoiled.append(slot)
        return plain(self, batch, slot)

    monkeypatch.setattr(DeviceCoder, "_finished", finished)
    found = np.asarray(model.encode(pixels, **about, **ON_GPU))
    assert len(spoiled) > 2 and np.abs(found - wanted).max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("form", [".tif", ".npy"])
def test_saved_runs_keep_to_what_was_planned_for_the_gpu(model, machine, form, tmp_path):
    """What the fake GPU gave, without what libraries and TensorRT's weights take of a real one, is within the plan."""
    about = {"summary": "sampled", "cells": 8, "tile": (13, 17), "batch": 2, "overwrite": True}
    if form == ".npy":
        run = model.encode(photograph(333, 470), **about, **ON_GPU)
        plan = run.plan()
    else:
        run = model.decode(half_dark(model.bundle.latent_channels, 41, 58), **about, **ON_GPU)
        plan = run.plan()
    said = run.save(tmp_path / f"out{form}")
    taken = sum(
        b.nbytes for b in plan.buffers if b.name not in (WEIGHTS, "context and libraries") and b.place == "device"
    )
    assert plan.peak_nbytes("device") > LIBRARIES_NBYTES and 0 < machine.gpu.nbytes <= taken
    assert json.loads(json.dumps(said.as_dict())) and computing(machine) > 4


def test_a_decode_is_that_of_the_cpu(model, machine):
    latents = half_dark(model.bundle.latent_channels, 41, 58)
    about = {"summary": "sampled", "cells": 8, "tile": (13, 17)}
    found, wanted = (np.asarray(model.decode(latents, **about, **where)).astype(int) for where in (ON_GPU, ON_CPU))
    difference = np.abs(found - wanted)
    assert difference.max() <= 1 and (difference > 0).any(-1).mean() <= 1e-4
    assert computing(machine) > 6


@pytest.mark.parametrize("direction", ["decoder", "encoder"])
def test_tiles_of_a_drawn_level_come_from_many_threads(model, machine, direction, tmp_path):
    """As values, of both directions, through engines that another level has too."""
    bundle = model.bundle
    component = bundle.component(direction)
    side = component.input_scale
    channels = bundle.latent_channels if direction == "decoder" else 3
    source = ArraySource(half_dark(channels, 33 * side, 47 * side))
    options = SweepOptions(4, 1 << 28, tmp_path, EngineOptions("ort"))
    summary = measure(bundle, component, source, "sampled", options, cells=8, keys=64)
    engine, tile = EngineOptions("trt", device="cuda:0"), (8, 11)
    engines = shared_engines(bundle, component, summary, tile, engine)
    coders = [values_coder(bundle, component, source, summary, tile, engine, engines) for _ in range(2)]
    reference = TileCoder(
        bundle, component, source, summary, tile, 1, EngineOptions("ort"), interior_from=NEVER, certify=False
    )
    tiles = [Region(y, x, y + 8, x + 11) for y in range(0, 33, 8) for x in range(0, 47, 11)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda at: coders[at % 2]([tiles[at]])[0], range(len(tiles))))
    for tile_, values in zip(tiles, found, strict=True):
        np.testing.assert_allclose(values, reference([tile_])[0], rtol=0, atol=1e-4)
    for coder in (*coders, reference):
        coder.close()
    engines.close()
    assert len(machine.trt.built) == len(component.border)


@pytest.mark.slow
def test_no_engine_of_a_gpu_is_opened_on_the_host(model, machine, monkeypatch):
    """But for what varies in shape or is measured: those are ONNX Runtime's, as the plan has them."""
    plain, seen = coder_engines.open_engine, set()
    monkeypatch.setattr(
        coder_engines, "open_engine", lambda path, *rest: seen.add(rest[-1].backend) or plain(path, *rest)
    )
    np.asarray(model.encode(photograph(180, 240), summary="sampled", cells=8, **ON_GPU))
    assert seen == {"trt"}
