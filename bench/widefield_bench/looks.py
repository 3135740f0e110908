"""How a drawn level looks, in numbers: beside the level below it, and where windows fade into each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widefield_kernels.windows import Axis, WindowGrid


def correlation(level: NDArray[Any], below: NDArray[Any]) -> float:
    """Of the box mean of a level (a whole number of times as large) with the level below it, all channels together."""
    times = round(level.shape[0] / below.shape[0])
    rows, columns = (min(a // times, b) for a, b in zip(level.shape[:2], below.shape[:2], strict=True))
    boxes = level[: rows * times, : columns * times].astype(np.float64)
    mean = boxes.reshape(rows, times, columns, times, -1).mean((1, 3))
    return float(np.corrcoef(mean.ravel(), below[:rows, :columns].astype(np.float64).ravel())[0, 1])


def detail(level: NDArray[Any], enlarged: NDArray[Any], times: int) -> float:
    """Energy above 1 / (2 times) cycles a pixel, of the luminance, windowed: of a level over its parent, enlarged."""
    energies = []
    for pixels in (level, enlarged):
        grey = pixels.astype(np.float64).mean(-1)
        height, width = grey.shape
        grey = (grey - grey.mean()) * np.outer(np.hanning(height), np.hanning(width))
        power = np.abs(np.fft.rfft2(grey)) ** 2
        fine = np.maximum(np.abs(np.fft.fftfreq(height))[:, None], np.fft.rfftfreq(width)[None, :]) > 0.5 / times
        energies.append(float(power[fine].sum()))
    return energies[0] / energies[1]


def fading(axis: Axis) -> NDArray[np.bool_]:
    """Of each border between two cells, whether it lies inside of what two neighbouring windows share."""
    borders = np.zeros(axis.size - 1, np.bool_)
    for start, stop in _shared(axis):
        borders[start : stop - 1] = True
    return borders


def _shared(axis: Axis) -> Iterator[tuple[int, int]]:
    """(first, past the last) of the cells that each two neighbouring windows share."""
    for k in range(1, axis.count):
        yield axis.origin(k), axis.origin(k - 1) + axis.window


def seams(
    pictures: Sequence[NDArray[Any]], where: Sequence[NDArray[np.bool_]], cell: int, axis: int, blocks: int = 12
) -> tuple[float, float]:
    """Mean absolute gradient across cells' borders where `where`, over that across the same borders where not.

    `pictures` are one picture, drawn with windows in different places; `where` says of each at which borders, or at
    which (border, pixel along it), windows fade. A place counts if they do in one of them and not in another, so what
    the picture shows there has no part in it. Gives the ratio and its standard error, by leaving out one of so many
    stripes after the other.
    """
    on, by = np.zeros((2, len(where[0])))
    fades = np.stack([mask.reshape(len(mask), -1) for mask in where])
    counts = fades.any(0) & ~fades.all(0)
    times = fades.sum(0)
    for pixels, mask in zip(pictures, fades, strict=True):
        grey = np.moveaxis(pixels.astype(np.float64).mean(-1), axis, 0)
        steps = np.abs(np.diff(grey, axis=0))[cell - 1 :: cell][: len(mask)]  # [b]: across the end of cell b
        on += np.where(counts & mask, steps / np.maximum(times, 1), 0).sum(1)
        by += np.where(counts & ~mask, steps / np.maximum(len(fades) - times, 1), 0).sum(1)
    on, by = (np.array([part.sum() for part in np.array_split(values, blocks)]) for values in (on, by))
    without = (on.sum() - on) / (by.sum() - by)
    return float(on.sum() / by.sum()), float(np.sqrt((blocks - 1) * without.var()))


def crossings(grid: WindowGrid, cell: int, axis: int, pixels: int) -> NDArray[np.bool_]:
    """Of each border between two cells of an axis, and each of so many pixels along it: whether four windows fade."""
    along, across = (grid.rows, grid.columns)[axis], (grid.rows, grid.columns)[1 - axis]
    cells = np.zeros(across.size, np.bool_)
    for start, stop in _shared(across):
        cells[start:stop] = True
    return fading(along)[:, None] & cells.repeat(cell)[None, :pixels]
