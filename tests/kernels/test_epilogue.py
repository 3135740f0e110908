"""Pixels: rounded half to even, clamped, NaN counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from widefield.store.box import box_reference
from widefield_kernels.epilogue import halve_reference, to_levels_reference, to_pixels_reference
from widefield_kernels.jit.epilogue import to_levels


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


@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 4), st.integers(0, 99))
def test_half_is_what_the_stores_make(rows, columns, channels, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, columns, channels), np.uint8)
    half = halve_reference(pixels)
    np.testing.assert_array_equal(half, box_reference(pixels))
    canvas = np.zeros((half.shape[0] + 2, half.shape[1] + 1, channels), np.uint8)
    assert halve_reference(pixels, canvas[1:-1, 1:]) is not None
    np.testing.assert_array_equal(canvas[1:-1, 1:], half)


def test_channels_last_is_the_same_picture():
    x = np.random.default_rng(0).uniform(-1.3, 1.3, (3, 7, 5)).astype(np.float32)
    for a, b in zip(to_levels_reference(x), to_levels_reference(x.transpose(1, 2, 0), channels_last=True), strict=True):
        np.testing.assert_array_equal(a, b)


def awkward(shape: tuple[int, int, int], seed: int, dtype: torch.dtype) -> torch.Tensor:
    """Values around the ends and on the halves between two pixels, a few infinite, a few not numbers."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=rng) * 2.4 - 1.2
    halves = torch.randint(0, 256, shape, generator=rng) + 0.5
    x = torch.where(torch.rand(shape, generator=rng) < 0.3, (halves / 127.5 - 1).float(), x)
    for value, share in ((float("inf"), 0.02), (float("-inf"), 0.02), (float("nan"), 0.03)):
        x[torch.rand(shape, generator=rng) < share] = value
    return x.to(dtype)


def agrees(x: torch.Tensor, before: int = 0) -> None:
    """The kernel's pixels, half and count are the formula's, to the bit."""
    bad = torch.full((1,), before, dtype=torch.int64, device=x.device)
    out, half = to_levels(x, bad)
    pixels, halved, count = to_levels_reference(x.float().cpu().numpy())
    np.testing.assert_array_equal(out.cpu().numpy(), pixels)
    np.testing.assert_array_equal(half.cpu().numpy(), halved)
    assert bad.item() == before + count


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 11), st.integers(1, 300), st.integers(0, 999), st.sampled_from(["float32", "bfloat16", "float16"])
)
def test_the_kernel_is_the_formula_to_the_bit(device, rows, columns, seed, dtype):
    agrees(awkward((3, rows, columns), seed, getattr(torch, dtype)).to(device), before=seed)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_strides(device, dtype, channels):
    x = awkward((channels + 1, 23, 601), 3, dtype).to(device)
    agrees(x[1:, 2:21, 3:600])  # a part of a tile
    agrees(x.permute(1, 2, 0).contiguous().permute(2, 0, 1)[:channels, 1:, :-2])  # channels side by side
    agrees(x[:channels, :, ::2])


def test_whole_blocks_and_the_rest_agree(device):
    """Blocks inside the picture are loaded without a mask, those over its edge with one."""
    agrees(awkward((3, 12, 517), 8, torch.float32).to(device))
    agrees(awkward((3, 8, 512), 9, torch.float32).to(device))


def test_the_kernel_fills_views_and_nothing_beside(device):
    x = awkward((3, 5, 9), 1, torch.float32).to(device)
    page = torch.full((8, 20, 3), 7, dtype=torch.uint8, device=device)
    half_page = torch.full((5, 12, 3), 7, dtype=torch.uint8, device=device)
    bad = torch.zeros((), dtype=torch.int64, device=device)
    to_levels(x, bad, page[2:7, 4:13], half_page[1:4, 2:7])
    pixels, half, count = to_levels_reference(x.cpu().numpy())
    want, want_half = np.full((8, 20, 3), 7, np.uint8), np.full((5, 12, 3), 7, np.uint8)
    want[2:7, 4:13], want_half[1:4, 2:7] = pixels, half
    np.testing.assert_array_equal(page.cpu().numpy(), want)
    np.testing.assert_array_equal(half_page.cpu().numpy(), want_half)
    assert bad.item() == count > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": torch.zeros(3, 4, 6, dtype=torch.float64)}, "wanted x in 16 or 32 bits"),
        ({"bad": torch.zeros(1, dtype=torch.int32)}, "wanted one int64"),
        ({"out": torch.zeros(4, 6, 3)}, r"wanted \(4, 6, 3\) uint8"),
        ({"out": torch.zeros(3, 4, 6, dtype=torch.uint8).permute(1, 2, 0)}, "pixels side by side"),
        ({"half": torch.zeros(2, 2, 3, dtype=torch.uint8)}, r"wanted \(2, 3, 3\) uint8"),
    ],
)
def test_to_levels_refuses_what_it_cannot_do(change, said):
    given = {"x": torch.zeros(3, 4, 6), "bad": torch.zeros(1, dtype=torch.int64)} | change
    with pytest.raises(ValueError, match=said):
        to_levels(**given)
