"""SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2, at any time, with workers and without."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from contextlib import AsyncExitStack
from pathlib import Path

import psutil
import pytest
from redis_process import RedisServer
from system_clients import Client, Puppet, bare_socket, client_of, open_websocket
from system_harness import Publish, poll, poll_async
from worker_daemon import LONG, StartWorkerDaemon, wait_for_end

MOMENTS = 40 if LONG else 6
WITH_AND_WITHOUT = pytest.mark.parametrize("workers", [2, 0], ids=["workers", "alone"])


# -- the end -------------------------------------------------------------------------------------


@WITH_AND_WITHOUT
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
def test_a_stop_is_told_to_load_balancers_then_to_clients_and_leaves_nothing(
    worker_daemon: StartWorkerDaemon, workers: int, number: signal.Signals, group: bool
) -> None:
    served = worker_daemon("--channels", "end.*", "--drain-delay", "1", workers=workers)
    assert served.ask("ready") == (200, {"ready": True, "faults": []})

    async def run() -> None:
        async with AsyncExitStack() as stack:
            clients = [
                Client(await stack.enter_async_context(open_websocket(served))) for _ in range(20)
            ]
            for client in clients:
                await client.expect("welcome")
            (served.signal_group if group else served.signal)(number)
            told = time.monotonic()
            await asyncio.to_thread(served.wait_for_log, "told to end")
            assert served.ask("ready") == (503, {"ready": False, "faults": ["draining"]})
            # Who comes before the delay is over is served.
            async with client_of(served, "A") as late:
                assert (await late.ask({"op": "ping"}))["ev"] == "pong"
                byes = [await client.expect("bye") for client in [*clients, late]]
                assert time.monotonic() - told >= 0.9
                assert {bye["code"] for bye in byes} == {1001}
                retries = [bye["retry"] for bye in byes]
                assert all(0 <= retry < 5000 for retry in retries)
                assert len(set(retries)) > 10
                assert {await client.closed() for client in [*clients, late]} == {1001}
            assert await wait_for_end(served, 10) == 0

    asyncio.run(run())
    served.check_left_nothing()
    # The workers were not told to end by anybody but the manager: none was started again.
    assert "another starts in" not in served.log()


@WITH_AND_WITHOUT
def test_the_time_for_draining_holds_whatever_clients_do(
    worker_daemon: StartWorkerDaemon, workers: int, redis_server: RedisServer, publish: Publish
) -> None:
    served = worker_daemon(
        *("--channels", "deadline.*", "--drain-timeout", "2", "--close-timeout", "60"),
        *("--stall-timeout", "60"),
        workers=workers,
    )

    async def run() -> None:
        async with bare_socket(served) as mute:
            await mute.upgrade()
            with Puppet(served, receive_buffer=4096) as stalled:
                await asyncio.to_thread(stalled.upgrade)
                await asyncio.to_thread(stalled.subscribe, "A")
                for _ in range(20):
                    await asyncio.to_thread(
                        publish, redis_server, [("deadline.A", f'"{"x" * 50_000}"')] * 4
                    )
                began = time.monotonic()
                served.signal(signal.SIGTERM)
                assert await wait_for_end(served, 20) == 0
                took = time.monotonic() - began
                assert 1.8 < took < 4.5, took

    asyncio.run(run())
    served.check_left_nothing()


@WITH_AND_WITHOUT
@pytest.mark.parametrize("pause", [0.0, 0.5], ids=["at once", "later"])
def test_a_second_stop_ends_at_once(
    worker_daemon: StartWorkerDaemon, workers: int, pause: float
) -> None:
    served = worker_daemon("--channels", "second.*", "--close-timeout", "60", workers=workers)

    async def run() -> None:
        async with bare_socket(served) as mute, bare_socket(served) as another:
            await mute.upgrade()
            await another.upgrade()
            served.signal(signal.SIGTERM)
            await asyncio.to_thread(served.wait_for_log, "told to end")
            # How long it has been leaving by then.
            await asyncio.sleep(pause)
            served.signal(signal.SIGTERM)
            began = time.monotonic()
            assert await wait_for_end(served, 30) == 0
            assert time.monotonic() - began < 3

    asyncio.run(run())
    served.check_left_nothing()


@WITH_AND_WITHOUT
def test_a_second_stop_in_the_time_for_load_balancers_ends_at_once_too(
    worker_daemon: StartWorkerDaemon, workers: int
) -> None:
    served = worker_daemon(
        *("--channels", "hasty.*", "--drain-delay", "30", "--close-timeout", "60"),
        workers=workers,
    )

    async def run() -> None:
        async with bare_socket(served) as mute:
            await mute.upgrade()
            served.signal(signal.SIGTERM)
            await asyncio.to_thread(served.wait_for_log, "told to end")
            served.signal(signal.SIGTERM)
            began = time.monotonic()
            assert await wait_for_end(served, 30) == 0
            assert time.monotonic() - began < 3

    asyncio.run(run())
    served.check_left_nothing()


@WITH_AND_WITHOUT
def test_a_stop_at_any_moment_of_the_start_leaves_nothing(
    worker_daemon: StartWorkerDaemon, workers: int
) -> None:
    chance = random.Random(workers)
    statuses = []
    # Right when the pidfile is there, and at all other times.
    for at in range(MOMENTS):
        served = worker_daemon("--channels", "early.*", redis="", workers=workers, wait=False)
        # Python itself, where it is still reading modules.
        served.may_log_tracebacks = True
        if at < MOMENTS // 3:
            poll(served.pidfile.exists, "the pidfile")
        else:
            # The moment.
            time.sleep(chance.uniform(0.1, 2.5))
        served.signal(signal.SIGTERM if at % 2 else signal.SIGINT)
        statuses.append(served.wait(20))
        served.check_left_nothing()
    # By the signal itself only where Python had not come to catch it.
    assert set(statuses) <= {0, 1, -signal.SIGTERM, -signal.SIGINT}, statuses
    print(f"\nended with {statuses}")  # noqa: T201


# -- signals that end nothing --------------------------------------------------------------------


@WITH_AND_WITHOUT
@pytest.mark.parametrize("logfile", [True, False], ids=["logfile", "stdout"])
def test_no_other_signal_ends_anything(
    worker_daemon: StartWorkerDaemon,
    workers: int,
    logfile: bool,
    redis_server: RedisServer,
    publish: Publish,
) -> None:
    served = worker_daemon("--channels", "kind.*", workers=workers, logfile=logfile)
    before = {process.pid for process in served.session()}

    async def run() -> None:
        async with client_of(served, "A") as client:
            for number in (signal.SIGUSR1, signal.SIGUSR2):
                for _ in range(3):
                    served.signal_group(number)
                    served.signal(number)
            # To workers too: a terminal that is gone tells the whole group.
            for process in psutil.Process(served.process.pid).children():
                process.send_signal(signal.SIGHUP)
                process.send_signal(signal.SIGINT)
            assert (await client.ask({"op": "ping"}))["ev"] == "pong"
            publish(redis_server, [("kind.A", "1")])
            assert (await client.expect("quote"))["d"] == 1

    asyncio.run(run())
    assert {process.pid for process in served.session()} == before
    served.signal_group(signal.SIGHUP)
    served.wait_for_log("the configuration is loaded")
    assert served.process.poll() is None
    if workers:
        served.wait_until_serving(workers, sorted(before))
    # All of it stands in the log.
    assert f"status: {{'pid': {served.process.pid}" in served.log()
    for number in range(1, workers + 1):
        line = next(x for x in served.log().splitlines() if f"status of worker {number}: {{" in x)
        assert "'clients': " in line
        assert "'state': 'serving'" in line
    assert served.stop() == 0
    served.check_left_nothing()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_such_a_signal_during_the_start_ends_nothing_either(
    worker_daemon: StartWorkerDaemon, number: signal.Signals
) -> None:
    served = worker_daemon("--channels", "soon.*", wait=False)
    # Its service begins to listen with the signals caught.
    served.wait_for_log("Starting factory")
    for _ in range(5):
        served.signal(number)
    # Before that nobody may answer on its admin port.
    served.wait_for_log("is served")
    served.wait_until_serving(2)
    assert served.stop() == 0
    served.check_left_nothing()


#: Signals the process that twistd is, right after it has written its pidfile, and right before it
#: removes that.
AROUND = """
import os, sys
if os.path.basename(sys.orig_argv[1]) == "twistd":
    from twisted.scripts._twistd_unix import UnixApplicationRunner as Runner

    def signalled(numbers):
        for number in numbers:
            os.kill(os.getpid(), number)

    def setup(self, *arguments, before=Runner.setupEnvironment):
        before(self, *arguments)
        signalled({first})

    def remove(self, pidfile, before=Runner.removePID):
        signalled({last})
        before(self, pidfile)

    Runner.setupEnvironment, Runner.removePID = setup, remove
