"""Contracts (b) and (c): the picture does not depend on the plan, nor the summary on the budget."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from families import ArraySource, decode_floats, half_dark, make
from widefield.bundle import Bundle
from widefield.engine import EngineOptions
from widefield.errors import BadRequest
from widefield.geometry import Region
from widefield.model import Model
from widefield.store import open_store
from widefield.summary import load_summary
from widefield.sweep import SweepOptions, measure
from widefield_kernels.epilogue import to_pixels_reference

HEIGHT, WIDTH = 150, 181
ORT = EngineOptions("ort")


@pytest.fixture(scope="module")
def bundle(rough) -> Bundle:
    return rough("AutoencoderKL")


@pytest.fixture(scope="module")
def latents() -> np.ndarray:
    return half_dark(4, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def part(latents: np.ndarray) -> np.ndarray:
    """Enough of them for several tiles of a sweep a side, dark and busy ones."""
    return latents[:, :101, 40:137]


@pytest.fixture(scope="module")
def summary_file(bundle: Bundle, latents: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("summary")
    options = SweepOptions(4, 1 << 28, folder, ORT)
    summary = measure(bundle, bundle.decoder, ArraySource(latents), "sampled", options, cells=100)
    summary.save(folder / "frozen.safetensors")
    return folder / "frozen.safetensors"


def pixels(bundle: Bundle, latents: np.ndarray, summary_file: Path, **options: Any) -> np.ndarray:
    return np.asarray(Model(bundle).decode(latents, summary=str(summary_file), **{"engine": "ort", **options}))


def unlike(a: np.ndarray, b: np.ndarray) -> tuple[int, float]:
    """(largest step, share of pixels that differ)."""
    difference = np.abs(a.astype(int) - b.astype(int))
    return int(difference.max()), float((difference > 0).any(-1).mean())


@pytest.fixture(scope="module")
def first(bundle: Bundle, latents: np.ndarray, summary_file: Path) -> np.ndarray:
    return pixels(bundle, latents, summary_file, tile=(64, 64))


@pytest.mark.parametrize(
    ("engine", "tile"),
    [("ort", (16, 16)), ("ort", (24, 24)), ("ort", (20, 31)), ("ort", (HEIGHT, WIDTH)), ("openvino", (20, 31))],
)
def test_tile_sizes_differ_by_at_most_a_step_on_one_pixel_in_ten_thousand(
    bundle, latents, summary_file, first, tile, engine
):
    if engine != "ort":
        first = pixels(bundle, latents, summary_file, tile=(64, 64), engine=engine)
    step, share = unlike(first, pixels(bundle, latents, summary_file, tile=tile, engine=engine))
    assert step <= 1 and share <= 1e-4


@pytest.mark.parametrize("options", [{"batch": 3}, {"batch": 5, "workers": 2}, {"memory": "300MiB"}, {"workers": 3}])
def test_one_tile_grid_gives_one_picture(bundle, latents, summary_file, first, options):
    again = pixels(bundle, latents, summary_file, tile=(64, 64), **options)
    np.testing.assert_array_equal(again, first)


def test_any_order_of_tiles_gives_the_same_values(bundle, latents, summary_file):
    source = ArraySource(latents)
    summary = load_summary(summary_file, bundle.decoder, bundle.digest)
    orders = [list, lambda t: t[::-1], lambda t: [t[i] for i in np.random.default_rng(0).permutation(len(t))]]
    results = [decode_floats(bundle, bundle.decoder, source, summary, (24, 40), order=order) for order in orders]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_a_region_is_the_same_pixels_as_in_the_whole(bundle, latents, summary_file, first):
    with Model(bundle).decode(latents, summary=str(summary_file), engine="ort", tile=(64, 64)) as picture:
        assert picture.shape == first.shape == (HEIGHT * 4, WIDTH * 4, 3)
        np.testing.assert_array_equal(picture[100:333, 7:501], first[100:333, 7:501])
        np.testing.assert_array_equal(picture[-1, ::5, 1], first[-1, ::5, 1])
        np.testing.assert_array_equal(picture[599:590:-2, 3, ...], first[599:590:-2, 3])
        np.testing.assert_array_equal(picture[10], first[10])
        assert picture[5:5, 3:9].shape == (0, 6, 3)
        with pytest.raises(IndexError, match="out of bounds"):
            picture[HEIGHT * 4]
        with pytest.raises(IndexError, match="leaves the picture"):
            picture.read(Region(0, 0, HEIGHT * 4 + 1, 8))


@pytest.mark.parametrize("suffix", ["tif", "zarr"])
def test_a_saved_picture_is_the_lazy_one_whoever_made_its_tiles(bundle, latents, summary_file, first, suffix, tmp_path):
    for workers, batch in ((1, 1), (2, 3)):
        path = tmp_path / f"picture-{workers}.{suffix}"
        picture = Model(bundle).decode(latents, summary=str(summary_file), engine="ort", tile=(64, 64), batch=batch)
        saved = picture.save(path, workers=workers, codec="lossless")
        assert saved.tiles_made == 4 and 0 < saved.engine_share <= 1
        assert 0 < saved.engine_share_of_run < 1 and saved.as_dict()["engine_share_of_run"] > 0
        with open_store(path) as store:
            for row, column in itertools.product(range(2), range(2)):
                y, x = row * 512, column * 512
                np.testing.assert_array_equal(store.read(0, row, column), first[y : y + 512, x : x + 512])


def test_the_summary_depends_on_latents_seed_and_cells_alone(bundle, part, tmp_path):
    source = ArraySource(part)
    plans = [
        SweepOptions(4, 1 << 28, tmp_path, ORT),
        SweepOptions(1, 0, tmp_path, ORT),  # everything held in files
        SweepOptions(7, 1 << 20, tmp_path, EngineOptions("ort", workers=3)),
    ]
    for method in ("sampled", "exact"):
        found = [measure(bundle, bundle.decoder, source, method, plan, cells=60) for plan in plans]
        assert len({summary.digest for summary in found}) == 1, method
    other = measure(bundle, bundle.decoder, source, "sampled", plans[0], cells=60, seed=1)
    assert other.digest != measure(bundle, bundle.decoder, source, "sampled", plans[0], cells=60).digest


def test_frozen_statistics_survive_a_resume(bundle, latents, tmp_path):
    """The summary beside the picture is read again, not measured anew: the trap of statistics that change on resume."""
    picture = Model(bundle).decode(latents, summary="sampled", cells=60, engine="ort", tile=(64, 64))
    saved = picture.save(tmp_path / "a.tif")
    assert saved.summary == tmp_path / "a.summary.safetensors"
    kept = saved.summary.read_bytes()
    talked: list[str] = []
    again = Model(bundle).decode(latents, summary="sampled", cells=60, engine="ort")
    found = again.save(tmp_path / "a.tif", talk=lambda what, done, total: talked.append(what))
    assert (found.tiles_made, found.tiles_found) == (0, 4) and not talked
    (tmp_path / "a.tif").unlink()
    remade = again.save(tmp_path / "a.tif", tile=(64, 64), talk=lambda what, done, total: talked.append(what))
    assert remade.tiles_made == 4 and not talked, "the picture went, its summary stayed"
    assert saved.summary.read_bytes() == kept


def test_a_summary_of_another_bundle_is_refused(bundle, latents, summary_file):
    other = replace(bundle, manifest={**bundle.manifest, "name": "another"})
    with pytest.raises(BadRequest, match="measured with another bundle"):
        pixels(other, latents, summary_file)


def test_statistics_do_not_depend_on_tile_size(bundle, part, tmp_path, monkeypatch):
    source = ArraySource(part)
    options = SweepOptions(2, 1 << 28, tmp_path, ORT)
    first = measure(bundle, bundle.decoder, source, "exact", options)
    monkeypatch.setattr("widefield.sampling.SWEEP_TILE", 50)
    second = measure(bundle, bundle.decoder, source, "exact", options)
    assert first.about["tile"] != second.about["tile"]
    for name, value in first.moments.items():
        np.testing.assert_allclose(second.moments[name], value, rtol=1e-4, atol=1e-5)


def test_margins_do_not_enter_the_statistics(bundle, latents, tmp_path):
    """The first site's statistics by hand: torch's convolution over the whole picture, no tiles at all."""
    import torch

    from widefield_export.families import latent_affine

    vae = make("AutoencoderKL")
    mean, std = latent_affine(vae)
    with torch.no_grad():
        x = vae.decoder.conv_in(vae.post_quant_conv(torch.from_numpy(latents)[None] * std + mean))[0]
    groups = x.reshape(8, -1).double()
    summary = measure(bundle, bundle.decoder, ArraySource(latents), "exact", SweepOptions(2, 1 << 28, tmp_path, ORT))
    site = bundle.decoder.sites[0]
    np.testing.assert_allclose(summary.moments[f"{site.result}.mean"], groups.mean(1), atol=1e-5)
    np.testing.assert_allclose(summary.moments[f"{site.result}.variance"], groups.var(1, unbiased=False), rtol=1e-4)


def test_a_decoder_that_gives_nan_is_an_error_not_a_black_square():
    _, bad = to_pixels_reference(np.full((3, 2, 2), np.nan, np.float32))
    assert bad == 12
