"""Merged partial statistics equal those of the whole, where pooled ones do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from widefield_kernels.jit import norm as kernels
from widefield_kernels.norm import (
    Moments,
    apply_reference,
    freeze_reference,
    merge_partials_reference,
    merge_reference,
    moments_reference,
    standard_errors,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def laid_out(x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """The same values; channels or columns side by side, and gaps between columns, rows and tiles."""
    tiles, channels, rows, columns = x.shape
    if channels_last:
        room = x.new_full((tiles + 1, rows + 2, columns + 1, channels + 8), float("nan"))
        view = room[:tiles, 1 : rows + 1, :columns, 8:].permute(0, 3, 1, 2)
    else:
        room = x.new_full((tiles + 1, channels + 1, rows + 2, columns + 3), float("nan"))
        view = room[:tiles, :channels, 1 : rows + 1, 2 : columns + 2]
    return view.copy_(x)


def merged(x: torch.Tensor, core, groups: int, dtype=None) -> Moments:
    """By the formula, in a precision."""
    return merge_partials_reference(moments_reference(x.to(dtype or torch.float64).cpu().numpy(), core), groups)


def parts_of(x: np.ndarray, cuts: list[int], groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Partial statistics of runs of columns of x (channels, n), each group's channels together."""
    count, mean, m2 = [], [], []
    for piece in np.split(x, cuts, axis=1):
        flat = piece.reshape(groups, -1).astype(np.float64)
        count.append(flat.shape[1])
        mean.append(flat.mean(1))
        m2.append(((flat - flat.mean(1, keepdims=True)) ** 2).sum(1))
    return np.array(count, float), np.array(mean), np.array(m2)


@given(st.lists(st.integers(1, 99), min_size=1, max_size=9, unique=True), st.integers(0, 9))
def test_disjoint_parts_merge_to_group_norm_of_the_whole(cuts, seed):
    x = np.random.default_rng(seed).standard_normal((8, 100)).astype(np.float32)
    x[:, :30] += 10.0  # parts whose means differ by ten deviations
    gamma, beta = np.linspace(0.5, 2, 8, dtype=np.float32), np.linspace(-1, 1, 8, dtype=np.float32)
    scale, shift = freeze_reference(merge_reference(*parts_of(x, sorted(cuts), 4)), gamma, beta, 1e-6)
    truth = torch.nn.functional.group_norm(
        torch.from_numpy(x)[None].double(), 4, torch.from_numpy(gamma).double(), torch.from_numpy(beta).double(), 1e-6
    )[0].numpy()
    np.testing.assert_allclose(x * scale[:, None] + shift[:, None], truth, atol=2e-5)


def test_variance_pooled_without_the_between_tile_term_is_wrong():
    """The trap of today's tiled decoders: half dark, half bright, each half flat."""
    count, mean, m2 = np.array([50.0, 50.0]), np.array([[-1.0], [1.0]]), np.array([[0.5], [0.5]])
    merged = merge_reference(count, mean, m2)
    assert merged.variance == pytest.approx([1.01])
    assert (m2.sum(0) / count.sum())[0] == pytest.approx(0.01), "what pooling would have said"


def test_statistics_divide_by_n_as_group_norm_does():
    merged = merge_reference(np.array([4.0]), np.array([[2.5]]), np.array([[5.0]]))
    assert merged.variance == pytest.approx([1.25])


def test_ten_thousand_parts_and_a_huge_mean_lose_nothing():
    """float32 E[x^2] - E[x]^2 would give nonsense here."""
    rng = np.random.default_rng(0)
    offset = 1e4
    x = rng.standard_normal((1, 10_000 * 16)) + offset
    merged = merge_reference(*parts_of(x, list(range(16, 160_000, 16)), 1))
    assert merged.variance[0] == pytest.approx(x.var(), rel=1e-9)
    naive = np.float32((x.astype(np.float32) ** 2).mean()) - np.float32(x.mean()) ** 2
    assert abs(naive - x.var()) > 0.1


def test_parts_without_samples_count_for_nothing():
    count, mean, m2 = np.array([10.0, 0.0]), np.array([[3.0], [0.0]]), np.array([[7.0], [np.nan]])
    merged = merge_reference(count, mean, m2)
    assert (merged.mean[0], merged.m2[0], merged.count[0]) == (3.0, 7.0, 10.0)


