"""The manager: workers come, end, come again, grow old, and are replaced without a gap."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import defer
from twisted.internet.task import LoopingCall
from twisted.logger import globalLogPublisher
from worker_doubles import SOON, FakeProcess, SpawningReactor

from pushservice.config.coercers import AUTO
from pushservice.config.config import Config
from pushservice.limits import Limits
from pushservice.protocol.close_codes import CloseCode
from pushservice.redis.url import redis_address
from pushservice.server.ports import CannotListen
from pushservice.service.daemon import CannotStart
from pushservice.workers import manager, worker_link
from pushservice.workers.manager import (
    AGE_JITTER,
    AGE_RETRY_DELAY,
    CHECK_INTERVAL,
    FEED_TIMEOUT,
    KILL_DELAY,
    MAX_RESTART_DELAY,
    STABLE_AFTER,
    STEP_TIMEOUT,
    STUCK_AFTER,
    Manager,
    Plan,
    count_of,
    entries_of,
)
from pushservice.workers.overview import REPORT_TIMEOUT, SILENT_AFTER
from pushservice.workers.slots import CRASH_LOOP

LOOPBACK = "tcp:0:interface=127.0.0.1"
NOWHERE = redis_address("unix:///nowhere/redis.sock")
TALK = 10 * SOON


def configured(**values: Any) -> Config:
    base: dict[str, Any] = {"plain": True, "listen": (LOOPBACK,), "redis": (NOWHERE,)}
    return Config(**base | values)


class Words:
    """Everything that is logged, as text."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.levels: list[str] = []

    def __call__(self, event: dict[str, Any]) -> None:
        if event.get("log_format") and event["log_namespace"].startswith("pushservice"):
            self.lines.append(event["log_format"].format_map(event))
            self.levels.append(event["log_level"].name)

    def __contains__(self, words: str) -> bool:
        return any(words in line for line in self.lines)

    def level_of(self, words: str) -> str:
        """The level of the last line with `words`."""
        return next(
            level
            for line, level in zip(self.lines[::-1], self.levels[::-1], strict=True)
            if words in line
        )


@pytest.fixture
def words():
    observer = Words()
    globalLogPublisher.addObserver(observer)
    yield observer
    globalLogPublisher.removeObserver(observer)


@pytest.fixture(autouse=True)
def steady(monkeypatch):
    """Chance lets every time be its mean."""
    monkeypatch.setattr(manager.random, "uniform", lambda low, high: (low + high) / 2)


class Managed:
    """A manager on a reactor of the test's."""

    def __init__(self, **values: Any) -> None:
        self.reactor = SpawningReactor()
        self.config = configured(**values)
        self.manager = Manager(self.reactor, Plan(self.config, {"name": "first"}))
        self.stopped: defer.Deferred[None] | None = None

    @property
    def processes(self) -> list[FakeProcess]:
        return self.reactor.workers

    def alive(self) -> list[FakeProcess]:
        return [process for process in self.processes if not process.ended]

    def go(self, seconds: float = TALK) -> Any:
        return self.reactor.go(seconds)

    async def start(self, *, feed_up: bool = True) -> Managed:
        self.manager.privilegedStartService()
        self.manager.startService()
        await self.go()
        if feed_up:
            self.feed()
        return self

    def feed(self) -> None:
        for process in self.alive():
            process.says("feed_up")

    def feeding(self) -> None:
        """Workers are fed as soon as they are there."""
        self.reactor.on_spawn = lambda process: self.reactor.callLater(
            SOON, process.says, "feed_up"
        )

    def reload(self, name: str = "second", **values: Any) -> defer.Deferred[bool]:
        plan = Plan(replace(self.config, **values), {"name": name})
        return defer.Deferred.fromCoroutine(self.manager.reload(plan))

    def states(self) -> list[tuple[int, str]]:
        return [(each["number"], each["state"]) for each in self.manager.status()["workers"]]

    def stop(self) -> defer.Deferred[None]:
        self.stopped = self.manager.stopService()
        return self.stopped

    async def end(self) -> None:
        """Stop in order, and see that nothing is left."""
        if self.stopped is None:
            self.stop()
        await self.go(60 + STEP_TIMEOUT)
        assert self.stopped.called
        assert self.alive() == []
        assert self.reactor.getDelayedCalls() == []
        assert self.manager.status()["workers"] == []
        assert all(redis.ended for redis in self.reactor.redis)


