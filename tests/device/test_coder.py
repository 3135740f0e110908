"""Tiles through a GPU that computes on the host and writes down what it is told: the pixels, and who waits for whom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from device.fakes import FakeGpu, FakeOps, Late
from families import ArraySource, half_dark
from widefield import coder_engines
from widefield.bundle import Bundle, open_bundle
from widefield.coder import TileCoder
from widefield.device.arena import Arena
from widefield.device.coder import DeviceCoder
from widefield.device.slots import SLOTS
from widefield.engine import Engine, EngineOptions, open_engine
from widefield.errors import OverBudget
from widefield.geometry import Region
from widefield.model import EMBEDDED
from widefield.render import Grid, batches, decode_region
from widefield.summary import Summary
from widefield.sweep import SweepOptions, measure

ORT = EngineOptions("ort")
HEIGHT, WIDTH, TILE = 60, 75, (8, 11)


class FakeEngine(Engine):
    """ONNX Runtime that is asked as an engine on a GPU is."""

    name = "fake"

    def __init__(self, inner: Engine, gpu: FakeGpu, spoil: dict[str, int]) -> None:
        self.inner, self.gpu, self.spoil = inner, gpu, spoil

    def enqueue(self, stream, feeds, into):
        self.inner.run({n: np.array(x) for n, x in feeds.items()}, {n: np.asarray(x) for n, x in into.items()})
        self.gpu.log.append(("enqueue", stream))
        self.spoil["calls"] += 1
        if self.spoil["calls"] == self.spoil["at"]:
            next(iter(into.values()))[0, 0, 0] = np.inf

    def run(self, feeds, into):
        self.inner.run(feeds, into)

    def close(self):
        self.inner.close()


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(EMBEDDED)


@pytest.fixture(scope="module")
def source(bundle) -> ArraySource:
    return ArraySource(half_dark(bundle.decoder.input_channels, HEIGHT, WIDTH))


@pytest.fixture(scope="module")
def summary(bundle, source, tmp_path_factory) -> Summary:
    options = SweepOptions(4, 1 << 28, Path(tmp_path_factory.mktemp("summary")), ORT)
    return measure(bundle, bundle.decoder, source, "sampled", options, cells=8, keys=64)


@pytest.fixture
def make(bundle, source, summary, monkeypatch):
    """A DeviceCoder on a fake GPU; `spoil` is the call whose result has an infinity."""
    made = []

    def build(spoil: int = 0, batch: int = 2) -> tuple[DeviceCoder, FakeGpu]:
        gpu, spoiled = FakeGpu(), {"calls": 0, "at": spoil}
        monkeypatch.setattr(
            coder_engines, "open_engine", lambda *given: FakeEngine(open_engine(*given), gpu, spoiled)
        )  # fmt: skip
        options = EngineOptions("ort")
        coder = DeviceCoder(bundle, bundle.decoder, source, summary, TILE, batch, options, interior_from=1)
        made.append(coder.on(gpu, FakeOps(gpu)))
        return coder, gpu

    yield build
    for coder in made:
        coder.close()


@pytest.fixture(scope="module")
def truth(bundle, source, summary) -> np.ndarray:
    coder = TileCoder(bundle, bundle.decoder, source, summary, TILE, 2, ORT, interior_from=1)
    found = decode_region(coder, grid(bundle), Region(0, 0, HEIGHT * 8, WIDTH * 8))
    coder.close()
    return found


def grid(bundle: Bundle) -> Grid:
    return Grid(HEIGHT, WIDTH, bundle.decoder.output_scale, TILE, 512)


def unlike(a: np.ndarray, b: np.ndarray) -> tuple[int, float]:
    difference = np.abs(a.astype(int) - b.astype(int))
    return int(difference.max()), float((difference > 0).any(-1).mean())


def test_the_picture_is_the_one_that_the_cpu_makes(bundle, make, truth):
    coder, _ = make()
    step, share = unlike(decode_region(coder, grid(bundle), Region(0, 0, HEIGHT * 8, WIDTH * 8)), truth)
    assert step <= 1 and share <= 1e-4 and coder.redone == 0


@pytest.mark.parametrize("spoil", [1, 2, 6])
def test_a_batch_that_overflows_is_made_again_and_nothing_else(bundle, make, truth, spoil):
    coder, _ = make(spoil)
    step, share = unlike(decode_region(coder, grid(bundle), Region(0, 0, HEIGHT * 8, WIDTH * 8)), truth)
    assert step <= 1 and share <= 1e-4 and coder.redone == 1


def test_half_size_pixels_come_with_the_others(bundle, make):
    coder, _ = make()
    tiles = list(batches(coder, list(grid(bundle).tiles(next(grid(bundle).blocks())))))
    for _, _, made in coder.stream(tiles[:3], grid(bundle).kept):
        for tile in made:
            if hasattr(tile, "half"):
                wide = tile.pixels.astype(int)
                boxes = wide[0::2, 0::2] + wide[1::2, 0::2] + wide[0::2, 1::2] + wide[1::2, 1::2]
                np.testing.assert_array_equal(tile.half, (boxes + 2) >> 2)


def run_log(bundle: Bundle, make, leave_after: int | None = None) -> tuple[DeviceCoder, list[tuple]]:
    """What happened while six plain tiles went through, memory aside; `leave_after`: first somebody took so many."""
    coder, gpu = make()
    tiles = batches(coder, list(grid(bundle).tiles(next(grid(bundle).blocks()))))
    plain = [tiles for tiles in tiles if coder.kind(tiles[0]) != "certified"][:6]
    gpu.log.clear()
    if leave_after is not None:
        for _, _ in zip(range(leave_after), coder.stream(plain, grid(bundle).kept), strict=False):
            pass
    for _ in coder.stream(plain, grid(bundle).kept):
        gpu.log.append(("handed on",))
    return coder, [entry for entry in gpu.log if entry[0] != "empty"]


@pytest.mark.parametrize("leave_after", [None, 1, 2])
def test_every_stream_waits_for_what_it_reads_and_writes(bundle, make, leave_after):
    """No entry may touch a slot that anything queued before still uses, also after somebody left half-way."""
    _, log = run_log(bundle, make, leave_after)
    replay = Late()
    stages: list[dict[str, int]] = []  # of every tile: its last upload, computing and download
    for at, entry in enumerate(log):
        before = replay.step(at, entry)
        if before is None:
            continue
        if entry[0] == "upload" and (not stages or "compute" in stages[-1]):
            stages.append({})
            for earlier in [s for n, s in enumerate(stages[:-1]) if same_slot(n, len(stages) - 1, leave_after)]:
                assert set(earlier.values()) <= replay.host, "pinned memory and latents are still in use"
        kind = entry[0] if entry[0] in ("upload", "download") else "compute"
        if kind == "compute":
            assert stages[-1]["upload"] in before, "latents are not there yet"
        if kind == "download":
            assert stages[-1]["compute"] in before, "pixels are not there yet"
        stages[-1][kind] = at
    assert len(stages) == 6 + (0 if leave_after is None else leave_after + 1)


def same_slot(one: int, other: int, leave_after: int | None) -> bool:
    """Whether two tiles, by their numbers in a log, share a slot. A second run begins with the first slot again."""
    begun = 0 if leave_after is None else leave_after + 1
    one, other = (n - begun if n >= begun else n for n in (one, other))
    return one % SLOTS == other % SLOTS


def test_the_next_tile_is_queued_before_the_last_is_waited_for(bundle, make):
    _coder, log = run_log(bundle, make)
    order = [entry[0] for entry in log if entry[0] in ("clear", "handed on")]
    assert order == ["clear", *["clear", "handed on"] * 5, "handed on"]


def test_streams_have_their_own_work(bundle, make):
    coder, log = run_log(bundle, make)
    by_stream = {
        stream: {entry[0] for entry in log if entry[-1] is stream} - {"record"}
        for stream in (coder.up, coder.compute, coder.down)
    }
    assert by_stream == {
        coder.up: {"upload"}, coder.down: {"download"},
        coder.compute: {"enqueue", "keys", "attend", "infinite", "levels", "clear"},
    }  # fmt: skip


def test_memory_is_taken_once(bundle, make):
    coder, gpu = make()
    tiles = list(batches(coder, list(grid(bundle).tiles(next(grid(bundle).blocks())))))
    list(coder.stream(tiles[:4], grid(bundle).kept))
    taken = gpu.nbytes
    list(coder.stream(tiles[:4], grid(bundle).kept))
    assert gpu.nbytes == taken


def test_engines_share_a_block_that_grows_to_the_largest():
    gpu = FakeGpu()
    arena = Arena(gpu, 5000)
    for nbytes in (300, 4000, 20):
        arena.ask(nbytes)
    address, nbytes = arena.block()
    assert (nbytes, arena.block()) == (4000, (address, 4000)) and gpu.nbytes == 4000
    with pytest.raises(OverBudget, match="an engine needs 1 MiB to compute in"):
        arena.ask(5001)
