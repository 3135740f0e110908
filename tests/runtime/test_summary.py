"""A saved summary: the same bytes each time, readable by safetensors, and files of before still load."""

import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from widefield.errors import BadRequest
from widefield.summary import FORMAT, Summary, load_summary

ABOUT = {"method": "sampled", "component": "decoder", "bundle": "b0", "latents": "1a", "cells": "64", "seed": "0"}
DECODER = SimpleNamespace(name="decoder")


@pytest.fixture
def summary() -> Summary:
    rng = np.random.default_rng(1)
    arrays = {f"site.{n}.{part}": rng.normal(size=n + 3).astype(np.float32) for n in range(6) for part in ("a", "b")}
    moments = {f"site.{n}.mean": rng.normal(size=4) for n in range(6)}
    return Summary(arrays, moments, ABOUT)


def assert_alike(found: Summary, wanted: Summary) -> None:
    assert found.about == wanted.about
    for theirs, mine in ((found.arrays, wanted.arrays), (found.moments, wanted.moments)):
        assert theirs.keys() == mine.keys()
        for name in mine:
            np.testing.assert_array_equal(theirs[name], mine[name], strict=True)


def test_one_summary_is_the_same_bytes_each_time(summary, tmp_path):
    hashes = set()
    for number in range(24):  # a map of two entries would be in both orders, but for one time in 2 ** 23
        order = list(ABOUT)[number % len(ABOUT) :] + list(ABOUT)[: number % len(ABOUT)]
        arrays = dict(sorted(summary.arrays.items(), reverse=bool(number % 2)))
        again = Summary(arrays, summary.moments, {name: ABOUT[name] for name in order})
        again.save(tmp_path / f"{number}.safetensors")
        hashes.add(hashlib.sha256((tmp_path / f"{number}.safetensors").read_bytes()).hexdigest())
    assert len(hashes) == 1
    with safe_open(tmp_path / "0.safetensors", framework="numpy") as file:
        assert set(file.keys()) == {f"array/{n}" for n in summary.arrays} | {f"moment/{n}" for n in summary.moments}
        assert {name: json.loads(said) for name, said in file.metadata().items()} == {FORMAT: ABOUT}
    assert_alike(load_summary(tmp_path / "0.safetensors", DECODER, "b0"), summary)


def saved(path, summary: Summary, metadata: dict[str, str] | None):
    tensors = {f"array/{n}": a for n, a in summary.arrays.items()}
    save_file(tensors | {f"moment/{n}": m for n, m in summary.moments.items()}, path, metadata=metadata)
    return path


def test_a_file_of_before_still_loads(summary, tmp_path):
    path = saved(tmp_path / "before.safetensors", summary, {"format": FORMAT, "about": json.dumps(ABOUT)})
    assert_alike(load_summary(path, DECODER, "b0"), summary)


@pytest.mark.parametrize("metadata", [
    None, {"format": "pt"}, {"about": json.dumps(ABOUT)}, {"format": "widefield-summary-0", "about": json.dumps(ABOUT)},
    {FORMAT: "7"},
])  # fmt: skip
def test_what_is_no_summary_is_said(summary, tmp_path, metadata):
    with pytest.raises(BadRequest, match=f"is not a {FORMAT}"):
        load_summary(saved(tmp_path / "other.safetensors", summary, metadata), DECODER, "b0")


def test_one_of_another_bundle_or_component_is_said(summary, tmp_path):
    summary.save(tmp_path / "mine.safetensors")
    for name, digest in (("decoder", "b1"), ("encoder", "b0")):
        with pytest.raises(BadRequest, match="measured with another bundle"):
            load_summary(tmp_path / "mine.safetensors", SimpleNamespace(name=name), digest)
