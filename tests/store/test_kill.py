"""kill -9 at any moment, run again: the same pixels on every level, and what was done is not done again."""

import shutil
import signal
import time

import numpy as np
import pytest

from store.pictures import digests, picture, read_level, reference_pyramid
from store.victims import victim  # noqa: F401  a fixture
from widefield.store import open_store
from widefield.store.sidecar import sidecar_path

SUFFIXES = [".tif", ".zarr", ".dzi", ".png"]


def levels_of(path) -> list[np.ndarray]:
    with open_store(path) as store:
        assert store.complete()
        return [read_level(store, level) for level in range(len(store.levels))]


def done_tiles(path) -> set:
    """The level-0 tiles that the dead left behind; none where they died before there was a picture."""
    if not path.exists() and not (sidecar_path(path) / "marks").exists():
        return set()
    with open_store(path) as store:
        return {(int(row), int(column)) for row, column in np.argwhere(store.done(0))}


@pytest.fixture(scope="module", params=SUFFIXES)
def undisturbed(request, victim, tmp_path_factory):  # noqa: F811
    """A picture that nobody interrupted: its path, its pixels, and how many system calls it took."""
    path = tmp_path_factory.mktemp("undisturbed") / f"out{request.param}"
    calls = victim.run(path)["calls"]
    assert calls >= 100
    return path, levels_of(path), calls


def finish_and_compare(victim, path, undisturbed, **order):  # noqa: F811
    before = done_tiles(path)
    answer = victim.run(path, **order)
    assert not answer["killed"] and answer["error"] is None
    assert not before & {tuple(tile) for tile in answer["written"]}, "a tile that was done is written again"
    whole, pixels, _ = undisturbed
    for level, (got, want) in enumerate(zip(levels_of(path), pixels, strict=True)):
        np.testing.assert_array_equal(got, want, err_msg=f"level {level}")
    assert not sidecar_path(path).exists()
    if path.suffix in (".zarr", ".png"):
        assert digests(path) == digests(whole)


@pytest.mark.parametrize("seed", range(24))
def test_killed_up_to_three_times_at_seeded_system_calls(undisturbed, victim, tmp_path, seed):  # noqa: F811
    rng = np.random.default_rng(seed)
    path, calls = tmp_path / undisturbed[0].name, undisturbed[2]
    for _ in range(int(rng.integers(1, 4))):
        before = done_tiles(path)
        answer = victim.run(path, die_at=int(rng.integers(1, calls)), seed=seed % 3)
        assert answer["error"] is None
        assert not before & {tuple(tile) for tile in answer["written"]}, "a tile that was done is written again"
        assert {tuple(tile) for tile in answer["written"]} <= done_tiles(path), "a tile that was committed is lost"
    finish_and_compare(victim, path, undisturbed, seed=seed % 3)


def test_killed_at_each_of_the_last_calls(undisturbed, victim, tmp_path):  # noqa: F811
    """The end is where most things happen: ancestors, the last shards, sealing, the sidecar's removal."""
    path = tmp_path / undisturbed[0].name
    last = victim.run(path)["calls"]
    for die_at in range(last - 12, last + 12):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        victim.run(path, die_at=die_at)
        finish_and_compare(victim, path, undisturbed)


@pytest.mark.parametrize("moment", range(5))
def test_killed_from_outside_at_any_time(undisturbed, victim, tmp_path, moment):  # noqa: F811
    path = tmp_path / undisturbed[0].name
    start = time.perf_counter()
    victim.run(tmp_path / f"timing{path.suffix}")
    seconds = time.perf_counter() - start
    victim.run(path, delay=seconds * (moment + 0.5) / 5)
    finish_and_compare(victim, path, undisturbed)


@pytest.mark.parametrize("moment", range(4))
def test_interrupted_by_control_c_and_run_again(undisturbed, victim, tmp_path, moment):  # noqa: F811
    path = tmp_path / undisturbed[0].name
    answer = victim.run(path, width=900, delay=0.02 + 0.05 * moment, signal=signal.SIGINT)
    assert not answer["killed"] and answer["error"] in ("interrupted", None)
    assert victim.run(path, width=900)["error"] is None
    with open_store(path) as store:
        want = reference_pyramid(picture(900, 200), len(store.levels))
        if store.spec.codec != "jpeg":
            for level, pixels in enumerate(want):
                np.testing.assert_array_equal(read_level(store, level), pixels)
