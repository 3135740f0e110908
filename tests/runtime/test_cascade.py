"""A cascade on a small pipeline: one window is diffusers' own run, and what is read lazily is the whole's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch

import widefield
from pipelines import make_pipeline
from widefield.drawing import Drawing
from widefield.engine import EngineOptions, open_engine
from widefield.generation import DrawnLatents, Generation, Recipe
from widefield.geometry import Region
from widefield.memo import Memo
from widefield_kernels.noise import normal_reference

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' NumPy
ORT = EngineOptions("ort")
WINDOW = 16, 24
PROMPT = "the sea at dawn"


@pytest.fixture(scope="module")
def small(drawing_bundle):
    """(diffusers' pipeline, its bundle) with windows of 16 x 24 latents."""
    pipeline = make_pipeline("SD1.5")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, widefield.open(drawing_bundle).bundle


def generation(bundle, size_px, *, prompt=PROMPT, seed=7, **recipe):
    recipe = {"steps": (4, 2), "strength": 0.5, "phases": (1, 2), "guidance": 3.0, "window": WINDOW, **recipe}
    return Generation(bundle, prompt, size_px, seed, Recipe(**recipe))


def cascade(bundle, size_px, *, memo=None, batch=1, workers=2, tile=(20, 12), **recipe):
    engine = EngineOptions("ort", workers=workers)
    made = generation(bundle, size_px, **recipe)
    return made.cascade(memo or Memo(64 << 20), replace(made.cascade_options(engine, batch=batch), tile=tile))


@pytest.mark.parametrize(("sampler", "steps"), [("dpmpp_2m", 5), ("euler", 3), ("ddim", 6)])
def test_one_window_is_the_pipelines_own_latents(small, sampler, steps):
    pipeline, bundle = small
    height, width = (side * bundle.scale for side in WINDOW)
    ours = (
        cascade(bundle, (height, width), steps=steps, phases=1, sampler=sampler).latents[0].read(Region(0, 0, *WINDOW))
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
    assert [(level.height, level.width) for level in with_room.levels] == [(17, 24), (29, 42), (58, 84)]
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
    first = generation(bundle, size)
    region = Region(0, 0, 8, 8)
    corner = cascade(bundle, size).latents[-1].read(region)
    assert first.digest(-1, ORT) == generation(bundle, size).digest(2, EngineOptions("ort", threads=3))
    changes = (
        {"seed": 8}, {"strength": 0.75}, {"guidance": 2.0}, {"steps": 5}, {"prompt": "dawn"}, {"negative": "sea"},
        {"anchor": 0.0},
    )  # fmt: skip
    for changed in changes:
        assert generation(bundle, size, **changed).digest(-1, ORT) != first.digest(-1, ORT)
        other = cascade(bundle, size, **changed)
        assert np.abs(other.latents[-1].read(region) - corner).max() > 1e-3, changed


def test_strength_zero_is_the_parent_enlarged_and_encoded(small):
    _, bundle = small
    still = cascade(bundle, (130, 200), strength=0.0)
    region = Region(3, 5, 20, 30)
    np.testing.assert_array_equal(still.latents[-1].read(region), still.encoded[-1].read(region))


def test_windows_are_held_to_the_level_below(small):
    """Away from the picture's edge the means of all windows are those of what they were made from."""
    _, bundle = small
    whole, held, free = Region(0, 0, 29, 42), *(cascade(bundle, (116, 168), anchor=width) for width in (0.25, 0.0))
    wanted = held.encoded[-1].read(whole)
    far, near = (np.abs((of.latents[-1].read(whole) - wanted).mean((1, 2))).max() for of in (free, held))
    assert near < 0.15 * far
    only_noise = cascade(bundle, (116, 168), anchor=0.25, strength=1.0)
    assert only_noise.latents[-1].held is None


def test_a_region_is_encoded_before_it_is_denoised_where_there_is_room(small):
    _, bundle = small
    size = 231, 333
    ready = cascade(bundle, size)
    region = Region(10, 0, 58, 40)
    ready.prepare(2, region)
    tiles = {key for key in ready.memo if key[0] == ("encoded", 2)}
    ready.latents[2].read(region)
    assert len(tiles) == 4 and {key for key in ready.memo if key[0] == ("encoded", 2)} == tiles
    no_room = cascade(bundle, size, memo=Memo(8 * 4 * 32 * 32))
    no_room.prepare(2, region)
    assert no_room.memo.made == 0


def test_a_drawing_opens_one_denoiser_for_all_levels(small, tmp_path, monkeypatch):
    """Free guidance is two rows of a batch, and a batch that is not full is filled up: one engine does all."""
    _, bundle = small
    opened, ran = [], []

    def counted(path, shapes, parameters, options):
        opened.append((path.name, shapes["latent"]))
        engine = open_engine(path, shapes, parameters, options)
        run = engine.run
        monkeypatch.setattr(engine, "run", lambda feeds, into: (ran.append(len(feeds["latent"])), run(feeds, into)))
        return engine

    monkeypatch.setattr("widefield.denoise.open_engine", counted)
    made = generation(bundle, (150, 220))
    drawing = Drawing(made, tmp_path / "levels", EngineOptions("ort", workers=2))
    stored = drawing.draw()
    assert [source.width for source in stored.values()] == [24, 28, 55]
    window = bundle.parts.denoiser.window(*WINDOW)
    assert opened == [(window.file, (made.batch, 4, *WINDOW))]
    assert set(ran) == {made.batch}


def test_drawn_latents_decode_like_any_others(small):
    _, bundle = small
    made = cascade(bundle, (64, 96))
    assert len(made.levels) == 1
    source = DrawnLatents(generation(bundle, (64, 96)), ORT, lambda: made.latents[-1], "a prompt")
    picture = widefield.picture.Picture(bundle, source, widefield.options.RunOptions(engine="ort", summary="exact"))
    pixels = np.asarray(picture)
    assert pixels.shape == (64, 96, 3) and pixels.std() > 1
    floats = made.pixels[-1].read(Region(0, 0, 64, 96))
    assert np.abs(np.clip((floats + 1) * 127.5, 0, 255).transpose(1, 2, 0) - pixels).max() <= 1.01
    picture.close()
    made.close()


@pytest.mark.parametrize("case", range(5))
def test_any_part_of_any_level_is_that_of_the_whole(small, case):
    """Over sizes, growths, strides, phases, steps and seeds; cold, and with room for little or nothing."""
    _, bundle = small
    dice = np.random.default_rng(case)
    size = tuple(int(n) for n in dice.integers(70, 330, 2))
    recipe = {
        "growth": int(dice.integers(2, 5)),
        "phases": (1, int(dice.integers(1, 4))),
        "steps": (3, int(dice.integers(1, 4))),
        "strength": float(dice.uniform(0.3, 1.0)),
        "stride": (int(dice.integers(8, 17)), int(dice.integers(12, 25))),
        "seed": int(dice.integers(1 << 40)),
        "tile": (int(dice.integers(9, 30)), int(dice.integers(9, 30))),
    }
    whole = cascade(bundle, size, **recipe)
    for level in range(len(whole.levels)):
        field = whole.pixels[level]
        full = field.read(field.extent)
        lazy = cascade(bundle, size, **recipe, memo=Memo((1 << 24, 1 << 22)[case % 2]), batch=1 + case % 3)
        y, x = (int(dice.integers(side)) for side in (field.height, field.width))
        region = Region(y, x, y + int(dice.integers(1, 60)), x + int(dice.integers(1, 60))).clipped(field.extent)
        part = lazy.pixels[level].read(region)
        steps = np.abs(np.rint(part * 127.5) - np.rint(full[:, *region.slices] * 127.5))
        assert steps.max() <= 1 and (steps > 0).sum() <= 1 + 1e-4 * steps.size, (level, region, recipe)
        lazy.close()
    whole.close()
