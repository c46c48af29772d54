"""Daemons that share a registry: exact while they run, swept when killed, empty at the end."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import pytest
from code_blocks import code_blocks
from redis_client import RedisClient, expected_sets
from system_clients import Client, Undisturbed, client_of, open_websocket
from system_harness import Daemon, Publish, RedisServer, StartDaemon, poll_async

#: Seconds until the entries of a killed node are gone: its heartbeat, the next search, the sweep.
SWEPT_WITHIN = 25.0

OwnRedis = Callable[..., RedisServer]
RegistryRedis = tuple[RedisServer, RedisClient]


@pytest.fixture(scope="module")
def document() -> dict[str, str]:
    """The code blocks of docs/registry.rst by their names."""
    return code_blocks("docs/registry.rst")


@pytest.fixture
def registry_redis(own_redis: OwnRedis) -> Iterator[RegistryRedis]:
    """A redis-server for the registry, and a client of it."""
    server = own_redis()
    with RedisClient(server.path) as client:
        yield server, client


class SharedRegistry:
    """Daemons that share a registry, their clients, and what it has to hold."""

    def __init__(
        self, start: StartDaemon, registry_redis: RegistryRedis, stack: AsyncExitStack
    ) -> None:
        self._start = start
        self._url = registry_redis[0].url
        self.redis = registry_redis[1]
        self._stack = stack
        self._names: dict[int, str] = {}
        #: each client's id
        self.ids: dict[Client, str] = {}
        #: by node, what each of its clients watches
        self.nodes: dict[str, dict[str, set[str]]] = {}

    async def daemon(self, name: str, *options: str) -> Daemon:
        """Start a daemon of this name that uses the shared registry."""
        # Without workers, because a worker's node has its number in the name.
        given = ["--channels", "bad.*", "--node", name, "--registry", self._url, "--workers", "0"]
        started = await asyncio.to_thread(self._start, *given, *options)
        await asyncio.to_thread(started.wait_for, "connected for the registry")
        self._names[started.port] = name
        return started

    async def client(self, daemon: Daemon, *symbols: str) -> Client:
        """Connect a client that watches `symbols`; a daemon's first one tells its node's name."""
        connection = await self._stack.enter_async_context(open_websocket(daemon))
        client = Client(connection)
        welcome = await client.expect("welcome")
        name = self._names[daemon.port]
        node = self.nodes.setdefault(f"{name}.{welcome['epoch']}", {})
        self.ids[client] = f"{name}.{welcome['conn']}"
        node[self.ids[client]] = set(symbols)
        await client.subscribe(*symbols)
        return client

    def watches(self, client: Client) -> set[str]:
        """The expected symbols of a client; change them as it subscribes."""
        return self.nodes[self.ids[client].rpartition("-")[0]][self.ids[client]]

    def is_right(self) -> bool:
        return self.redis.sets() == expected_sets(*self.nodes.items())

    async def wait_until_right(self, seconds: float = 20.0) -> None:
        try:
            await poll_async(self.is_right, "the registry to be right", seconds)
        except AssertionError:
            assert self.redis.sets() == expected_sets(*self.nodes.items())
            raise

    def forget(self, daemon: Daemon) -> None:
        """Expect no entries of a daemon that has gone."""
        name = self._names[daemon.port]
        for node in [node for node in self.nodes if node.rpartition(".")[0] == name]:
            del self.nodes[node]


def run(
    start: StartDaemon,
    registry_redis: RegistryRedis,
    test: Callable[[SharedRegistry], Awaitable[None]],
) -> None:
    async def with_clients() -> None:
        async with AsyncExitStack() as stack:
            await test(SharedRegistry(start, registry_redis, stack))

    asyncio.run(with_clients())


def test_a_killed_daemon_is_swept_by_another_whose_clients_notice_nothing(
    daemon: StartDaemon, registry_redis: RegistryRedis, undisturbed: Undisturbed
) -> None:
    async def test(shared: SharedRegistry) -> None:
        one, two = await shared.daemon("one"), await shared.daemon("two")
        first = await shared.client(one, "A", "B")
        leaving = await shared.client(two, "B", "C")
        for _ in range(20):
            await shared.client(two, "B", "D")
        await shared.wait_until_right()
        await leaving.ask({"op": "unsubscribe", "symbols": ["C"]})
        shared.watches(leaving).remove("C")
        await shared.wait_until_right()
        assert shared.redis.sets()["symbols"] == {"A", "B", "D"}
        with RedisClient(registry_redis[0].path) as publisher:
            publisher.listen()
            async with undisturbed(one):
                await asyncio.to_thread(two.stop, signal.SIGKILL)
                await poll_async(
                    lambda: shared.redis.sets()["symbol:B"] == {shared.ids[first]},
                    "the killed daemon's entries to be swept",
                    SWEPT_WITHIN,
                )
            assert "-D" in publisher.messages()
        shared.forget(two)
        await shared.wait_until_right()

    run(daemon, registry_redis, test)


def test_a_restarted_daemon_removes_its_old_entries_at_once(
    daemon: StartDaemon, registry_redis: RegistryRedis
) -> None:
    async def test(shared: SharedRegistry) -> None:
        one, two = await shared.daemon("one"), await shared.daemon("two")
        await shared.client(one, "A", "B")
        await shared.client(two, "B", "C")
        await shared.wait_until_right()
        await asyncio.to_thread(two.stop, signal.SIGKILL)
        shared.forget(two)
        two = await shared.daemon("two")
        await shared.client(two, "E")
        await shared.wait_until_right(5)

    run(daemon, registry_redis, test)


def test_stopping_leaves_no_key_and_tells_publishers(
    daemon: StartDaemon, registry_redis: RegistryRedis
) -> None:
    async def test(shared: SharedRegistry) -> None:
        with RedisClient(registry_redis[0].path) as publisher:
            publisher.listen()
            one = await shared.daemon("one")
            await shared.client(one, "A")
            await shared.wait_until_right()
            two = await shared.daemon("two")
            await shared.client(two, "A", "B")
            await shared.wait_until_right()
            assert publisher.messages() == ["+A", "+B"]
            await asyncio.to_thread(one.stop)
            shared.forget(one)
            await shared.wait_until_right()
            assert publisher.messages() == []
            await asyncio.to_thread(two.stop)
            assert shared.redis.keys() == set()
            assert sorted(publisher.messages()) == ["-A", "-B"]

    run(daemon, registry_redis, test)


def test_the_latest_payload_of_a_watched_symbol_is_stored(
    daemon: StartDaemon, registry_redis: RegistryRedis, redis_server: RedisServer, publish: Publish
) -> None:
    async def test(shared: SharedRegistry) -> None:
        one = await shared.daemon("one")
        client = await shared.client(one, "KEPT")
        publish(redis_server, [("bad.KEPT", '{"last":1.50}'), ("bad.OTHER", "2")])
        await poll_async(
            lambda: shared.redis.hash("last") == {"KEPT": b'{"last":1.50}'}, "the payload"
        )
        await client.connection.close()
        await poll_async(lambda: shared.redis.hash("last") == {}, "the payload to go")

    run(daemon, registry_redis, test)


def test_without_a_registry_nothing_is_written(
    daemon: StartDaemon, registry_redis: RegistryRedis
) -> None:
    server, redis = registry_redis
    started = daemon("--no-registry", "--channels", "bad.*", redis=server.url)

    async def watch() -> None:
        async with client_of(started, "A"):
            assert (await asyncio.to_thread(redis.keys)) == set()

    asyncio.run(watch())
    started.stop()
    assert redis.ask("DBSIZE") == 0
    assert "registry" not in started.output()


def test_it_is_in_the_first_redis_of_the_feed_under_its_prefix(
    daemon: StartDaemon, own_redis: OwnRedis
) -> None:
    first, second = own_redis(), own_redis()
    options = ["--redis", second.url, "--registry-prefix", "mine.", "--workers", "0"]
    started = daemon(*options, redis=first.url)

    async def watch() -> None:
        with RedisClient(first.path, "mine.") as redis, RedisClient(second.path) as other:
            async with client_of(started, "A"):
                await poll_async(lambda: redis.sets().get("symbols") == {"A"}, "the symbol")
                (node,) = redis.sets()["nodes"]
                assert node.startswith(f"{socket.gethostname()}-{started.port}.")
                assert other.ask("DBSIZE") == 0
                assert redis.ask("DBSIZE") == len(redis.keys())

    asyncio.run(watch())


# -- the document ----------------------------------------------------------------------------------


def test_the_documents_publisher_publishes_only_watched_symbols(
    daemon: StartDaemon, own_redis: OwnRedis, document: dict[str, str]
) -> None:
    redis = own_redis()
    program = document["demand-publisher"]
    assert "port=6379" in program
    program = program.replace("port=6379", f"port={redis.port}")

    async def watch() -> None:
        with RedisClient(redis.path) as client:
            started = await asyncio.to_thread(daemon, redis=redis.url)
            async with client_of(started, "EARLY") as early:
                await poll_async(lambda: client.sets().get("symbols") == {"EARLY"}, "the symbol")
                process = subprocess.Popen([sys.executable, "-c", program])
                try:
                    quote = await early.expect("quote")
                    assert quote["d"]["symbol"] == "EARLY"
                    async with client_of(started, "LATE") as late:
                        assert (await late.expect("quote"))["d"]["symbol"] == "LATE"
                    await poll_async(lambda: client.sets()["symbols"] == {"EARLY"}, "it to leave")
                    # An unwatched symbol may be published once more, and then no longer.
                    client.ask("PSUBSCRIBE", "quote.*")
                    channels = [client.channel() for _ in range(4)]
                    assert channels[-2:] == ["quote.EARLY"] * 2
                finally:
                    process.kill()
                    process.wait(10)

    asyncio.run(watch())


def test_the_documents_permissions_are_sufficient(
    daemon: StartDaemon, own_redis: OwnRedis, document: dict[str, str]
) -> None:
    server = own_redis()
    with RedisClient(server.path) as redis:
        redis.ask(*document["permissions"].split())
        redis.ask("SADD", "quotepush:nodes", "dead.e0")
        redis.ask("SADD", "quotepush:node:dead.e0:clients", "dead.e0-1")
        redis.ask("SADD", "quotepush:client:dead.e0-1", "LEFT")
        redis.ask("SADD", "quotepush:symbol:LEFT", "dead.e0-1")
        redis.ask("SADD", "quotepush:symbols", "LEFT")
        redis.ask("HSET", "quotepush:last", "LEFT", "1")
        url = f"redis://registry:secret@127.0.0.1:{server.port}"
        started = daemon("--channels", "quote.*", "--registry", url, redis=server.url)

        async def watch() -> None:
            async with client_of(started, "A", "B") as client:
                redis.ask("PUBLISH", "quote.A", "1")
                await client.expect("quote")
                await poll_async(lambda: redis.hash("last") == {"A": b"1"}, "the payload")
                await client.ask({"op": "unsubscribe", "symbols": ["A"]})
                await poll_async(lambda: redis.sets()["symbols"] == {"B"}, "what is left")

        asyncio.run(watch())
        started.stop()
        assert redis.keys() == set()
        assert "was not written" not in started.output()
