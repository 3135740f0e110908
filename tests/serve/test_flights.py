"""Work that many ask for is done once, and not at all when nobody waits for it."""

import asyncio
import threading

import pytest

from widefield.errors import Cancelled
from widefield.serve.flights import Busy, Flights


class Work:
    """Work that waits for `go`, and looks whether it was given up."""

    def __init__(self, answer="done"):
        self.go, self.begun, self.calls, self.given_up, self.answer = threading.Event(), threading.Event(), 0, 0, answer

    def __call__(self, cancelled):
        self.calls += 1
        self.begun.set()
        while not self.go.wait(0.002):
            if cancelled():
                self.given_up += 1
                raise Cancelled("nobody waits")
        return self.answer


async def until(happened):
    """Let others run until something happened, or fail."""
    for _ in range(5000):
        if happened():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it never happened")


def flown(scenario, threads=1, waiting=2):
    """Run an async scenario with flights, and close them."""

    async def run():
        flights = Flights(threads, waiting, "test")
        try:
            return await scenario(flights)
        finally:
            flights.close()

    return asyncio.run(run())


def test_many_who_ask_at_once_are_answered_by_one_call():
    work = Work()

    async def scenario(flights):
        asked = [asyncio.ensure_future(flights.fetch("a", work)) for _ in range(50)]
        await until(work.begun.is_set)
        work.go.set()
        return await asyncio.gather(*asked)

    assert flown(scenario) == ["done"] * 50 and work.calls == 1


def test_the_last_who_goes_stops_the_work_and_the_first_does_not():
    work = Work()

    async def scenario(flights):
        first, last = (asyncio.ensure_future(flights.fetch("a", work)) for _ in range(2))
        await until(work.begun.is_set)
        first.cancel()
        await asyncio.sleep(0.02)
        assert not work.given_up
        last.cancel()
        await until(lambda: work.given_up == 1 and not flights.flying)
        assert flights.dropped == 1

    flown(scenario)


def test_who_comes_while_work_is_being_given_up_has_it_done():
    work = Work()

    async def scenario(flights):
        first = asyncio.ensure_future(flights.fetch("a", work))
        await until(work.begun.is_set)
        first.cancel()
        await until(lambda: work.given_up == 1)  # in its thread; the loop does not know yet
        again = asyncio.ensure_future(flights.fetch("a", work))
        work.go.set()
        return await again

    assert flown(scenario) == "done" and work.calls == 2


def test_what_waits_and_is_given_up_never_begins():
    busy, queued = Work(), Work()

    async def scenario(flights):
        one = asyncio.ensure_future(flights.fetch("a", busy))
        two = asyncio.ensure_future(flights.fetch("b", queued))
        await until(lambda: flights.queued == 1)
        two.cancel()
        await until(lambda: flights.queued == 0)
        busy.go.set()
        await one

    flown(scenario)
    assert queued.calls == 0


def test_a_full_queue_says_so_at_once_and_still_lets_one_join():
    works = [Work(n) for n in range(3)]

    async def scenario(flights):
        asked = []
        for n, work in enumerate(works):
            asked.append(asyncio.ensure_future(flights.fetch(n, work)))
            await asyncio.sleep(0)
        with pytest.raises(Busy):
            await flights.fetch("one more", Work())
        asked.append(asyncio.ensure_future(flights.fetch(2, works[2])))
        await asyncio.sleep(0)
        for work in works:
            work.go.set()
        return await asyncio.gather(*asked)

    assert flown(scenario) == [0, 1, 2, 2]


def test_the_most_urgent_goes_first_then_the_oldest():
    order = []

    def noted(name):
        return lambda cancelled: order.append(name)

    async def scenario(flights):
        first = Work()
        asked = [asyncio.ensure_future(flights.fetch("first", first))]
        await asyncio.sleep(0)
        for name, urgency in (("late", 0), ("coarse", -3), ("coarse too", -3)):
            asked.append(asyncio.ensure_future(flights.fetch(name, noted(name), urgency)))
            await asyncio.sleep(0)
        first.go.set()
        await asyncio.gather(*asked)

    flown(scenario, waiting=5)
    assert order == ["coarse", "coarse too", "late"]


def test_an_error_reaches_all_and_the_next_one_tries_again():
    def fails(cancelled):
        raise ValueError("no")

    async def scenario(flights):
        got = await asyncio.gather(*(flights.fetch("a", fails) for _ in range(3)), return_exceptions=True)
        assert [str(error) for error in got] == ["no"] * 3
        return await flights.fetch("a", lambda cancelled: "yes")

    assert flown(scenario) == "yes"
