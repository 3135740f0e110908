"""generate and upscale from the command line: parts of wholes, nothing lost, and what users get wrong."""

from __future__ import annotations

import random
import signal

import numpy as np
import pytest

import widefield
from cli.runner import run
from cli.test_resume import assert_same, killed_until_done, pixels, removed
from widefield.geometry import Region

PROMPT = "the sea at dawn"
SIZE = 1047, 803  # width, height: 262 x 201 latents, two shards
DRAWN = ("--seed", 5, "--steps", 3, "--guidance", 2, "--strength", 0.5, "--engine", "ort", "--codec", "lossless")
KEYWORDS = {"seed": 5, "steps": 3, "guidance": 2.0, "strength": 0.5, "engine": "ort"}


def command(bundle, out, *more):
    return "generate", PROMPT, "--size", f"{SIZE[0]}x{SIZE[1]}", "-o", out, "--bundle", bundle, *DRAWN, *more


@pytest.fixture(scope="module")
def whole(drawing_bundle, children, tmp_path_factory):
    """(the picture's path, its latents', seconds) of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    latents = ("--save-latents", folder / "sea.npy")
    answer = children.run(*command(drawing_bundle, folder / "sea.tif", *latents, "--json"))
    assert answer.json()["size_px"] == list(SIZE)
    assert sorted(p.name for p in folder.iterdir()) == [
        "sea.npy", "sea.summary.safetensors", "sea.tif", "sea.tif.provenance",
    ]  # fmt: skip
    return folder / "sea.tif", folder / "sea.npy", answer.seconds


def assert_alike(found: np.ndarray, wanted: np.ndarray) -> None:
    """At most one step apart, at one value in ten thousand: pictures that were computed in other tiles."""
    apart = np.abs(found.astype(int) - wanted)
    assert apart.max() <= 1 and (apart > 0).mean() <= 1e-4


@pytest.mark.parametrize("region", [(0, 0, 200, 300), (511, 700, 800, 1047), (300, 250, 301, 251)])
def test_a_region_is_that_of_the_whole(region, drawing_bundle, whole, tmp_path, capsys):
    y0, x0, y1, x1 = region
    where = ("--region", f"{y0}:{y1},{x0}:{x1}")
    about = run(capsys, *command(drawing_bundle, tmp_path / "part.png", *where, "--json")).json()
    assert about["region"] == list(region) and about["units"] > 0
    found = pixels(tmp_path / "part.png")[0]
    assert_alike(found, pixels(whole[0])[0][y0:y1, x0:x1])


def test_what_is_read_lazily_is_what_is_saved(drawing_bundle, whole):
    full = pixels(whole[0])[0]
    assert full.shape == (SIZE[1], SIZE[0], 3) and full.std() > 5
    with widefield.open(drawing_bundle).generate(PROMPT, size=SIZE, **KEYWORDS) as picture:
        assert picture.shape == full.shape
        assert_alike(picture[670:803, 840:1040], full[670:803, 840:1040])
        assert_alike(picture[-1:, ::7], full[-1:, ::7])
        level = picture.level(1)
        assert level.shape[0] < 400 and np.asarray(level[:50, :50]).shape == (50, 50, 3)


def test_saved_latents_are_the_pictures(drawing_bundle, whole):
    latents = np.load(whole[1])
    assert latents.shape == (4, 201, 262) and np.isfinite(latents).all()
    with widefield.open(drawing_bundle).generate(PROMPT, size=SIZE, **KEYWORDS) as picture:
        part = picture.cascade().latents[-1].read(Region(175, 224, 201, 262))
    np.testing.assert_allclose(part, latents[:, 175:201, 224:262], atol=1e-3)


def kill(form, times, bundle, whole, children, tmp_path):
    dice, kills = random.Random(f"{form} {times}"), 0
    path = tmp_path / f"sea{form}"
    wanted = pixels(whole[0])
    while kills < times:
        kills += killed_until_done(command(bundle, path, "--quiet"), path, children, whole[2], dice)
        assert_same(path, wanted)
        assert not (tmp_path / "sea.levels").exists()
        removed(path)


def test_kill_9_at_random_moments(drawing_bundle, whole, children, tmp_path):
    kill(".tif", 3, drawing_bundle, whole, children, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("form", [".tif", ".zarr"])
def test_kill_9_at_many_random_moments(form, drawing_bundle, whole, children, tmp_path):
    kill(form, 20, drawing_bundle, whole, children, tmp_path)


def test_ctrl_c_keeps_the_levels_that_are_done(drawing_bundle, whole, children, tmp_path):
    path, levels = tmp_path / "sea.tif", tmp_path / "sea.levels"
    answer = children.run(
        *command(drawing_bundle, path, "--quiet"), signal=signal.SIGINT, there=levels / "level-02.zarr/c/0/0/0"
    )
    assert answer.status == 130 and "the same command goes on with it" in answer.err
    made = {p: p.stat().st_mtime_ns for p in levels.glob("*/c/0/*/*")}
    assert len(made) >= 3
    refused = children.run(*command(drawing_bundle, path, "--quiet", "--seed", 6)).fault()
    assert "another" in refused
    assert {p: p.stat().st_mtime_ns for p in levels.glob("*/c/0/*/*")} == made
    assert children.run(*command(drawing_bundle, path, "--quiet")).status == 0
    assert_same(path, pixels(whole[0]))


def test_levels_of_another_picture_are_replaced_when_asked(drawing_bundle, whole, children, tmp_path):
    path, levels = tmp_path / "sea.tif", tmp_path / "sea.levels"
    other = command(drawing_bundle, path, "--quiet", "--seed", 6)
    assert children.run(*other, signal=signal.SIGKILL, there=levels / "level-01.zarr/c/0/0/0").status != 0
    assert "pass --overwrite" in children.run(*command(drawing_bundle, path, "--quiet")).fault()
    assert children.run(*command(drawing_bundle, path, "--quiet", "--overwrite")).status == 0
    assert_same(path, pixels(whole[0]))


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(drawing_bundle, whole, children, tmp_path):
    path = tmp_path / "sea.tif"
    said = children.run(*command(drawing_bundle, path, "--quiet"), limit=300_000).fault()
    assert "would pass the largest size" in said and "sea.levels" in said
    assert children.run(*command(drawing_bundle, path, "--quiet")).status == 0
    assert_same(path, pixels(whole[0]))


def upscaled(tmp_path, height=90, width=130):
    """A photograph of sorts: smooth on the left, busy on the right."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    grey = 120 + 90 * np.sin(7 * y + 4 * x) + rng.normal(0, 20, (height, width)) * x
    pixels_ = np.stack([grey, 0.8 * grey, 255 - grey], -1).clip(0, 255).astype(np.uint8)
    np.save(tmp_path / "photo.npy", pixels_)
    return tmp_path / "photo.npy", pixels_


