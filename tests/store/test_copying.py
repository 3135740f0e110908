"""A .zarr into one .tif: as if it had been written at once; resumable; what is damaged is not copied."""

import json

import numpy as np
import pytest

from cli.runner import run
from store.pictures import fill, picture, read_level, reference_pyramid
from widefield.errors import StoreError
from widefield.provenance.verify import verify
from widefield.store import StoreSpec, create_or_resume, open_store
from widefield.store.copying import copy_picture
from widefield.store.tiff import TiffStore

WIDTH, HEIGHT, TILE = 701, 437, 64


def made(path, codec="auto"):
    spec = StoreSpec(
        WIDTH, HEIGHT, "5eed", codec=codec, tile_px=TILE, shard_px=128, metadata={"bundle": "c0ffee", "seed": "4"}
    )
    with create_or_resume(path, spec) as store:
        fill(store, picture(WIDTH, HEIGHT))
    return path


@pytest.mark.parametrize("codec", ["jpeg", "deflate"])
def test_the_file_is_that_of_a_run_that_writes_it_at_once(tmp_path, codec):
    source, direct = made(tmp_path / "sea.zarr"), made(tmp_path / "direct.tif", codec)
    copied = copy_picture(source, tmp_path / "sea.tif", codec=codec, threads=3)
    assert copied.checked and copied.found == 0
    with open_store(tmp_path / "sea.tif") as ours, open_store(direct) as wanted:
        assert ours.spec == wanted.spec and ours.complete()
        for level, it in enumerate(ours.levels):
            for row, column in np.ndindex(it.rows, it.columns):
                assert ours.read_encoded(level, row, column) == wanted.read_encoded(level, row, column)
    manifests = [(tmp_path / f"{name}.tif.provenance" / "manifest.json").read_bytes() for name in ("sea", "direct")]
    assert manifests[0] == manifests[1] and verify(tmp_path / "sea.tif").good


def test_stopped_it_goes_on(tmp_path, monkeypatch):
    source, out = made(tmp_path / "sea.zarr"), tmp_path / "sea.tif"
    commit, calls = TiffStore._commit, []

    def failing(self, *args):
        calls.append(args)
        if len(calls) > 31:
            raise OSError(28, "No space left on device")
        commit(self, *args)

    monkeypatch.setattr(TiffStore, "_commit", failing)
    with pytest.raises(StoreError, match="no space left"):
        copy_picture(source, out, threads=2)
    monkeypatch.undo()
    copied = copy_picture(source, out, codec="auto", threads=2)
    assert copied.found == 31 and copied.made + copied.found == sum(
        level.rows * level.columns for level in open_store(out).levels
    )
    assert verify(out).good


def test_a_tile_that_is_not_as_it_was_made_is_not_copied(tmp_path):
    source = made(tmp_path / "sea.zarr")
    shard = source / "0" / "c" / "0" / "1" / "2"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=r"tile 2,4 of level 0 in .* is not as it was made"):
        copy_picture(source, tmp_path / "sea.tif")


def test_what_is_not_finished_or_not_lossless_is_refused(tmp_path):
    spec = StoreSpec(WIDTH, HEIGHT, "5eed", codec="auto", tile_px=TILE)
    with create_or_resume(tmp_path / "half.zarr", spec) as store:
        fill(store, picture(WIDTH, HEIGHT), count=3)
    with pytest.raises(StoreError, match=r"half\.zarr lacks 10[0-9] tiles"):
        copy_picture(tmp_path / "half.zarr", tmp_path / "sea.tif")
    with pytest.raises(StoreError, match="jpeg tiles; wanted lossless"):
        copy_picture(made(tmp_path / "lossy.tif"), tmp_path / "sea.tif")
    with pytest.raises(StoreError, match=r"wanted a \.tif"):
        copy_picture(made(tmp_path / "sea.zarr"), tmp_path / "sea.png")


def test_the_command(tmp_path, capsys):
    source, out = made(tmp_path / "sea.zarr"), tmp_path / "sea.tif"
    answer = run(capsys, "finalize", source, "-o", out, "--codec", "lossless", "--json")
    assert answer.json()["codec"] == "deflate" and json.loads(answer.out)["checked"]
    with open_store(out) as store:
        for level, want in enumerate(reference_pyramid(picture(WIDTH, HEIGHT), len(store.levels))):
            np.testing.assert_array_equal(read_level(store, level), want)
    assert "found from before" in run(capsys, "finalize", source, "-o", out, "--codec", "lossless").out
    assert "does not exist" in run(capsys, "finalize", tmp_path / "no.zarr", "-o", out).fault()
