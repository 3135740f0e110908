"""The certificate finds what the summary missed, on the lattice that it measures, and costs no pixel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from families import ArraySource, decode_floats, half_dark, make
from widefield.bundle import Bundle, open_bundle
from widefield.certificate import LARGEST_SHARE, TILES, is_certified
from widefield.coder import TileCoder
from widefield.engine import EngineOptions
from widefield.render import Grid
from widefield.summary import Summary
from widefield.sweep import SweepOptions, measure
from widefield_export.commands import build_bundle

ORT = EngineOptions("ort")
HEIGHT, WIDTH = 70, 90


@pytest.fixture(scope="module")
def bundle(rough) -> Bundle:
    return rough("AutoencoderKL")


@pytest.fixture(scope="module")
def exact(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Summary:
    options = SweepOptions(2, 1 << 28, tmp_path_factory.mktemp("scratch"), ORT)
    return measure(bundle, bundle.decoder, ArraySource(half_dark(4, HEIGHT, WIDTH)), "exact", options)


def certificate_of(bundle: Bundle, summary: Summary, monkeypatch: pytest.MonkeyPatch):
    """Every tile certified, odd tiles, clipped at both far edges."""
    monkeypatch.setattr("widefield.coder.is_certified", lambda *_: True)
    coder = TileCoder(bundle, bundle.decoder, ArraySource(half_dark(4, HEIGHT, WIDTH)), summary, (20, 31), 1, ORT)
    grid = Grid(HEIGHT, WIDTH, 4, (20, 31), 256)
    for block in grid.blocks():
        for tile in grid.tiles(block):
            coder([tile], [grid.kept(tile)])
    coder.close()
    return coder.certifier


def test_without_thinning_an_exact_summary_is_certified_exactly(exact, tmp_path, monkeypatch):
    """Tiles, margins, masks and merging lose nothing: what remains below is the lattice's."""
    monkeypatch.setattr("widefield_export.write_bundle.certified_step", lambda *_: 1)
    build_bundle(make("AutoencoderKL"), tmp_path, name="small", source={})
    found = certificate_of(open_bundle(tmp_path), exact, monkeypatch).certificate()
    assert found.share == 1.0 and found.mean < 1e-4 and found.deviation < 1e-4


def test_an_exact_summary_is_certified_to_what_the_lattice_leaves_open(bundle, exact, monkeypatch):
    """One pixel in 25 of a picture of noise, the worst there is: 8,064 samples for the smallest groups."""
    found = certificate_of(bundle, exact, monkeypatch).certificate()
    assert found.mean < 0.15 and found.deviation < 0.15
    assert f"on {found.tiles} tiles" in str(found)


def test_a_wrong_summary_is_found_out(bundle, exact, monkeypatch):
    site = bundle.decoder.sites[4]
    off = exact.moments[f"{site.result}.mean"] + 0.5 * np.sqrt(exact.moments[f"{site.result}.variance"])
    wrong = replace(exact, moments={**exact.moments, f"{site.result}.mean": off})
    found = certificate_of(bundle, wrong, monkeypatch).certificate()
    assert found.mean == pytest.approx(0.5, abs=0.1) and found.site == site.origin


def test_certified_graphs_make_the_same_picture(bundle, exact, monkeypatch):
    source = ArraySource(half_dark(4, HEIGHT, WIDTH))
    monkeypatch.setattr("widefield.coder.is_certified", lambda *_: False)
    plain = decode_floats(bundle, bundle.decoder, source, exact, (20, 31))
    monkeypatch.setattr("widefield.coder.is_certified", lambda *_: True)
    certified = decode_floats(bundle, bundle.decoder, source, exact, (20, 31))
    assert np.abs(plain - certified).max() <= 2e-5


@pytest.mark.parametrize(("height", "width"), [(256, 256), (4096, 4096), (65536, 65536)])
def test_about_as_many_tiles_as_promised_are_certified(height, width):
    grid = Grid(height, width, 8, (64, 64), 512)
    rng = np.random.default_rng(0)
    draws = 20_000
    ys, xs = rng.integers(0, height, draws), rng.integers(0, width, draws)
    share = sum(is_certified(grid.tile_of(int(y), int(x)), height, width) for y, x in zip(ys, xs, strict=True)) / draws
    promised = min(LARGEST_SHARE, TILES / (height * width / 64**2))
    assert share <= 3 * promised + 1e-3
    assert share > 0 or promised < 1e-3
