"""Procedural worlds: pure functions of seed, place and scale; natural statistics; captions that mean what is drawn."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from widefield.errors import BadRequest
from widefield_export.worlds import captions, climate, draw, heights, light, noise, pyramid, water
from widefield_export.worlds.pictures import draw_picture
from widefield_export.worlds.pyramid import Span
from widefield_export.worlds.render import render
from widefield_export.worlds.world import Sky, World

ISLES = World(11, extent_km=120, relief_m=700, rise_m=-150, temperature=22, moisture=0.6, rivers=0.7, farms=0.6)
DUNES = World(12, extent_km=500, relief_m=400, rise_m=500, temperature=27, moisture=0.02, dunes=1.0, rivers=0.1)
CONES = World(13, extent_km=150, relief_m=600, rise_m=-450, volcanoes=1.0, dark_rock=0.8, temperature=20)
ICE = World(14, extent_km=300, relief_m=900, rise_m=200, temperature=-16, fjords=1.0, dunes=0.5)
MORNING = Sky("dawn", azimuth=80, elevation=17, clouds=0.45, seed=5)
NIGHT = Sky("night", clouds=0.3, seed=6)
CASES = [(ISLES, MORNING), (DUNES, Sky()), (CONES, NIGHT), (ICE, MORNING)]


def slow_enlarged(x, i, j):
    """The formula at the head of pyramid.py, one child at a time."""
    taps = {0: (-5, 35, 105, -7), 1: (-7, 105, 35, -5)}
    starts = {0: -2, 1: -1}
    rows = [(i // 2 + starts[i % 2] + k, taps[i % 2][k] / 128) for k in range(4)]
    columns = [(j // 2 + starts[j % 2] + k, taps[j % 2][k] / 128) for k in range(4)]
    return sum(x(r, c) * a * b for r, a in rows for c, b in columns)


def test_enlarging_is_its_formula_at_odd_and_negative_places():
    rng = np.random.default_rng(1)
    span = Span(-7, 4, 6, 11)
    parent = span.parent()
    values = rng.standard_normal((2, *parent.shape)).astype(np.float32)
    got = pyramid.enlarge(values, span)
    assert got.shape == (2, 13, 7)
    for channel, (i, j) in itertools.product(range(2), itertools.product(range(-7, 6), range(4, 11))):
        truth = slow_enlarged(lambda r, c, k=channel: float(values[k, r - parent.top, c - parent.left]), i, j)
        assert got[channel, i + 7, j - 4] == pytest.approx(truth, abs=1e-5)


def test_noise_is_an_octave_without_a_lattice():
    """Unit deviation, energy in a ring of one octave, and as much of it in every direction."""
    rows = columns = np.arange(256)
    for seed in (1, 2, 3):
        field = noise.octave_noise(seed, 3, rows, columns, 2)
        assert field.std() == pytest.approx(1, abs=0.15)
        assert abs(np.corrcoef(field[0].ravel(), field[1].ravel())[0, 1]) < 0.1
        power = np.abs(np.fft.fft2(field[0] * np.hanning(256)[:, None] * np.hanning(256))) ** 2
        ky, kx = np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256), indexing="ij")
        radius, angle = np.hypot(ky, kx), np.arctan2(ky, kx) % np.pi
        ring = (radius > 1 / (noise.SAMPLES * 1.8)) & (radius < 1.8 / noise.SAMPLES)
        assert power[ring].sum() > 0.8 * power.sum()
        sectors = [power[ring & (angle // (np.pi / 6) == k)].sum() for k in range(6)]
        assert max(sectors) < 2 * min(sectors)


def test_waves_run_along_their_direction_and_stay_in_bounds():
    rows = columns = np.arange(200)
    for turn in (0.0, 0.6, 2.0):
        along = np.broadcast_to(np.array([math.sin(turn), math.cos(turn)], np.float32)[:, None, None], (2, 200, 200))
        wave = noise.waves(4, 2, rows, columns, along)
        assert np.abs(wave).max() <= 1.01
        gy, gx = np.gradient(wave)
        across = np.abs(gy * math.sin(turn) + gx * math.cos(turn)).mean()
        beside = np.abs(-gy * math.cos(turn) + gx * math.sin(turn)).mean()
        assert across > 2 * beside


def test_hashes_are_uniform_and_neighbours_unrelated():
    rows, columns = np.meshgrid(np.arange(-100, 100), np.arange(300), indexing="ij")
    values = noise.hash_unit(7, rows, columns)
    assert values.min() >= 0
    assert values.max() < 1
    assert np.histogram(values, 10, (0, 1))[0] == pytest.approx(6000, rel=0.1)
    assert abs(np.corrcoef(values[:, 1:].ravel(), values[:, :-1].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(values[1:].ravel(), values[:-1].ravel())[0, 1]) < 0.02


@pytest.mark.parametrize(("world", "sky"), CASES)
def test_the_same_place_is_always_the_same_picture(world, sky):
    a = render(world, sky, 1203, -771, 48, 256).pixels
    assert a.shape == (48, 48, 3)
    assert a.dtype == np.float32
    assert np.isfinite(a).all()
    assert a.min() >= 0 and a.max() <= 1
    np.testing.assert_array_equal(a, render(world, sky, 1203, -771, 48, 256).pixels)
    assert np.abs(a - render(replace(world, seed=world.seed + 1), sky, 1203, -771, 48, 256).pixels).mean() > 0.002


@pytest.mark.parametrize("metres", [4, 64, 1024])
@pytest.mark.parametrize(("world", "sky"), CASES)
def test_crops_agree_with_the_whole(world, sky, metres):
    whole = render(world, sky, -3001, 5003, 90, metres).pixels
    for y, x, size in ((0, 0, 33), (37, 12, 45), (61, 65, 21)):
        crop = render(world, sky, -3001 + y, 5003 + x, size, metres).pixels
        inner = slice(1, -1)  # clouds' slopes are one-sided at an edge
        np.testing.assert_allclose(crop[inner, inner], whole[y : y + size, x : x + size][inner, inner], atol=4e-3)


def boxed(pixels):
    height, width, _ = pixels.shape
    return pixels.reshape(height // 2, 2, width // 2, 2, 3).mean((1, 3))


# Root mean square difference of colours in [0, 1]: a third more than was measured over the three scales when the worlds
# were made (0.042, 0.065, 0.037, 0.099; the last is steep ice under a low sun, whose shadows move most).
ZOOM_RMS = {ISLES.seed: 0.056, DUNES.seed: 0.086, CONES.seed: 0.050, ICE.seed: 0.132}


@pytest.mark.parametrize("metres", [8, 128, 1024])
@pytest.mark.parametrize(("world", "sky"), CASES)
def test_a_closer_view_averages_to_the_wider_one(world, sky, metres):
    wide = render(world, sky, 900, -411, 48, metres).pixels
    close = render(world, sky, 1800, -822, 96, metres / 2).pixels
    assert np.sqrt(np.mean((boxed(close) - wide) ** 2)) < ZOOM_RMS[world.seed]
    elsewhere = render(world, sky, 9000, -4110, 48, metres).pixels
    if wide.std() > 0.08:  # a place is more like itself than like another
        assert np.mean((boxed(close) - wide) ** 2) < 0.5 * np.mean((elsewhere - wide) ** 2)


def test_a_coast_stays_where_it_is_when_looked_at_closely():
    wide = heights.land(ISLES, Span(700, 700, 748, 748), 9)[heights.HEIGHT]
    close = heights.land(ISLES, Span(2800, 2800, 2992, 2992), 7)[heights.HEIGHT].reshape(48, 4, 48, 4).mean((1, 3))
    assert 0.1 < (wide > 0).mean() < 0.9
    assert ((wide > 0) == (close > 0)).mean() > 0.93
    assert np.corrcoef(wide.ravel(), close.ravel())[0, 1] > 0.98


def test_heights_are_a_fractal_with_the_roughness_of_their_world():
    """Differences over d grow about as d^H, over five octaves, for two roughnesses in order."""
    exponents = []
    for roughness in (0.6, 0.95):
        world = World(3, extent_km=500, relief_m=800, rise_m=3000, roughness=roughness, gullies=0, ridges=0, rivers=0)
        h = heights.land(world, Span(0, 0, 256, 256), 8)[heights.HEIGHT]
        steps = np.array([2, 4, 8, 16, 32])
        structure = [np.sqrt(np.mean((h[d:] - h[:-d]) ** 2)) for d in steps]
        exponents.append(np.polyfit(np.log(steps), np.log(structure), 1)[0])
    assert exponents[0] == pytest.approx(0.6, abs=0.15)
    assert exponents[1] > exponents[0] + 0.15


def test_volcanoes_have_cones_over_the_sea_and_craters():
    plain = replace(CONES, volcanoes=0.0)
    span = Span(0, 0, 300, 300)
    added = heights.land(CONES, span, 9)[heights.HEIGHT] - heights.land(plain, span, 9)[heights.HEIGHT]
    assert added.max() > 1000
    assert (added > 300).mean() < 0.5
    y, x = np.unravel_index(np.argmax(heights.land(CONES, span, 9)[heights.HEIGHT]), span.shape)
    around = heights.land(CONES, Span(4 * y - 60, 4 * x - 60, 4 * y + 60, 4 * x + 60), 7)[heights.HEIGHT]
    assert around.max() > 1000


def test_coverage_of_a_strip_is_its_area():
    distances = np.linspace(-6, 6, 4001, dtype=np.float32)
    for width in (0.2, 1.0, 3.7):
        assert water.coverage(distances, width).mean() * 12 == pytest.approx(width, rel=2e-3)
        assert water.coverage(np.float32(0) * distances, width).max() == pytest.approx(min(width, 1.0))


def test_ground_colours_are_those_of_the_table_and_between_them_smooth():
    for row, temperature in enumerate(climate.TEMPERATURES):
        for column, moisture in enumerate(climate.MOISTURES):
            got = climate.vegetation(np.full((1, 1), temperature), np.full((1, 1), moisture))
            np.testing.assert_allclose(got[:, 0, 0], climate.GROUND[row, column], atol=1e-6)
    ramp = climate.vegetation(np.linspace(-20, 35, 400)[None], np.linspace(0, 1, 400)[None])
    assert np.abs(np.diff(ramp, axis=2)).max() < 0.01


def test_snow_lies_where_it_is_cold_and_ice_on_cold_seas():
    views = {t: render(replace(ISLES, temperature=t, farms=0), Sky(), 100, 100, 96, 1024) for t in (-20, 15)}
    assert views[-20].shares["ice"] > 0.3 > 0.01 > views[15].shares["ice"]
    assert views[-20].pixels.mean() > views[15].pixels.mean() + 0.2


def test_hills_are_bright_towards_the_sun():
    right = np.full((4, 4), 0.2, np.float32)
    east, west = Sky(azimuth=90, elevation=30), Sky(azimuth=270, elevation=30)
    shades = [light.hillshade(0 * right, right, sky, 64).mean() for sky in (east, west)]
    assert shades[0] < 1 - 0.1 < 1 < shades[1]  # it rises to the east, so it faces west
    assert light.hillshade(0 * right, 0 * right, Sky(), 64).mean() == pytest.approx(1, abs=0.02)


def test_night_is_dark_and_towns_shine():
    town = replace(ISLES, rise_m=300, cities=1.0)
    day, night = (render(town, sky, 10, 20, 96, 512).pixels for sky in (Sky(), Sky("night")))
    dark = render(replace(town, cities=0.0), Sky("night"), 10, 20, 96, 512).pixels
    assert night.mean() < 0.5 * day.mean()
    assert night.max() > dark.max() + 0.2
    assert np.median(night) == pytest.approx(np.median(dark), abs=0.05)


def test_clouds_cover_what_they_are_asked_to():
    views = [[render(ISLES, Sky(clouds=c, seed=s), 0, 0, 64, 2048) for s in range(5)] for c in (0.0, 0.4, 0.8)]
    covers = [np.mean([view.shares["cloud"] for view in row]) for row in views]
    assert covers[0] == 0
    assert 0.1 < covers[1] < 0.4 < covers[2] < 0.85
    assert np.mean([v.pixels.mean() for v in views[2]]) > np.mean([v.pixels.mean() for v in views[0]]) + 0.1


def test_a_scale_that_is_no_power_of_two_is_refused():
    for metres in (3, 0.5, 0, -2):
        with pytest.raises(BadRequest, match="metres_per_px is"):
            render(ISLES, Sky(), 0, 0, 8, metres)


def test_training_never_draws_what_is_held_out():
    rng = np.random.default_rng(8)
    scenes = [draw.draw_scene(rng) for _ in range(3000)]
    assert not any(draw.is_held_out(scene.concepts) for scene in scenes)
    singles = set().union(*(scene.concepts for scene in scenes))
    for pair in draw.HELD_OUT:
        assert pair <= singles  # each half is learnt on its own
    assert {s.terrain for s in scenes} == set(draw.TERRAINS)
    assert {s.climate for s in scenes} == set(draw.CLIMATES)


def test_pictures_are_numbered():
    first, again = draw_picture(5, 7, 40), draw_picture(5, 7, 40)
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert first.captions == again.captions
    assert first.pixels.shape == (40, 40, 3) and first.pixels.dtype == np.uint8


def test_captions_say_what_was_drawn_and_nothing_else():
    """Words that only one concept has must be absent unless that concept was drawn, and are often there if it was."""
    rng = np.random.default_rng(2)
    shares = {"sea": 0.3, "river": 0.0, "cloud": 0.5}
    telling = {"dunes": "dunes", "fjords": "fjord", "delta": "delta", "volcanoes": "volcan", "reefs": "reef"}
    telling |= {"ice": "polar", "desert": "sahara", "savanna": "savanna", "rainforest": "jungle", "steppe": "prairie"}
    telling |= {"night": "night", "dawn": "dawn", "dusk": "dusk", "day": "noon"}
    said = dict.fromkeys(telling, 0)
    for _ in range(3000):
        scene = draw.draw_scene(rng)
        text = captions.caption(rng, scene, shares, 2048.0)
        assert text == text.strip() and "  " not in text
        for concept, word in telling.items():
            assert word not in text or concept in scene.concepts, (word, text, scene)
            said[concept] += word in text
    assert min(said.values()) >= 5, said


def test_scale_words_follow_the_scale():
    assert captions.scale_words(2) != captions.scale_words(8) != captions.scale_words(64) != captions.scale_words(2048)
    words = [captions.scale_words(s) for s in draw.SCALES_M]
    assert [w for w, _ in itertools.groupby(words)] == [w for _, w in captions.SCALE]
    assert [captions.cloud_word(share) for share in (0, 0.1, 0.7)] == ["clear", "scattered", "cloudy"]


def test_pictures_have_the_spectrum_of_pictures():
    """Power falls with frequency, about as 1 / f^2, as in photographs; no lattice sticks out of it."""
    slopes = []
    for index in range(12):
        grey = draw_picture(21, index, 128).pixels.mean(2) / 255
        if grey.std() < 0.02:
            continue
        power = np.abs(np.fft.fft2((grey - grey.mean()) * np.hanning(128)[:, None] * np.hanning(128))) ** 2
        radius = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128), indexing="ij"))
        bands = 2.0 ** np.arange(-6, -1)
        levels = [np.log2(power[(radius >= b) & (radius < 2 * b)].mean()) for b in bands]
        slopes.append(np.polyfit(np.log2(bands), levels, 1)[0])
    assert len(slopes) >= 6
    assert -4 < np.median(slopes) < -1
