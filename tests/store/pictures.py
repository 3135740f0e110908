"""Pictures to store, the pyramid they should give (written apart from the runtime's), ways into and out of a store."""

import hashlib
from pathlib import Path

import numpy as np

from widefield.store import PyramidWriter, Store


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Left half a dark gradient, right half busy: what is right in one place need not be right in the other."""
    y, x = np.mgrid[:height, :width]
    gradient = np.stack([(x + y) % 61, (x + 2 * y) % 47, y % 53], -1)
    busy = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return np.where((x < width // 2)[..., None], gradient, busy).astype(np.uint8)


def reference_pyramid(image: np.ndarray, count: int) -> list[np.ndarray]:
    """`count` levels by gathering four neighbours, the last row or column standing in for one past the edge."""
    levels = [image]
    while len(levels) < count:
        a = levels[-1].astype(np.int64)
        top, left = np.arange(0, a.shape[0], 2), np.arange(0, a.shape[1], 2)
        low, right = np.minimum(top + 1, a.shape[0] - 1), np.minimum(left + 1, a.shape[1] - 1)
        total = a[top][:, left] + a[top][:, right] + a[low][:, left] + a[low][:, right]
        levels.append(np.floor(total / 4 + 0.5).astype(np.uint8))
    return levels


def tile_of(image: np.ndarray, tile: int, row: int, column: int) -> np.ndarray:
    return image[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]


def fill(store: Store, image: np.ndarray, *, order=None, threads: int = 1, count: int | None = None) -> list:
    """Put what is missing, in Morton order or `order`; only `count` tiles, and then abort, when that is given."""
    writer = PyramidWriter(store, threads=threads)
    wanted = list(writer.missing())
    if order is not None:
        wanted = [wanted[i] for i in order(len(wanted))]
    try:
        for row, column in wanted[:count]:
            writer.put(row, column, tile_of(image, store.spec.tile_px, row, column))
        if count is None:
            writer.close()
    finally:
        writer.abort()
    return wanted


def read_level(store: Store, level: int) -> np.ndarray:
    """A level put together from its tiles, each of which must have its clipped size."""
    it, tile = store.levels[level], store.spec.tile_px
    whole = np.zeros((it.height_px, it.width_px, 3), np.uint8)
    for row in range(it.rows):
        for column in range(it.columns):
            place = tile_of(whole, tile, row, column)
            pixels = store.read(level, row, column)
            assert pixels.shape == place.shape
            place[...] = pixels
    return whole


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file under `folder` (or of `folder` itself, a file)."""
    files = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
