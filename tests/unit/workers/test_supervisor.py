"""Processes in slots: restarted when they end, given the last values, drained."""

from __future__ import annotations

import signal

import pytest
import pytest_twisted
from twisted.internet import defer
from worker_doubles import SOON, FakeProcess, speaking

from pushservice.workers import worker_link
from pushservice.workers.manager import CHECK_INTERVAL
from pushservice.workers.slots import CRASH_LOOP
from pushservice.workers.supervisor import (
    FEED_TIMEOUT,
    KILL_DELAY,
    MAX_RESTART_DELAY,
    STABLE_AFTER,
    STEP_TIMEOUT,
)

in_turns = pytest_twisted.ensureDeferred


# -- a worker that ends ----------------------------------------------------------------------------


@in_turns
async def test_a_worker_that_ends_is_replaced_at_once_and_then_after_longer_and_longer(
    make, logged
):
    managed = await make().start()
    gaps = []
    for _ in range(10):
        managed.processes[-1].ends(code=3)
        ended_at, count = managed.reactor.seconds(), len(managed.processes)
        while len(managed.processes) == count:
            await managed.go(SOON)
        gaps.append(managed.reactor.seconds() - ended_at)
    expected = [0, 0.25, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert gaps == pytest.approx(expected, abs=2 * SOON)
    assert "worker 1 ended with exit status 3" in logged
    assert logged.level_of("worker 1 ended") == "critical"
    assert managed.manager.faults()[0] == "worker 1 keeps ending"
    assert managed.manager.status()["workers"][0]["restarts"] == 10


@in_turns
async def test_a_worker_that_lived_for_long_is_replaced_as_the_first_time(make, logged):
    managed = await make().start()
    while not managed.manager._slots.by_number[1].crash_loop:
        managed.processes[-1].ends(signal=11)
        count = len(managed.processes)
        while len(managed.processes) == count:
            await managed.go(SOON)
    assert managed.manager._slots.by_number[1].delay >= CRASH_LOOP
    await managed.go(STABLE_AFTER + CHECK_INTERVAL)
    managed.feed()
    assert managed.manager.faults() == [], "what works for long keeps ending no more"
    managed.processes[-1].ends()
    count = len(managed.processes)
    await managed.go(SOON)
    assert len(managed.processes) == count + 1
    assert "by SIGSEGV" in logged


@in_turns
async def test_a_worker_that_never_comes_to_serve_is_tried_again(make, logged):
    managed = make()
    managed.reactor.on_spawn = lambda process: process.ignores.add("serve")
    await managed.start(feed_up=False)
    assert managed.manager.faults() == ["no worker serves"]
    assert not managed.manager.serves
    for process in managed.processes:
        process.says("status", status={})
    managed.processes[0].says("failed", why="no such file")
    assert "worker 1 can't start: no such file" in logged
    managed.processes[0].ends(code=1)
    managed.reactor.on_spawn = lambda _process: None
    await managed.go(1)
    assert managed.states() == [(1, "serving")]


@in_turns
async def test_a_worker_that_does_not_get_up_in_time_is_killed_and_tried_again(
    make, logged, logged_failures
):
    managed = make()
    managed.reactor.on_spawn = lambda process: process.ignores.add("serve")
    await managed.start(feed_up=False)
    managed.reactor.on_spawn = lambda _process: None
    for _ in range(round(STEP_TIMEOUT) + 2):
        await managed.go(1)
        if not managed.processes[0].ended:
            managed.processes[0].says("status", status={})
    assert [int(number) for number in managed.processes[0].signals] == [6], "it says where it was"
    assert managed.states() == [(1, "serving")]
    assert logged_failures.flush(defer.TimeoutError)


@in_turns
async def test_workers_that_take_long_to_fail_at_their_start_are_a_crash_loop_too(
    make, logged, logged_failures
):
    managed = make(workers=2)
    managed.reactor.on_spawn = lambda process: process.ignores.add("serve")
    await managed.start(feed_up=False)
    managed.processes[0].says("serving")
    managed.processes[0].says("feed_up")
    assert STEP_TIMEOUT > STABLE_AFTER
    while not managed.manager._slots.by_number[2].crash_loop:
        assert len(managed.processes) < 10
        await speaking(managed, STEP_TIMEOUT)
    assert managed.manager.faults() == ["worker 2 keeps ending"]
    assert logged.level_of("worker 2 ended") == "critical"
    logged_failures.flush(defer.TimeoutError)


@in_turns
@pytest.mark.parametrize("fault", [OSError(24, "Too many open files"), ValueError("odd")])
async def test_a_process_that_can_not_be_started_is_tried_again(
    make, logged, logged_failures, fault
):
    managed = await make(workers=2).start()
    managed.feeding()
    managed.reactor.fault = fault
    managed.processes[0].ends()
    await managed.go(SOON)
    assert (2, "serving") in managed.states()
    await speaking(managed, MAX_RESTART_DELAY + 2)
    assert managed.states() == [(1, "serving"), (2, "serving")]
    logged_failures.flush(ValueError)


@in_turns
async def test_a_first_process_that_can_not_be_started_keeps_no_other_from_it(
    make, logged_failures
):
    managed = make(workers=2)
    managed.reactor.fault = ValueError("odd")
    await managed.start()
    assert managed.states() == [(2, "serving")]
    managed.feeding()
    await speaking(managed, MAX_RESTART_DELAY + 2)
    assert managed.states() == [(1, "serving"), (2, "serving")]
    assert logged_failures.flush(ValueError)


@in_turns
async def test_a_worker_that_talks_nonsense_is_killed_and_replaced(make, logged_failures):
    managed = await make().start()
    first = managed.processes[0]
    first.protocol.childDataReceived(worker_link.MESSAGES, b"nonsense\n")
    assert [int(number) for number in first.signals] == [9]
    await managed.go()
    assert managed.states() == [(1, "serving")]
    assert managed.processes[1] in managed.alive()
    assert logged_failures.flush(ValueError)


# -- values ----------------------------------------------------------------------------------------


@in_turns
async def test_a_new_worker_gets_its_feed_then_the_values_and_then_serves(make):
    managed = await make(workers=2).start()
    managed.processes[0].ends()
    await managed.go(1)
    source, successor = managed.processes[1:]
    assert successor.asked == []
    successor.says("feed_up")
    await managed.go()
    assert successor.asked == ["load_values", "serve"]
    assert source.asked == ["serve", "dump_values"]


@in_turns
async def test_a_new_worker_that_gets_no_feed_serves_without_after_a_while(make):
    managed = await make(workers=2).start()
    managed.processes[0].ends()
    await managed.go(FEED_TIMEOUT - 0.1)
    assert managed.processes[2].asked == []
    await managed.go(0.2)
    assert managed.processes[2].asked == ["serve"]


@in_turns
@pytest.mark.parametrize("values", [{}, {"subscribe": "demand"}], ids=["all", "demand"])
async def test_no_worker_that_gets_quotes_is_replaced_by_one_that_gets_none(make, values):
    managed = await make(**values).start()
    reloaded = managed.reload(**values)
    await managed.go(FEED_TIMEOUT + 0.1)
    assert reloaded.result is False
    [old, new] = managed.processes
    assert "drain" not in old.asked
    assert new.signals == [signal.SIGABRT]
    old.says("status", status={})
    assert managed.manager.serves


@in_turns
async def test_a_worker_that_takes_long_to_start_has_all_its_time_for_the_feed(make):
    managed = await make().start()

    def slow(process: FakeProcess) -> None:
        process.takes = 3 * FEED_TIMEOUT
        managed.reactor.callLater(process.takes + FEED_TIMEOUT - 1, process.says, "feed_up")

    managed.reactor.on_spawn = slow
    reloaded = managed.reload()
    await managed.go(4 * FEED_TIMEOUT + 1)
    assert reloaded.result is True
    assert managed.states() == [(1, "serving")]


@in_turns
async def test_where_no_worker_gets_quotes_they_are_replaced_all_the_same(make):
    managed = await make().start(feed_up=False)
    reloaded = managed.reload()
    await managed.go()
    assert reloaded.result is True
    assert "drain" in managed.processes[0].asked


@in_turns
@pytest.mark.parametrize("reason", ["demand", "feed_down"])
async def test_without_values_that_are_kept_up_to_date_none_are_handed_over(make, reason):
    values = {"subscribe": "demand"} if reason == "demand" else {}
    managed = await make(workers=2, **values).start(feed_up=reason != "feed_down")
    managed.feeding()
    managed.processes[0].ends()
    await managed.go()
    assert managed.processes[1].asked == managed.processes[2].asked == ["serve"]


@in_turns
@pytest.mark.parametrize("ends", ["source", "successor"])
@pytest.mark.parametrize("when", ["dump_values", "load_values"])
async def test_who_ends_while_values_are_handed_over_holds_up_nobody(make, ends, when):
    managed = await make(workers=3).start()
    managed.feeding()
    managed.processes[0].ends()
    source = managed.processes[1]
    source.ignores.add("dump_values")
    managed.reactor.on_spawn, feeding = (
        lambda process: (feeding(process), process.ignores.add("load_values")),
        managed.reactor.on_spawn,
    )
    await managed.go()
    successor = managed.processes[3]
    managed.reactor.on_spawn = feeding
    assert source.asked == ["serve", "dump_values"]
    if when == "load_values":
        source.says("values_dumped", values=1)
        assert successor.asked == ["load_values"]
    source.ignores.clear()
    (source if ends == "source" else successor).ends(signal=9)
    if when == "load_values":
        successor.says("values_loaded", values=1)
    source.says("values_dumped", values=1)
    await managed.go(1)
    assert managed.states() == [(number, "serving") for number in (1, 2, 3)]
    assert ("serve" in successor.asked) == (ends == "source")


@in_turns
async def test_two_new_workers_get_values_one_after_the_other(make):
    managed = await make(workers=3).start()
    managed.feeding()
    source = managed.processes[2]
    source.ignores.add("dump_values")
    managed.processes[0].ends()
    managed.processes[1].ends()
    await managed.go()
    assert source.asked == ["serve", "dump_values"]
    source.says("values_dumped", values=0)
    await managed.go(SOON / 2)
    assert source.asked == ["serve", "dump_values"], "the file is still in use"
    await managed.go()
    assert source.asked == ["serve", "dump_values", "dump_values"]
    source.says("values_dumped", values=0)
    await managed.go()
    assert managed.states() == [(number, "serving") for number in (1, 2, 3)]


# -- drain -----------------------------------------------------------------------------------------


@in_turns
async def test_a_worker_that_ends_while_it_drains_is_just_gone(make):
    managed = await make().start()
    managed.feeding()
    managed.processes[0].ignores.add("drain")
    reloaded = managed.reload()
    await managed.go()
    assert managed.states() == [(1, "serving"), (1, "draining")]
    managed.processes[0].ends(signal=11)
    await managed.go()
    assert reloaded.result is True
    assert managed.states() == [(1, "serving")]
    assert managed.manager.status()["workers"][0]["restarts"] == 0


@in_turns
async def test_a_worker_that_does_not_end_in_its_own_time_is_killed(make, logged):
    managed = await make(drain_timeout=20.0).start()
    managed.feeding()
    old = managed.processes[0]
    old.ignores.add("drain")
    reloaded = managed.reload(drain_timeout=1.0)
    await speaking(managed, 20 + KILL_DELAY - 1)
    assert old.signals == [], "what it was started with holds"
    await speaking(managed, 2)
    assert [int(number) for number in old.signals] == [9]
    assert "has not ended in 25" in logged
    assert reloaded.result is True
