"""Full disks, size limits, read-only places: one clear line, and a picture that can be gone on with."""

import errno
import os
import resource
import subprocess
from pathlib import Path

import numpy as np
import pytest

from store.pictures import fill, picture, read_level, reference_pyramid, tile_of
from store.victims import victim  # noqa: F401  a fixture
from widefield.errors import StoreError
from widefield.store import PyramidWriter, StoreSpec, create_or_resume, open_store
from widefield.store.canvases import Canvases
from widefield.store.faults import reason

SUFFIXES = [".tif", ".zarr", ".dzi", ".png"]


def check(path: Path, image: np.ndarray) -> None:
    with open_store(path) as store:
        for level, want in enumerate(reference_pyramid(image, len(store.levels))):
            np.testing.assert_array_equal(read_level(store, level), want)


@pytest.mark.parametrize("limit", [20_000, 90_000])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_size_limit_is_one_line_and_resumable(victim, tmp_path, suffix, limit):  # noqa: F811
    path = tmp_path / f"out{suffix}"
    answer = victim.run(path, limit=limit, codec="lossless")
    if answer["error"] is not None:  # a .dzi has no file that large
        assert "largest size allowed" in answer["error"] and "\n" not in answer["error"]
        assert "it resumes" in answer["error"]
    assert answer["error"] is not None or suffix == ".dzi" or limit > 20_000
    assert victim.run(path, codec="lossless")["error"] is None
    check(path, picture(300, 200))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB; skips where mounting is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_is_one_line_and_resumable_after_making_space(small_disk, suffix):
    path, image = small_disk / f"out{suffix}", picture(900, 700)
    spec = StoreSpec(900, 700, "5eed", codec="lossless", tile_px=64)
    full = pytest.raises(StoreError, match=r"no space left on the disk \(0 MiB free\).*it resumes")
    with full, create_or_resume(path, spec) as store:
        fill(store, image, threads=2)
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    with create_or_resume(path, spec) as store:
        done = int(store.done(0).sum())
        assert len(fill(store, image)) == store.done(0).size - done
    assert done > 0
    check(path, image)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_read_only_file_system_is_one_line(small_disk, suffix):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StoreError, match="the file system is read-only"):
        create_or_resume(small_disk / f"out{suffix}", StoreSpec(9, 9, "5eed", codec="auto"))


@pytest.mark.skipif(os.getuid() == 0, reason="permissions do not bind root")
def test_a_folder_without_write_permission_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="permission denied"):
        create_or_resume(tmp_path / "out.tif", StoreSpec(9, 9, "5eed"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EACCES, errno.EROFS, errno.ENOENT, errno.EIO])
def test_every_reason_says_what_was_found_wanted_and_to_do(number):
    text = reason(OSError(number, os.strerror(number)), Path("/tmp/out.tif"))
    assert text.startswith("/tmp/out.tif: ") and text.count("; ") >= 2 and "\n" not in text


def test_an_error_in_a_worker_comes_up_at_the_next_put_and_does_not_block(tmp_path, monkeypatch):
    store = create_or_resume(tmp_path / "out.tif", StoreSpec(900, 700, "5eed", tile_px=64))
    monkeypatch.setattr(store, "_commit", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    writer, image = PyramidWriter(store, threads=2, queue_tiles=2), picture(900, 700)
    with pytest.raises(StoreError, match="no space left"):
        for row, column in writer.missing():
            writer.put(row, column, tile_of(image, 64, row, column))
    with pytest.raises(StoreError, match="no space left"):
        writer.close()
    writer.abort()
    store.close()


def test_a_bug_in_a_worker_keeps_its_type(tmp_path, monkeypatch):
    store = create_or_resume(tmp_path / "out.tif", StoreSpec(64, 64, "5eed", tile_px=64))
    monkeypatch.setattr(store, "encode", lambda *_: 1 // 0)
    writer = PyramidWriter(store)
    writer.put(0, 0, picture(64, 64))
    with pytest.raises(ZeroDivisionError):
        writer.close()
    store.close()


def test_closing_with_tiles_missing_says_how_many(tmp_path):
    image = picture(200, 100)
    with create_or_resume(tmp_path / "out.tif", StoreSpec(200, 100, "5eed", tile_px=64)) as store:
        writer = PyramidWriter(store)
        writer.put(0, 0, image[:64, :64])
        with pytest.raises(StoreError, match="lacks 7 of 8 tiles"):
            writer.close()
    with create_or_resume(tmp_path / "out.tif", StoreSpec(200, 100, "5eed", tile_px=64)) as store:
        assert len(fill(store, image)) == 7


def test_a_writer_as_a_context_aborts_when_an_error_passes(tmp_path):
    image = picture(200, 100)
    with create_or_resume(tmp_path / "out.tif", StoreSpec(200, 100, "5eed", tile_px=64)) as store:
        with pytest.raises(KeyboardInterrupt), PyramidWriter(store) as writer:
            writer.put(0, 0, image[:64, :64])
            raise KeyboardInterrupt
        assert store.done(0).sum() == 1


def test_canvases_take_the_order_of_tiles_on_disk_not_in_memory(tmp_path):
    """A worst order keeps every parent open at once; the file grows, the process does not."""
    canvases = Canvases(tmp_path / "canvases", 512)
    quarter = np.zeros((256, 256, 3), np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for column in range(100):
        canvases.place((1, 0, column), 0, 256, 256)[:] = quarter
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 << 10
    canvases.close()


def test_closing_a_store_stops_a_writer_that_nobody_closed(tmp_path):
    image = picture(900, 700)
    store = create_or_resume(tmp_path / "out.tif", StoreSpec(900, 700, "5eed", codec="deflate", tile_px=64))
    writer = PyramidWriter(store, threads=2)
    for row, column in list(writer.missing())[:20]:
        writer.put(row, column, tile_of(image, 64, row, column))
    store.close()
    with pytest.raises(ValueError, match="closed"):
        writer.put(9, 9, tile_of(image, 64, 9, 9))
    with create_or_resume(tmp_path / "out.tif", StoreSpec(900, 700, "5eed", codec="deflate", tile_px=64)) as again:
        assert again.done(0).sum() == 20
        fill(again, image)
    check(tmp_path / "out.tif", image)
    with pytest.raises(StoreError, match="is finished"):
        again.write(0, 0, 0, image[:64, :64])


def test_a_tile_put_twice_is_taken_once(tmp_path):
    image = picture(200, 100)
    with create_or_resume(tmp_path / "out.tif", StoreSpec(200, 100, "5eed", codec="deflate", tile_px=64)) as store:
        with PyramidWriter(store, threads=4) as writer:
            for row, column in writer.missing():
                for _ in range(3):
                    writer.put(row, column, tile_of(image, 64, row, column))
        size = (tmp_path / "out.tif").stat().st_size
    with create_or_resume(tmp_path / "two.tif", StoreSpec(200, 100, "5eed", codec="deflate", tile_px=64)) as store:
        fill(store, image)
    assert size == (tmp_path / "two.tif").stat().st_size
