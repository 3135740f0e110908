"""Graphs open once each, on as many threads as ask, and the largest first."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

import widefield
from widefield.coder_engines import CoderEngines
from widefield.engine import EngineOptions


class Opened:
    redone = 0

    def __init__(self) -> None:
        self.closed = self.released = 0

    def close(self) -> None:
        self.closed += 1

    def release(self) -> None:
        self.released += 1


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, Opened]]:
    """(file, workers, engine) in the order in which they were opened; two threads must be opening at once."""
    found: list[tuple[str, int, Opened]] = []
    together = threading.Barrier(2)

    def opening(path, shapes, parameters, options):
        engine = Opened()
        found.append((path.name, options.workers, engine))
        if len(found) <= 2:
            together.wait(timeout=60)
        return engine

    monkeypatch.setattr("widefield.coder_engines.open_engine", opening)
    return found


def engines_of(*, keeps: bool = False) -> CoderEngines:
    bundle = widefield.open().bundle
    summary = SimpleNamespace(parameters=lambda graph: {})
    return CoderEngines(bundle, bundle.decoder, summary, (8, 11), 1, EngineOptions("ort", workers=2, keeps=keeps))


def test_threads_share_the_opening_and_open_nothing_twice(openings):
    engines = engines_of()
    threads = [threading.Thread(target=_open_all, args=(engines,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    component = engines.component
    wanted = {graph.file for graph in (*component.border, *component.certified)}
    assert sorted(name for name, *_ in openings) == sorted(wanted)
    sizes = {g.file: len(g.live_elements) for g in (*component.border, *component.certified)}
    first = sorted(sizes, key=lambda name: -sizes[name])[:2]
    assert {name for name, *_ in openings[:2]} == set(first)
    workers = {name: count for name, count, _ in openings}
    assert all(workers[graph.file] == 1 for graph in component.certified), "one certified tile at a time"
    assert all(workers[graph.file] == 2 for graph in component.border)
    for kind in ("border", "certified"):
        for graph in getattr(component, kind):
            engines.engine(kind, graph)
    assert len(openings) == len(wanted)
    engines.close()
    assert all(engine.closed == 1 for *_, engine in openings)


def _open_all(engines: CoderEngines) -> None:
    while engines.open_next(("border", "certified")):
        continue


@pytest.mark.parametrize("keeps", [False, True])
def test_activations_are_given_back_between_kinds_unless_they_are_kept(openings, keeps):
    engines = engines_of(keeps=keeps)
    threads = [threading.Thread(target=_open_all, args=(engines,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    with engines.holding("border"):
        pass
    with engines.holding("certified"):
        pass
    assert [engine.released for *_, engine in openings] == [0 if keeps else 1] * len(openings)
