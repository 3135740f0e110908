"""Fields: every part is that of the whole, wherever it is cut, and zero outside."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from families import ArraySource
from widefield.denoise import Denoiser
from widefield.fields import Noise, Noised, Resized
from widefield.geometry import Region
from widefield.memo import Memo
from widefield.reading import Threads
from widefield.schedule import Step
from widefield.windowed import Phase, Windowed
from widefield_kernels.noise import Draw, normal_reference
from widefield_kernels.windows import WindowGrid

regions = st.tuples(st.integers(-9, 80), st.integers(-9, 80), st.integers(1, 50), st.integers(1, 50))


def uneven(channels: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Dark and smooth on the left, busy on the right, within [-1, 1]."""
    x = np.random.default_rng(seed).standard_normal((channels, height, width)).astype(np.float32)
    return np.clip(x * np.linspace(0.02, 0.5, width, dtype=np.float32) - 0.3, -1, 1)


def part_of(whole: np.ndarray, region: Region) -> np.ndarray:
    padded = np.pad(whole, ((0, 0), (200, 200), (200, 200)))
    return padded[:, *region.shifted(200, 200).slices]


@given(regions)
def test_noise_is_that_of_its_coordinates(where):
    y, x, height, width = where
    region = Region(y, x, y + height, x + width)
    field = Noise(Draw(5, 2, 0), (3, 41, 67))
    whole = normal_reference(5, 2, 0, 3, (0, 0, 41, 67))
    np.testing.assert_array_equal(field.read(region), part_of(whole, region))
    clean = uneven(3, 41, 67)
    noised = Noised(ArraySource(clean), field, 0.75, 0.5).read(region)
    np.testing.assert_allclose(noised, part_of(0.75 * clean + 0.5 * whole, region), atol=1e-6)


@pytest.mark.parametrize("size", [(62, 90), (61, 89), (31, 45), (124, 180), (35, 57)])
def test_enlarging_is_torchs_cubic_away_from_edges(size):
    parent = uneven(2, 31, 45)
    found = Resized(ArraySource(parent), *size).read(Region(0, 0, *size))
    assert found.shape == (2, *size)
    assert np.abs(found).max() <= 1
    if size == (31, 45):
        np.testing.assert_allclose(found, parent, atol=1e-6)
    ours = torch.nn.functional.interpolate(
        torch.from_numpy(parent)[None].double(), size=size, mode="bicubic", antialias=True, align_corners=False
    )  # with antialias torch takes a = -1/2; it renormalises at edges, where we repeat the last pixel
    inner = (slice(None), slice(8, -8), slice(8, -8))
    np.testing.assert_allclose(found[inner], np.clip(ours[0].numpy(), -1, 1)[inner], atol=2e-6)


@given(regions)
def test_a_part_of_an_enlarged_field_is_that_of_the_whole(where):
    y, x, height, width = where
    region = Region(y, x, y + height, x + width)
    field = Resized(ArraySource(uneven(2, 23, 40)), 45, 80)
    whole = field.read(Region(0, 0, 45, 80))
    np.testing.assert_array_equal(field.read(region), part_of(whole, region))