@pytest.mark.parametrize(("scale", "size"), [("4", (360, 520)), ("2.5", (225, 325)), ("3", (270, 390))])
def test_upscale_is_the_photograph_with_detail(scale, size, drawing_bundle, tmp_path, capsys):
    photo, ground = upscaled(tmp_path)
    args = ("upscale", photo, "--scale", scale, "--bundle", drawing_bundle, *DRAWN)
    about = run(capsys, *args, "-o", tmp_path / "large.tif", "--json").json()
    assert about["size_px"] == [size[1], size[0]]
    large = pixels(tmp_path / "large.tif")[0]
    assert large.shape == (*size, 3)
    y0, x0 = size[0] - 60, size[1] - 75
    part = ("--region", f"{y0}:{size[0]},{x0}:{size[1]}")
    assert run(capsys, *args, *part, "-o", tmp_path / "part.png").status == 0
    assert_alike(pixels(tmp_path / "part.png")[0], large[y0:, x0:])
    assert run(capsys, *args, "--level", 0, "-o", tmp_path / "ground.png").status == 0
    np.testing.assert_array_equal(pixels(tmp_path / "ground.png")[0], ground)


@pytest.mark.parametrize("size", ["1x1", "700x1", "65x97"])
def test_any_size(size, drawing_bundle, tmp_path, capsys):
    args = ("generate", "", "--size", size, "--bundle", drawing_bundle, *DRAWN, "-o", tmp_path / "thin.tif")
    assert run(capsys, *args, "--json").json()["size_px"] == [int(n) for n in size.split("x")]
    assert pixels(tmp_path / "thin.tif")[0].shape == (*map(int, size.split("x")[::-1]), 3)


