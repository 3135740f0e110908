"""The TensorRT engine on a GPU and a TensorRT that are fakes: its results, its order, its memory, its recordings."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from device.fakes import FakeOps, Late
from device.machine import Machine, put_in
from families import ArraySource, half_dark
from widefield.bundle import Bundle, open_bundle
from widefield.coder import TileCoder
from widefield.device.arena import Arena
from widefield.device.coder import DeviceCoder
from widefield.engine import EngineOptions, open_engine, trt
from widefield.errors import WidefieldError
from widefield.geometry import Region
from widefield.model import EMBEDDED
from widefield.render import Grid, batches, decode_region
from widefield.summary import Summary
from widefield.sweep import SweepOptions, measure
from widefield.tiles import input_shapes

HEIGHT, WIDTH, TILE = 43, 58, (8, 11)
ON_GPU = EngineOptions("trt", device="cuda:0")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(EMBEDDED)


@pytest.fixture(scope="module")
def source(bundle) -> ArraySource:
    return ArraySource(half_dark(bundle.decoder.input_channels, HEIGHT, WIDTH))


@pytest.fixture(scope="module")
def summary(bundle, source, tmp_path_factory) -> Summary:
    options = SweepOptions(4, 1 << 28, tmp_path_factory.mktemp("summary"), EngineOptions("ort"))
    return measure(bundle, bundle.decoder, source, "sampled", options, cells=8, keys=64)


@pytest.fixture
def machine(monkeypatch, tmp_path) -> Machine:
    return put_in(monkeypatch, tmp_path)


@pytest.fixture
def coder(bundle, source, summary, machine):
    made = DeviceCoder(bundle, bundle.decoder, source, summary, TILE, 2, ON_GPU, interior_from=1)
    yield made.on(machine.gpu, FakeOps(machine.gpu))
    made.close()


def grid(bundle: Bundle) -> Grid:
    return Grid(HEIGHT, WIDTH, bundle.decoder.output_scale, TILE, 512)


def plain(coder: DeviceCoder, bundle: Bundle, count: int) -> list[list[Region]]:
    tiles = batches(coder, list(grid(bundle).tiles(next(grid(bundle).blocks()))))
    return [some for some in tiles if coder.kind(some[0]) != "certified"][:count]


def test_the_picture_is_the_one_that_the_cpu_makes(bundle, source, summary, coder, machine):
    whole = Region(0, 0, HEIGHT * 8, WIDTH * 8)
    reference = TileCoder(bundle, bundle.decoder, source, summary, TILE, 2, EngineOptions("ort"), interior_from=1)
    wanted = decode_region(reference, grid(bundle), whole)
    reference.close()
    difference = np.abs(decode_region(coder, grid(bundle), whole).astype(int) - wanted.astype(int))
    assert difference.max() <= 1 and (difference > 0).any(-1).mean() <= 1e-4
    kinds = [entry[0] for entry in machine.gpu.log]
    assert 0 < kinds.count("capture") <= 2 * 4, "a recording for each graph and slot"
    assert kinds.count("launch") > kinds.count("capture"), "which are launched again and again"
    assert len(set(machine.trt.built)) == len(machine.trt.built) == len(machine.trt.plans)


@pytest.mark.parametrize("captures", [True, False])
def test_every_stream_waits_for_what_it_reads(bundle, source, summary, monkeypatch, tmp_path, captures):
    """Engines compute on a stream that all of them share: after their tile is there, before its pixels leave."""
    machine = put_in(monkeypatch, tmp_path, captures=captures)
    coder = DeviceCoder(bundle, bundle.decoder, source, summary, TILE, 2, ON_GPU, interior_from=1)
    coder.on(machine.gpu, FakeOps(machine.gpu))
    tiles = plain(coder, bundle, 6)
    list(coder.stream(tiles, grid(bundle).kept))
    machine.gpu.log.clear()
    list(coder.stream(tiles, grid(bundle).kept))
    coder.close()
    late, stage, engines = Late(), {}, 0
    for at, entry in enumerate(machine.gpu.log):
        before = late.step(at, entry)
        if before is None:
            continue
        if entry[0] == "upload":
            stage = {"upload": at}
        elif entry[0] == "download":
            assert stage["compute"] in before, "pixels are not there yet"
        else:
            assert stage["upload"] in before, "latents are not there yet"
            assert stage.get("compute", at) in {at, *before}, "what it reads is not there yet"
            stage["compute"] = at
            engines += entry[0] in ("enqueue", "launch")
    assert engines == 2 * len(tiles)
    assert any(entry[0] == "launch" for entry in machine.gpu.log) is captures


def one_graph(bundle: Bundle, index: int = 0):
    """(path, shapes, random frozen sites, a maker of feeds, one of empty results) of a graph of the decoder."""
    graph = bundle.decoder.border[index]
    rng = np.random.default_rng(index)
    shapes = input_shapes(bundle.decoder, graph, 1, 5, 7)
    frozen = {name: rng.random(shape, dtype=np.float32) + np.float32(0.5) for name, shape in graph.parameters.items()}
    path = bundle.file(graph.file)

    def feeds() -> dict[str, np.ndarray]:
        found = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        return found | {"inside": np.ones(shapes["inside"], np.float32)}

    def results() -> dict[str, np.ndarray]:
        return {name: np.full(bundle.decoder.values[name].shape(1, 5, 7), np.nan, np.float32) for name in graph.outputs}

    return path, shapes, frozen, feeds, results


def test_runs_from_the_host_are_replayed_and_right(bundle, machine):
    path, shapes, frozen, feeds, results = one_graph(bundle, 1)
    ours, theirs = (open_engine(path, shapes, frozen, options) for options in (ON_GPU, EngineOptions("ort")))
    for _ in range(4):
        given, found, wanted = feeds(), results(), results()
        ours.run(given, found)
        theirs.run(given, wanted)
        for name, want in wanted.items():
            np.testing.assert_allclose(found[name], want, rtol=0, atol=1e-5)
    kinds = [entry[0] for entry in machine.gpu.log if entry[0] in ("enqueue", "capture", "launch")]
    assert kinds == ["enqueue", "capture", "launch", "launch", "launch"]
    ours.close()
    with pytest.raises(ValueError, match="the engine was closed"):
        ours.run(feeds(), results())


def test_what_cannot_be_recorded_runs_as_it_is(bundle, monkeypatch, tmp_path):
    machine = put_in(monkeypatch, tmp_path, captures=False)
    path, shapes, frozen, feeds, results = one_graph(bundle)
    engine = open_engine(path, shapes, frozen, ON_GPU)
    for _ in range(4):
        found = results()
        engine.run(feeds(), found)
        assert all(np.isfinite(x).all() for x in found.values())
    kinds = [entry[0] for entry in machine.gpu.log if entry[0] in ("enqueue", "capture", "launch")]
    assert kinds == ["enqueue", "capture", "enqueue", "enqueue", "enqueue"]


def test_an_engine_is_loaded_from_its_file_as_it_is_mapped(bundle, machine):
    """Neither what was built nor what was kept is copied into memory; the second time nothing is built."""
    path, shapes, frozen, *_ = one_graph(bundle)
    for _ in range(2):
        open_engine(path, shapes, frozen, ON_GPU).close()
    assert len(machine.trt.built) == 1 and len(machine.trt.plans) == 2
    assert all(type(plan).__name__ == "mmap" for plan in machine.trt.plans)
    with pytest.raises(TypeError):
        machine.trt.plans[0][0] = 1


def test_an_engine_that_tensorrt_refuses_to_run_is_one_line(bundle, machine):
    path, shapes, frozen, feeds, results = one_graph(bundle)
    engine = open_engine(path, shapes, frozen, ON_GPU)
    machine.trt.refuses = True
    for _ in range(2):  # also where the recording is what is refused
        with pytest.raises(WidefieldError, match="TensorRT refused to run an engine") as fault:
            engine.run(feeds(), results())
        assert "\n" not in str(fault.value)


def test_an_engine_that_does_not_load_is_one_line(bundle, machine, monkeypatch):
    path, shapes, frozen, *_ = one_graph(bundle)
    monkeypatch.setattr(trt, "build_engine", lambda *_, **__: (memoryview(b"nothing"), b""))
    with pytest.raises(WidefieldError, match=r"TensorRT does not load its engine .* run `widefield build` again"):
        open_engine(path, shapes, frozen, ON_GPU)


def test_engines_on_many_threads_take_turns_in_one_block(bundle, machine):
    """The fake raises where two engines are at work in the block at once, and where a block went while in use."""
    made = [one_graph(bundle, index) for index in (0, 1)]
    engines = [open_engine(path, shapes, frozen, ON_GPU) for path, shapes, frozen, *_ in made]

    def work(index: int) -> None:
        for _ in range(6):
            engines[index % 2].run(made[index % 2][3](), made[index % 2][4]())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len({engine.arena for engine in engines}) == 1 and isinstance(engines[0].arena, Arena)


def test_a_block_that_grows_waits_for_who_computes_in_it(machine):
    arena = Arena(machine.gpu)
    arena.ask(300)
    first = arena.block()
    machine.gpu.log.clear()
    arena.ask(9000)
    assert arena.block() != first
    assert [entry[0] for entry in machine.gpu.log] == ["synchronize", "empty"]
    assert machine.gpu.log[0][1] is arena.stream


def test_the_block_is_given_back_when_the_last_engine_closes(bundle, machine):
    made = [one_graph(bundle, index) for index in (0, 1)]
    engines = [open_engine(path, shapes, frozen, ON_GPU) for path, shapes, frozen, *_ in made]
    for engine, (*_, feeds, results) in zip(engines, made, strict=True):
        engine.run(feeds(), results())
    arena, (_, nbytes) = engines[0].arena, engines[0].arena.block()
    engines[0].close()
    before = machine.gpu.alive_nbytes
    assert arena.block()[1] == nbytes, "the other one may compute in it"
    engines[1].close()
    engines[1].close()
    assert machine.gpu.alive_nbytes <= before - nbytes
