"""The formulas that a CPU runs: pixels and halves from values, noise by place, windows blended, attention."""

import numpy as np
import pytest

from widefield.attend import Attention
from widefield.engine import EngineOptions
from widefield_kernels.attention import attention_reference
from widefield_kernels.epilogue import to_levels_reference
from widefield_kernels.noise import normal_reference
from widefield_kernels.norm import apply_reference


@pytest.fixture
def side(full):
    return 512 if full else 46


def test_epilogue(timed, side):
    x = np.random.default_rng(0).uniform(-1.2, 1.2, (3, side, side + 2)).astype(np.float32)
    pixels, half, bad = timed(to_levels_reference, x)
    assert bad == 0 and half.shape == (side // 2, side // 2 + 1, 3)
    wanted = np.rint(np.clip((x.astype(np.float64) + 1) * 127.5, 0, 255)).transpose(1, 2, 0)
    assert np.abs(pixels - wanted).max() <= 1


def test_noise(timed, side):
    first = normal_reference(5, 1, 2, 4, (7, 2, 7 + side, 3 + side))
    assert abs(first.mean()) < 0.1 and abs(first.std() - 1) < 0.1
    np.testing.assert_array_equal(timed(normal_reference, 5, 1, 2, 4, (7, 2, 7 + side, 3 + side)), first)


def test_norm(timed, side):
    x = np.random.default_rng(1).standard_normal((1, 16, side, side + 3), np.float32)
    scale, shift = np.linspace(0.5, 2, 16, dtype=np.float32), np.linspace(-1, 1, 16, dtype=np.float32)
    values = x * scale[:, None, None] + shift[:, None, None]
    np.testing.assert_allclose(timed(apply_reference, x, scale, shift), values / (1 + np.exp(-values)), atol=1e-5)


def test_attention(timed, model, full):
    queries, keys = (4096, 2048) if full else (70, 33)
    rng = np.random.default_rng(2)
    width = model.bundle.decoder.attentions[0].width
    query, key = rng.standard_normal((1, queries, width), np.float32), rng.standard_normal((keys, width), np.float32)
    attend = Attention(model.bundle.file(str(model.bundle.manifest["attention"])), key, EngineOptions("ort"))
    first = attend(query[:, :61])
    truth = attention_reference(query[None, :, :61], key[None, None], scale=1.0)[0]  # the scale is in the queries
    assert np.abs(first - truth).max() < 1e-4
    assert timed(attend, query).shape == query.shape