def test_standard_errors_cover_what_samples_miss():
    """In at least 95 of 100 draws the true mean and variance lie within three reported errors."""
    rng = np.random.default_rng(1)
    field = np.cumsum(rng.standard_normal((400, 64)), 0) * 0.2  # 400 neighbouring parts with drifting means
    truth_mean, truth_variance = field.mean(), field.var()
    covered = 0
    for _ in range(100):
        rows = np.arange(40) * 10 + rng.integers(0, 10, 40)
        part = field[rows]
        count = np.full(40, 64.0)
        mean, m2 = part.mean(1)[:, None], ((part - part.mean(1, keepdims=True)) ** 2).sum(1)[:, None]
        of_mean, of_variance = standard_errors(count, mean, m2, 0.1)
        found = merge_reference(count, mean, m2)
        covered += (
            abs(found.mean[0] - truth_mean) <= 3 * of_mean[0]
            and abs(found.variance[0] - truth_variance) <= 3 * of_variance[0]
        )
    assert covered >= 95


def test_everything_seen_leaves_no_error():
    of_mean, of_variance = standard_errors(np.ones(3), np.arange(3.0)[:, None], np.zeros((3, 1)), 1.0)
    assert of_mean[0] == of_variance[0] == 0.0
    assert isinstance(merge_reference(np.ones(3), np.arange(3.0)[:, None], np.zeros((3, 1))), Moments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    ("shape", "core", "groups"),
    [((2, 12, 37, 41), (3, 30, 5, 38), 4), ((1, 20, 9, 19), (0, 9, 18, 19), 4), ((3, 5, 1, 300), None, 1)],
)
def test_moments_of_a_core_err_at_most_twice_as_much_as_the_formula(device, shape, core, groups, channels_last, dtype):
    rng = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=rng) + torch.linspace(-3, 5, shape[3])  # not the same everywhere
    x = laid_out(x.to(dtype).to(device), channels_last)
    found = merge_partials_reference(kernels.moments(x, core, channels_last=channels_last).cpu().numpy(), groups)
    truth, honest = merged(x, core, groups), merged(x, core, groups, torch.float32)
    assert (found.count == truth.count).all()
    eps = np.finfo(np.float32).eps
    for name in ("mean", "variance"):
        wanted = getattr(truth, name)
        allowed = 2 * np.abs(getattr(honest, name) - wanted).max() + eps * np.abs(wanted).max()
        assert np.abs(getattr(found, name) - wanted).max() <= allowed


@settings(max_examples=10, deadline=None)
@given(st.data(), st.booleans())
def test_moments_of_tiles_merge_to_those_of_the_picture(data, channels_last):
    """Tiles with margins, of which each sees its core alone; tiles ten deviations apart."""
    rows, columns = data.draw(st.integers(2, 30), "rows"), data.draw(st.integers(2, 40), "columns")
    cut_y, cut_x = data.draw(st.integers(1, rows - 1), "y"), data.draw(st.integers(1, columns - 1), "x")
    margin = data.draw(st.integers(0, 3), "margin")
    x = torch.randn(1, 6, rows, columns, generator=torch.Generator().manual_seed(rows * columns))
    x[:, :, :cut_y] += 10.0
    x[:, :, :, :cut_x] -= 20.0
    partials = []
    for top, bottom in ((0, cut_y), (cut_y, rows)):
        for left, right in ((0, cut_x), (cut_x, columns)):
            y0, y1 = max(top - margin, 0), min(bottom + margin, rows)
            x0, x1 = max(left - margin, 0), min(right + margin, columns)
            tile = laid_out(x[:, :, y0:y1, x0:x1], channels_last)
            core = (top - y0, bottom - y0, left - x0, right - x0)
            partials.append(kernels.moments(tile, core, channels_last=channels_last).numpy())
    found = merge_partials_reference(np.concatenate(partials), 3)
    whole = merged(x, None, 3)
    np.testing.assert_allclose(found.mean, whole.mean, atol=1e-5)
    np.testing.assert_allclose(found.variance, whole.variance, rtol=1e-5)


def test_moments_and_apply_are_torchs_group_norm_and_silu(device):
    torch.manual_seed(0)
    x = torch.randn(1, 12, 26, 50, device=device)
    x[..., :20] += 10.0
    gamma, beta = torch.rand(12) + 0.5, torch.randn(12)
    partials = [kernels.moments(x[..., a:b]) for a, b in ((0, 20), (20, 33), (33, 50))]
    found = merge_partials_reference(np.concatenate([p.cpu().numpy() for p in partials]), 4)
    scale, shift = (torch.from_numpy(v).to(device) for v in freeze_reference(found, gamma.numpy(), beta.numpy(), 1e-6))
    truth = torch.nn.functional.silu(
        torch.nn.functional.group_norm(x.double().cpu(), 4, gamma.double(), beta.double(), 1e-6)
    )
    torch.testing.assert_close(kernels.apply(x, scale, shift).cpu().double(), truth, atol=2e-6, rtol=2e-6)


