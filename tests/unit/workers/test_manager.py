"""The manager: start, checks of its workers, certificates, stop."""

from __future__ import annotations

import os
import random
import socket

import pytest
import pytest_twisted
from worker_doubles import LOOPBACK, SOON, Managed, configured, speaking

from pushservice.config.coercers import AUTO
from pushservice.protocol.close_codes import CloseCode
from pushservice.service.startup import CannotStart
from pushservice.workers import worker_link
from pushservice.workers.launcher import AGE_JITTER, entries_of
from pushservice.workers.manager import AGE_RETRY_DELAY, STUCK_AFTER
from pushservice.workers.overview import SILENT_AFTER
from pushservice.workers.plan import worker_count
from pushservice.workers.supervisor import (
    KILL_DELAY,
    STEP_TIMEOUT,
)

in_turns = pytest_twisted.ensureDeferred


# -- start -----------------------------------------------------------------------------------------


@in_turns
async def test_as_many_workers_serve_as_are_asked_for(make, logged):
    managed = await make(workers=3).start(feed_up=False)
    assert managed.states() == [(1, "serving"), (2, "serving"), (3, "serving")]
    assert [process.asked for process in managed.processes] == [["serve"]] * 3
    assert managed.manager.serves
    assert managed.manager.faults() == ["the feed is down"]
    managed.processes[1].says("feed_up")
    assert managed.manager.faults() == []
    managed.processes[1].says("feed_down")
    assert managed.manager.faults() == ["the feed is down"]
    assert "is served" in logged


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
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {5, 2})
    managed = await make(workers=3, affinity=True).start()
    assert [process.told[0]["core"] for process in managed.processes] == [2, 5, 2]
    assert worker_count(configured(workers=AUTO)) == 2


def test_what_can_not_be_shared_is_refused_at_the_start():
    managed = Managed(listen=("ssl:0:privateKey=/no",))
    with pytest.raises(CannotStart, match=r"quotepush: workers can't share ssl:.* --workers 0"):
        managed.manager.privilegedStartService()
    managed.manager._launcher.close()


def test_an_outlet_that_no_worker_could_have_is_refused_at_the_start(monkeypatch):
    monkeypatch.setenv("QUOTEPUSH_OUTLET", "fast")
    with pytest.raises(
        CannotStart, match=r"quotepush: QUOTEPUSH_OUTLET in the environment: 'fast'"
    ):
        Managed()


@in_turns
async def test_who_waits_in_the_socket_is_accepted_by_nobody_but_workers(make):
    managed = await make().start()
    [port] = managed.manager._resources.sockets.values()
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


# -- stuck and old ---------------------------------------------------------------------------------


@in_turns
async def test_a_worker_that_says_nothing_for_long_is_asked_where_it_is_stuck_and_killed(
    make, logged
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
    assert "worker 1 is stuck" in logged
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
    monkeypatch.setattr(random, "uniform", lambda low, high: next(ages))
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
async def test_an_old_worker_whose_successor_fails_serves_on_and_is_replaced_later(
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


# -- stop ------------------------------------------------------------------------------------------


@in_turns
async def test_a_stop_has_all_drain_at_once_and_closes_the_sockets(make):
    managed = await make(workers=2, redis=()).start()
    for process in managed.processes:
        process.ignores.add("drain")
    [port] = managed.manager._resources.sockets.values()
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
