"""Tiles on disk: within the limit, the least recently used first to go, found again, and no half of one."""

import errno
import os
import threading

import pytest

from widefield.errors import StoreError
from widefield.serve import tile_cache
from widefield.serve.tile_cache import TileCache

PICTURE = "0123456789abcdef"
BLOCK = 4096


def tile(n: int, nbytes: int = 3000) -> bytes:
    return b"\xff\xd8" + bytes([n]) * (nbytes - 4) + b"\xff\xd9"


def on_disk(folder) -> int:
    return sum(1 for _ in folder.glob("*/*.jpeg"))


def test_the_least_recently_used_go_first(tmp_path):
    cache = TileCache(tmp_path / "tiles", 3 * BLOCK)
    for n in range(3):
        cache.put(PICTURE, 0, 0, n, tile(n))
    assert cache.get(PICTURE, 0, 0, 0) == tile(0)
    cache.put(PICTURE, 0, 0, 3, tile(3))
    assert cache.get(PICTURE, 0, 0, 1) is None
    assert [cache.get(PICTURE, 0, 0, n) for n in (0, 2, 3)] == [tile(0), tile(2), tile(3)]
    assert cache.nbytes == 3 * BLOCK and on_disk(tmp_path / "tiles") == 3


def test_what_a_process_left_is_found_by_the_next_within_its_limit(tmp_path):
    first = TileCache(tmp_path, 10 * BLOCK)
    for n in range(8):
        first.put(PICTURE, 1, n, 0, tile(n))
        os.utime(tmp_path / PICTURE / f"1-{n}-0.jpeg", ns=(n, n))
    (tmp_path / "3.99.part").write_bytes(b"half")
    second = TileCache(tmp_path, 5 * BLOCK)
    assert [second.get(PICTURE, 1, n, 0) for n in range(8)] == [None] * 3 + [tile(n) for n in range(3, 8)]
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("left", [b"", tile(1)[:-1], b"\0" * 3000])
def test_half_a_tile_is_none(left, tmp_path):
    cache = TileCache(tmp_path, 10 * BLOCK)
    cache.put(PICTURE, 0, 0, 0, tile(1))
    (tmp_path / PICTURE / "0-0-0.jpeg").write_bytes(left)
    assert cache.get(PICTURE, 0, 0, 0) is None and cache.nbytes == 0


def test_one_that_somebody_deleted_is_none(tmp_path):
    cache = TileCache(tmp_path, 10 * BLOCK)
    cache.put(PICTURE, 0, 0, 0, tile(1))
    (tmp_path / PICTURE / "0-0-0.jpeg").unlink()
    assert cache.get(PICTURE, 0, 0, 0) is None
    cache.put(PICTURE, 0, 0, 0, tile(1))
    assert cache.get(PICTURE, 0, 0, 0) == tile(1)


def test_a_full_disk_is_counted_and_harms_nothing(tmp_path, monkeypatch):
    cache = TileCache(tmp_path, 10 * BLOCK)

    def full(path, data):
        path.write_bytes(data[:10])
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(tile_cache, "_write", full)
    cache.put(PICTURE, 0, 0, 0, tile(1))
    assert cache.refused == 1 and cache.get(PICTURE, 0, 0, 0) is None
    assert not list(tmp_path.rglob("*.part"))


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="no tiles of widefield"):
        TileCache(tmp_path, 10 * BLOCK)
    assert (tmp_path / "thesis.txt").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_no_limit_is_no_cache(tmp_path):
    cache = TileCache(tmp_path / "none", 0)
    cache.put(PICTURE, 0, 0, 0, tile(1))
    assert cache.get(PICTURE, 0, 0, 0) is None and not (tmp_path / "none").exists()


def test_many_threads_keep_the_count(tmp_path):
    cache = TileCache(tmp_path, 20 * BLOCK)

    def work(which):
        for n in range(60):
            cache.put(PICTURE, which, 0, n % 17, tile(n))
            cache.get(PICTURE, (which + 1) % 4, 0, n % 17)

    threads = [threading.Thread(target=work, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.nbytes == len(cache) * BLOCK <= 20 * BLOCK
    assert on_disk(tmp_path) == len(cache)