WRONG = {
    "strength": (("--strength", "1.5"), "wanted each from 0"),
    "strengths": (("--strength", "0.5,-1"), "wanted each from 0"),
    "no number": (("--strength", "much"), "no list of numbers"),
    "steps": (("--steps", "0"), "wanted 1 or more"),
    "growth": (("--growth", "1"), "wanted 2 to"),
    "sampler": (("--sampler", "magic"), "no sampler 'magic'"),
    "window": (("--window", "17x24"), "no denoiser for windows of 17x24"),
    "region outside": (("--region", "0:100,0:5000"), "leave level"),
    "no region": (("--region", "0:100"), "is no region"),
    "empty region": (("--region", "5:5,0:9"), "is no region"),
    "level": (("--level", "9"), "levels 0 to"),
    "too large": (("--size", "200000000x16"), "larger than any format"),
    "latents of a part": (("--level", "0", "--save-latents", "x.npy"), "leave one of them out"),
    "memory": (("--memory", "20MiB"), "raise --memory to"),
    "seed": (("--seed", str(1 << 64)), "outside 0 to"),
    "suffix": (("-o", "x.jpg"), "no form is called"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_one_line(what, drawing_bundle, tmp_path, capsys):
    more, said = WRONG[what]
    assert said in run(capsys, *command(drawing_bundle, tmp_path / "sea.tif", "--quiet", *more)).fault()
    assert not (tmp_path / "sea.levels").exists()


def test_a_bundle_without_a_denoiser_says_so(bundle, tmp_path, capsys):
    answer = run(capsys, "generate", "x", "--size", "99x99", "-o", tmp_path / "x.png", "--bundle", bundle)
    assert "has no denoiser" in answer.fault()
    np.save(tmp_path / "p.npy", np.zeros((9, 9, 3), np.uint8))
    answer = run(capsys, "upscale", tmp_path / "p.npy", "--scale", 2, "-o", tmp_path / "x.png", "--bundle", bundle)
    assert "has no denoiser" in answer.fault()


@pytest.mark.parametrize(("scale", "said"), [("1", "wanted above 1"), ("x", "is no scale"), ("-2", "wanted above 1")])
def test_scales_that_are_none(scale, said, drawing_bundle, tmp_path, capsys):
    photo, _ = upscaled(tmp_path)
    answer = run(capsys, "upscale", photo, "--scale", scale, "-o", tmp_path / "x.png", "--bundle", drawing_bundle)
    assert said in answer.fault()


def test_a_prompt_that_is_too_long_is_told(drawing_bundle, tmp_path, capsys):
    long = "the sea at dawn " * 40
    args = ("generate", long, "--size", "65x97", "-o", tmp_path / "x.tif", "--bundle", drawing_bundle, *DRAWN)
    answer = run(capsys, *args)
    assert answer.status == 0 and "note: the prompt is longer than the model reads" in answer.err


def test_a_read_can_be_followed_and_cancelled(drawing_bundle):
    from widefield.cone import cone
    from widefield.errors import Cancelled

    heard: list[int] = []
    with widefield.open(drawing_bundle).generate(PROMPT, size=SIZE, **KEYWORDS) as picture:
        region = Region(300, 300, 500, 500)
        with pytest.raises(Cancelled):
            picture.read(region, progress=heard.append, cancelled=lambda: len(heard) > 20)
        assert 20 < len(heard) < 40
        before = len(heard)
        picture.read(region, progress=heard.append)
        total = cone(picture.cascade(), region).units
        assert total / 2 < len(heard) <= total + 40
        assert len(heard) - before < total - 10  # what was kept of the first read is not made again


def test_plan_tells_what_drawing_takes(drawing_bundle, capsys):
    about = run(capsys, "plan", drawing_bundle, "--size", "524288x524288", "--memory", "8GiB", "--json").json()
    drawn = about["drawing"]
    assert [level["cells"] for level in drawn["levels"]][-2:] == [[65536, 65536], [131072, 131072]]
    assert drawn["levels"][-1]["latents_nbytes"] == 4 * 4 * 131072**2
    assert drawn["peak_host_nbytes"] <= drawn["memory_nbytes"] == 8 << 30
    assert drawn["viewport"]["window_steps"] <= 3 * drawn["viewport"]["least_window_steps"]
    told = run(capsys, "plan", drawing_bundle, "--size", "2000x1000")
    assert told.status == 0 and "steps of a window" in told.out and "cold viewport of 1024 x 1024" in told.out
    need = run(capsys, "plan", drawing_bundle, "--size", "2000x1000", "--json").json()["peak_host_nbytes"]
    tight = run(capsys, "plan", drawing_bundle, "--size", "2000x1000", "--memory", f"{need >> 20}MiB")
    assert tight.status == 0 and ("drawing takes" in tight.out or "raise --memory to" in tight.out)


def test_a_budget_that_is_too_small_names_one_that_gives_the_same(drawing_bundle, whole, tmp_path, capsys):
    said = run(capsys, *command(drawing_bundle, tmp_path / "sea.tif", "--quiet", "--memory", "64MiB")).fault()
    need = said.rpartition("--memory to ")[2].strip()
    assert said.count(need) == 1 and not (tmp_path / "sea.tif").exists()
    assert run(capsys, *command(drawing_bundle, tmp_path / "sea.tif", "--quiet", "--memory", need)).status == 0
    assert_alike(pixels(tmp_path / "sea.tif")[0], pixels(whole[0])[0])


@pytest.mark.parametrize("more", [("--workers", 1, "--tile", "24x40"), ("--memory", "5GiB")])
def test_the_same_seed_is_the_same_picture(more, drawing_bundle, whole, tmp_path, capsys):
    assert run(capsys, *command(drawing_bundle, tmp_path / "sea.tif", "--quiet", *more)).status == 0
    assert_alike(pixels(tmp_path / "sea.tif")[0], pixels(whole[0])[0])


def test_openvino_draws_the_same(drawing_bundle, whole, tmp_path, capsys):
    """To the rounding of its sums, which a denoiser amplifies."""
    args = [arg if arg != "ort" else "openvino" for arg in command(drawing_bundle, tmp_path / "sea.tif", "--quiet")]
    assert run(capsys, *args).status == 0
    apart = np.abs(pixels(tmp_path / "sea.tif")[0].astype(int) - pixels(whole[0])[0])
    assert apart.mean() < 0.05 and np.percentile(apart, 99.9) <= 1
