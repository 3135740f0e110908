"""Leases: one has a task, the dead lose it, nobody compares clocks."""

import errno
import os
import threading
from contextlib import nullcontext

import pytest

from widefield.cluster.board import Board, Gone
from widefield.cluster.claims import Claims, Heart
from widefield.cluster.work import Stage, Task, Worker
from widefield.errors import StoreError

LEASE = 10.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def board(tmp_path):
    return Board(tmp_path / "board")


def claims(board: Board, worker: str, clock: Clock) -> Claims:
    return Claims(board, worker, LEASE, clock)


def take(each: Claims, task: str) -> bool:
    found = each.look()
    return each.free(task, found) and each.take(task, found)


def test_a_file_is_created_by_one_of_many(board):
    start, winners = threading.Barrier(8), []

    def race(number: int) -> None:
        start.wait()
        winners.extend((n, number) for n in map(str, range(50)) if board.create(n, str(number).encode()))

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for name, _ in winners) == sorted(map(str, range(50)))
    assert all(board.get(name) == str(number).encode() for name, number in winners)
    assert not any((board.path / "work").iterdir())


def test_a_folder_without_hard_links_is_said(board, monkeypatch):
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(StoreError, match="has no hard links; wanted a folder that has"):
        board.create("a", b"")
    assert not any((board.path / "work").iterdir())


def test_a_task_has_one_worker_until_it_lets_go(board):
    clock = Clock()
    one, other = claims(board, "one", clock), claims(board, "other", clock)
    assert take(one, "a") and not take(other, "a") and not take(one, "a")
    assert take(other, "b")
    one.leave()
    assert take(other, "a")
    assert sorted(board.names("claim-")) == ["claim-a.0", "claim-b.0"]


def test_a_silent_worker_loses_its_task_after_a_lease_and_to_one_only(board):
    clock = Clock()
    dead, one, other = (claims(board, name, clock) for name in ("dead", "one", "other"))
    assert take(dead, "a")
    for _ in range(5):  # it lives, and says so
        assert not take(one, "a") and not take(other, "a")
        clock.now += LEASE * 0.9
        dead.beat()
    one.look(), other.look()
    clock.now += LEASE * 1.1  # and then no more
    found = other.look()
    assert take(one, "a")
    assert other.free("a", found) and not other.take("a", found)  # it looked before the first one was quicker
    clock.now += LEASE * 0.9
    assert not take(other, "a")


def test_one_who_comes_late_waits_a_lease_of_its_own(board):
    clock = Clock()
    assert take(claims(board, "dead", clock), "a")
    clock.now += 1000 * LEASE
    late = claims(board, "late", clock)
    assert not take(late, "a")  # it cannot know for how long nothing was said
    clock.now += LEASE * 1.1
    assert take(late, "a")


def test_one_that_is_started_again_under_its_name_goes_on_at_once(board):
    clock = Clock()
    before = claims(board, "actor-3", clock)
    assert take(before, "a")
    again = claims(board, "actor-3", clock)
    assert take(again, "a") and not take(claims(board, "other", clock), "a")


def test_a_heart_beats_until_the_board_is_gone(board):
    each = Claims(board, "one", 0.1)
    assert take(each, "a")
    beats = set()
    with Heart(each):
        while len(beats) < 3:
            beats.add(board.get("claim-a.0"))
        board.path.rename(board.path.with_name("away"))
    with pytest.raises(Gone, match="was removed while it was in use"):
        each.beat()


def stage_of(done: set, names, run) -> Stage:
    tasks = [Task(name, lambda name=name: name in done) for name in names]
    return Stage("stage", tasks, lambda: nullcontext(run))


def test_workers_share_a_stage_and_each_task_is_done_once(board):
    done: set = set()
    ran: list = []
    lock = threading.Lock()

    def run(name: str) -> None:
        with lock:
            ran.append(name)
            done.add(name)

    names = [f"t{number}" for number in range(40)]
    workers = [Worker(Claims(board, f"w{number}", 60.0), lambda: False) for number in range(3)]
    threads = [threading.Thread(target=w.walk, args=(stage_of(done, names, run),)) for w in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ran) == sorted(names) and sum(w.made.get("stage", 0) for w in workers) == 40
    assert not board.names("claim-")


def test_one_that_is_slow_but_lives_does_not_hold_the_rest(board):
    done: set = set()
    slow = Claims(board, "slow", 0.2)
    assert take(slow, "t0")
    with Heart(slow):  # it lives, and is at t0 for ever
        quick = Worker(Claims(board, "quick", 0.2), lambda: False)
        assert quick.walk(stage_of(done, ["t0", "t1"], done.add))
    assert done == {"t0", "t1"} and quick.beside == 1


def test_a_task_that_fails_is_free_again(board):
    def broken(name: str) -> None:
        raise ValueError(name)

    worker = Worker(Claims(board, "one", 60.0), lambda: False)
    with pytest.raises(ValueError, match="t0"):
        worker.walk(stage_of(set(), ["t0"], broken))
    assert not board.names("claim-")
