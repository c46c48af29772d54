"""Workers and their manager: deaths, crash loops, shares, sockets that outlive who accepts on them.

The first test is short, like any other; its long form, 400 clients for a minute, is asked for:

    QUOTEPUSH_SOAK=60 script/test tests/system/test_workers.py -s
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import stat
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import psutil
import pytest
from redis_client import RedisClient
from redis_process import RedisServer
from system_clients import Client, Puppet, bare_socket, frame, open_websocket
from system_harness import DEADLINE, Publish, poll, poll_async
from websockets.exceptions import InvalidStatus
from worker_daemon import (
    LONG,
    SECONDS,
    Followers,
    Market,
    StartWorkerDaemon,
    WorkerDaemon,
    can_bind,
    signal_worker,
    wait_for_end,
)

CLIENTS = 400 if LONG else 80
SYMBOLS = [f"S{at}" for at in range(200)]
WATCHED = 4
#: Seconds between two deaths.
PAUSE = 5.0


def manager_of(worker_daemon: WorkerDaemon) -> psutil.Process:
    return psutil.Process(worker_daemon.process.pid)


# -- deaths --------------------------------------------------------------------------------------


def test_workers_that_are_killed_cost_their_own_clients_a_moment_and_nobody_else_anything(
    worker_daemon: StartWorkerDaemon, redis_server: RedisServer
) -> None:
    chance = random.Random(20251122)
    served = worker_daemon("--channels", "kill.*", "--heartbeat", "1000", workers=4, tls=True)
    everyone: set[int] = {served.process.pid, *served.pids().values()}
    killed: list[str] = []

    async def run() -> None:
        watched = [chance.sample(SYMBOLS, WATCHED) for _ in range(CLIENTS)]
        followers = Followers(served, watched, seed=1)
        with Market(redis_server, "kill", SYMBOLS) as market:
            await followers.start()
            files = manager_of(served).num_fds()
            until = time.monotonic() + SECONDS
            while time.monotonic() < until:
                victim = chance.choice(served.workers())
                killed.append(victim["epoch"])
                signal_worker(victim["pid"])
                await asyncio.sleep(PAUSE)
                pids = await asyncio.to_thread(served.wait_until_serving, 4)
                everyone.update(pids.values())
            await followers.settled()
            await asyncio.to_thread(market.stop)
            # Those that nobody quoted since a client came back.
            await asyncio.to_thread(market.publish, SYMBOLS)
            await followers.caught_up(market)
            await poll_async(lambda: manager_of(served).num_fds() <= files, "no more descriptors")
            quotes = market.quotes
        assert followers.faults == []
        lost = [visit for each in followers.each for visit in each.visits[:-1]]
        assert lost
        # Without an epoch are those whose worker was killed before it had greeted them.
        assert {visit.epoch for visit in lost} - {""} <= set(killed), "others lost connections"
        assert {visit.code for visit in lost} == {1006}
        slowest = followers.slowest_first_value()
        assert slowest < 2
        assert sum(worker["restarts"] for worker in served.workers()) == len(killed)
        served.signal(signal.SIGTERM)
        assert await wait_for_end(served) == 0
        print(  # noqa: T201 - the figures, for who asks for them with -s
            f"\n{CLIENTS} clients, {quotes} quotes, {followers.quotes} delivered; {len(killed)}"
            f" workers killed, {len(lost)} clients came back, {len(followers.refused)} handshakes"
            f" cut; the first value {slowest * 1000:.0f} ms after the handshake at worst"
        )
        await followers.end()

    asyncio.run(run())
    served.check_left_nothing()
    assert not any(psutil.pid_exists(pid) for pid in everyone)


async def clients_by_worker(
    worker_daemon: WorkerDaemon, stack: AsyncExitStack
) -> dict[str, Client]:
    """A client on each worker that serves, by the worker's epoch."""
    found: dict[str, Client] = {}
    epochs = {worker["epoch"] for worker in await asyncio.to_thread(worker_daemon.workers)}
    deadline = time.monotonic() + DEADLINE
    while found.keys() != epochs:
        assert time.monotonic() < deadline, f"no connection comes to one of {epochs}: {found}"
        client = Client(await stack.enter_async_context(open_websocket(worker_daemon)))
        found.setdefault((await client.expect("welcome"))["epoch"], client)
    return found


