"""Latents for the bundle of a tiny random autoencoder and the same in diffusers' form."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def latents(tmp_path_factory):
    """A function from a number of rows and columns to a .npy file of them; smooth, and unlike everywhere."""
    folder = tmp_path_factory.mktemp("latents")

    def make(rows: int, columns: int):
        path = folder / f"{rows}x{columns}.npy"
        if not path.exists():
            y, x = np.mgrid[0:rows, 0:columns].astype(np.float32) / 64
            waves = [np.sin((k + 1) * y + x) + np.cos(x - k * y) + 0.3 * k * x for k in range(4)]
            np.save(path, np.stack(waves).astype(np.float32))
        return path

    return make
