"""Every tile hashed as it is written, in any order, killed or not; a changed byte is found, and the rest verifies."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from cli.runner import run
from store.pictures import digests, fill, picture
from store.victims import victim  # noqa: F401  a fixture
from widefield.errors import BadRequest, StoreError
from widefield.geometry import Region
from widefield.provenance.verify import verify
from widefield.store import Store, StoreSpec, create_or_resume, open_store
from widefield.store.hashes import provenance_path

SUFFIXES = [".tif", ".zarr", ".dzi", ".png"]
WIDTH, HEIGHT, TILE = 701, 437, 64


def spec(**changes) -> StoreSpec:
    given = {"width_px": WIDTH, "height_px": HEIGHT, "fingerprint": "5eed", "codec": "auto", "tile_px": TILE}
    return StoreSpec(**{**given, "metadata": {"bundle": "c0ffee"}, "shard_px": 256, **changes})


def made(path: Path, **changes) -> Path:
    with create_or_resume(path, spec(**changes)) as store:
        fill(store, picture(WIDTH, HEIGHT), threads=2)
    return path


def place(store: Store, level: int, row: int, column: int) -> tuple[Path, int]:
    """(file, position) of the middle byte of a tile."""
    data = store.read_encoded(level, row, column)
    files = [store.path] if store.path.is_file() and store.path.suffix != ".dzi" else []
    files += [p for p in store.path.parent.rglob("*") if p.is_file() and "provenance" not in str(p)]
    for file in files:
        at = file.read_bytes().find(data)
        if at >= 0:
            return file, at + len(data) // 2
    raise AssertionError("no file holds the tile")


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 0x40
    file.write_bytes(data)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_hashes_do_not_depend_on_order_threads_or_stops(tmp_path, suffix):
    paths = [tmp_path / name / f"out{suffix}" for name in ("straight", "shuffled")]
    for path in paths:
        path.parent.mkdir()
    made(paths[0])
    for stop in (5, 31):
        with create_or_resume(paths[1], spec()) as store:
            fill(store, picture(WIDTH, HEIGHT), order=np.random.default_rng(stop).permutation, count=stop, threads=2)
    made(paths[1])
    straight, shuffled = (digests(provenance_path(path)) for path in paths)
    assert straight == shuffled and set(straight) == {"manifest.json", "tiles.sha256"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_hashes_are_the_same_after_kill_9(tmp_path, suffix, victim):  # noqa: F811
    whole = tmp_path / "whole" / f"out{suffix}"
    whole.parent.mkdir()
    calls = victim.run(whole)["calls"]
    wanted, dice = digests(provenance_path(whole)), random.Random(suffix)
    for attempt in range(6):
        path = tmp_path / str(attempt) / f"out{suffix}"
        path.parent.mkdir()
        assert victim.run(path, die_at=dice.randrange(5, calls))["killed"]
        assert not victim.run(path)["killed"]
        assert digests(provenance_path(path)) == wanted
        assert verify(path).good


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_picture_as_it_was_made_verifies(tmp_path, suffix):
    path = made(tmp_path / f"out{suffix}")
    found = verify(path)
    with open_store(path) as store:
        assert found.tiles == sum(level.rows * level.columns for level in store.levels)
    assert found.good and found.as_dict()["good"] is True


@pytest.mark.parametrize("suffix", [".tif", ".zarr", ".dzi"])
def test_a_changed_byte_is_found_and_the_rest_verifies(tmp_path, suffix):
    path = made(tmp_path / f"out{suffix}")
    for level, row, column in ((0, 3, 7), (1, 2, 0), (2, 0, 1)):
        with open_store(path) as store:
            file, at = place(store, level, row, column)
        flip(file, at)
        found = verify(path)
        assert (found.wrong, found.changed, found.levels) == (1, [(level, row, column)], [])
        flip(file, at)
    flip(*place(open_store(path), 0, 3, 7))
    assert not verify(path, Region(TILE * 4 - 1, TILE * 7, TILE * 4 + 1, TILE * 7 + 1)).good
    elsewhere = verify(path, Region(TILE * 4, 0, HEIGHT, WIDTH))
    assert elsewhere.good and elsewhere.tiles < verify(path).tiles


def test_a_changed_byte_of_a_png_is_found(tmp_path):
    path = made(tmp_path / "out.png")
    flip(path, path.stat().st_size // 2)
    found = verify(path)
    assert not found.good and found.wrong == found.tiles  # one stream: nothing of it can be read


def test_changed_hashes_are_found_row_by_row(tmp_path):
    path = made(tmp_path / "out.tif")
    hashes = provenance_path(path) / "tiles.sha256"
    columns = -(-WIDTH // TILE)
    flip(hashes, 64 + 32 * (2 * columns + 5) + 9)  # of tile 2,5 at level 0
    found = verify(path)
    assert found.changed == [(0, 2, column) for column in range(columns)] and not found.levels
    assert verify(path, Region(0, 0, 2 * TILE, WIDTH)).good
    flip(hashes, hashes.stat().st_size - 1)  # of the last level's only row
    assert verify(path).levels == [4]


def test_a_changed_manifest_is_found(tmp_path):
    path = made(tmp_path / "out.tif")
    manifest = provenance_path(path) / "manifest.json"
    document = json.loads(manifest.read_bytes())
    document["levels"][1]["sha256"] = "00" * 32
    manifest.write_text(json.dumps(document))
    with pytest.raises(StoreError, match=r"manifest\.json was changed"):
        verify(path)
    made(tmp_path / "other.tif", metadata={"bundle": "dec0de"})
    manifest.write_bytes((provenance_path(tmp_path / "other.tif") / "manifest.json").read_bytes())
    with pytest.raises(StoreError, match="is of another picture"):
        verify(path)


def test_what_is_not_finished_or_not_ours_is_said(tmp_path):
    path = tmp_path / "out.tif"
    with create_or_resume(path, spec()) as store:
        fill(store, picture(WIDTH, HEIGHT), count=3)
    with pytest.raises(StoreError, match="wanted the manifest of a finished picture"):
        verify(path)
    made(path)
    with pytest.raises(BadRequest, match="leave the picture"):
        verify(path, Region(0, 0, HEIGHT + 1, 5))
    foreign = tmp_path / "new.tif"
    provenance_path(foreign).mkdir()
    (provenance_path(foreign) / "tiles.sha256").write_bytes(b"my thesis")
    with pytest.raises(StoreError, match="not written by widefield"):
        made(foreign)
    assert (provenance_path(foreign) / "tiles.sha256").read_bytes() == b"my thesis"


def test_hashes_that_were_lost_or_never_made_are_made_from_the_store(tmp_path):
    path = made(tmp_path / "out.tif")
    wanted = digests(provenance_path(path))
    for lost in ("tiles.sha256", "manifest.json"):
        (provenance_path(path) / lost).unlink()
        made(path)
        assert digests(provenance_path(path)) == wanted


def test_another_picture_takes_the_place_of_its_hashes_too(tmp_path):
    path = made(tmp_path / "out.tif")
    (provenance_path(path) / "notes.txt").write_text("mine")
    with create_or_resume(path, spec(fingerprint="0dd"), overwrite=True) as store:
        assert [p.name for p in provenance_path(path).iterdir()] == ["notes.txt"]
        fill(store, picture(WIDTH, HEIGHT, seed=3))
    assert verify(path).good


def test_the_command_exits_1_and_names_the_tile(tmp_path, capsys):
    path = made(tmp_path / "out.tif")
    assert run(capsys, "verify", path).out.endswith("looked at, 0 not as made\n")
    with open_store(path) as store:
        flip(*place(store, 0, 3, 7))
    answer = run(capsys, "verify", path)
    assert answer.status == 1 and answer.out.splitlines()[0] == "changed: level 0, row 3, column 7"
    answer = run(capsys, "verify", path, "--json")
    assert answer.status == 1 and json.loads(answer.out)["changed"] == [{"level": 0, "row": 3, "column": 7}]
    assert run(capsys, "verify", path, "--region", f"0:{3 * TILE},0:{WIDTH}").status == 0
    assert "does not exist" in run(capsys, "verify", tmp_path / "nothing.tif").fault()