def test_the_last_value_of_a_quiet_symbol_outlives_the_worker(
    worker_daemon: StartWorkerDaemon, publish: Publish, redis_server: RedisServer
) -> None:
    served = worker_daemon("--channels", "quiet.*")
    publish(redis_server, [("quiet.A", '"only"')])

    async def run() -> None:
        async with AsyncExitStack() as stack:
            clients = await clients_by_worker(served, stack)
            for client in clients.values():
                await client.subscribe("A")
                assert (await client.expect("snapshot"))["n"] == 1
        for number in (1, 2):
            before = served.pids()
            signal_worker(before[number])
            await asyncio.to_thread(served.wait_until_serving, 2, [before[number]])
            async with AsyncExitStack() as stack:
                for client in (await clients_by_worker(served, stack)).values():
                    await client.subscribe("A")
                    assert (await client.expect("snapshot"))["d"] == "only"
                publish(redis_server, [("quiet.A", str(number))])
                # Not the only quote any more, but still none of what comes next.
                publish(redis_server, [("quiet.A", '"only"')])

    asyncio.run(run())


def test_connections_that_wait_in_the_queue_outlive_the_worker(
    worker_daemon: StartWorkerDaemon,
) -> None:
    served = worker_daemon("--channels", "queue.*", workers=1)
    (pid,) = served.pids().values()
    os.kill(pid, signal.SIGSTOP)
    try:
        waiting = [Puppet(served) for _ in range(20)]
    finally:
        os.kill(pid, signal.SIGKILL)
    for client in waiting:
        with client:
            assert client.upgrade()["ev"] == "welcome"
            assert client.subscribe("A")["symbols"] == ["A"]
    assert served.pids()[1] != pid


#: Ends a worker as it starts, while the file is there.
FAULT = """
import os, sys
if os.path.exists({flag!r}) and "pushservice.workers.worker" in " ".join(sys.orig_argv):
    os.write(2, b"no worker today\\n")
    os._exit(3)
"""


def test_a_worker_that_dies_each_time_is_started_ever_later_said_loudly_and_recovers(
    worker_daemon: StartWorkerDaemon, short_directory: Path
) -> None:
    broken = short_directory / "broken"
    modules = short_directory / "modules"
    modules.mkdir()
    (modules / "sitecustomize.py").write_text(FAULT.format(flag=str(broken)))
    served = worker_daemon("--channels", "loop.*", env={"PYTHONPATH": str(modules)})
    broken.touch()
    signal_worker(served.pids()[2])
    served.wait_for_log("worker 2 ended by SIGKILL")
    served.wait_for_log("worker 2 wrote: no worker today")
    served.wait_for_log("worker 2 ended with exit status 3", times=4)
    served.wait_for_log(", and keeps doing so: another starts in")
    assert "pushservice.workers.supervisor.Supervisor#critical" in served.log()
    assert served.ask("ready") == (503, {"ready": False, "faults": ["worker 2 keeps ending"]})
    assert served.ask("live")[0] == 200
    # The other one serves on.
    with Puppet(served) as client:
        client.upgrade()
    delays = [
        float(line.rpartition("starts in ")[2].removesuffix(" s"))
        for line in served.log().splitlines()
        if "worker 2 ended" in line
    ]
    assert delays == sorted(delays)
    assert delays[0] == 0
    broken.unlink()
    served.wait_until_serving(2)
    poll(lambda: served.ask("ready")[0] == 200, "ready again", 30)
    assert served.workers()[1]["restarts"] == len(delays)


def test_a_worker_that_can_not_even_be_started_is_tried_again_until_it_can(
    worker_daemon: StartWorkerDaemon,
) -> None:
    served = worker_daemon("--channels", "files.*")
    manager = manager_of(served)
    soft, hard = manager.rlimit(psutil.RLIMIT_NOFILE)
    used = {int(path.name) for path in Path(f"/proc/{manager.pid}/fd").iterdir()}
    lowest = next(number for number in range(len(used) + 1) if number not in used)
    pid = served.pids()[1]
    manager.rlimit(psutil.RLIMIT_NOFILE, (lowest, hard))
    try:
        signal_worker(pid)
        # Of the worker that was killed there are some to spare, and fewer than another one takes.
        served.wait_for_log("worker 1 ended before it began: Too many open files")
    finally:
        manager.rlimit(psutil.RLIMIT_NOFILE, (soft, hard))
    served.wait_until_serving(2, [pid])


