"""A bundle of a tiny random autoencoder, the same in diffusers' form, and latents for both."""

import warnings

import numpy as np
import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """(bundle, diffusers folder): AutoencoderKL, 8 px a latent, 4 channels, norms and an attention."""
    import torch
    from diffusers import AutoencoderKL

    from widefield_export.commands import build_bundle

    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8), latent_channels=4, norm_num_groups=2, layers_per_block=1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "bundle").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vae.eval().save_pretrained(folder / "diffusers")
        build_bundle(vae, folder / "bundle", name="tiny", source={})
    return folder / "bundle", folder / "diffusers"


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
