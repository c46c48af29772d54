"""Daemons that share a registry: exact while they live, swept when they die, empty at the end."""

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
from redis_client import RedisClient, wanted
from system_clients import Client, Undisturbed, client_of, open_websocket
from system_harness import Daemon, Publish, RedisServer, StartDaemon, poll_async

#: Seconds until what a killed node left is gone: its heartbeat, the next look, and the sweep.
SWEPT_WITHIN = 25.0

OwnRedis = Callable[..., RedisServer]
Kept = tuple[RedisServer, RedisClient]


@pytest.fixture(scope="module")
def document() -> dict[str, str]:
    """The code blocks of docs/registry.rst by their names."""
    return code_blocks("docs/registry.rst")


@pytest.fixture
def kept(own_redis: OwnRedis) -> Iterator[Kept]:
    """A redis-server for the registry, and a client of it."""
    server = own_redis()
    with RedisClient(server.path) as client:
        yield server, client


class Shared:
    """Daemons that share a registry, their clients, and what it is to say of them."""

    def __init__(self, start: StartDaemon, kept: Kept, stack: AsyncExitStack) -> None:
        self._start = start
        self._url = kept[0].url
        self.redis = kept[1]
        self._stack = stack
        self._names: dict[int, str] = {}
        #: each client's id
        self.ids: dict[Client, str] = {}
        #: by node, what each of its clients watches
        self.nodes: dict[str, dict[str, set[str]]] = {}

    async def daemon(self, name: str, *options: str) -> Daemon:
        """One of this name, with its registry in ours."""
        # By itself: a worker's name has its number behind it.
        given = ["--channels", "bad.*", "--node", name, "--registry", self._url, "--workers", "0"]
        started = await asyncio.to_thread(self._start, *given, *options)
        await asyncio.to_thread(started.wait_for, "connected for the registry")
        self._names[started.port] = name
        return started

    async def client(self, daemon: Daemon, *symbols: str) -> Client:
        """A client that watches `symbols`; the first of a daemon makes its node known to us."""
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
        """What a client watches, to be changed with it."""
        return self.nodes[self.ids[client].rpartition("-")[0]][self.ids[client]]

    def right(self) -> bool:
        return self.redis.sets() == wanted(*self.nodes.items())

    async def become_right(self, seconds: float = 20.0) -> None:
        try:
            await poll_async(self.right, "the registry to be right", seconds)
        except AssertionError:
            assert self.redis.sets() == wanted(*self.nodes.items())
            raise

    def forget(self, daemon: Daemon) -> None:
        """What is true no more of a daemon that has gone."""
        name = self._names[daemon.port]
        for node in [node for node in self.nodes if node.rpartition(".")[0] == name]:
            del self.nodes[node]


def run(
    start: StartDaemon,
    kept: Kept,
    test: Callable[[Shared], Awaitable[None]],
) -> None:
    async def with_clients() -> None:
        async with AsyncExitStack() as stack:
            await test(Shared(start, kept, stack))

    asyncio.run(with_clients())


def test_one_that_is_killed_is_swept_by_the_other_whose_clients_notice_nothing(
    daemon: StartDaemon, kept: Kept, undisturbed: Undisturbed
) -> None:
    async def test(shared: Shared) -> None:
        one, two = await shared.daemon("one"), await shared.daemon("two")
        first = await shared.client(one, "A", "B")
        leaving = await shared.client(two, "B", "C")
        for _ in range(20):
            await shared.client(two, "B", "D")
        await shared.become_right()
        await leaving.ask({"op": "unsubscribe", "symbols": ["C"]})
        shared.watches(leaving).remove("C")
        await shared.become_right()
        assert shared.redis.sets()["symbols"] == {"A", "B", "D"}
        with RedisClient(kept[0].path) as publisher:
            publisher.listen()
            async with undisturbed(one):
                await asyncio.to_thread(two.stop, signal.SIGKILL)
                await poll_async(
                    lambda: shared.redis.sets()["symbol:B"] == {shared.ids[first]},
                    "what the killed one left to be swept",
                    SWEPT_WITHIN,
                )
            assert "-D" in publisher.messages()
        shared.forget(two)
        await shared.become_right()

    run(daemon, kept, test)


def test_one_that_is_started_again_takes_out_at_once_what_it_left(
    daemon: StartDaemon, kept: Kept
) -> None:
    async def test(shared: Shared) -> None:
        one, two = await shared.daemon("one"), await shared.daemon("two")
        await shared.client(one, "A", "B")
        await shared.client(two, "B", "C")
        await shared.become_right()
        await asyncio.to_thread(two.stop, signal.SIGKILL)
        shared.forget(two)
        two = await shared.daemon("two")
        await shared.client(two, "E")
        await shared.become_right(5)

    run(daemon, kept, test)


def test_stopping_in_order_leaves_no_key_and_tells_publishers(
    daemon: StartDaemon, kept: Kept
) -> None:
    async def test(shared: Shared) -> None:
        with RedisClient(kept[0].path) as publisher:
            publisher.listen()
            one = await shared.daemon("one")
            await shared.client(one, "A")
            await shared.become_right()
            two = await shared.daemon("two")
            await shared.client(two, "A", "B")
            await shared.become_right()
            assert publisher.messages() == ["+A", "+B"]
            await asyncio.to_thread(one.stop)
            shared.forget(one)
            await shared.become_right()
            assert publisher.messages() == []
            await asyncio.to_thread(two.stop)
            assert shared.redis.keys() == set()
            assert sorted(publisher.messages()) == ["-A", "-B"]

    run(daemon, kept, test)


def test_the_latest_payload_of_what_is_watched_is_kept(
    daemon: StartDaemon, kept: Kept, redis_server: RedisServer, publish: Publish
) -> None:
    async def test(shared: Shared) -> None:
        one = await shared.daemon("one")
        client = await shared.client(one, "KEPT")
        publish(redis_server, [("bad.KEPT", '{"last":1.50}'), ("bad.OTHER", "2")])
        await poll_async(
            lambda: shared.redis.hash("last") == {"KEPT": b'{"last":1.50}'}, "the payload"
        )
        await client.connection.close()
        await poll_async(lambda: shared.redis.hash("last") == {}, "the payload to go")

    run(daemon, kept, test)


def test_without_a_registry_nothing_is_written(daemon: StartDaemon, kept: Kept) -> None:
    server, redis = kept
    started = daemon("--no-registry", "--channels", "bad.*", redis=server.url)

    async def watch() -> None:
        async with client_of(started, "A"):
            assert (await asyncio.to_thread(redis.keys)) == set()

    asyncio.run(watch())
    started.stop()
    assert redis.ask("DBSIZE") == 0
    assert "registry" not in started.output()


def test_its_place_is_the_first_redis_of_the_feed_and_its_keys_begin_as_is_said(
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


def test_the_publisher_of_the_document_publishes_what_is_watched_and_no_more(
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
                    # What is wanted no more may be published once more, and then is not.
                    client.ask("PSUBSCRIBE", "quote.*")
                    channels = [client.channel() for _ in range(4)]
                    assert channels[-2:] == ["quote.EARLY"] * 2
                finally:
                    process.kill()
                    process.wait(10)

    asyncio.run(watch())


def test_the_permissions_of_the_document_are_enough(
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
