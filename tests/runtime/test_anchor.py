"""Windows that are held to the level below: what is coarse is the level's, what is fine their own."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from widefield.anchor import Anchor


def fields(rows, columns, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((2, channels, rows, columns)).astype(np.float32)


@pytest.mark.parametrize("window", [(16, 16), (24, 10)])
def test_a_drift_of_any_slope_is_taken_out_but_at_the_edges(window):
    below = fields(*window)[0]
    y, _ = np.mgrid[: window[0], : window[1]]
    drift = (0.7 + 0.05 * (y - window[0] / 2)).astype(np.float32)
    held = Anchor(window, 3 / 16).held(below + drift, below) - below
    assert np.abs(held).max() < 0.25 * np.abs(drift).max()
    assert np.abs(held[:, window[0] // 2, window[1] // 2]).max() < 0.02
    constant = Anchor(window, 3 / 16).held(below + np.float32(0.7), below)
    np.testing.assert_allclose(constant, below, atol=1e-6)


def test_it_is_scipys_gaussian_of_a_window_that_ends():
    x, below = fields(48, 40)
    width = 1 / 24  # short enough that the middle is no border's
    held = Anchor((48, 40), width).held(x, below)
    smooth = gaussian_filter1d(gaussian_filter1d(below - x, 2, 1, truncate=9), 40 / 24, 2, truncate=9)
    np.testing.assert_allclose(held[:, 18:30, 15:25], (x + smooth)[:, 18:30, 15:25], atol=1e-4)


def test_what_is_fine_stays():
    x, below = np.zeros((2, 1, 32, 32), np.float32)
    x[0] = np.where(np.indices((32, 32)).sum(0) % 2, 1, -1)
    held = Anchor((32, 32), 3 / 16).held(x, below)
    np.testing.assert_allclose(held[:, 4:-4, 4:-4], x[:, 4:-4, 4:-4], atol=0.01)
