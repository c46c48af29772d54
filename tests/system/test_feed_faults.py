"""Redis lost in every way there is: noticed in time, told to all, and made good by itself.

Each fault meets two daemons at once, one of each way of listening, whose clients must be told the
very same.
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

#: Milliseconds within which a loss is to be noticed, and what a busy machine may add to it.
PROMISED: Final = 2000
NOISE: Final = 500
USER: Final = ("--user", "bot", "on", ">secret", "~*", "&*", "+@all")
HASH: Final = "latest"
WAYS: Final = ("all", "demand")


class Store:
    """A Redis that comes and goes, and the proxy before it."""

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
def store() -> Iterator[Store]:
    made = Store()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def daemons(module_daemon: StartDaemon, store: Store) -> dict[str, Daemon]:
    """A daemon of each way of listening, behind the same proxy."""
    options = ["--channels", "fault.*", "--heartbeat", "200", "--plain", "--no-registry"]
    return {
        way: module_daemon(*options, "--subscribe", way, "--snapshot-hash", HASH, redis=store.url)
        for way in WAYS
    }


# -- the faults ------------------------------------------------------------------------------------


class Fault:
    """Something that happens between a Redis and those who listen to it."""

    #: whether it lasts until it is healed
    lasts = True

    def __init__(self, store: Store, directory: Path) -> None:
        self.store = store
        self.proxy = store.proxy
        self.directory = directory
        self.symbol = ""

    def strike(self) -> None:
        raise NotImplementedError

    def heal(self, keep: Callable[[], None]) -> None:
        """End it; `keep` writes the newest values again, for a Redis that has lost them."""


class Refused(Fault):
    def strike(self) -> None:
        self.proxy.refuse()

    def heal(self, keep: Callable[[], None]) -> None:
        self.proxy.listen()


class Reset(Fault):
    """Once, and Redis is there all the time: nobody needs to do anything."""

    def strike(self) -> None:
        self.store.proxy.close_new_ones(True)
        self.proxy.reset()

    def heal(self, keep: Callable[[], None]) -> None:
        self.store.proxy.close_new_ones(False)


class Restarted(Fault):
    def strike(self) -> None:
        self.store.redis.stop()

    def heal(self, keep: Callable[[], None]) -> None:
        self.proxy.close_new_ones(True)
        self.store.redis = self.store.start(port=self.store.redis.port)
        keep()
        self.proxy.close_new_ones(False)


class Loading(Fault):
    """Restarted with so much data that it says -LOADING for a while."""

    def strike(self) -> None:
        redis = self.store.redis
        # It looks at its connections every two megabytes that it has read.
        redis.cli("CONFIG", "SET", "rdbcompression", "no")
        assert redis.cli("DEBUG", "POPULATE", "100", "key", "100000") == b"+OK\r\n"
        redis.cli("CONFIG", "SET", "dir", str(self.directory))
        assert redis.cli("SAVE") == b"+OK\r\n"
        redis.stop()

    def heal(self, keep: Callable[[], None]) -> None:
        slowly = ("--dir", str(self.directory), "--key-load-delay", "30000")
        self.store.redis = self.store.start(*slowly, port=self.store.redis.port)
        assert b"Redis is loading" in self.said, "it took connections while it was loading"

    said = b""


class Promoted(Fault):
    """The master dies, its replica takes over, and the address leads there."""

    def strike(self) -> None:
        redis = self.store.redis
        self.replica = self.store.start("--replicaof", "127.0.0.1", str(redis.port))
        poll(lambda: b"master_link_status:up" in self.replica.cli("INFO", "replication"), "it")
        self.store.keep({"replicated": "1"})
        poll(lambda: self.replica.cli("HGET", HASH, "replicated") != b"$-1\r\n", "replication")
        self.struck_at = now_ms()
        redis.stop()

    def heal(self, keep: Callable[[], None]) -> None:
        assert self.replica.cli("REPLICAOF", "NO", "ONE") == b"+OK\r\n"
        self.store.redis = self.replica
        keep()
        self.proxy.target = self.replica.port


class HalfOpen(Fault):
    """Nothing comes through any more, and no end of a connection either."""

    def strike(self) -> None:
        self.proxy.freeze()

    def heal(self, keep: Callable[[], None]) -> None:
        self.proxy.thaw()


class Stopped(Fault):
    """The process stands still, and its kernel goes on to take connections."""

    def strike(self) -> None:
        os.kill(self.store.redis.process.pid, signal.SIGSTOP)

    def heal(self, keep: Callable[[], None]) -> None:
        os.kill(self.store.redis.process.pid, signal.SIGCONT)


class CutInTheMiddle(Fault):
    """The connection ends within a message, whose half must not become a quote."""

    def strike(self) -> None:
        self.proxy.cut_at = b"0123456789"
        self.store.publish(self.symbol, '"0123456789"')
        self.proxy.close_new_ones(True)

    def heal(self, keep: Callable[[], None]) -> None:
        self.proxy.cut_at = None
        self.proxy.close_new_ones(False)


class LoginRefused(Fault):
    def strike(self) -> None:
        self.store.redis.cli("ACL", "SETUSER", "bot", "resetpass", ">other")
        self.store.redis.cli("CLIENT", "KILL", "USER", "bot")

    def heal(self, keep: Callable[[], None]) -> None:
        self.store.redis.cli("ACL", "SETUSER", "bot", "resetpass", ">secret")


class NotAllowed(Fault):
    """Redis answers subscriptions with an error."""

    def strike(self) -> None:
        self.store.redis.cli("ACL", "SETUSER", "bot", "-@pubsub")
        self.store.redis.cli("CLIENT", "KILL", "USER", "bot")

    def heal(self, keep: Callable[[], None]) -> None:
        self.store.redis.cli("ACL", "SETUSER", "bot", "+@all")


class Killed(Fault):
    """CLIENT KILL: over before anybody can look."""

    lasts = False

    def strike(self) -> None:
        assert self.store.redis.cli("CLIENT", "KILL", "TYPE", "pubsub") == b":2\r\n"


class OutputBuffer(Fault):
    """Redis drops who does not take what it has to send."""

    lasts = False

    def strike(self) -> None:
        limit = ("CONFIG", "SET", "client-output-buffer-limit")
        assert self.store.redis.cli(*limit, "pubsub 65536 0 0") == b"+OK\r\n"
        assert self.store.publish(self.symbol, f'"{"x" * 1_000_000}"') == b":2\r\n"
        self.store.redis.cli(*limit, "pubsub 33554432 8388608 60")


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


# -- what becomes of them --------------------------------------------------------------------------


def kinds(story: list[Event]) -> list[tuple[Any, ...]]:
    """What a client was told, without times."""
    parts = ("ev", "state", "s", "n", "d")
    return [tuple(event[part] for part in parts if part in event) for event in story]


async def in_thread(call: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.to_thread(call, *arguments)


class Group:
    """The clients of one daemon: of both symbols, of the second, and of none."""

    def __init__(self, way: str, a: str, b: str, clients: list[Watcher]) -> None:
        self.way = way
        self.symbols = (a, b)
        self.clients = clients
        self.n = {a: 0, b: 0}

    async def see(self, ev: str, value: int, jump: int = 0) -> None:
        """Wait until who watches a symbol is told its value, with the number that it must have."""
        for at, symbol in enumerate(self.symbols):
            for client in self.clients[: at + 1]:
                event = await client.event(ev=ev, s=symbol, d=value)
                if jump < 0:
                    self.n[symbol] = event["n"]
                assert event["n"] == self.n[symbol] + max(0, jump), (self.way, event)

    async def begin(self) -> None:
        """All is well, and the symbols have the value 1 and the number from which it goes on."""
        await self.see("quote", 1, jump=-1)
        for client in self.clients:
            assert (await client.heartbeat("up"))["age"] >= 0
            client.forget()

    async def see_it_back(self) -> None:
        """Wait until all are told that the feed is up, and have the values of meanwhile."""
        for client in self.clients:
            await client.event(ev="feed", state="up")
        for at, symbol in enumerate(self.symbols):
            for client in self.clients[: at + 1]:
                await client.event(ev="snapshot", s=symbol)

    def check_stories(self) -> None:
        """Each was told of all there was, of nothing else, in this order."""
        for at, client in enumerate(self.clients):
            symbols = self.symbols[at:]
            values = dict(zip(self.symbols, (100, 200), strict=True))
            assert kinds(client.story) == [
                *[("feed", "down"), ("feed", "up")],
                *[("gap", symbol) for symbol in symbols],
                *[("snapshot", symbol, self.n[symbol], values[symbol]) for symbol in symbols],
                *[("quote", symbol, self.n[symbol] + 1, 2) for symbol in symbols],
            ], self.way


async def outage(fault: Fault, groups: list[Group], a: str, b: str) -> None:
    """One fault from its begin to its end."""
    store = fault.store
    everyone = [client for group in groups for client in group.clients]

    def publish(value: str) -> None:
        for symbol in (a, b):
            assert store.publish(symbol, value) == b":2\r\n"

    def keep() -> None:
        store.keep({a: "100", b: "200"})

    await in_thread(publish, "1")
    for group in groups:
        await group.begin()
    await in_thread(keep)

    struck_at = now_ms()
    await in_thread(fault.strike)
    await notice(everyone, getattr(fault, "struck_at", struck_at))
    if fault.lasts:
        await see_it_down(everyone)
    healing = asyncio.create_task(in_thread(fault.heal, keep))
    if isinstance(fault, Loading):
        await in_thread(see_it_loading, fault)
        await see_it_down(everyone)
    await healing

    for group in groups:
        await group.see_it_back()
    await in_thread(publish, "2")
    for group in groups:
        await group.see("quote", 2, jump=1)
        group.check_stories()
    for client in everyone:
        await client.heartbeat("up")
        await client.check_connected()


async def notice(everyone: list[Watcher], struck_at: float) -> None:
    """All are told in time that the feed is down."""
    for client in everyone:
        down = await client.event(ev="feed", state="down")
        took = down["t"] - struck_at
        assert took <= PROMISED + NOISE, f"{client.name}: noticed after {took} ms"
        came = client.came[client.events.index(down)] - struck_at
        assert came <= 2 * PROMISED, f"{client.name}: told after {came} ms"


async def see_it_down(everyone: list[Watcher]) -> None:
    """Heartbeats go on and say so, with an age that grows, and nothing else is told."""
    for client in everyone:
        first, second = [(await client.heartbeat("down"))["age"] for _ in range(2)]
        assert first < second
        assert kinds(client.story) == [("feed", "down")], client.name


def see_it_loading(fault: Loading) -> None:
    """Wait until Redis says that it is loading."""

    def loading() -> bool:
        # The server that is about to come is in the directory made last.
        path = Path(fault.store.directories[-1]) / "redis.sock"
        server = RedisServer(0, str(path), fault.store.redis.process)
        try:
            fault.said = server.cli("PING")
        except OSError:
            return False
        return b"Redis is loading" in fault.said

    poll(loading, "it to say so")


@pytest.mark.parametrize("name", FAULTS)
def test_the_loss_of_redis_is_told_to_all_in_time_and_made_good_without_anybodys_doing(
    daemons: dict[str, Daemon], store: Store, tmp_path: Path, name: str
) -> None:
    fault = FAULTS[name](store, tmp_path)
    at = list(FAULTS).index(name)
    a, b = f"A{at}", f"B{at}"
    fault.symbol = a

    async def run() -> None:
        async with AsyncExitStack() as stack:

            async def client(way: str, *symbols: str) -> Watcher:
                name = f"{way}, of {symbols}"
                return await stack.enter_async_context(watching(daemons[way], *symbols, name=name))

            groups = []
            for way in WAYS:
                clients = [await client(way, a, b), await client(way, b), await client(way)]
                groups.append(Group(way, a, b, clients))
            await outage(fault, groups, a, b)

    asyncio.run(run())


def test_who_comes_while_the_feed_is_down_is_told_at_once_and_is_listened_for(
    daemons: dict[str, Daemon], store: Store
) -> None:
    async def run() -> None:
        async with AsyncExitStack() as stack:
            early = [
                await stack.enter_async_context(watching(daemons[way], "LATE0")) for way in WAYS
            ]
            await in_thread(store.proxy.refuse)
            for client in early:
                await client.event(ev="feed", state="down")
            late = [
                await stack.enter_async_context(watching(daemons[way], "LATE1")) for way in WAYS
            ]
            for client in late:
                assert [event["ev"] for event in client.story[:2]] == ["welcome", "feed"]
                assert client.story[1]["state"] == "down"
                await client.heartbeat("down")
            await in_thread(store.proxy.listen)
            for client in late:
                await client.event(ev="feed", state="up")
                await client.event(ev="gap", s="LATE1")
            assert await in_thread(store.publish, "LATE1", "7") == b":2\r\n"
            for client in late:
                await client.event(ev="quote", s="LATE1", d=7)

    asyncio.run(run())


def test_a_daemon_that_was_stopped_itself_for_a_while_does_not_blame_redis(
    daemons: dict[str, Daemon], store: Store
) -> None:
    async def run() -> None:
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(watching(daemons[way], "SLEPT")) for way in WAYS
            ]
            for client in clients:
                await client.heartbeat("up")
            for served in daemons.values():
                served.process.send_signal(signal.SIGSTOP)
            # How long it stands still.
            await asyncio.sleep(2.5)
            for served in daemons.values():
                served.process.send_signal(signal.SIGCONT)
            assert await in_thread(store.publish, "SLEPT", "1") == b":2\r\n"
            for client in clients:
                await client.event(ev="quote", s="SLEPT")
                for _ in range(3):
                    await client.heartbeat("up")
                assert "feed" not in [event["ev"] for event in client.story]

    asyncio.run(run())