@pytest.fixture
def make():
    """make(**config): a manager that is stopped at the end, and must leave nothing behind."""
    made: list[Managed] = []

    def one(**values: Any) -> Managed:
        made.append(Managed(**values))
        return made[-1]

    yield one
    for managed in made:
        pytest_twisted.blockon(defer.ensureDeferred(managed.end()))


in_turns = pytest_twisted.ensureDeferred


# -- start -----------------------------------------------------------------------------------------


@in_turns
async def test_as_many_workers_serve_as_are_asked_for(make, words):
    managed = await make(workers=3).start(feed_up=False)
    assert managed.states() == [(1, "serving"), (2, "serving"), (3, "serving")]
    assert [process.asked for process in managed.processes] == [["serve"]] * 3
    assert managed.manager.serves
    assert managed.manager.faults() == ["the feed is down"]
    managed.processes[1].says("feed_up")
    assert managed.manager.faults() == []
    managed.processes[1].says("feed_down")
    assert managed.manager.faults() == ["the feed is down"]
    assert "is served" in words


@in_turns
async def test_a_worker_that_says_nothing_is_not_counted_on_until_it_does_again(make):
    managed = await make(workers=2).start()
    one, other = managed.processes
    await managed.go(SILENT_AFTER - 0.5)
    other.says("status", status={})
    other.says("feed_down")
    await managed.go(0.6)
    assert managed.manager.faults() == ["the feed is down"], "the one that has it hangs"
    assert managed.manager.status()["totals"]["feed"] == "down"
    assert [each["silent"] for each in managed.manager.status()["workers"]] == [5.1, 0.6]
    await managed.go(SILENT_AFTER)
    assert managed.manager.faults() == ["no worker serves"]
    assert not managed.manager.serves
    one.says("status", status={})
    assert managed.manager.faults() == []


@in_turns
async def test_a_worker_is_told_its_place_and_gets_the_sockets(make, monkeypatch, tmp_path):
    monkeypatch.setenv("QUOTEPUSH_REDIS", "redis://:secret@host")
    monkeypatch.setenv("QUOTEPUSH_OUTLET", "portable")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setenv("LISTEN_FDS", "1")
    unix = f"unix:{tmp_path}/s:backlog=7"
    managed = await make(workers=2, listen=(LOOPBACK, unix), log_level="warn").start()
    first, second = (process.told[0] for process in managed.processes)
    assert [first["number"], second["number"]] == [1, 2]
    assert first["entry"] in entries_of(1)
    assert second["entry"] in entries_of(2)
    assert first["options"] == {"name": "first"}
    assert first["log_level"] == "warn"
    assert first["redis_socket"] is None
    assert first["core"] is None
    families = [socket.AF_INET, socket.AF_UNIX]
    assert [family for _, family in first["sockets"]] == families
    assert first["sockets"][1][0] == unix
    process = managed.processes[0]
    descriptors = process.descriptors
    assert set(descriptors) == {0, 1, 2, 3, 4, worker_link.COUNTS, worker_link.VALUES, 7, 8}
    for at, family in enumerate(families):
        with socket.socket(fileno=os.dup(descriptors[worker_link.SOCKETS + at])) as theirs:
            assert theirs.family == family
    assert not {"QUOTEPUSH_REDIS", "NOTIFY_SOCKET", "LISTEN_FDS"} & process.environment.keys()
    assert process.environment["QUOTEPUSH_OUTLET"] == "portable"
    assert process.environment["PATH"] == os.environ["PATH"]


@in_turns
async def test_with_affinity_workers_are_dealt_to_the_cores_there_are(make, monkeypatch):
    monkeypatch.setattr(manager.os, "sched_getaffinity", lambda _pid: {5, 2})
    managed = await make(workers=3, affinity=True).start()
    assert [process.told[0]["core"] for process in managed.processes] == [2, 5, 2]
    assert count_of(configured(workers=AUTO)) == 2


def test_what_can_not_be_shared_is_refused_at_the_start():
    managed = Managed(listen=("ssl:0:privateKey=/no",))
    with pytest.raises(CannotStart, match=r"quotepush: workers can't share ssl:.* --workers 0"):
        managed.manager.privilegedStartService()
    managed.manager._counts.close()
    os.close(managed.manager._values)


