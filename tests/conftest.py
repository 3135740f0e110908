"""Before anything imports triton (diffusers does): without a GPU, kernels run in its interpreter. Before anything
imports torch: where tests run in several processes (`-n 2`), each computes on one thread. And hypothesis has no
deadline for one example: pytest has one for a test, and a busy machine is no fault of the code.

And the bundles that tests of several files use: making one takes longer than most tests.
"""

import os
import warnings
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings

from made_once import once, top_of_run

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("house", deadline=None)
settings.load_profile("house")


@pytest.fixture(scope="session")
def filled(tmp_path_factory):
    """A function from a name and what fills a folder to the folder, which is filled once a run and without warnings."""

    def quietly(fill, folder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fill(folder)

    return lambda name, fill: once(top_of_run(tmp_path_factory.getbasetemp()), name, partial(quietly, fill))


@pytest.fixture(scope="session")
def drawing_bundle(filled):
    """A tiny random Stable Diffusion, pipelines.make_pipeline("SD1.5"): 4 px a latent, windows of 16 x 24 latents."""
    from pipelines import save_pipeline
    from widefield.cli import main

    def fill(folder):
        save_pipeline("SD1.5", folder / "checkpoint")
        assert main(["export", str(folder / "checkpoint"), "-o", str(folder / "b.wf"), "--window", "16x24"]) == 0

    return filled("drawing", fill) / "b.wf"


@pytest.fixture(scope="session")
def rough(filled):
    """A function from the name of one of families.ROUGH to its bundle, opened."""
    from families import make
    from widefield.bundle import open_bundle
    from widefield_export.commands import build_bundle

    def of(name):
        return open_bundle(
            filled(f"rough {name}", lambda folder: build_bundle(make(name), folder, name=name, source={}))
        )

    return of


@pytest.fixture(scope="session")
def tiny(filled):
    """(bundle, diffusers folder): an AutoencoderKL of 8 px a latent and 4 channels, with norms and an attention."""
    import torch
    from diffusers import AutoencoderKL

    from widefield_export.commands import build_bundle

    def fill(folder):
        torch.manual_seed(0)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(4, 4, 8, 8), latent_channels=4, norm_num_groups=2, layers_per_block=1,
        ).eval()  # fmt: skip
        vae.save_pretrained(folder / "diffusers")
        (folder / "tiny.wf").mkdir()
        build_bundle(vae, folder / "tiny.wf", name="tiny", source={})

    folder = filled("tiny", fill)
    return folder / "tiny.wf", folder / "diffusers"


@pytest.fixture(scope="session")
def photographic(filled):
    """(bundle, diffusers folder) of the small autoencoder that was trained on photographs, exported now."""
    from diffusers import AutoencoderKL

    from widefield_export.commands import build_bundle

    folder = Path(__file__).parent / "data" / "photographic"

    def fill(bundle):
        vae = AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False).float().eval()
        build_bundle(vae, bundle, name="photographic", source={})

    return filled("photographic", fill), folder