"""


@WITH_AND_WITHOUT
@pytest.mark.parametrize("stopped", [False, True], ids=["starts", "stops"])
def test_no_signal_ends_it_as_long_as_there_is_a_pidfile(
    worker_daemon: StartWorkerDaemon, short_directory: Path, workers: int, stopped: bool
) -> None:
    kind = [signal.SIGHUP.value, signal.SIGUSR1.value, signal.SIGUSR2.value]
    ends = [signal.SIGTERM.value, signal.SIGINT.value]
    modules = short_directory / "modules"
    modules.mkdir()
    (modules / "sitecustomize.py").write_text(
        AROUND.format(first=kind + ends * stopped, last=kind + ends)
    )
    served = worker_daemon(
        "--channels",
        "around.*",
        workers=workers,
        env={"PYTHONPATH": str(modules)},
        wait=not stopped,
    )
    assert served.wait(60) == 0 if stopped else served.stop() == 0
    served.check_left_nothing()


#: presses Ctrl-C in the midst of an import that lets no exception out
SWALLOWED = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "pushservice.workers.process":
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except BaseException:
                pass

sys.meta_path.insert(0, Finder())
"""


@WITH_AND_WITHOUT
def test_an_import_that_swallows_exceptions_swallows_no_stop(
    worker_daemon: StartWorkerDaemon, short_directory: Path, workers: int
) -> None:
    modules = short_directory / "modules"
    modules.mkdir()
    (modules / "sitecustomize.py").write_text(SWALLOWED)
    served = worker_daemon(workers=workers, env={"PYTHONPATH": str(modules)}, wait=False)
    assert served.wait(60) == -signal.SIGINT
    served.check_left_nothing()


