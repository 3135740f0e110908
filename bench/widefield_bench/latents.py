"""What is decoded in a bench: a square of photographs, encoded, or latents that were given, repeated to a size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PIECE_PX, LARGEST_PX = 256, 2048  # one photograph's part; the square that is encoded and then repeated


def mosaic(side_px: int) -> NDArray[np.uint8]:
    """(side, side, 3): pieces of photographs that scikit-image ships, each turned and dimmed in its own way."""
    import skimage.data

    rng = np.random.default_rng(3)
    whole = [skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket()]
    picture = np.empty((side_px, side_px, 3), np.uint8)
    for y in range(0, side_px, PIECE_PX):
        for x in range(0, side_px, PIECE_PX):
            photograph = whole[rng.integers(len(whole))]
            top, left = (int(rng.integers(0, n - PIECE_PX + 1)) for n in photograph.shape[:2])
            part = photograph[top : top + PIECE_PX, left : left + PIECE_PX][:, :: rng.choice((-1, 1))]
            room = picture[y : y + PIECE_PX, x : x + PIECE_PX]
            room[...] = (part * rng.uniform(0.3, 1.0))[: room.shape[0], : room.shape[1]]
    return picture


def photographs(cells: int, folder: Path, bundle: str | None) -> Path:
    """A .npy file in `folder` of (channels, cells, cells): the mosaic, encoded by the bundle."""
    import widefield.model

    model = widefield.model.open(bundle)
    latents = np.asarray(model.encode(mosaic(min(cells * model.bundle.scale, LARGEST_PX))))
    return repeated(latents, cells, folder / f"latents{cells}.npy")


def repeated(latents: NDArray[np.float32], cells: int, path: Path) -> Path:
    """Latents side by side until they fill (channels, cells, cells), saved as `path`."""
    times = -(-cells // min(latents.shape[1:]))
    np.save(path, np.tile(latents, (1, times, times))[:, :cells, :cells])
    return path
