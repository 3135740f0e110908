"""Sixty-four viewers at once: nobody meets an error but 503 where too much is asked, and nothing is made twice."""

import pytest

from serve.painted import gallery
from serve.pictures import stored
from serve.servers import running
from widefield.serve.desk import SERVER_NBYTES
from widefield_bench.common import Watched
from widefield_bench.servers import started
from widefield_bench.serving import CASES, bench_serving
from widefield_bench.viewers import metric, pan

MIB = 1 << 20
VIEWERS = 64
BUDGET = 448 * MIB


def test_over_a_stored_picture(tmp_path, capsys):
    path, _ = stored(tmp_path / "coast.tif", 5000, 3801, "jpeg")
    with started(path, cache=tmp_path) as server:
        with Watched(server.process.pid) as memory:
            load = pan(server.url, server.picture, viewers=VIEWERS, steps=6)
        assert metric(server.url, "widefield_tile_seconds_count") == load.statuses[200]
        assert metric(server.url, "widefield_tiles_queued") == metric(server.url, "widefield_tiles_flying") == 0
    assert set(load.statuses) == {200} and not load.differing, load
    assert memory.grown_nbytes < SERVER_NBYTES, f"{memory.grown_nbytes / MIB:.0f} MiB"
    with capsys.disabled():
        print(f"\nstored, {VIEWERS} viewers: {load}, at most {memory.grown_nbytes / MIB:.0f} MiB more")


def test_over_one_that_a_model_draws(drawing_bundle, tmp_path, capsys):
    """A tiny one: what counts here is that its memory is what was planned, under overload too, and no tile made twice,
    nor a second time for those who look again."""
    args = ("the sea", "--bundle", drawing_bundle, "--size", "4096x4096", "--engine", "ort", "--workers", 1)
    with started(*args, "--memory", f"{BUDGET}B", "--queue", 4, cache=tmp_path / "cache") as server:
        with Watched(server.process.pid) as memory:
            first, again = (pan(server.url, server.picture, viewers=VIEWERS, steps=steps) for steps in (1, 2))
        begun, dropped = (metric(server.url, f"widefield_tiles_{what}_total") for what in ("begun", "dropped"))
    for load in (first, again):
        assert set(load.statuses) <= {200, 503} and not load.differing and not load.untold, load
    assert first.statuses[503] and first.tiles <= again.tiles
    assert begun - dropped == len(first.tiles | again.tiles), "a tile was made twice"
    assert all(again.digests[tile] == first.digests[tile] for tile in first.tiles & again.tiles)
    assert memory.grown_nbytes < BUDGET, f"{memory.grown_nbytes / MIB:.0f} of {BUDGET / MIB:.0f} MiB"
    with capsys.disabled():
        print(
            f"\ndrawn by a tiny model, {VIEWERS} viewers: {first}; again: {again}; at most "
            f"{memory.grown_nbytes / MIB:.0f} of {BUDGET / MIB:.0f} MiB more"
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
@pytest.mark.parametrize("what", CASES)
def test_over_large_pictures_with_the_model(what, tmp_path, capsys):
    """A stored picture of a gigapixel, and one that the embedded checkpoint draws, within what the plan said: the bench
    raises for an answer that is another, other bytes of a tile, a tile made twice, and for memory."""
    row = bench_serving(CASES[what], tmp_path)
    assert row["viewers"] == VIEWERS and row["tiles"] > 0
    assert set(row["statuses"]) <= ({"200"} if what == "stored" else {"200", "503"}), row
    assert row["grown_mib"] <= row["budget_mib"] == (SERVER_NBYTES // MIB if what == "stored" else 1536), row
    with capsys.disabled():
        print(f"\n{row}")
