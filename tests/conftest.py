"""Before anything imports triton (diffusers does): without a GPU, kernels run in its interpreter. And hypothesis has no
deadline for one example: pytest has one for a test, and a busy machine is no fault of the code.

And the one bundle that tests in several folders use: making it takes longer than most of them.
"""

import os
import warnings
from pathlib import Path

import pytest
from hypothesis import settings

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("house", deadline=None)
settings.load_profile("house")


@pytest.fixture(scope="session")
def drawing_bundle(tmp_path_factory):
    """A tiny random Stable Diffusion: 4 px a latent, windows of 16 x 24 latents."""
    from pipelines import save_pipeline
    from widefield.cli import main

    folder = tmp_path_factory.mktemp("drawing")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_pipeline("SD1.5", folder / "checkpoint")
        assert main(["export", str(folder / "checkpoint"), "-o", str(folder / "b.wf"), "--window", "16x24"]) == 0
    return folder / "b.wf"


@pytest.fixture(scope="session")
def photographic(tmp_path_factory):
    """(bundle, diffusers folder) of the small autoencoder that was trained on photographs, exported now."""
    from diffusers import AutoencoderKL

    from widefield_export.commands import build_bundle

    folder = Path(__file__).parent / "data" / "photographic"
    bundle = tmp_path_factory.mktemp("photographic")
    vae = AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False).float().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        build_bundle(vae, bundle, name="photographic", source={})
    return bundle, folder