def test_an_outlet_that_no_worker_could_have_is_refused_at_the_start(monkeypatch):
    monkeypatch.setenv("QUOTEPUSH_OUTLET", "fast")
    with pytest.raises(
        CannotStart, match=r"quotepush: QUOTEPUSH_OUTLET in the environment: 'fast'"
    ):
        Managed()


@in_turns
async def test_who_waits_in_the_socket_is_accepted_by_nobody_but_workers(make):
    managed = await make().start()
    [port] = managed.manager._ports.values()
    with socket.create_connection(("127.0.0.1", port.getHost().port)) as client:
        client.setblocking(False)
        for _ in range(5):
            await managed.reactor.turn()
        with pytest.raises(BlockingIOError):
            client.recv(1)


@in_turns
async def test_a_private_redis_is_started_once_and_its_place_is_told(make):
    managed = await make(workers=2, redis=()).start()
    assert len(managed.reactor.redis) == 1
    places = {process.told[0]["redis_socket"] for process in managed.processes}
    assert len(places) == 1
    assert places.pop().endswith("redis.sock")


# -- a worker that ends ----------------------------------------------------------------------------


@in_turns
async def test_a_worker_that_ends_is_replaced_at_once_and_then_after_longer_and_longer(make, words):
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
    assert "worker 1 ended with exit status 3" in words
    assert words.level_of("worker 1 ended") == "critical"
    assert managed.manager.faults()[0] == "worker 1 keeps ending"
    assert managed.manager.status()["workers"][0]["restarts"] == 10


@in_turns
async def test_a_worker_that_lived_for_long_is_replaced_as_the_first_time(make, words):
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
    assert "by SIGSEGV" in words


@in_turns
async def test_a_worker_that_never_comes_to_serve_is_tried_again(make, words):
    managed = make()
    managed.reactor.on_spawn = lambda process: process.ignores.add("serve")
    await managed.start(feed_up=False)
    assert managed.manager.faults() == ["no worker serves"]
    assert not managed.manager.serves
    for process in managed.processes:
        process.says("status", status={})
    managed.processes[0].says("failed", why="no such file")
    assert "worker 1 can't start: no such file" in words
    managed.processes[0].ends(code=1)
    managed.reactor.on_spawn = lambda _process: None
    await managed.go(1)
    assert managed.states() == [(1, "serving")]


