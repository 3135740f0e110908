"""Contract (a): with an exact summary any tiling equals diffusers' own untiled coder, borders included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from families import ROUGH, ArraySource, decode_floats, half_dark, make
from widefield.bundle import Bundle
from widefield.engine import EngineOptions
from widefield.sweep import SweepOptions, measure
from widefield_export.families import Decoder, Encoder

HEIGHT, WIDTH = 37, 53
ORT = EngineOptions("ort")
TILES = [(16, 16), (24, 24), (20, 31)]


@pytest.fixture(scope="module", params=sorted(ROUGH))
def exported(request: pytest.FixtureRequest, rough) -> tuple[object, Bundle]:
    return make(request.param), rough(request.param)


def reference(vae: object, direction: str, x: np.ndarray) -> np.ndarray:
    module = (Decoder if direction == "decoder" else Encoder)(vae).eval()
    with torch.no_grad():
        return module(torch.from_numpy(x)[None])[0].numpy()


@pytest.mark.parametrize("direction", ["decoder", "encoder"])
def test_any_tiling_equals_the_untiled_coder(exported, direction, tmp_path: Path):
    vae, bundle = exported
    component = bundle.component(direction)
    scale = component.input_scale
    source = ArraySource(half_dark(component.input_channels, HEIGHT * scale, WIDTH * scale))
    if direction == "encoder":
        source.array = np.tanh(source.array)
    truth = reference(vae, direction, source.array)
    summary = measure(bundle, component, source, "exact", SweepOptions(2, 1 << 28, tmp_path, ORT))
    assert truth.std() > 0.02, "the reference is too flat to show anything"
    for tile in TILES:
        result = decode_floats(bundle, component, source, summary, tile)
        assert result.shape == truth.shape
        assert np.abs(result - truth).max() <= 1e-4, f"tile {tile}"


def test_openvino_agrees_with_the_untiled_decoder(exported, tmp_path: Path):
    vae, bundle = exported
    component = bundle.decoder
    source = ArraySource(half_dark(component.input_channels, HEIGHT, WIDTH))
    summary = measure(
        bundle, component, source, "exact", SweepOptions(4, 1 << 28, tmp_path, EngineOptions("openvino", workers=2))
    )
    result = decode_floats(bundle, component, source, summary, (20, 31), "openvino")
    assert np.abs(result - reference(vae, "decoder", source.array)).max() <= 1e-4


def test_a_picture_smaller_than_the_margin_is_decoded_whole(exported, tmp_path: Path):
    """Every side of every tile is a border here, and the margin reaches past both sides of the picture."""
    vae, bundle = exported
    component = bundle.decoder
    source = ArraySource(half_dark(component.input_channels, 5, 3))
    summary = measure(bundle, component, source, "exact", SweepOptions(2, 1 << 28, tmp_path, ORT))
    result = decode_floats(bundle, component, source, summary, (5, 3))
    assert np.abs(result - reference(vae, "decoder", source.array)).max() <= 1e-4