# -- the manager's death -------------------------------------------------------------------------


@pytest.mark.parametrize("busy", [False, True], ids=["mute", "busy"])
def test_workers_do_not_outlive_a_killed_manager(
    worker_daemon: StartWorkerDaemon, redis_server: RedisServer, busy: bool
) -> None:
    served = worker_daemon("--channels", "orphan.*")
    pidfile = served.pidfile

    async def run() -> None:
        async with AsyncExitStack() as stack:
            mute = [await stack.enter_async_context(bare_socket(served)) for _ in range(8)]
            for client in mute:
                await client.upgrade()
            if busy:
                # These neither read nor answer, and both workers have all they can do.
                for client in mute:
                    await client.send(subscribe_frame(SYMBOLS))
                    client.reader._transport.pause_reading()
                market = Market(redis_server, "orphan", SYMBOLS, rate=20_000)
                stack.enter_context(market)
            clients = await clients_by_worker(served, stack)
            served.signal(signal.SIGKILL)
            killed = time.monotonic()
            await poll_async(lambda: can_bind(served.port), "the port to be free")
            bound = time.monotonic() - killed
            await poll_async(lambda: not served.session(), "the end of all workers")
            gone = time.monotonic() - killed
            assert gone < 5
            if not busy:
                for client in clients.values():
                    bye = await client.expect("bye")
                    assert bye["code"] == 1001
            print(f"\nthe port is free after {bound:.2f} s, all are gone after {gone:.2f} s")  # noqa: T201

    asyncio.run(run())
    assert served.wait() == -signal.SIGKILL
    # Its pidfile is what a killed twistd leaves, and who comes next takes it over.
    assert served.left() == ["pid"]
    again = worker_daemon("--channels", "orphan.*", port=served.port)
    assert again.port == served.port
    assert pidfile.exists()


def subscribe_frame(symbols: list[str]) -> bytes:
    return frame(1, json.dumps({"op": "subscribe", "symbols": symbols}).encode())


# -- shares --------------------------------------------------------------------------------------


def test_clients_are_shared_out_counted_together_and_all_in_the_registry(
    worker_daemon: StartWorkerDaemon, redis_server: RedisServer
) -> None:
    most = 210
    prefix = f"share{os.getpid()}:"
    served = worker_daemon(
        *("--channels", "share.*", "--max-connections", str(most), "--affinity"),
        *("--registry-prefix", prefix, "--node", "host"),
    )
    cores = sorted(os.sched_getaffinity(0))
    for worker in served.workers():
        process = psutil.Process(worker["pid"])
        wanted = cores[(worker["number"] - 1) % len(cores)]
        assert process.cpu_affinity() == [wanted]
        assert process.cmdline()[0].strip() == f"quotepush: worker {worker['number']}"
    assert manager_of(served).cmdline()[0].strip() == "quotepush: manager"

    async def run() -> None:
        async with AsyncExitStack() as stack:
            there: Counter[str] = Counter()

            async def come() -> None:
                connection = await stack.enter_async_context(open_websocket(served))
                client = Client(connection)
                there[(await client.expect("welcome"))["epoch"]] += 1
                await client.subscribe("A")

            for _ in range(10):
                await asyncio.gather(*(come() for _ in range(20)))
            assert there.total() == 200
            assert max(there.values()) <= 120, there
            refusals = []
            for _ in range(30):
                try:
                    await come()
                except InvalidStatus as refusal:
                    refusals.append(refusal.response.status_code)
            refused = len(refusals)
            assert set(refusals) == {503}
            assert most - 3 <= there.total() <= most + 3
            assert refused == 230 - there.total()
            await poll_async(
                lambda: clients_in_registry(redis_server, prefix) == there,
                f"{there} in the registry",
            )
            print(f"\n{there.total()} clients: {dict(there)}; {refused} of 230 refused")  # noqa: T201
            served.signal(signal.SIGTERM)
            assert await wait_for_end(served) == 0

    asyncio.run(run())
    assert registry_keys(redis_server, prefix) == set()
    served.check_left_nothing()


def registry_keys(redis: RedisServer, prefix: str) -> set[str]:
    with RedisClient(redis.path, prefix) as client:
        return client.keys()