@in_turns
async def test_a_worker_that_does_not_get_up_in_time_is_killed_and_tried_again(
    make, words, logged_failures
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
    make, words, logged_failures
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
    assert words.level_of("worker 2 ended") == "critical"
    logged_failures.flush(defer.TimeoutError)


@in_turns
@pytest.mark.parametrize("fault", [OSError(24, "Too many open files"), ValueError("odd")])
async def test_a_process_that_can_not_be_started_is_tried_again(
    make, words, logged_failures, fault
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


# -- stuck and old ---------------------------------------------------------------------------------


async def speaking(managed: Managed, seconds: float, *silent: FakeProcess) -> None:
    """Let time pass, with a word of each worker every second, but for the silent ones."""
    for _ in range(round(seconds)):
        await managed.go(1)
        for process in managed.alive():
            if process not in silent:
                process.says("status", status={})


@in_turns
async def test_a_worker_that_says_nothing_for_long_is_asked_where_it_is_stuck_and_killed(
    make, words
):
    managed = await make(workers=2).start()
    stuck, works = managed.processes
    stuck.ignores.add(6)
    managed.feeding()
    await speaking(managed, STUCK_AFTER - 1, stuck)
    assert stuck.signals == []
    await speaking(managed, 6, stuck)
    assert [int(number) for number in stuck.signals] == [6, 9]
    assert stuck.ended
    assert works.signals == []
    assert "worker 1 is stuck" in words
    assert managed.states() == [(1, "serving"), (2, "serving")]


@in_turns
async def test_a_clock_that_jumps_makes_no_worker_stuck(make):
    managed = await make(workers=2).start()
    await speaking(managed, 3)
    managed.reactor.advance(3600)
    await speaking(managed, 5)
    assert [process.signals for process in managed.processes] == [[], []]


@in_turns
async def test_workers_are_replaced_for_their_age_one_at_a_time(make, monkeypatch):
    ages = iter([0.9, 0.9, 1.1, 1.1, 1.1, 1.1])
    monkeypatch.setattr(manager.random, "uniform", lambda low, high: next(ages))
    managed = await make(workers=2, max_worker_age=1000.0).start()
    managed.feeding()
    for process in managed.processes:
        process.ignores.add("drain")
    await speaking(managed, 899)
    assert len(managed.processes) == 2
    await speaking(managed, 3)
    assert len(managed.processes) == 3, "the other one waits until it is over"
    assert managed.processes[0].asked[-1] == "drain"
    assert managed.processes[0].told[-1]["code"] == CloseCode.RESTARTING
    managed.processes[0].ends()
    await speaking(managed, 3)
    assert len(managed.processes) == 4
    managed.processes[1].ends()
    await speaking(managed, 3)
    assert managed.states() == [(1, "serving"), (2, "serving")]
    assert AGE_JITTER == 0.1
    monkeypatch.undo()


@in_turns
async def test_an_old_worker_whose_heir_fails_serves_on_and_is_replaced_later(
    make, logged_failures
):
    managed = await make(max_worker_age=100.0).start()
    old = managed.processes[0]
    managed.reactor.on_spawn = lambda process: managed.reactor.callLater(SOON, process.ends, 1)
    await speaking(managed, 103)
    assert len(managed.processes) == 2
    assert "drain" not in old.asked
    assert managed.states() == [(1, "serving")]
    managed.feeding()
    await speaking(managed, AGE_RETRY_DELAY + 3)
    assert len(managed.processes) == 3
    assert old.ended
    assert managed.states() == [(1, "serving")]
    logged_failures.flush(Exception)


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
async def test_two_heirs_get_values_one_after_the_other(make):
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


# -- reload ----------------------------------------------------------------------------------------


@in_turns
async def test_a_reload_replaces_each_worker_once_its_heir_serves(make):
    managed = await make(workers=2).start()
    managed.feeding()
    for process in managed.processes:
        process.ignores.add("drain")
    reloaded = managed.reload()
    await managed.go()
    first, second, successor = managed.processes
    assert successor.told[0]["options"] == {"name": "second"}
    assert successor.asked == ["load_values", "serve"]
    assert first.told[-1] == {"do": "drain", "code": CloseCode.RESTARTING}
    assert second.asked == ["serve"], "one at a time"
    first.ends()
    await managed.go()
    assert second.asked[-1] == "drain"
    second.ends()
    await managed.go()
    assert reloaded.result is True
    assert managed.states() == [(1, "serving"), (2, "serving")]


@in_turns
@pytest.mark.parametrize("how", ["ends", "is not started", "is slow"])
async def test_a_reload_whose_first_worker_fails_leaves_all_as_it_was(
    make, logged_failures, how, tmp_path
):
    managed = await make(workers=2, redis=()).start()
    manager = managed.manager
    before = manager._plan, dict(manager._ports), manager._development
    if how == "is not started":
        managed.reactor.fault = ValueError("odd")
    elif how == "ends":
        managed.reactor.on_spawn = lambda process: managed.reactor.callLater(SOON, process.ends, 1)
    else:
        managed.reactor.on_spawn = lambda process: process.ignores.add("serve")
    reloaded = managed.reload(
        listen=(LOOPBACK, f"unix:{tmp_path}/new"), workers=3, demo=False, redis=(NOWHERE,)
    )
    await speaking(managed, STEP_TIMEOUT + FEED_TIMEOUT + 5)
    managed.reactor.on_spawn = lambda _process: None
    assert reloaded.result is False
    assert (manager._plan, manager._ports, manager._development) == before
    assert [process.asked for process in managed.processes[:2]] == [["serve"]] * 2 or how != "ends"
    assert not any("drain" in process.asked for process in managed.processes[:2])
    assert managed.states() == [(1, "serving"), (2, "serving")]
    assert not (tmp_path / "new").exists(), "what was opened for it is closed"
    assert [redis.ended for redis in managed.reactor.redis] == [False]
    [port] = manager._ports.values()
    assert port.connected
    logged_failures.flush(Exception)
    managed.processes[0].ends()
    await managed.go(FEED_TIMEOUT + 1)
    assert managed.processes[-1].told[0]["options"] == {"name": "first"}


@in_turns
async def test_a_reload_whose_later_worker_fails_keeps_what_both_plans_need(
    make, logged_failures, tmp_path
):
    old, new = f"unix:{tmp_path}/old", f"unix:{tmp_path}/new"
    managed = await make(workers=2, listen=(old,), redis=()).start()
    managed.feeding()
    spawn = managed.reactor.on_spawn

    def second_fails(process: FakeProcess) -> None:
        spawn(process)
        if len(managed.processes) == 4:
            managed.reactor.callLater(SOON, process.ends, 1)

    managed.reactor.on_spawn = second_fails
    reloaded = managed.reload(listen=(new,), redis=(NOWHERE,), workers=3)
    await managed.go(1)
    assert reloaded.result is False
    assert managed.processes[0].ended
    assert managed.processes[1].asked[-1] != "drain"
    assert (tmp_path / "old").exists(), "one worker still serves there"
    assert (tmp_path / "new").exists()
    assert not managed.reactor.redis[0].ended, "one worker is still fed by it"
    logged_failures.flush(Exception)
    assert managed.states() == [(1, "serving"), (2, "serving"), (3, "serving")]
    assert managed.processes[-1].told[0]["options"] == {"name": "second"}, "the new slot is filled"
    again = managed.reload(listen=(old, new), redis=(NOWHERE,), workers=3)
    await managed.go(1)
    assert again.result is True, "what is still open is used again"
    assert (tmp_path / "old").exists()
    assert managed.reactor.redis[0].ended
    last = managed.reload(listen=(new,), redis=(NOWHERE,), workers=3)
    await managed.go(1)
    assert last.result is True
    assert not (tmp_path / "old").exists()


@in_turns
async def test_more_workers_are_added_and_fewer_drain(make):
    managed = await make(workers=1).start()
    managed.feeding()
    more = managed.reload(workers=3)
    await managed.go(1)
    assert more.result is True
    assert [number for number, _ in managed.states()] == [1, 2, 3]
    fewer = managed.reload(workers=1)
    await managed.go(1)
    assert fewer.result is True
    assert managed.states() == [(1, "serving")]
    assert len(managed.alive()) == 1
    dismissed = [each for each in managed.processes if each.told[-1].get("do") == "drain"]
    assert len(dismissed) == 4


@in_turns
async def test_a_plan_that_can_not_be_run_changes_nothing(make, tmp_path):
    managed = await make().start()
    manager = managed.manager
    before = manager._plan, dict(manager._ports), manager._development
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        with pytest.raises(CannotListen, match="Address already in use"):
            await managed.reload(listen=(LOOPBACK, f"unix:{tmp_path}/new", busy))
    with pytest.raises(CannotListen, match="can't share"):
        await managed.reload(listen=("ssl:0",))
    missing = tmp_path / "missing.pem"
    with pytest.raises(ValueError, match=r"missing\.pem"):
        await managed.reload(plain=False, cert=(missing,), key=(missing,))
    with pytest.raises(ValueError, match="--workers 0 needs a new start"):
        await managed.reload(workers=0)
    await managed.go()
    assert (manager._plan, manager._ports, manager._development) == before
    assert not (tmp_path / "new").exists()
    assert len(managed.processes) == 1
    assert managed.states() == [(1, "serving")]


@in_turns
async def test_a_private_redis_that_is_not_wanted_any_more_ends_when_all_have_left_it(make):
    managed = await make(workers=2, redis=()).start()
    managed.feeding()
    for process in managed.processes:
        process.ignores.add("drain")
    reloaded = managed.reload(redis=(NOWHERE,))
    await managed.go()
    managed.processes[0].ends()
    await managed.go()
    assert not managed.reactor.redis[0].ended
    managed.processes[1].ends()
    await managed.go()
    assert managed.reactor.redis[0].ended
    assert reloaded.result is True


@in_turns
async def test_a_send_buffer_that_has_changed_holds_for_sockets_that_were_open(make):
    managed = await make(limits=Limits(send_buffer=65_536)).start()
    [port] = managed.manager._ports.values()
    managed.feeding()
    reloaded = managed.reload(limits=Limits(send_buffer=20_000))
    await managed.go(FEED_TIMEOUT + 1)
    assert reloaded.result is True
    assert port.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 40_000


@in_turns
async def test_a_second_reload_waits_for_the_first(make):
    managed = await make().start()
    managed.feeding()
    managed.processes[0].ignores.add("drain")
    first, second = managed.reload("second"), managed.reload("third")
    await managed.go(1)
    assert len(managed.processes) == 2
    managed.processes[0].ends()
    await managed.go(1)
    assert (first.result, second.result) == (True, True)
    names = [process.told[0]["options"]["name"] for process in managed.processes]
    assert names == ["first", "second", "third"]


@in_turns
async def test_a_reload_takes_the_place_of_a_restart_that_was_to_come(make):
    managed = await make().start()
    for _ in range(6):
        managed.processes[-1].ends(code=1)
        await managed.go(3 if len(managed.processes) < 6 else SOON)
    assert managed.manager._slots.by_number[1].restart is not None
    count = len(managed.processes)
    reloaded = managed.reload()
    await managed.go()
    assert reloaded.result is True
    assert len(managed.processes) == count + 1
    await managed.go(MAX_RESTART_DELAY)
    assert len(managed.processes) == count + 1
    managed.feed()
    assert managed.manager.faults() == []


@in_turns
async def test_an_old_worker_that_ends_while_its_heir_comes_up_is_not_restarted(make):
    managed = await make().start()
    reloaded = managed.reload()
    managed.processes[0].ends(code=1)
    await managed.go(FEED_TIMEOUT + 1)
    assert reloaded.result is True
    assert len(managed.processes) == 2
    assert managed.states() == [(1, "serving")]


@in_turns
async def test_a_post_both_of_whose_workers_end_in_a_reload_is_filled_again(make, logged_failures):
    managed = await make().start()
    reloaded = managed.reload()
    managed.processes[0].ends(code=1)
    managed.processes[1].ends(code=1)
    await managed.go(1)
    assert reloaded.result is False
    assert managed.states() == [(1, "serving")]
    logged_failures.flush(Exception)


@in_turns
async def test_a_worker_that_comes_up_while_it_is_replaced_is_not_told_to_serve(make):
    managed = await make(workers=2).start()
    managed.processes[0].ends()
    await managed.go(1)
    coming = managed.processes[2]
    coming.ignores.add("drain")
    assert coming.asked == []
    reloaded = managed.reload()
    await managed.go(SOON)
    managed.feeding()
    managed.processes[3].says("feed_up")
    await managed.go()
    assert coming.asked == ["drain"]
    coming.says("feed_up")
    await managed.go()
    assert coming.asked == ["drain"]
    coming.ends()
    await managed.go(1)
    assert reloaded.result is True
    assert managed.states() == [(1, "serving"), (2, "serving")]


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
async def test_a_worker_that_does_not_end_in_its_own_time_is_killed(make, words):
    managed = await make(drain_timeout=20.0).start()
    managed.feeding()
    old = managed.processes[0]
    old.ignores.add("drain")
    reloaded = managed.reload(drain_timeout=1.0)
    await speaking(managed, 20 + KILL_DELAY - 1)
    assert old.signals == [], "what it was started with holds"
    await speaking(managed, 2)
    assert [int(number) for number in old.signals] == [9]
    assert "has not ended in 25" in words
    assert reloaded.result is True


# -- stop ------------------------------------------------------------------------------------------


@in_turns
async def test_a_stop_has_all_drain_at_once_and_closes_the_sockets(make):
    managed = await make(workers=2, redis=()).start()
    for process in managed.processes:
        process.ignores.add("drain")
    [port] = managed.manager._ports.values()
    address = ("127.0.0.1", port.getHost().port)
    stopped = managed.stop()
    await managed.go()
    assert [process.told[-1] for process in managed.processes] == [
        {"do": "drain", "code": CloseCode.GOING_AWAY}
    ] * 2
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    assert not managed.manager.serves
    managed.manager.abort()
    assert [process.asked[-1] for process in managed.processes] == ["abort"] * 2
    managed.processes[0].ends()
    await managed.go()
    assert not stopped.called
    assert not managed.reactor.redis[0].ended, "the other may need it yet"
    managed.processes[1].ends()
    await managed.go()
    assert stopped.called


@in_turns
async def test_a_stop_cancels_what_was_to_be_restarted(make):
    managed = await make().start()
    for _ in range(3):
        managed.processes[-1].ends(code=1)
        await managed.go(SOON if len(managed.processes) == 3 else 1)
    count = len(managed.processes)
    await managed.stop()
    await managed.go(60)
    assert len(managed.processes) == count


@in_turns
@pytest.mark.parametrize("after", [0, SOON, 2 * SOON, 3 * SOON, 4 * SOON, 5 * SOON, 6 * SOON])
async def test_a_stop_in_the_midst_of_a_reload_ends_both(make, after, tmp_path, logged_failures):
    managed = await make(workers=2, redis=(), listen=(f"unix:{tmp_path}/old",)).start()
    managed.feeding()
    reloaded = managed.reload(workers=3, listen=(f"unix:{tmp_path}/new",), demo=True)
    await managed.go(after)
    stopped = managed.stop()
    await managed.go(1)
    assert stopped.called
    assert reloaded.result is False
    assert managed.alive() == []
    assert all(redis.ended for redis in managed.reactor.redis)
    assert list(tmp_path.iterdir()) == []
    logged_failures.flush(Exception)


@in_turns
async def test_a_stop_does_not_wait_for_a_private_redis_that_a_reload_waits_for(make):
    managed = await make().start()
    managed.reactor.redis_gets_ready = False
    reloaded = managed.reload(redis=())
    await managed.go(1)
    assert len(managed.processes) == 1, "workers come once it is there"
    stopped = managed.stop()
    await managed.go(1)
    assert stopped.called
    assert reloaded.result is False
    assert managed.reactor.redis[0].ended


@in_turns
async def test_a_stop_while_workers_start_ends_them_before_they_serve(make):
    managed = make()
    managed.manager.privilegedStartService()
    managed.manager.startService()
    stopped = managed.stop()
    await managed.go()
    assert stopped.called
    assert managed.processes[0].asked == ["serve", "drain"]
    assert len(managed.processes) == 1


@in_turns
async def test_what_was_never_started_can_be_stopped(make):
    managed = make()
    managed.manager.privilegedStartService()
    await managed.stop()


@in_turns
async def test_a_worker_that_is_stuck_holds_up_no_stop_that_is_to_be_at_once(make):
    managed = await make(workers=2, drain_timeout=3600.0).start()
    stuck, other = managed.processes
    stuck.ignores.add("drain")
    stopped = managed.stop()
    await managed.go(10)
    assert other.ended
    managed.manager.abort()
    await managed.go(KILL_DELAY - 1)
    assert stuck.signals == []
    assert not stopped.called
    await managed.go(2)
    assert stuck.signals == [9]
    assert stopped.called


@in_turns
async def test_a_worker_that_can_not_be_killed_does_not_hold_up_the_stop(make):
    managed = await make().start()
    stuck = managed.processes[0]
    stuck.ignores |= {"drain", 9}
    stopped = managed.stop()
    await managed.go(15 + KILL_DELAY + STEP_TIMEOUT + 1)
    assert stopped.called
    stuck.ends(signal=9)


# -- certificates ----------------------------------------------------------------------------------


@in_turns
async def test_certificates_that_are_renewed_are_told_to_all_and_to_those_that_come(make, tmp_path):
    managed = await make(workers=2, plain=False, certs=tmp_path / "certs").start()
    managed.feeding()
    [before] = managed.processes[0].told[0]["materials"]
    for name in ("dev.crt", "dev.key"):
        (tmp_path / "certs" / name).unlink()
    managed.manager._renew_certificates()
    [told] = managed.processes[0].told[-1]["materials"]
    assert managed.processes[1].asked[-1] == "certificates"
    assert told != before
    managed.processes[0].ends()
    await managed.go()
    assert managed.processes[-1].told[0]["materials"] == [told]
    (tmp_path / "certs" / "dev.key").write_text("nonsense")
    managed.manager._renew_certificates()
    assert managed.processes[1].told[-1].get("materials", [told]) == [told]
    assert len(managed.manager.status()["certificates"]) == 1


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
