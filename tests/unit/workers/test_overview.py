"""What the manager answers for all of its workers together."""

from __future__ import annotations

import signal
from itertools import pairwise
from typing import Any

import pytest_twisted
from twisted.internet import defer
from twisted.internet.task import LoopingCall
from worker_doubles import SOON, FakeProcess

from pushservice.workers.overview import REPORT_TIMEOUT

in_turns = pytest_twisted.ensureDeferred


# -- what all of them say, as one ------------------------------------------------------------------


def said(clients: int, **counters: int) -> dict[str, Any]:
    return {"clients": clients, "counters": counters, "feed": "up"}


@in_turns
async def test_totals_are_of_all_workers_and_do_not_fall_when_one_ends(make):
    managed = await make(workers=2).start()
    managed.feeding()
    first, second = managed.processes
    first.says("status", status=said(3, quotes_in=100, merged=1))
    second.says("status", status=said(4, quotes_in=90))

    def totals() -> tuple[int, int]:
        found = managed.manager.status()["totals"]
        return found["clients"], found["counters"]["quotes_in"]

    assert totals() == (7, 190)
    first.ends(signal=signal.SIGKILL)
    assert totals() == (4, 190)
    await managed.go()
    third = managed.processes[2]
    third.says("status", status=said(1, quotes_in=5))
    assert totals() == (5, 195)
    figures = managed.manager.figures()
    slots = {each["number"]: each for each in figures["slots"]}
    assert slots[1]["counters"]["quotes_in"] == 105
    assert slots[1]["restarts"] == 1
    assert slots[2]["counters"]["quotes_in"] == 90
    assert slots[1]["states"] == {"starting": 0, "serving": 1, "draining": 0}
    assert slots["manager"]["process"]["memory"] > 0


@in_turns
async def test_totals_do_not_fall_in_a_reload_or_at_the_end(make):
    managed = await make(workers=2).start()
    # Of these, sums depend on their order if they are rounded one after the other.
    times = iter((0.1, 0.2, 0.3, 0.7))
    seen: list[tuple[int, float]] = []

    def look() -> None:
        totals = managed.manager.status()["totals"]
        seen.append((totals["counters"]["quotes_in"], totals["process"]["cpu"]))

    def tell(process: FakeProcess, quotes: int) -> None:
        process.says("feed_up")
        cpu = {"process": {"cpu": next(times)}}
        process.says("status", status=said(0, quotes_in=quotes) | cpu)

    for number, process in enumerate(managed.processes):
        tell(process, 10**number)
    managed.reactor.on_spawn = lambda process: managed.reactor.callLater(SOON, tell, process, 100)
    reading = LoopingCall(look)
    reading.clock = managed.reactor
    reading.start(SOON / 4)
    reloaded = managed.reload()
    await managed.go(1)
    assert reloaded.result
    managed.stop()
    await managed.go(1)
    reading.stop()
    assert (seen[0][0], seen[-1][0]) == (11, 211)
    for before, after in pairwise(seen):
        assert after[0] >= before[0]
        assert after[1] >= before[1]


@in_turns
async def test_the_feed_is_up_where_one_that_serves_is_fed(make):
    managed = await make(workers=2).start(feed_up=False)
    assert managed.manager.status()["totals"]["feed"] == "down"
    managed.processes[1].says("feed_up")
    assert managed.manager.status()["totals"]["feed"] == "up"
    assert managed.manager.faults() == []


def answer(process: FakeProcess, **report: Any) -> dict[str, Any]:
    """Have it answer what it was asked last; returns that."""
    asked = process.told[-1]
    process.says("report", id=asked["id"], report=report)
    return asked


def client(conn: str, merged: int) -> dict[str, Any]:
    return {"conn": conn, "behind": None, "merged": merged}


@in_turns
async def test_the_slowest_clients_are_those_of_all_workers(make):
    managed = await make(workers=2).start()
    report = defer.Deferred.fromCoroutine(managed.manager.clients(2))
    asked = answer(managed.processes[0], clients=[client("a", 5), client("b", 1)], total=9)
    assert (asked["do"], asked["what"], asked["most"]) == ("report", "clients", 2)
    assert not report.called
    answer(managed.processes[1], clients=[client("c", 3)], total=1)
    assert report.result == {
        "clients": [client("a", 5), client("c", 3)],
        "total": 10,
        "missing": [],
    }


@in_turns
async def test_who_does_not_answer_in_time_is_left_out_and_named(make):
    managed = await make(workers=3).start()
    report = defer.Deferred.fromCoroutine(managed.manager.clients(2))
    answer(managed.processes[0], clients=[client("a", 5)], total=1)
    managed.processes[2].ends(3)
    await managed.go(REPORT_TIMEOUT - 0.1)
    assert not report.called
    await managed.go(0.2)
    assert report.result == {"clients": [client("a", 5)], "total": 1, "missing": [2, 3]}


def symbol(name: str, n: int, watchers: int) -> dict[str, Any]:
    return {
        "symbol": name,
        "n": n,
        "watchers": watchers,
        "rate": None,
        "age": None,
        "stale": False,
    }


@in_turns
async def test_watchers_of_a_busy_symbol_are_counted_at_those_workers_too_where_it_is_not(make):
    managed = await make(workers=2).start()
    one, other = managed.processes
    report = defer.Deferred.fromCoroutine(managed.manager.symbols(2))
    answer(one, symbols=[symbol("A", 9, 1), symbol("B", 8, 1)], total=3)
    answer(other, symbols=[symbol("A", 9, 2), symbol("C", 7, 5)], total=4)
    assert one.told[-1]["what"] == "symbols", "it has named both"
    asked = answer(other, symbols=[symbol("B", 2, 10)], total=4)
    assert (asked["what"], asked["symbols"]) == ("named", ["B"])
    assert report.result == {
        "symbols": [symbol("A", 9, 3), symbol("B", 8, 11)],
        "total": 4,
        "missing": [],
    }


@in_turns
async def test_where_no_worker_serves_there_is_nobody_to_ask(make):
    managed = make(workers=1)
    report = defer.Deferred.fromCoroutine(managed.manager.symbols(2))
    assert report.result == {"symbols": [], "total": 0, "missing": []}
