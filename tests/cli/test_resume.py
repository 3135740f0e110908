"""Nothing lost: Ctrl-C, kill -9 and full disks, then the same command, and the picture of an undisturbed run."""

import random
import shutil
import signal

import numpy as np
import pytest

from widefield.store import open_store

FORMS = [".tif", ".zarr"]
TILES = 12  # of the picture of `larger`, at level 0
LOSSLESS = (
    "--engine",
    "ort",
    "--summary",
    "sampled",
    "--cells",
    "16",
    "--tile",
    "64",
    "--codec",
    "lossless",
    "--quiet",
)


def pixels(path) -> list[np.ndarray]:
    """Every level of a finished picture."""
    with open_store(path) as store:
        assert store.complete()
        levels = []
        for level, it in enumerate(store.levels):
            rows = [[store.read(level, r, c) for c in range(it.columns)] for r in range(it.rows)]
            levels.append(np.concatenate([np.concatenate(row, 1) for row in rows]))
    return levels


def assert_same(path, wanted: list[np.ndarray]) -> None:
    """Of every level that both forms have: a .png has one, a .dzi goes on to a single pixel."""
    levels = pixels(path)
    assert path.suffix not in FORMS or len(levels) == len(wanted)
    for found, want in zip(levels, wanted, strict=False):
        np.testing.assert_array_equal(found, want)
    assert not path.with_name(path.name + ".partial").exists()


def removed(path) -> None:
    """The picture and what is beside it."""
    for part in path.parent.iterdir():
        shutil.rmtree(part) if part.is_dir() else part.unlink()


@pytest.fixture(scope="module")
def undisturbed(bundle, larger, children, tmp_path_factory):
    """(all levels' pixels, seconds it took) of a run that nobody disturbed; its form does not matter."""
    path = tmp_path_factory.mktemp("undisturbed") / "picture.tif"
    answer = children.run("decode", bundle, larger, "-o", path, *LOSSLESS, "--json")
    assert answer.json()["store_tiles_made"] == TILES and answer.json()["store_tiles_found"] == 0
    return pixels(path), answer.seconds


def tiles_there(path) -> int:
    with open_store(path) as store:
        return int(store.done(0).sum())


@pytest.mark.parametrize("form", FORMS)
def test_ctrl_c_exits_130_and_the_same_command_goes_on(form, bundle, larger, children, undisturbed, tmp_path):
    path = tmp_path / f"picture{form}"
    command = ("decode", bundle, larger, "-o", path, *LOSSLESS, "--workers", 1, "--json")
    stopped = children.run(*command, signal=signal.SIGINT, once=path)
    assert (stopped.status, stopped.out) == (130, "")
    assert stopped.err.count("\n") <= 2  # click ends the line of the terminal's ^C
    assert f"interrupted; {path} keeps what is done; the same command goes on with it" in stopped.err
    there = tiles_there(path)
    assert 0 < there < TILES
    again = children.run(*command).json()
    assert (again["store_tiles_found"], again["store_tiles_made"]) == (there, TILES - there)
    assert_same(path, undisturbed[0])
    finished = children.run(*command).json()
    assert (finished["store_tiles_found"], finished["store_tiles_made"]) == (TILES, 0)


def test_ctrl_c_while_measuring_or_encoding_leaves_nothing_odd(bundle, larger, children, undisturbed, tmp_path):
    path = tmp_path / "picture.tif"
    command = ("decode", bundle, larger, "-o", path, *LOSSLESS)
    for after in (0.15, 0.3):
        assert children.run(*command, signal=signal.SIGINT, after=after).status == 130
    assert children.run(*command).status == 0
    assert_same(path, undisturbed[0])
    latents = tmp_path / "latents.npy"
    stopped = children.run(
        "encode", bundle, path, "-o", latents, "--tile", 16, "--quiet", signal=signal.SIGINT, after=0.4
    )
    assert stopped.status == 130 and "nothing is left of" in stopped.err
    assert not [p for p in tmp_path.iterdir() if "latents" in p.name]


def killed_until_done(command, path, children, longest: float, dice: random.Random) -> int:
    """Kill runs of the same command at random moments until one is quicker; how many were killed."""
    kills = 0
    while children.run(*command, signal=signal.SIGKILL, after=dice.uniform(0, longest)).status != 0:
        kills += 1
    return kills


def kill(form, times, bundle, larger, children, undisturbed, tmp_path) -> None:
    dice, kills, found = random.Random(f"{form} {times}"), 0, []
    path = tmp_path / f"picture{form}"
    command = ("decode", bundle, larger, "-o", path, *LOSSLESS, "--json")
    while kills < times:
        kills += killed_until_done(command, path, children, undisturbed[1], dice)
        assert_same(path, undisturbed[0])
        removed(path)
    for _ in range(2):  # what was made before a kill is not made again
        children.run(*command, signal=signal.SIGKILL, once=path, after=undisturbed[1] / 10)
        there = tiles_there(path)
        answer = children.run(*command).json()
        found.append((there, answer["store_tiles_found"], answer["store_tiles_made"]))
        assert_same(path, undisturbed[0])
        removed(path)
    assert all(there > 0 and there - 2 <= kept <= there and kept + made == TILES for there, kept, made in found), found


@pytest.mark.parametrize("form", FORMS)
def test_kill_9_at_random_moments(form, bundle, larger, children, undisturbed, tmp_path):
    kill(form, 20, bundle, larger, children, undisturbed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("form", [*FORMS, ".dzi", ".png"])
def test_kill_9_at_many_random_moments(form, bundle, larger, children, undisturbed, tmp_path):
    kill(form, 60, bundle, larger, children, undisturbed, tmp_path)


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(form, bundle, larger, children, undisturbed, tmp_path):
    path = tmp_path / f"picture{form}"
    command = ("decode", bundle, larger, "-o", path, *LOSSLESS)
    found = 0
    for limit in (1, 5_000, 100_000, 3_000_000):  # the record, the summary, a journal, the file of all tiles
        answer = children.run(*command, limit=limit)
        assert answer.status == 1, (limit, answer)
        assert "run the same command again" in answer.fault()
        found = tiles_there(path) if path.exists() else 0
    assert found > 0
    again = children.run(*command, "--json").json()
    assert again["store_tiles_found"] > 0 and again["store_tiles_found"] + again["store_tiles_made"] == TILES
    assert_same(path, undisturbed[0])


def test_a_full_disk_while_encoding_leaves_what_was_there(bundle, larger, children, tmp_path):
    picture = tmp_path / "picture.tif"
    assert children.run("decode", bundle, larger, "-o", picture, *LOSSLESS).status == 0
    for name, limit in (("latents.npy", 10_000), ("latents.zarr", 10_000)):
        command = ("encode", bundle, picture, "-o", tmp_path / name, *LOSSLESS[:8], "--quiet")
        before = sorted(p.name for p in tmp_path.iterdir())
        assert "largest size allowed" in children.run(*command, limit=limit).fault()
        assert sorted(p.name for p in tmp_path.iterdir()) == before
        assert children.run(*command).status == 0
