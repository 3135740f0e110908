"""Kept results: computed once, never more than the limit, and nobody waits for ever."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from widefield.memo import Memo


def array(key: int) -> np.ndarray:
    return np.full(25, key, np.float32)  # 100 bytes


def make(keys):
    for key in keys:
        yield key, array(key)


@given(st.integers(0, 700), st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=12))
def test_results_are_right_and_within_the_limit_whatever_is_asked(limit, asks):
    memo = Memo(limit)
    for keys in asks:
        found = memo.fetch(keys, make)
        assert set(found) == set(keys)
        assert all((found[key] == key).all() for key in keys)
        assert memo.nbytes == 100 * len(list(memo)) <= limit


def test_the_least_recently_used_goes_first_and_what_is_kept_is_not_made_again():
    memo = Memo(300)
    memo.fetch([1, 2, 3], make)
    memo.fetch([1], make)
    memo.fetch([4], make)
    assert list(memo) == [3, 1, 4] and memo.made == 4
    memo.fetch([1, 3], make)
    assert memo.made == 4


def test_many_threads_make_each_result_once():
    memo, made, lock = Memo(1 << 20), [], threading.Lock()

    def slowly(keys):
        for key in keys:
            time.sleep(0.002)
            with lock:
                made.append(key)
            yield key, array(key)

    def ask(first):
        keys = [(first + k) % 20 for k in range(20)]
        found = memo.fetch(keys, slowly)
        assert all((found[key] == key).all() for key in keys)

    threads = [threading.Thread(target=ask, args=(3 * n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert sorted(made) == list(range(20))


def test_those_who_waited_for_a_failure_try_themselves():
    memo, claimed, go = Memo(1 << 20), threading.Event(), threading.Event()

    def fails(keys):
        claimed.set()
        go.wait(10)
        raise OSError("no")
        yield

    def ask_in_vain():
        with pytest.raises(OSError, match="no"):
            memo.fetch([7], fails)

    seen = []
    first = threading.Thread(target=ask_in_vain)
    second = threading.Thread(target=lambda: seen.append(memo.fetch([7], make)[7][0]))
    first.start()
    claimed.wait(10)
    second.start()
    time.sleep(0.05)
    go.set()
    first.join(10)
    second.join(10)
    assert seen == [7.0]


def test_a_result_cannot_be_changed_by_who_reads_it():
    found = Memo(0).fetch([1], make)[1]
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 2
