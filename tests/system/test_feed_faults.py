"""Every way to lose Redis: clients are told in time, and the daemon recovers by itself.

Each fault affects two daemons at once, one for each value of --subscribe, whose clients must get
the same events.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import pytest
from feed_clients import Event, Watcher, now_ms, watching
from redis_process import RedisServer, start_redis
from redis_proxy import Proxy
from system_harness import Daemon, StartDaemon, poll

#: Milliseconds within which a loss has to be noticed, and what a busy machine may add.
PROMISED: Final = 2000
NOISE: Final = 500
USER: Final = ("--user", "bot", "on", ">secret", "~*", "&*", "+@all")
HASH: Final = "latest"
MODES: Final = ("all", "demand")


class ProxiedRedis:
    """A Redis that is stopped and restarted, and the proxy in front of it."""

    def __init__(self) -> None:
        self.directories: list[str] = []
        self._servers: list[RedisServer] = []
        self.redis = self.start()
        self.proxy = Proxy(self.redis.port)

    def start(self, *arguments: str, port: int | None = None) -> RedisServer:
        self.directories.append(tempfile.mkdtemp(prefix="quotepush-test-"))
        server = start_redis(self.directories[-1], *USER, *arguments, port=port)
        self._servers.append(server)
        return server

    @property
    def url(self) -> str:
        return f"redis://bot:secret@127.0.0.1:{self.proxy.port}"

    def keep(self, values: dict[str, str]) -> None:
        """Write values to the hash, as publishers do."""
        for symbol, value in values.items():
            assert self.redis.cli("HSET", HASH, symbol, value)[:1] == b":"

    def publish(self, symbol: str, value: str) -> bytes:
        return self.redis.cli("PUBLISH", f"fault.{symbol}", value)

    def stop(self) -> None:
        self.proxy.stop()
        for server in self._servers:
            server.stop()
        for directory in self.directories:
            shutil.rmtree(directory)


@pytest.fixture(scope="module")
def proxied_redis() -> Iterator[ProxiedRedis]:
    made = ProxiedRedis()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def daemons(module_daemon: StartDaemon, proxied_redis: ProxiedRedis) -> dict[str, Daemon]:
    """A daemon for each value of --subscribe, behind the same proxy."""
    options = ["--channels", "fault.*", "--heartbeat", "200", "--plain", "--no-registry"]
    return {
        mode: module_daemon(
            *options, "--subscribe", mode, "--snapshot-hash", HASH, redis=proxied_redis.url
        )
        for mode in MODES
    }


# -- the faults ------------------------------------------------------------------------------------


class Fault:
    """A fault between a Redis and its subscribers."""

    #: whether it lasts until `end`
    lasts = True

    def __init__(self, proxied_redis: ProxiedRedis, directory: Path) -> None:
        self.proxied_redis = proxied_redis
        self.proxy = proxied_redis.proxy
        self.directory = directory
        self.symbol = ""

    def begin(self) -> None:
        raise NotImplementedError

    def end(self, keep: Callable[[], None]) -> None:
        """End it; `keep` writes the latest values again, for a Redis that has lost them."""


class Refused(Fault):
    def begin(self) -> None:
        self.proxy.refuse()

    def end(self, keep: Callable[[], None]) -> None:
        self.proxy.listen()


class Reset(Fault):
    """A reset, and then no new connections."""

    def begin(self) -> None:
        self.proxied_redis.proxy.close_new_connections(True)
        self.proxy.reset()

    def end(self, keep: Callable[[], None]) -> None:
        self.proxied_redis.proxy.close_new_connections(False)


class Restarted(Fault):
    def begin(self) -> None:
        self.proxied_redis.redis.stop()

    def end(self, keep: Callable[[], None]) -> None:
        self.proxy.close_new_connections(True)
        self.proxied_redis.redis = self.proxied_redis.start(port=self.proxied_redis.redis.port)
        keep()
        self.proxy.close_new_connections(False)


class Loading(Fault):
    """Redis is restarted with so much data that it answers -LOADING for a while."""

    def begin(self) -> None:
        redis = self.proxied_redis.redis
        # It serves its connections after every two megabytes that it has loaded.
        redis.cli("CONFIG", "SET", "rdbcompression", "no")
        assert redis.cli("DEBUG", "POPULATE", "100", "key", "100000") == b"+OK\r\n"
        redis.cli("CONFIG", "SET", "dir", str(self.directory))
        assert redis.cli("SAVE") == b"+OK\r\n"
        redis.stop()

    def end(self, keep: Callable[[], None]) -> None:
        slowly = ("--dir", str(self.directory), "--key-load-delay", "30000")
        self.proxied_redis.redis = self.proxied_redis.start(
            *slowly, port=self.proxied_redis.redis.port
        )
        assert b"Redis is loading" in self.said, "it accepted connections while it was loading"

    said = b""


class Promoted(Fault):
    """The master is killed, its replica takes over, and the address leads to the replica."""

    def begin(self) -> None:
        redis = self.proxied_redis.redis
        self.replica = self.proxied_redis.start("--replicaof", "127.0.0.1", str(redis.port))
        poll(lambda: b"master_link_status:up" in self.replica.cli("INFO", "replication"), "it")
        self.proxied_redis.keep({"replicated": "1"})
        poll(lambda: self.replica.cli("HGET", HASH, "replicated") != b"$-1\r\n", "replication")
        self.began_at = now_ms()
        redis.stop()

    def end(self, keep: Callable[[], None]) -> None:
        assert self.replica.cli("REPLICAOF", "NO", "ONE") == b"+OK\r\n"
        self.proxied_redis.redis = self.replica
        keep()
        self.proxy.target = self.replica.port


class HalfOpen(Fault):
    """Neither data nor the end of a connection is forwarded any more."""

    def begin(self) -> None:
        self.proxy.freeze()

    def end(self, keep: Callable[[], None]) -> None:
        self.proxy.thaw()


class Stopped(Fault):
    """The process is suspended, and the kernel still accepts connections."""

    def begin(self) -> None:
        os.kill(self.proxied_redis.redis.process.pid, signal.SIGSTOP)

    def end(self, keep: Callable[[], None]) -> None:
        os.kill(self.proxied_redis.redis.process.pid, signal.SIGCONT)


class CutInTheMiddle(Fault):
    """The connection ends within a message, which must not become a quote."""

    def begin(self) -> None:
        self.proxy.cut_at = b"0123456789"
        self.proxied_redis.publish(self.symbol, '"0123456789"')
        self.proxy.close_new_connections(True)

    def end(self, keep: Callable[[], None]) -> None:
        self.proxy.cut_at = None
        self.proxy.close_new_connections(False)


class LoginRefused(Fault):
    def begin(self) -> None:
        self.proxied_redis.redis.cli("ACL", "SETUSER", "bot", "resetpass", ">other")
        self.proxied_redis.redis.cli("CLIENT", "KILL", "USER", "bot")

    def end(self, keep: Callable[[], None]) -> None:
        self.proxied_redis.redis.cli("ACL", "SETUSER", "bot", "resetpass", ">secret")


class NotAllowed(Fault):
    """Redis answers subscriptions with an error."""

    def begin(self) -> None:
        self.proxied_redis.redis.cli("ACL", "SETUSER", "bot", "-@pubsub")
        self.proxied_redis.redis.cli("CLIENT", "KILL", "USER", "bot")

    def end(self, keep: Callable[[], None]) -> None:
        self.proxied_redis.redis.cli("ACL", "SETUSER", "bot", "+@all")


class Killed(Fault):
    """CLIENT KILL: connections end, and new ones are accepted at once."""

    lasts = False

    def begin(self) -> None:
        assert self.proxied_redis.redis.cli("CLIENT", "KILL", "TYPE", "pubsub") == b":2\r\n"


class OutputBuffer(Fault):
    """Redis disconnects subscribers whose output buffer is full."""

    lasts = False

    def begin(self) -> None:
        limit = ("CONFIG", "SET", "client-output-buffer-limit")
        assert self.proxied_redis.redis.cli(*limit, "pubsub 65536 0 0") == b"+OK\r\n"
        assert self.proxied_redis.publish(self.symbol, f'"{"x" * 1_000_000}"') == b":2\r\n"
        self.proxied_redis.redis.cli(*limit, "pubsub 33554432 8388608 60")


FAULTS: Final[dict[str, type[Fault]]] = {
    "refused": Refused,
    "reset": Reset,
    "restarted": Restarted,
    "loading": Loading,
    "a replica promoted": Promoted,
    "half-open": HalfOpen,
    "SIGSTOPped": Stopped,
    "killed in the middle of a message": CutInTheMiddle,
    "the login refused": LoginRefused,
    "an error reply": NotAllowed,
    "CLIENT KILL": Killed,
    "too much in its output buffer": OutputBuffer,
}


# -- what clients are told -------------------------------------------------------------------------


def without_times(story: list[Event]) -> list[tuple[Any, ...]]:
    """The events of a client, without times."""
    parts = ("ev", "state", "s", "n", "d")
    return [tuple(event[part] for part in parts if part in event) for event in story]


async def in_thread(call: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.to_thread(call, *arguments)


class Group:
    """Three clients of one daemon: they watch both symbols, the second, and none."""

    def __init__(self, mode: str, a: str, b: str, clients: list[Watcher]) -> None:
        self.mode = mode
        self.symbols = (a, b)
        self.clients = clients
        self.n = {a: 0, b: 0}

    async def see(self, ev: str, value: int, jump: int = 0) -> None:
        """Wait until the watchers of each symbol get this value, with the right `n`."""
        for at, symbol in enumerate(self.symbols):
            for client in self.clients[: at + 1]:
                event = await client.event(ev=ev, s=symbol, d=value)
                if jump < 0:
                    self.n[symbol] = event["n"]
                assert event["n"] == self.n[symbol] + max(0, jump), (self.mode, event)

    async def begin(self) -> None:
        """Wait for the value 1, take its `n`, and check that the feed is up."""
        await self.see("quote", 1, jump=-1)
        for client in self.clients:
            assert (await client.heartbeat("up"))["age"] >= 0
            client.forget()

    async def wait_until_up(self) -> None:
        """Wait until all clients are told that the feed is up, and get snapshots."""
        for client in self.clients:
            await client.event(ev="feed", state="up")
        for at, symbol in enumerate(self.symbols):
            for client in self.clients[: at + 1]:
                await client.event(ev="snapshot", s=symbol)

    def check_events(self) -> None:
        """Check that each client got exactly these events, in this order."""
        for at, client in enumerate(self.clients):
            symbols = self.symbols[at:]
            values = dict(zip(self.symbols, (100, 200), strict=True))
            assert without_times(client.story) == [
                *[("feed", "down"), ("feed", "up")],
                *[("gap", symbol) for symbol in symbols],
                *[("snapshot", symbol, self.n[symbol], values[symbol]) for symbol in symbols],
                *[("quote", symbol, self.n[symbol] + 1, 2) for symbol in symbols],
            ], self.mode


async def outage(fault: Fault, groups: list[Group], a: str, b: str) -> None:
    """One fault from begin to end."""
    proxied_redis = fault.proxied_redis
    everyone = [client for group in groups for client in group.clients]

    def publish(value: str) -> None:
        for symbol in (a, b):
            assert proxied_redis.publish(symbol, value) == b":2\r\n"

    def keep() -> None:
        proxied_redis.keep({a: "100", b: "200"})

    await in_thread(publish, "1")
    for group in groups:
        await group.begin()
    await in_thread(keep)

    began_at = now_ms()
    await in_thread(fault.begin)
    await check_noticed(everyone, getattr(fault, "began_at", began_at))
    if fault.lasts:
        await check_down(everyone)
    ending = asyncio.create_task(in_thread(fault.end, keep))
    if isinstance(fault, Loading):
        await in_thread(wait_until_loading, fault)
        await check_down(everyone)
    await ending

    for group in groups:
        await group.wait_until_up()
    await in_thread(publish, "2")
    for group in groups:
        await group.see("quote", 2, jump=1)
        group.check_events()
    for client in everyone:
        await client.heartbeat("up")
        await client.check_connected()


async def check_noticed(everyone: list[Watcher], began_at: float) -> None:
    """Check that all clients are told in time that the feed is down."""
    for client in everyone:
        down = await client.event(ev="feed", state="down")
        took = down["t"] - began_at
        assert took <= PROMISED + NOISE, f"{client.name}: noticed after {took} ms"
        came = client.came[client.events.index(down)] - began_at
        assert came <= 2 * PROMISED, f"{client.name}: told after {came} ms"


async def check_down(everyone: list[Watcher]) -> None:
    """Check that heartbeats say so with a growing age, and that nothing else is sent."""
    for client in everyone:
        first, second = [(await client.heartbeat("down"))["age"] for _ in range(2)]
        assert first < second
        assert without_times(client.story) == [("feed", "down")], client.name


def wait_until_loading(fault: Loading) -> None:
    """Wait until Redis answers that it is loading."""

    def loading() -> bool:
        # The server that is starting has the latest directory.
        path = Path(fault.proxied_redis.directories[-1]) / "redis.sock"
        server = RedisServer(0, str(path), fault.proxied_redis.redis.process)
        try:
            fault.said = server.cli("PING")
        except OSError:
            return False
        return b"Redis is loading" in fault.said

    poll(loading, "it to say so")


@pytest.mark.parametrize("name", FAULTS)
def test_the_loss_of_redis_is_announced_in_time_and_recovered_from(
    daemons: dict[str, Daemon], proxied_redis: ProxiedRedis, tmp_path: Path, name: str
) -> None:
    fault = FAULTS[name](proxied_redis, tmp_path)
    at = list(FAULTS).index(name)
    a, b = f"A{at}", f"B{at}"
    fault.symbol = a

    async def run() -> None:
        async with AsyncExitStack() as stack:

            async def client(mode: str, *symbols: str) -> Watcher:
                name = f"{mode}, of {symbols}"
                return await stack.enter_async_context(watching(daemons[mode], *symbols, name=name))

            groups = []
            for mode in MODES:
                clients = [await client(mode, a, b), await client(mode, b), await client(mode)]
                groups.append(Group(mode, a, b, clients))
            await outage(fault, groups, a, b)

    asyncio.run(run())


def test_a_client_that_connects_while_the_feed_is_down_is_told_and_gets_quotes_later(
    daemons: dict[str, Daemon], proxied_redis: ProxiedRedis
) -> None:
    async def run() -> None:
        async with AsyncExitStack() as stack:
            early = [
                await stack.enter_async_context(watching(daemons[mode], "LATE0")) for mode in MODES
            ]
            await in_thread(proxied_redis.proxy.refuse)
            for client in early:
                await client.event(ev="feed", state="down")
            late = [
                await stack.enter_async_context(watching(daemons[mode], "LATE1")) for mode in MODES
            ]
            for client in late:
                assert [event["ev"] for event in client.story[:2]] == ["welcome", "feed"]
                assert client.story[1]["state"] == "down"
                await client.heartbeat("down")
            await in_thread(proxied_redis.proxy.listen)
            for client in late:
                await client.event(ev="feed", state="up")
                await client.event(ev="gap", s="LATE1")
            assert await in_thread(proxied_redis.publish, "LATE1", "7") == b":2\r\n"
            for client in late:
                await client.event(ev="quote", s="LATE1", d=7)

    asyncio.run(run())


def test_a_daemon_that_was_suspended_keeps_its_connection_to_redis(
    daemons: dict[str, Daemon], proxied_redis: ProxiedRedis
) -> None:
    async def run() -> None:
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(watching(daemons[mode], "SLEPT")) for mode in MODES
            ]
            for client in clients:
                await client.heartbeat("up")
            for served in daemons.values():
                served.process.send_signal(signal.SIGSTOP)
            # The time for which it is suspended.
            await asyncio.sleep(2.5)
            for served in daemons.values():
                served.process.send_signal(signal.SIGCONT)
            assert await in_thread(proxied_redis.publish, "SLEPT", "1") == b":2\r\n"
            for client in clients:
                await client.event(ev="quote", s="SLEPT")
                for _ in range(3):
                    await client.heartbeat("up")
                assert "feed" not in [event["ev"] for event in client.story]

    asyncio.run(run())
