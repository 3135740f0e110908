"""Squares count by what they read: sums come right, errors shrink and stay honest."""

from __future__ import annotations

import numpy as np
import pytest

import widefield
from families import ArraySource
from widefield import calibration
from widefield.calibration import LEAST_WEIGHT, calibrated, even
from widefield.held import Squares
from widefield.sampling import stratified_cells
from widefield.scratch import Scratch
from widefield_kernels.norm import merge_reference, standard_errors

SIZE = (97, 131)


@pytest.fixture(scope="module")
def decoder():
    return widefield.open().bundle.decoder


def uneven(channels: int, seed: int = 0) -> np.ndarray:
    """(channels, *SIZE): dim and plain at the top left, bright and busy elsewhere, with a few very bright places."""
    rng = np.random.default_rng(seed)
    y, x = (np.arange(n) / n for n in SIZE)
    light = y[:, None] ** 2 + 0.5 * np.sin(9 * x)
    spots = 3 * (np.kron(rng.random((13, 17)), np.ones((8, 8))) > 0.93)[: SIZE[0], : SIZE[1]]
    busy = rng.standard_normal((channels, *SIZE)) * (0.1 + light**2)
    return (light * np.linspace(-1, 2, channels)[:, None, None] + spots + busy).astype(np.float32)


def drawn(decoder, values: np.ndarray, folder, *, count: int = 80, seed: int = 0) -> Squares:
    tiles = stratified_cells(*values.shape[1:], count, seed)
    return Squares(decoder, ArraySource(values), values.shape[1:], tiles, Scratch(0, folder), None)


def moments(values: np.ndarray, squares: Squares) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(count, mean, M2) of the channels of each square."""
    parts = np.stack([values[:, *tile.slices].reshape(len(values), -1) for tile in squares.tiles]).astype(np.float64)
    return np.full(len(parts), parts.shape[2], float), parts.mean(2), parts.var(2) * parts.shape[2]


def test_weighted_squares_have_the_mean_and_variance_of_the_picture(decoder, tmp_path):
    values = uneven(8)
    true_mean, true_variance = (f(values.reshape(8, -1).astype(np.float64), axis=1) for f in (np.mean, np.var))
    even_error, found_error = [], []
    for seed in range(8):
        squares = drawn(decoder, values, tmp_path, seed=seed)
        counting = calibrated(decoder, squares)
        assert counting.weights.mean() == pytest.approx(1) and counting.weights.min() >= LEAST_WEIGHT / 2
        count, mean, m2 = moments(values, squares)
        for weights, errors in ((np.ones(len(count)), even_error), (counting.weights, found_error)):
            whole = merge_reference(count * weights, mean, m2 * weights[:, None])
            errors += [whole.mean - true_mean, whole.variance / true_variance - 1]
    assert np.square(found_error).mean() <= np.square(even_error).mean() / 25


def test_standard_errors_of_what_the_input_explains_in_part_cover_the_truth_and_are_smaller(decoder, tmp_path):
    values = uneven(8, seed=1)
    hidden = np.tanh(values[:3] + 0.3 * values[4:7] ** 2) + 0.05 * uneven(3, seed=9)
    true = hidden.reshape(3, -1).mean(1, dtype=np.float64)
    covered, ours, plain, apart = 0, [], [], []
    for seed in range(40):
        squares = drawn(decoder, values, tmp_path, seed=seed)
        counting = calibrated(decoder, squares)
        count, mean, m2 = moments(hidden, squares)
        whole = merge_reference(count * counting.weights, mean, m2 * counting.weights[:, None])
        error, of_variance = counting.standard_errors(count, mean, m2)
        assert (of_variance > 0).all()
        covered += int((np.abs(whole.mean - true) <= 3 * error).sum())
        ours.append(error)
        plain.append(standard_errors(count, mean, m2, squares.fraction)[0])
        apart.append(whole.mean - true)
    assert covered >= 0.95 * 40 * 3
    assert np.mean(ours) < 0.7 * np.mean(plain)
    assert np.mean(ours) < 4 * np.sqrt(np.mean(np.square(apart)))


def test_counting_alike_gives_the_errors_of_stratified_parts():
    rng = np.random.default_rng(2)
    count, mean, m2 = np.full(31, 48.0), rng.standard_normal((31, 5)), rng.random((31, 5)) * 48
    for ours, formula in zip(even(31, 0.2).standard_errors(count, mean, m2),
                             standard_errors(count, mean, m2, 0.2), strict=True):  # fmt: skip
        np.testing.assert_allclose(ours, formula, rtol=1e-12)
    assert not np.any(even(31, 1.0).standard_errors(count, mean, m2))


def test_pixels_large_pictures_and_few_squares_count_alike(decoder, tmp_path, monkeypatch):
    values = uneven(8)
    squares = drawn(decoder, values, tmp_path)
    assert np.ptp(calibrated(decoder, squares).weights) > 0.1
    assert not np.ptp(calibrated(widefield.open().bundle.encoder, squares).weights)
    assert not np.ptp(calibrated(decoder, drawn(decoder, values, tmp_path, count=20)).weights)
    monkeypatch.setattr(calibration, "LARGEST_CELLS", SIZE[0] * SIZE[1] - 1)
    assert not np.ptp(calibrated(decoder, squares).weights)


def test_an_even_picture_counts_alike(decoder, tmp_path):
    values = np.full((8, *SIZE), 0.25, np.float32)
    assert not np.ptp(calibrated(decoder, drawn(decoder, values, tmp_path)).weights)
