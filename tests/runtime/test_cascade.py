"""A cascade on a small pipeline: one window is diffusers' own run, and what is read lazily is the whole's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import diffusers
import numpy as np
import pytest
import torch

import widefield
from pipelines import save_pipeline
from widefield.cascade import Cascade, CascadeOptions, GeneratedLatents
from widefield.cli import main
from widefield.denoise import Guide
from widefield.engine import EngineOptions
from widefield.geometry import Region
from widefield.levels import level_cells, make_levels
from widefield.memo import Memo
from widefield.prompt import embed
from widefield_kernels.noise import normal_reference

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' NumPy
ORT = EngineOptions("ort")
WINDOW = 16, 24
PROMPT = "the sea at dawn"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(diffusers' pipeline, its bundle) with windows of 16 x 24 latents."""
    folder = tmp_path_factory.mktemp("cascade")
    pipeline = save_pipeline("SD1.5", folder / "checkpoint")
    assert main(["export", str(folder / "checkpoint"), "-o", str(folder / "b.wf"), "--window", "16x24"]) == 0
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, widefield.open(folder / "b.wf").bundle


def cascade(bundle, size_px, *, memo=None, steps=4, strengths=(1.0, 0.5), phases=(1, 2), guidance=3.0, **options):
    levels = make_levels(level_cells(*size_px, bundle.scale, WINDOW), steps=steps, strengths=strengths, phases=phases)
    guide = Guide(*embed(bundle, PROMPT, options=ORT), guidance)
    options = CascadeOptions(**{"seed": 7, "engine": ORT, "tile": (20, 12), **options})
    return Cascade(bundle, bundle.parts.denoiser.windows[0], guide, levels, memo or Memo(64 << 20), options)


@pytest.mark.parametrize(("sampler", "steps"), [("dpmpp_2m", 5), ("euler", 3), ("ddim", 6)])
def test_one_window_is_the_pipelines_own_latents(small, sampler, steps):
    pipeline, bundle = small
    height, width = (side * bundle.scale for side in WINDOW)
    ours = (
        cascade(bundle, (height, width), steps=steps, phases=(1,), sampler=sampler)
        .latents[0]
        .read(Region(0, 0, *WINDOW))
    )
    about = bundle.parts.samplers[sampler]
    pipeline.scheduler = getattr(diffusers, about.family).from_config(dict(about.config))
    noise = torch.from_numpy(normal_reference(7, 0, 0, 4, (0, 0, *WINDOW)))[None]
    with torch.no_grad():
        theirs = pipeline(
            PROMPT, latents=noise, num_inference_steps=steps, guidance_scale=3.0, height=height, width=width,
            output_type="latent",
        ).images[0].numpy()  # fmt: skip
    assert np.abs(theirs).max() > 1
    assert np.abs(ours - theirs).max() <= 1e-3


def test_a_part_read_cold_is_that_of_the_whole(small):
    """Three levels. Whoever asks for what, in whatever order and batches, with much room or little."""
    _, bundle = small
    size = 231, 333  # 58 x 84 cells of 4 px
    with_room = cascade(bundle, size)
    assert [(level.height, level.width) for level in with_room.levels] == [(29, 42), (58, 84)]
    last = with_room.latents[-1]
    whole = last.read(Region(0, 0, last.height, last.width))
    assert whole.std() > 0.1 and np.isfinite(whole).all()
    parts = [Region(40, 60, 58, 84), Region(0, 0, 9, 30), Region(17, 23, 41, 30)]
    for options in ({"batch": 1}, {"memo": Memo(300_000), "batch": 3}):
        lazy = cascade(bundle, size, **options)
        for region in parts:
            np.testing.assert_allclose(
                lazy.latents[-1].read(region), whole[:, *region.slices], atol=2e-4 * np.abs(whole).max()
            )
    threads = cascade(bundle, size)
    with ThreadPoolExecutor(3) as pool:
        for region, found in zip(parts, pool.map(threads.latents[-1].read, parts), strict=True):
            np.testing.assert_allclose(found, whole[:, *region.slices], atol=2e-4 * np.abs(whole).max())


def test_seeds_levels_and_prompts_tell_pictures_apart(small):
    _, bundle = small
    size = 150, 220  # two levels
    first = cascade(bundle, size)
    region = Region(0, 0, 8, 8)
    corner = first.latents[-1].read(region)
    assert GeneratedLatents(first, "x").digest() == GeneratedLatents(cascade(bundle, size), "y").digest()
    for changed in ({"seed": 8}, {"strengths": (1.0, 0.75)}, {"guidance": 2.0}, {"steps": 5}):
        other = cascade(bundle, size, **changed)
        assert other.identity() != first.identity()
        assert np.abs(other.latents[-1].read(region) - corner).max() > 1e-3, changed


def test_strength_zero_is_the_parent_enlarged_and_encoded(small):
    _, bundle = small
    still = cascade(bundle, (130, 200), strengths=(1.0, 0.0))
    assert len(still.levels) == 2
    region = Region(3, 5, 20, 30)
    np.testing.assert_array_equal(still.latents[1].read(region), still.coded[1].read(region))


def test_generated_latents_decode_like_any_others(small):
    _, bundle = small
    made = cascade(bundle, (64, 96))
    source = GeneratedLatents(made, "a prompt")
    picture = widefield.picture.Picture(bundle, source, widefield.options.RunOptions(engine="ort", summary="exact"))
    pixels = np.asarray(picture)
    assert pixels.shape == (64, 96, 3) and pixels.std() > 1
    floats = made.pixels[-1].read(Region(0, 0, 64, 96))
    assert np.abs(np.clip((floats + 1) * 127.5, 0, 255).transpose(1, 2, 0) - pixels).max() <= 1.01
    picture.close()
    made.close()
