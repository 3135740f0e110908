"""Pixels: rounded half to even, clamped, NaN counted."""

from __future__ import annotations

import numpy as np

from widefield_kernels.epilogue import to_pixels_reference


def test_rounding_is_half_to_even_and_ends_are_clamped():
    exact = np.array([0, 0.5, 1.5, 2.5, 254.5, 255], np.float32) / np.float32(127.5) - 1
    x = np.concatenate([exact, [-3.0, 3.0]]).astype(np.float32).reshape(1, 2, 4).repeat(3, 0)
    pixels, bad = to_pixels_reference(x)
    want = np.clip(np.rint((x.astype(np.float32) + np.float32(1)) * np.float32(127.5)), 0, 255)
    assert bad == 0
    np.testing.assert_array_equal(pixels, want.transpose(1, 2, 0).astype(np.uint8))
    assert pixels.ravel().min() == 0 and pixels.max() == 255


def test_nan_is_counted_never_hidden():
    x = np.zeros((3, 5, 7), np.float32)
    x[1, 2, 3] = x[2, 4, 6] = np.nan
    pixels, bad = to_pixels_reference(x)
    assert bad == 2 and pixels[2, 3, 1] == 0


def test_infinities_clamp_and_views_are_filled_in_place():
    x = np.full((3, 4, 5), np.inf, np.float32)
    x[0] = -np.inf
    canvas = np.full((6, 8, 3), 7, np.uint8)
    view = canvas[1:5, 2:7]
    result, bad = to_pixels_reference(x, view)
    assert bad == 0 and result is view
    assert (canvas[1:5, 2:7] == [0, 255, 255]).all() and (canvas[0] == 7).all() and (canvas[:, 7] == 7).all()