def test_enlarging_keeps_a_ramp_and_reads_no_more_than_it_needs():
    ramp = np.broadcast_to(np.linspace(-0.9, 0.9, 32, dtype=np.float32), (1, 20, 32)).copy()
    field = Resized(ArraySource(ramp), 40, 64)
    found = field.read(Region(10, 8, 30, 56))
    at = (np.arange(8, 56) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(found[0], np.broadcast_to(-0.9 + 1.8 * at / 31, (20, 48)), atol=1e-6)
    assert field.needs(Region(10, 8, 30, 56)) == Region(3, 2, 17, 30)
    beyond = Resized(ArraySource(ramp), 41, 70, Fraction(2))  # as by 2 until the parent ends, then its last pixel
    np.testing.assert_array_equal(beyond.read(Region(10, 8, 30, 56)), found)
    np.testing.assert_allclose(beyond.read(Region(0, 67, 41, 70)), 0.9, atol=1e-6)
    with pytest.raises(ValueError, match="can only be enlarged"):
        Resized(ArraySource(ramp), 19, 64)


class Stand:
    """A denoiser that looks across its whole window: a window's place in the picture reaches every cell of it."""

    batch = 3

    def __init__(self):
        self.calls = 0
        self.threads = Threads(2, "windows")

    def run(self, steps, x, guidance, noise):
        """No GPU is here."""

    def __call__(self, x, timestep, input_scale, guidance):
        assert 1 <= len(x) <= self.batch
        self.calls += 1
        return x * np.float32(0.3) + np.tanh(x.mean((2, 3), keepdims=True)) * np.float32(timestep)


def step(c: float) -> Step:
    return Step(0.7, 1.0, 0.8, 0.4, c, 0.1, 0.2, 0.0, 0.0)


def windowed(size, window, stride, phases, memo, stand, seed=3):
    field = Noised(ArraySource(uneven(2, *size)), Noise(Draw(seed, 1, 0), (2, *size)), 0.8, 0.6)
    grid = WindowGrid(size, window, stride)
    for index in range(phases):
        phase = Phase((step(0.3), step(0.0)), seed, 1, 2 * index)
        field = Windowed(("w", index), field, grid.phase(index), phase, lambda: stand, memo)
    return field


@settings(max_examples=15)
@given(
    st.tuples(st.integers(16, 70), st.integers(16, 70)),
    st.tuples(st.integers(1, 16), st.integers(1, 13)),
    st.integers(1, 3),
    st.sampled_from([0, 9000, 1 << 24]),
    st.lists(regions, min_size=1, max_size=3),
)
def test_any_part_read_cold_is_that_of_the_whole(size, stride, phases, limit, wanted):
    stride = max(4, stride[0]), max(4, stride[1])
    whole = windowed(size, (16, 13), stride, phases, Memo(1 << 24), Stand()).read(Region(0, 0, *size))
    lazy = windowed(size, (16, 13), stride, phases, Memo(limit), Stand())
    for y, x, height, width in wanted:
        region = Region(y, x, y + height, x + width)
        np.testing.assert_array_equal(lazy.read(region), part_of(whole, region))


def test_one_window_is_the_samplers_own_loop():
    found = windowed((16, 13), (16, 13), (16, 13), 1, Memo(0), Stand()).read(Region(0, 0, 16, 13))
    noise = [normal_reference(3, 1, n, 2, (0, 0, 16, 13)) for n in range(3)]
    x = 0.8 * uneven(2, 16, 13) + 0.6 * noise[0]
    history = 0.0
    for index, c in enumerate((0.3, 0.0)):
        m = 0.3 * x + 0.7 * np.tanh(x.mean((1, 2), keepdims=True))
        x, history = 0.8 * x + 0.4 * m + c * noise[index + 1] + history, 0.1 * x + 0.2 * m
    np.testing.assert_allclose(found, x, atol=2e-6)


def test_each_window_is_denoised_once_where_there_is_room():
    stand, memo = Stand(), Memo(1 << 24)
    field = windowed((64, 52), (16, 13), (8, 13), 1, memo, stand)
    for y in range(0, 64, 16):
        field.read(Region(y, 0, y + 16, 52))
    assert memo.made == 7 * 4
    assert stand.calls <= 2 * 4 * 4  # two steps; a block's windows in calls of three


def test_a_bundle_without_a_denoiser_says_so():
    import widefield
    from widefield.engine import EngineOptions
    from widefield.errors import BadRequest

    whole = widefield.open().bundle
    coder = replace(whole, manifest={key: value for key, value in whole.manifest.items() if key != "denoiser"})
    with pytest.raises(BadRequest, match="decodes and encodes only"):
        Denoiser(coder, None, None, 1, EngineOptions("ort"))