def clients_in_registry(redis: RedisServer, prefix: str) -> Counter[str]:
    """How many clients are in the registry of each worker that is, by its epoch."""
    keys = registry_keys(redis, prefix)
    nodes = [key.removeprefix("node:") for key in keys if key.startswith("node:host-")]
    epochs = [node.rpartition(".")[2] for node in nodes if not node.endswith(":clients")]
    return Counter({e: sum(f".{e}-" in k for k in keys if "client:" in k) for e in epochs})


# -- sockets -------------------------------------------------------------------------------------


class UnixPuppet(Puppet):
    """A blocking client of a Unix socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(DEADLINE)
        self.socket.connect(str(path))
        self._data = bytearray()


def test_a_unix_socket_outlives_reloads_and_deaths_and_not_the_daemon(
    worker_daemon: StartWorkerDaemon, short_directory: Path
) -> None:
    path = short_directory / "socket"

    def served_by(worker_daemon: WorkerDaemon) -> str:
        with UnixPuppet(path) as client:
            epoch = client.upgrade()["epoch"]
            assert client.subscribe("A")["symbols"] == ["A"]
            return str(epoch)

    served = worker_daemon("--channels", "unix.*", "--listen", f"unix:{path}:mode=660")
    inode = path.stat().st_ino
    epochs = {served_by(served)}
    before = served.pids()
    signal_worker(before[1])
    before = served.wait_until_serving(2, [before[1]])
    epochs.add(served_by(served))
    served.signal(signal.SIGHUP)
    served.wait_for_log("the configuration is loaded")
    served.wait_until_serving(2, list(before.values()))
    epochs.add(served_by(served))
    assert len(epochs) >= 2
    assert path.stat().st_ino == inode
    assert stat.S_IMODE(path.stat().st_mode) == 0o660, "workers let in nobody else"
    assert served.stop() == 0
    assert not path.exists()
    served.check_left_nothing()
    assert {p.name for p in short_directory.iterdir()} == {"worker_daemon0"}
    # Nobody removes it for a killed manager; who starts next does.
    killed = worker_daemon("--channels", "unix.*", "--listen", f"unix:{path}")
    killed.stop(signal.SIGKILL)
    poll(lambda: not killed.session(), "the end of the workers")
    again = worker_daemon("--channels", "unix.*", "--listen", f"unix:{path}")
    served_by(again)
    assert again.stop() == 0
    assert not path.exists()


#: What systemd does before it executes a service: LISTEN_PID is the process itself.
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_a_socket_of_systemd_is_shared_by_workers_and_survives_a_reload(
    worker_daemon: StartWorkerDaemon,
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        port = listening.getsockname()[1]
        fd = listening.fileno()
        served = worker_daemon(
            *("--channels", "activated.*", "--listen", "systemd:domain=INET:index=0"),
            port=port,
            before=[sys.executable, "-c", ACTIVATE, str(fd)],
            env={"LISTEN_FDS": "1", "LISTEN_FDNAMES": "quotepush.socket"},
            descriptors=[fd],
        )
        for _ in range(2):
            before = list(served.pids().values())
            with Puppet(served) as client:
                client.upgrade()
            for pid in before:
                assert "LISTEN_PID" not in psutil.Process(pid).environ()
            served.signal(signal.SIGHUP)
            served.wait_until_serving(2, before)
        assert served.stop() == 0
        # The socket is systemd's: who comes now waits in it.
        with Puppet(served):
            poll(lambda: not served.session(), "the end of all processes")
            assert served.left() == []


@pytest.mark.parametrize("workers", [2, 0])
def test_a_unix_socket_of_systemd_stays_as_it_is(
    worker_daemon: StartWorkerDaemon, short_directory: Path, workers: int
) -> None:
    path = short_directory / "socket"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        path.chmod(0o600)
        listening.listen(100)
        served = worker_daemon(
            *("--channels", "activated.*", "--listen", "systemd:domain=UNIX:index=0"),
            workers=workers,
            before=[sys.executable, "-c", ACTIVATE, str(listening.fileno())],
            env={"LISTEN_FDS": "1", "LISTEN_FDNAMES": "quotepush.socket"},
            descriptors=[listening.fileno()],
        )
        with UnixPuppet(path) as client:
            client.upgrade()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert served.stop() == 0
        poll(lambda: not served.session(), "the end of all processes")
        # Who comes now waits in it for the next start.
        with UnixPuppet(path):
            listening.accept()[0].close()
