"""Plans for a GPU: what it gives is planned and kept to, and too little is refused with what would do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from widefield.buffers import MIB, PlanRequest
from widefield.bundle import Bundle, open_bundle
from widefield.errors import OverBudget
from widefield.model import EMBEDDED
from widefield.options import RunOptions
from widefield.plan import make_plan

REQUEST = PlanRequest(4096 * MIB, backend="trt", precision="bf16", device_nbytes=8192 * MIB, cores=4)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(EMBEDDED)


def plan(bundle: Bundle, **changes: object):
    return make_plan(bundle, bundle.decoder, 2048, 3000, replace(REQUEST, **changes))


def test_the_gpus_buffers_add_up_within_its_budget(bundle):
    made = plan(bundle)
    on_gpu = [b for b in made.buffers if b.place == "device"]
    assert sum(b.nbytes for b in on_gpu) == made.peak_nbytes("device") <= REQUEST.device_nbytes
    assert made.workers == 1 and made.as_dict()["peak_device_nbytes"] == made.peak_nbytes("device")
    assert not [b for b in made.buffers if b.name == "activations"], "the host has none"


def test_less_memory_is_a_smaller_tile(bundle):
    tiles = [plan(bundle, device_nbytes=nbytes * MIB).tile for nbytes in (8192, 1000, 800)]
    areas = [rows * columns for rows, columns in tiles]
    assert areas == sorted(areas, reverse=True) and areas[0] > areas[-1]


def test_too_little_is_refused_with_what_would_do(bundle):
    with pytest.raises(OverBudget, match="the GPU may give 64 MiB, the smallest plan needs") as fault:
        plan(bundle, device_nbytes=64 * MIB)
    assert plan(bundle, device_nbytes=fault.value.smallest_nbytes).peak_nbytes("device") <= fault.value.smallest_nbytes


def test_float32_takes_more_than_bf16(bundle):
    tile = (64, 64)
    half, whole = (plan(bundle, precision=p, tile=tile).peak_nbytes("device") for p in ("bf16", "f32"))
    assert half < whole


def test_without_a_gpu_nothing_is_planned_for_one(bundle):
    made = make_plan(bundle, bundle.decoder, 256, 300, PlanRequest(2048 * MIB, cores=2))
    assert made.peak_nbytes("device") == 0 and RunOptions().gpu_nbytes is None


def test_a_budget_that_was_said_is_not_asked_for():
    options = RunOptions(device="cuda:0", engine="trt", device_memory_nbytes=5 * MIB)
    assert options.gpu_nbytes == 5 * MIB
