"""Pictures on disk, for servers to show."""

from pathlib import Path

import numpy as np

from store.pictures import fill
from widefield.store import StoreSpec, create_or_resume


def scene(width: int, height: int) -> np.ndarray:
    """Waves of another length in every direction: no two tiles alike."""
    y, x = np.mgrid[:height, :width]
    planes = (np.sin(x / 40) * np.cos(y / 31), np.sin((x + 2 * y) / 53), np.cos(x / 17 - y / 90))
    return np.stack([128 + 100 * plane for plane in planes], -1).astype(np.uint8)


def stored(path: Path, width: int, height: int, codec: str, tile: int = 256) -> tuple[Path, np.ndarray]:
    """(path, its pixels)."""
    image = scene(width, height)
    with create_or_resume(path, StoreSpec(width, height, "5eed", codec, tile_px=tile)) as store:
        fill(store, image)
    return path, image
