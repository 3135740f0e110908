"""Merged partial statistics equal those of the whole, where pooled ones do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from widefield_kernels.norm import Moments, freeze_reference, merge_reference, standard_errors


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
