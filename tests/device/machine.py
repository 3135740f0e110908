"""A machine with a GPU and TensorRT, both fakes, in the place of the real ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from device.fake_trt import FakeTrt
from device.fakes import FakeGpu, FakeOps
from widefield.device import arena, gpu, ops
from widefield.engine import trt


@dataclass(frozen=True)
class Machine:
    """What was put in."""

    gpu: FakeGpu
    trt: FakeTrt


def put_in(monkeypatch: pytest.MonkeyPatch, cache_folder: Path, *, captures: bool = True) -> Machine:
    """Every way to a GPU leads to one fake from now on, and engines are kept in the folder."""
    fake = FakeGpu(captures=captures)
    module = FakeTrt(fake)
    shared = cache(lambda number: arena.Arena(fake))
    monkeypatch.setenv("WIDEFIELD_CACHE", str(cache_folder))
    monkeypatch.setattr(gpu, "CupyGpu", lambda number, limit_nbytes=None: fake.limited(limit_nbytes))
    monkeypatch.setattr(ops, "CupyOps", FakeOps)
    monkeypatch.setattr(trt, "CupyGpu", lambda number, limit_nbytes=None: fake.limited(limit_nbytes))
    monkeypatch.setattr(trt, "bindings", lambda: module)
    monkeypatch.setattr(trt, "shared_arena", shared)
    monkeypatch.setattr(trt, "build_engine", module.build)
    return Machine(fake, module)
