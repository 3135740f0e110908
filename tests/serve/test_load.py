"""Sixty-four viewers at once: nobody meets an error but 503 where too much is asked, and nothing is made twice."""

import numpy as np
import pytest

from serve.loads import metric, pan
from serve.painted import gallery
from serve.pictures import scene, stored
from serve.servers import Process, running, started
from widefield.serve.desk import SERVER_NBYTES
from widefield.store import StoreSpec, create_or_resume

MIB = 1 << 20
VIEWERS = 64
BUDGET = 448 * MIB


class Watched:
    """A server's memory while viewers are at it: `grown` is the most that it took above what it had idle."""

    def __init__(self, server: Process) -> None:
        self.server = server

    def __enter__(self) -> "Watched":
        self.idle = self.server.resident_nbytes()
        self.server.forget_peak()
        return self

    def __exit__(self, *_: object) -> None:
        self.grown = self.server.resident_nbytes("VmHWM") - self.idle


def test_over_a_stored_picture(tmp_path, capsys):
    path, _ = stored(tmp_path / "coast.tif", 5000, 3801, "jpeg")
    with started(path, cache=tmp_path) as server:
        with Watched(server) as memory:
            load = pan(server.url, server.picture, viewers=VIEWERS, steps=6)
        assert metric(server.url, "widefield_tile_seconds_count") == load.statuses[200]
        assert metric(server.url, "widefield_tiles_queued") == metric(server.url, "widefield_tiles_flying") == 0
    assert set(load.statuses) == {200} and not load.differing, load
    assert memory.grown < SERVER_NBYTES, f"{memory.grown / MIB:.0f} MiB"
    with capsys.disabled():
        print(f"\nstored, {VIEWERS} viewers: {load}, at most {memory.grown / MIB:.0f} MiB more")


def test_over_one_that_a_model_draws(drawing_bundle, tmp_path, capsys):
    """A tiny one: what counts here is that its memory is what was planned, under overload too, and no tile made twice,
    nor a second time for those who look again."""
    args = ("the sea", "--bundle", drawing_bundle, "--size", "4096x4096", "--engine", "ort", "--workers", 1)
    with started(*args, "--memory", f"{BUDGET}B", "--queue", 4, cache=tmp_path / "cache") as server:
        with Watched(server) as memory:
            first, again = (pan(server.url, server.picture, viewers=VIEWERS, steps=steps) for steps in (1, 2))
        begun, dropped = (metric(server.url, f"widefield_tiles_{what}_total") for what in ("begun", "dropped"))
    for load in (first, again):
        assert set(load.statuses) <= {200, 503} and not load.differing and not load.untold, load
    assert first.statuses[503] and first.tiles <= again.tiles
    assert begun - dropped == len(first.tiles | again.tiles), "a tile was made twice"
    assert all(again.bodies[tile] == first.bodies[tile] for tile in first.tiles & again.tiles)
    assert memory.grown < BUDGET, f"{memory.grown / MIB:.0f} of {BUDGET / MIB:.0f} MiB"
    with capsys.disabled():
        print(
            f"\ndrawn by a tiny model, {VIEWERS} viewers: {first}; again: {again}; at most "
            f"{memory.grown / MIB:.0f} of {BUDGET / MIB:.0f} MiB more"
        )


def test_over_a_drawn_picture(tmp_path, capsys):
    shown = gallery(tmp_path, size=(524_288, 524_288), queue=1024)
    drawn = shown.first.drawn
    drawn.seconds = 0.005
    with running(shown) as url:
        load = pan(url, shown.first.id, viewers=VIEWERS, steps=3)
    assert set(load.statuses) == {200} and not load.differing, load
    assert drawn.reads.total() == len(load.tiles) == shown.first.made, "a tile was made twice"
    assert drawn.most_reading <= 2
    with capsys.disabled():
        print(f"\ndrawn by a formula, {VIEWERS} viewers: {load}")


def test_more_than_can_be_drawn_is_503_and_nothing_else(tmp_path):
    shown = gallery(tmp_path, size=(524_288, 524_288), queue=8)
    drawn = shown.first.drawn
    drawn.seconds = 0.1
    with running(shown) as url:
        load = pan(url, shown.first.id, viewers=VIEWERS, steps=2)
        assert metric(url, "widefield_tiles_queued") == metric(url, "widefield_tiles_flying") == 0
    assert set(load.statuses) == {200, 503} and not load.differing and not load.untold, load
    assert drawn.reads.total() == len(load.tiles), "a tile was made twice"


def test_what_is_kept_on_disk_stays_within_its_limit(tmp_path):
    shown = gallery(tmp_path / "tiles", size=(524_288, 524_288), queue=1024, limit_nbytes=1 << 20)
    with running(shown) as url:
        load = pan(url, shown.first.id, viewers=16, steps=2)
    kept = sum(path.stat().st_size for path in (tmp_path / "tiles").rglob("*.jpeg"))
    assert set(load.statuses) == {200} and not load.differing and 0 < kept <= 1 << 20


@pytest.mark.slow
def test_over_large_pictures_with_the_model(tmp_path, capsys):
    """A stored picture of a gigapixel, and one that the embedded checkpoint draws, within what the plan said."""
    path = tmp_path / "large.tif"
    with create_or_resume(path, StoreSpec(32_768, 32_768, "5eed")) as store:
        image = scene(5 * 512, 512)
        tiles = [store.encode(0, 0, 0, image[:, 512 * n : 512 * (n + 1)]) for n in range(5)]
        for level, it in enumerate(store.levels):
            for row, column in np.ndindex(it.rows, it.columns):
                store.commit(level, row, column, tiles[(row + 2 * column + level) % 5])
    with started(path, "--queue", "512", cache=tmp_path) as server, Watched(server) as memory:
        load = pan(server.url, server.picture, viewers=VIEWERS, steps=40)
    assert set(load.statuses) == {200} and not load.differing, load
    assert memory.grown < SERVER_NBYTES, f"{memory.grown / MIB:.0f} MiB"
    with capsys.disabled():
        print(f"\nstored, 32,768 px, {VIEWERS} viewers: {load}, at most {memory.grown / MIB:.0f} MiB more")
    budget = 1536 * MIB
    args = ("islands", "--size", "524288x524288", "--memory", f"{budget}B", "--queue", "8")
    with started(*args, cache=tmp_path / "cache") as server:
        with Watched(server) as memory:
            load = pan(server.url, server.picture, viewers=VIEWERS, steps=2)
        begun, dropped = (metric(server.url, f"widefield_tiles_{what}_total") for what in ("begun", "dropped"))
    assert set(load.statuses) <= {200, 503} and not load.differing and not load.untold, load
    assert begun - dropped == len(load.tiles), "a tile was made twice"
    assert memory.grown < budget, f"{memory.grown / MIB:.0f} of {budget / MIB:.0f} MiB"
    with capsys.disabled():
        grown = f"{memory.grown / MIB:.0f} of {budget / MIB:.0f} MiB"
        print(f"\ndrawn by the model, {VIEWERS} viewers: {load}, at most {grown} more")
