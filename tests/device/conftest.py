"""What tests of whole runs on the fake GPU start from."""

from __future__ import annotations

import pytest

import widefield
from device.machine import Machine, put_in


@pytest.fixture
def machine(monkeypatch, tmp_path) -> Machine:
    """The fake GPU in place of CuPy and TensorRT, with a cache of its own."""
    return put_in(monkeypatch, tmp_path / "cache")


@pytest.fixture(scope="module")
def model() -> widefield.Model:
    """The embedded bundle's."""
    return widefield.open()
