"""Sixty-four viewers at once: nobody meets an error but 503 where too much is asked, and nothing is made twice."""

import numpy as np
import pytest

from serve.loads import metric, pan
from serve.painted import gallery
from serve.pictures import scene, stored
from serve.servers import running, started
from widefield.serve.desk import SERVER_NBYTES
from widefield.store import StoreSpec, create_or_resume

MIB = 1 << 20
VIEWERS = 64


def test_over_a_stored_picture(tmp_path, capsys):
    path, _ = stored(tmp_path / "coast.tif", 5000, 3801, "jpeg")
    with started(path, cache=tmp_path) as server:
        idle = metric(server.url, "process_resident_memory_bytes")
        load = pan(server.url, server.picture, viewers=VIEWERS, steps=1)
        grown = metric(server.url, "process_resident_memory_bytes") - idle
        assert metric(server.url, "widefield_tile_seconds_count") == load.statuses[200]
        assert metric(server.url, "widefield_tiles_queued") == metric(server.url, "widefield_tiles_flying") == 0
    assert set(load.statuses) == {200} and not load.differing, load
    assert grown < SERVER_NBYTES, f"{grown / MIB:.0f} MiB"
    with capsys.disabled():
        print(f"\nstored, {VIEWERS} viewers: {load}, {grown / MIB:.0f} MiB more")


def test_over_a_drawn_picture(tmp_path, capsys):
    shown = gallery(tmp_path, size=(524_288, 524_288), queue=1024)
    drawn = shown.first.drawn
    drawn.seconds = 0.005
    with running(shown) as url:
        load = pan(url, shown.first.id, viewers=VIEWERS, steps=1)
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
    assert set(load.statuses) == {200, 503} and not load.differing, load
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
    with started(path, "--queue", "512", cache=tmp_path) as server:
        idle = metric(server.url, "process_resident_memory_bytes")
        load = pan(server.url, server.picture, viewers=VIEWERS, steps=40)
        grown = metric(server.url, "process_resident_memory_bytes") - idle
    assert set(load.statuses) == {200} and not load.differing and grown < SERVER_NBYTES, (load, grown / MIB)
    with capsys.disabled():
        print(f"\nstored, 32,768 px, {VIEWERS} viewers: {load}, {grown / MIB:.0f} MiB more")
    budget = 1536 * MIB
    args = ("islands", "--size", "524288x524288", "--memory", f"{budget}B", "--queue", "8")
    with started(*args, cache=tmp_path / "cache") as server:
        idle = metric(server.url, "process_resident_memory_bytes")
        load = pan(server.url, server.picture, viewers=VIEWERS, steps=2)
        grown = metric(server.url, "process_resident_memory_bytes") - idle
        begun, dropped = (metric(server.url, f"widefield_tiles_{what}_total") for what in ("begun", "dropped"))
    assert set(load.statuses) <= {200, 503} and not load.differing, load
    assert begun - dropped == len(load.tiles), "a tile was made twice"
    assert grown < budget, f"{grown / MIB:.0f} of {budget / MIB:.0f} MiB"
    with capsys.disabled():
        print(f"\ndrawn by the model, {VIEWERS} viewers: {load}, {grown / MIB:.0f} MiB of {budget / MIB:.0f} more")