@WITH_AND_WITHOUT
def test_a_log_that_was_moved_away_is_begun_anew_at_its_place(
    worker_daemon: StartWorkerDaemon, workers: int, short_directory: Path
) -> None:
    served = worker_daemon("--channels", "log.*", workers=workers, logfile=True)
    moved = served.directory / "log.moved"
    served.logfile.rename(moved)
    served.signal(signal.SIGUSR1)
    poll(served.logfile.exists, "a log at its place")
    before = moved.read_text()
    served.signal(signal.SIGUSR2)
    served.wait_for_log("status: {")
    if workers:
        for worker in served.workers():
            psutil.Process(worker["pid"]).send_signal(signal.SIGUSR2)
        for number in range(1, workers + 1):
            poll(
                lambda number=number: f"[worker {number} " in served.logfile.read_text(),
                f"the word of worker {number}",
            )
            assert f"[worker {number} " in before
    assert served.stop() == 0
    assert "Server Shut Down." in served.logfile.read_text()
    assert moved.read_text() == before


# -- signals to a worker -------------------------------------------------------------------------


def test_a_worker_that_somebody_tells_to_end_is_replaced_and_its_clients_move(
    worker_daemon: StartWorkerDaemon,
) -> None:
    served = worker_daemon("--channels", "told.*")
    before = served.pids()

    async def run() -> None:
        async with AsyncExitStack() as stack:
            clients = [
                Client(await stack.enter_async_context(open_websocket(served))) for _ in range(20)
            ]
            epochs = [(await client.expect("welcome"))["epoch"] for client in clients]
            gone = served.workers()[0]["epoch"]
            assert gone in epochs
            psutil.Process(before[1]).terminate()
            for client, epoch in zip(clients, epochs, strict=True):
                if epoch == gone:
                    assert (await client.expect("bye"))["code"] == 1012
                    assert await client.closed() == 1012
                else:
                    assert (await client.ask({"op": "ping"}))["ev"] == "pong"
            await poll_async(
                lambda: served.pids().get(1, before[1]) != before[1],
                "another worker 1",
            )
            assert served.pids()[2] == before[2]

    asyncio.run(run())
