"""A bundle of a tiny random autoencoder, latents for it, and processes to kill."""

import shutil

import numpy as np
import pytest

from cli.runner import Children


@pytest.fixture(scope="session")
def bundle(tiny):
    """AutoencoderKL, 8 px a latent, 4 channels, norms and an attention."""
    return tiny[0]


@pytest.fixture
def copied(bundle, tmp_path):
    """A bundle that a test may damage."""
    return shutil.copytree(bundle, tmp_path / "copy.wf")


def latents_of(height: int, width: int) -> np.ndarray:
    """Different in every corner."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    rng = np.random.default_rng(height)
    waves = np.stack([np.sin(9 * x + 3 * y), y - x, np.cos(11 * y * x), x + y])
    return (waves + rng.normal(size=(4, height, width)) * x).astype(np.float32)


@pytest.fixture(scope="session")
def latents(tmp_path_factory):
    """(4, 30, 40): 320 x 240 px, one store tile."""
    path = tmp_path_factory.mktemp("latents") / "small.npy"
    np.save(path, latents_of(30, 40))
    return path


@pytest.fixture(scope="session")
def larger(tmp_path_factory):
    """(4, 160, 200): 1600 x 1280 px, 3 x 4 store tiles."""
    path = tmp_path_factory.mktemp("latents") / "larger.npy"
    np.save(path, latents_of(160, 200))
    return path


@pytest.fixture(scope="session")
def children():
    server = Children()
    yield server
    server.close()
