"""Many processes, some killed with -9 at any moment, one picture: every file as one process alone writes it."""

import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import widefield
from cli.runner import run
from store.pictures import digests, picture
from widefield.cluster.join import Run, join
from widefield.errors import StoreError
from widefield.options import run_options
from widefield.provenance.verify import verify
from widefield.store.hashes import provenance_path

COMMON = ("--engine", "ort", "--workers", 1, "--shard", 512, "--quiet")
DECODED = ("--summary", "sampled", "--cells", 16, "--tile", 64, *COMMON)
CLAIMS = ("--cluster", "claims", "--lease", 1)
SUMMARY = "sea.summary.safetensors"
DRAWN = ("the sea", "--size", "600x530", "--seed", 3, *COMMON)


@pytest.fixture(scope="module")
def decoded(drawing_bundle, latents, crew, tmp_path_factory):
    """(the command less its output, what one process made of it)."""
    path = tmp_path_factory.mktemp("alone") / "sea.zarr"
    command = ("decode", drawing_bundle, latents, *DECODED)
    assert crew.run(*command, "-o", path, workers=1).statuses == [0]
    return command, path


@pytest.fixture(scope="module")
def drawn(drawing_bundle, crew, tmp_path_factory):
    path = tmp_path_factory.mktemp("alone") / "sea.zarr"
    command = ("generate", *DRAWN, "--bundle", drawing_bundle)
    assert crew.run(*command, "-o", path, workers=1).statuses == [0]
    return command, path


def assert_as_alone(path: Path, alone: Path) -> None:
    """Picture, hashes, manifest and summary, and nothing beside them."""
    assert digests(path) == digests(alone)
    assert digests(provenance_path(path)) == digests(provenance_path(alone))
    assert digests(path.parent / SUMMARY) == digests(alone.parent / SUMMARY)
    assert sorted(p.name for p in path.parent.iterdir()) == sorted(p.name for p in alone.parent.iterdir())
    assert verify(path).good


def test_three_workers_make_what_one_makes(decoded, crew, tmp_path):
    command, alone = decoded
    told = crew.run(*command, "-o", tmp_path / "sea.zarr", *CLAIMS, workers=3)
    assert (told.statuses, told.err) == ([0, 0, 0], "")
    assert_as_alone(tmp_path / "sea.zarr", alone)


def kill(crew, made, folder: Path, wanted: int, workers: int = 2) -> int:
    """Pictures made while workers are killed, until so many were; how many pictures."""
    (command, alone), killed, pictures, dice = made, 0, 0, random.Random(wanted)
    while killed < wanted:
        path = folder / str(pictures) / "sea.zarr"
        path.parent.mkdir()
        order = {"kills": min(3, wanted - killed), "longest": dice.uniform(0.3, 3), "seed": dice.randrange(1 << 30)}
        told = crew.run(*command, "-o", path, *CLAIMS, workers=workers, **order)
        assert set(told.statuses) <= {0} and told.err == "" and not told.left, told
        assert_as_alone(path, alone)
        shutil.rmtree(path.parent)
        killed, pictures = killed + told.killed, pictures + 1
    return pictures


def test_workers_that_are_killed_lose_nothing(decoded, crew, tmp_path):
    kill(crew, decoded, tmp_path, 4)


def test_workers_that_are_killed_while_they_draw_lose_nothing(drawn, crew, tmp_path):
    kill(crew, drawn, tmp_path, 2)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_killed_workers_lose_nothing(decoded, drawn, crew, tmp_path):
    for name, made, wanted in (("decoded", decoded, 40), ("drawn", drawn, 20)):
        (tmp_path / name).mkdir()
        kill(crew, made, tmp_path / name, wanted, workers=3)


def test_one_that_is_stopped_holds_nobody_and_may_come_back(decoded, crew, tmp_path):
    command, alone = decoded
    path = tmp_path / "sea.zarr"
    told = crew.run(*command, "-o", path, *CLAIMS, workers=2, stop=True, there=f"{path}.cluster")
    assert told.statuses == [0, 0] and not told.left, told.err
    assert_as_alone(path, alone)


def test_who_comes_when_all_is_done_leaves_it_as_it_is(decoded, crew, tmp_path, capsys):
    command, alone = decoded
    path = tmp_path / "sea.zarr"
    assert crew.run(*command, "-o", path, *CLAIMS, workers=1).statuses == [0]
    about = run(capsys, *command, "-o", path, *CLAIMS, "--json").json()
    assert about["tasks_made"] == 0 and about["size_px"] == [1080, 1560]
    assert_as_alone(path, alone)


def test_a_worker_with_another_picture_is_refused(decoded, crew, tmp_path, capsys):
    command, _ = decoded
    path = tmp_path / "sea.zarr"
    assert crew.run(*command, "-o", path, *CLAIMS, workers=1).statuses == [0]
    before = digests(path)
    assert "holds another picture" in run(capsys, *command, "-o", path, *CLAIMS, "--seed", 9).fault()
    assert digests(path) == before


@pytest.mark.parametrize(("out", "more", "said"), [
    ("sea.tif", (), r"\.tif with --cluster; wanted a .zarr"), ("sea.zarr", ("--overwrite",), "--overwrite with"),
])  # fmt: skip
def test_what_many_cannot_do_is_said(decoded, tmp_path, capsys, out, more, said):
    command, _ = decoded
    fault = run(capsys, *command, "-o", tmp_path / out, *CLAIMS, *more).fault()
    assert re.search(said, fault) and not any(tmp_path.iterdir())


def test_an_enlarged_picture_is_drawn_by_many_too(drawing_bundle, tmp_path):
    options = {"engine": "ort", "workers": 1, "seed": 4, "shard_px": 512}
    made = widefield.open(drawing_bundle).upscale(picture(150, 130), 4, **options)
    for name in ("alone", "many"):
        (tmp_path / name).mkdir()
    made.save(tmp_path / "alone" / "sea.zarr")
    joined = join(made, tmp_path / "many" / "sea.zarr", lease_seconds=2, latents=tmp_path / "kept.npy")
    assert joined.as_dict()["shards_made"] == 4 and joined.size_px == (600, 520)
    assert_as_alone(tmp_path / "many" / "sea.zarr", tmp_path / "alone" / "sea.zarr")
    kept = np.load(tmp_path / "kept.npy")
    assert kept.shape == (4, 130, 150) and np.isfinite(kept).all()


def test_a_tile_grid_is_decided_once(drawing_bundle, latents, tmp_path):
    common = {"engine": "ort", "summary": "sampled", "cells": 16, "workers": 1}
    sea = widefield.open(drawing_bundle).decode(latents)
    path = tmp_path / "sea.zarr"
    first = Run(sea, path, run_options({**common, "memory": "512MiB", "tile": (32, 64)}), None)
    second = Run(sea, path, run_options({**common, "memory": "4GiB"}), None)
    assert first.plan.tile == second.plan.tile == (32, 64) and first.board.path == second.board.path
    metadata = json.loads((path / "zarr.json").read_bytes())["attributes"]["widefield"]["metadata"]
    assert metadata["tile"] == "32x64"
    with pytest.raises(StoreError, match="holds another picture"):
        Run(sea, path, run_options({**common, "memory": "4GiB", "tile": (64, 64)}), None)
