"""The daemon as twistd runs it: in the background, twice, stopped, killed, with its own Redis."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil
import pytest
from free_ports import free_port
from system_clients import Client, bare_socket, client_of, open_websocket
from system_harness import (
    TWISTD,
    Address,
    Daemon,
    Publish,
    RedisServer,
    StartDaemon,
    environment,
    poll,
)


def is_gone(pid: int) -> bool:
    """True once the process has ended, whether or not anybody has asked for its status."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def twistd(*arguments: str | Path, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run twistd until it, or the part of it that stays in the foreground, ends."""
    return subprocess.run(
        [TWISTD, *map(str, arguments)],
        cwd=directory,
        env=environment(TMPDIR=str(directory)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@dataclass
class Background:
    """A daemonized quotepush."""

    address: Address
    pid: int
    pidfile: Path
    logfile: Path

    def wait_for(self, text: str) -> None:
        poll(lambda: text in self.logfile.read_text(), f"{text!r} in {self.logfile}")


class StartBackground(Protocol):
    """The `background` fixture."""

    def __call__(self, *options: str) -> Background: ...


@pytest.fixture
def background(certs_directory: Path, short_directory: Path) -> Iterator[StartBackground]:
    """Starts `twistd quotepush` as a user does; temporary files go to `short_directory`."""
    started: list[Background] = []

    def start(*options: str) -> Background:
        port = free_port()
        pidfile, logfile = short_directory / "pid", short_directory / "log"
        listen = ["--interface", "127.0.0.1", "--port", str(port), "--certs", str(certs_directory)]
        listen += ["--admin", "off"]
        arguments = ["--pidfile", pidfile, "--logfile", logfile, "quotepush", *listen, *options]
        done = twistd(*arguments, directory=short_directory)
        assert done.returncode == 0, done.stdout + done.stderr
        # The parent has waited for the start, so all of this is there.
        pid = int(pidfile.read_text())
        found = Background(Address(port, certs_directory), pid, pidfile, logfile)
        started.append(found)
        return found

    yield start
    for daemon in started:
        if not is_gone(daemon.pid):
            os.kill(daemon.pid, signal.SIGKILL)
        assert "Traceback" not in daemon.logfile.read_text()


def test_a_daemonized_start_writes_its_pidfile_and_log_and_serves(
    background: StartBackground, publish: Publish, redis_server: RedisServer
) -> None:
    daemon = background("--channels", "back.*", "--redis", redis_server.socket_url)
    process = psutil.Process(daemon.pid)
    assert process.cmdline()[0] == "quotepush: manager"
    assert process.terminal() is None
    daemon.wait_for("is served")
    daemon.wait_for("connected for the feed")

    async def run() -> None:
        async with client_of(daemon.address, "A") as client:
            publish(redis_server, [("back.A", "1")])
            assert (await client.expect("quote"))["n"] == 1

    asyncio.run(run())


def test_a_second_start_with_the_same_pidfile_is_refused_and_the_first_serves_on(
    background: StartBackground, redis_server: RedisServer, short_directory: Path
) -> None:
    daemon = background("--channels", "same.*", "--redis", redis_server.socket_url)
    for mode in (["--logfile", "other.log"], ["-n"]):
        arguments = [*mode, "--pidfile", daemon.pidfile, "quotepush", "--port", str(free_port())]
        done = twistd(*arguments, "--interface", "127.0.0.1", directory=short_directory)
        assert done.returncode == 1
        assert f"Another twistd server is running, PID {daemon.pid}" in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
    assert int(daemon.pidfile.read_text()) == daemon.pid
    # Who comes before that is told of it when it happens.
    daemon.wait_for("connected for the feed")

    async def run() -> None:
        async with client_of(daemon.address) as client:
            assert (await client.ask({"op": "ping"}))["ev"] == "pong"

    asyncio.run(run())


@pytest.mark.parametrize("mode", [["-n"], []], ids=["foreground", "background"])
def test_a_start_on_a_port_in_use_says_so_in_one_line_and_leaves_nothing(
    redis_server: RedisServer, certs_directory: Path, short_directory: Path, mode: list[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        pidfile, logfile = short_directory / "pid", short_directory / "log"
        done = twistd(
            *(*mode, "--pidfile", pidfile, "--logfile", logfile, "quotepush"),
            *("--interface", "127.0.0.1", "--port", str(port), "--certs", certs_directory),
            *("--redis", redis_server.socket_url),
            directory=short_directory,
        )
    assert done.returncode == 1
    # In the background the parent may end before its child has written everything.
    poll(lambda: "can't listen" in logfile.read_text(), "the reason in the log")
    everything = done.stdout + done.stderr + logfile.read_text()
    assert "Traceback" not in everything
    assert "Unhandled" not in everything
    logged = [line for line in logfile.read_text().splitlines() if "can't listen" in line]
    assert len(logged) == 1
    assert str(port) in logged[0]
    assert "in use" in logged[0]
    assert not pidfile.exists()


def test_other_signals_reload_rotate_and_tell_in_the_background_too(
    background: StartBackground, redis_server: RedisServer, short_directory: Path
) -> None:
    daemon = background("--channels", "kind.*", "--redis", redis_server.socket_url)
    daemon.wait_for("worker 1 serves")
    os.kill(daemon.pid, signal.SIGHUP)
    daemon.wait_for("the configuration is loaded")
    os.kill(daemon.pid, signal.SIGUSR1)
    poll((short_directory / "log.1").exists, "the log of before")
    os.kill(daemon.pid, signal.SIGUSR2)
    daemon.wait_for("status of worker 1: {")
    assert int(daemon.pidfile.read_text()) == daemon.pid
    os.kill(daemon.pid, signal.SIGTERM)
    poll(lambda: is_gone(daemon.pid), "the end of the daemon")
    assert {path.name for path in short_directory.iterdir()} == {"log", "log.1"}


# -- stop ----------------------------------------------------------------------------------------


def test_sigterm_says_goodbye_to_every_client_and_leaves_nothing_behind(
    background: StartBackground, short_directory: Path
) -> None:
    daemon = background("--channels", "term.*")
    daemon.wait_for("connected for the feed")
    children = psutil.Process(daemon.pid).children(recursive=True)
    assert sorted(child.name() for child in children) == ["quotepush: worker 1", "redis-server"]
    (redis_directory,) = short_directory.glob("quotepush-redis-*")

    async def run() -> None:
        async with (
            client_of(daemon.address, "A") as first,
            client_of(daemon.address) as second,
            open_websocket(daemon.address, "quotepush.raw") as raw,
        ):
            os.kill(daemon.pid, signal.SIGTERM)
            for client in (first, second):
                bye = await client.expect("bye")
                assert bye["code"] == 1001
                assert bye["retry"] >= 0
                assert await client.closed() == 1001
            assert await Client(raw).closed() == 1001

    asyncio.run(run())
    poll(lambda: is_gone(daemon.pid), "the end of the daemon")
    assert all(is_gone(child.pid) for child in children)
    assert not redis_directory.exists()
    assert not daemon.pidfile.exists()
    assert daemon.logfile.read_text().rstrip().endswith("Server Shut Down.")
    assert {path.name for path in short_directory.iterdir()} == {"log"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_daemon_in_the_foreground_whatever_strangers_are_connected(
    daemon: StartDaemon, number: signal.Signals
) -> None:
    served = daemon("--channels", "sig.*")

    async def run() -> float:
        async with (
            client_of(served, "A") as client,
            bare_socket(served) as page,
            bare_socket(served),
            bare_socket(served, tls=False),
        ):
            await page.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await page.reader.readuntil(b"</html>")
            began = time.monotonic()
            served.process.send_signal(number)
            assert (await client.expect("bye"))["code"] == 1001
            assert await client.closed() == 1001
            # The signal asked for an orderly end, and that is what came of it.
            assert await asyncio.to_thread(served.wait) == 0
            return time.monotonic() - began

    # Nobody that was connected needed its deadline of 5 s.
    assert asyncio.run(run()) < 4
    assert served.output().rstrip().endswith("Server Shut Down.")


def test_a_client_that_never_answers_the_close_delays_the_end_by_5_seconds_and_not_more(
    daemon: StartDaemon,
) -> None:
    served = daemon("--channels", "mute.*")

    async def run() -> float:
        async with bare_socket(served) as mute:
            await mute.upgrade()
            began = time.monotonic()
            assert await asyncio.to_thread(served.stop) == 0
            return time.monotonic() - began

    assert 4 < asyncio.run(run()) < 9


# -- embedded Redis ------------------------------------------------------------------------------


def redis_of(served: Daemon) -> psutil.Process:
    children = psutil.Process(served.process.pid).children(recursive=True)
    (redis,) = (child for child in children if child.name() == "redis-server")
    return redis


def test_a_killed_daemon_takes_its_redis_server_along(
    daemon: StartDaemon, short_directory: Path
) -> None:
    served = daemon("--channels", "kill.*", redis="", env={"TMPDIR": str(short_directory)})
    redis = redis_of(served)
    try:
        assert served.stop(signal.SIGKILL) == -signal.SIGKILL
        poll(lambda: is_gone(redis.pid), "the end of the redis-server")
    finally:
        if not is_gone(redis.pid):
            redis.kill()


def test_an_embedded_redis_that_dies_is_started_again_and_clients_stay(
    daemon: StartDaemon, short_directory: Path
) -> None:
    served = daemon("--demo", redis="", env={"TMPDIR": str(short_directory)})

    async def run() -> None:
        async with client_of(served, "AAPL") as client:
            first = await client.expect("quote")
            redis_of(served).kill()
            await asyncio.to_thread(served.wait_for, "starting it again")
            await asyncio.to_thread(served.wait_for, "connected for the feed", times=2)
            await asyncio.to_thread(served.wait_for, "connected for the simulated market", times=2)
            async with asyncio.timeout(20):
                while (event := await client.event())["ev"] != "quote":
                    pass
            assert event["n"] > first["n"]

    asyncio.run(run())
    assert served.stop() == 0
    assert list(short_directory.iterdir()) == []


def test_a_daemon_stopped_while_its_redis_starts_leaves_nothing_behind(
    daemon: StartDaemon, short_directory: Path
) -> None:
    served = daemon("--no-page", redis="", env={"TMPDIR": str(short_directory)}, fed=False)

    async def run() -> None:
        # An answer shows that the reactor runs; its redis-server takes longer than that.
        async with bare_socket(served) as page:
            await page.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await page.reader.readuntil(b"\r\n\r\n")
            served.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(served.wait) == 0

    asyncio.run(run())
    assert list(short_directory.iterdir()) == []