def test_ten_thousand_tiles_merge_without_loss():
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((10_000, 4, 3, 5)) + rng.normal(0, 10, (10_000, 4, 1, 1))).astype(np.float32)
    found = merge_partials_reference(moments_reference(x), 2)
    for group in range(2):
        values = x[:, 2 * group : 2 * group + 2].astype(np.float64)
        assert found.mean[group] == pytest.approx(values.mean(), abs=1e-6)
        assert found.variance[group] == pytest.approx(values.var(), rel=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("shape", [(2, 5, 4, 33), (1, 66, 2, 21), (3, 1, 1, 2100)])
@pytest.mark.parametrize(("silu", "residual"), [(True, False), (True, True), (False, True)])
def test_apply_errs_at_most_twice_as_much_as_the_formula(device, shape, channels_last, dtype, silu, residual):
    rng = torch.Generator().manual_seed(sum(shape))
    x = laid_out((40 * torch.randn(shape, generator=rng)).to(dtype).to(device), channels_last)
    added = laid_out(torch.randn(shape, generator=rng).to(dtype).to(device), channels_last) if residual else None
    scale, shift = (torch.randn(shape[1], generator=rng).to(device) for _ in range(2))
    with np.errstate(over="ignore"):  # the interpreter is NumPy: exp(-y) of a very negative y
        y = kernels.apply(x, scale, shift, added, silu=silu, channels_last=channels_last)

    def formula(wide: torch.dtype) -> torch.Tensor:
        inputs = [None if t is None else t.to(wide).cpu().numpy() for t in (x, scale, shift, added)]
        return torch.from_numpy(apply_reference(*inputs, silu=silu))

    truth = formula(torch.float64)
    honest = (formula(torch.float32).to(dtype).double() - truth).abs().max()  # one rounding on the way out
    assert (y.cpu().double() - truth).abs().max() <= 2 * honest + torch.finfo(dtype).eps


def test_apply_leaves_what_lies_between_alone_and_works_in_place(device):
    x = torch.randn(2, 5, 6, 7, device=device)
    room = torch.full((2, 5, 8, 9), -7.0, device=device)
    view = room[:, :, 1:7, 1:8]
    scale, shift = torch.rand(5, device=device), torch.rand(5, device=device)
    assert kernels.apply(x, scale, shift, out=view) is view
    assert (room[:, :, 0] == -7).all() and (room[..., 8] == -7).all()
    again = x.clone()
    kernels.apply(again, scale, shift, out=again)
    assert torch.equal(again, view)


def test_apply_passes_what_is_not_a_number_on(device):
    x = torch.zeros(1, 2, 3, 4, device=device)
    x[0, 1, 2, 3] = float("nan")
    y = kernels.apply(x, torch.ones(2, device=device), torch.ones(2, device=device))
    assert torch.isnan(y).nonzero().tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": torch.zeros(2, 3, 4)}, "wanted \\(tiles, channels, rows, columns\\)"),
        ({"x": torch.zeros(1, 4, 3, 4, dtype=torch.int32)}, "in 16 or 32 bits"),
        ({"channels_last": True}, "wanted channels with stride 1"),
        ({"residual": torch.zeros(1, 4, 3, 5)}, "wanted all alike"),
        ({"out": torch.zeros(1, 4, 3, 4, dtype=torch.bfloat16)}, "wanted all alike"),
        ({"scale": torch.zeros(3)}, "wanted scale and shift \\(4,\\) float32"),
    ],
)
def test_apply_refuses_what_it_cannot_do(change, said):
    given = {"x": torch.zeros(1, 4, 3, 4), "scale": torch.zeros(4), "shift": torch.zeros(4)} | change
    with pytest.raises(ValueError, match=said):
        kernels.apply(**given)


@pytest.mark.parametrize("core", [(0, 5, 0, 6), (2, 2, 0, 6), (-1, 3, 0, 6), (0, 4, 3, 7)])
def test_moments_refuses_a_core_outside_the_tile(core):
    with pytest.raises(ValueError, match="within 4 rows and 6 columns; clip it"):
        kernels.moments(torch.zeros(1, 2, 4, 6), core)


def test_a_tall_core_falls_into_no_more_parts_than_can_be_merged_quickly():
    for rows in (1, 8, 9, 4096, 4097, 100_003):
        taken = kernels.rows_per_part_of(rows, 8)
        assert taken % 8 == 0 and -(-rows // taken) <= kernels.MOST_PARTS
