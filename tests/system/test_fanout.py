"""Many clients with different symbols: each gets its own quotes, all of them, once, in order."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from system_clients import Client, client_of, node_clients, open_websocket
from system_harness import Daemon, Publish, RedisServer, StartDaemon

SYMBOLS: Final = [f"S{number:03}" for number in range(500)]
END: Final = "END"
QUOTES: Final = 10_000
CONNECT_AT_ONCE: Final = 25


@dataclass
class Market:
    """What is published, and which symbols each client watches; the same in every run."""

    prefix: str
    clients: list[list[str]]
    messages: list[tuple[str, bytes]] = field(default_factory=list)
    published: Counter[str] = field(default_factory=Counter)

    @classmethod
    def made(cls, prefix: str, clients: int) -> Market:
        chance = random.Random(20251122)
        market = cls(prefix, [chance.sample(SYMBOLS, 20) for _ in range(clients)])
        for number in range(QUOTES):
            symbol = chance.choice(SYMBOLS)
            market.published[symbol] += 1
            payload = {"c": market.published[symbol], "i": number, "last": chance.random()}
            market.messages.append((f"{prefix}.{symbol}", json.dumps(payload).encode()))
        market.messages.append((f"{prefix}.{END}", b'"end"'))
        return market

    def check(self, watched: list[str], quotes: list[tuple[str, int, dict[str, Any]]]) -> None:
        """`quotes` is what a client of `watched` got: (symbol, n, payload) in order."""
        got: defaultdict[str, list[int]] = defaultdict(list)
        for symbol, n, payload in quotes:
            assert n == payload["c"], f"{symbol} has n {n} and the payload of {payload}"
            got[symbol].append(n)
        wanted = {s: list(range(1, self.published[s] + 1)) for s in watched if self.published[s]}
        assert got == wanted
        # Over all symbols too, the order is that of the publisher.
        order = [payload["i"] for _, _, payload in quotes]
        assert order == sorted(order)


# -- Python's websockets -------------------------------------------------------------------------


@dataclass
class Watched:
    """What one client saw."""

    quotes: list[tuple[str, int, dict[str, Any]]] = field(default_factory=list)
    merged: int = 0
    ended: bool = False


async def watch(client: Client) -> Watched:
    """Read until the sentinel."""
    seen = Watched()
    while not seen.ended:
        event = await client.event()
        if event["ev"] == "heartbeat":
            seen.merged += event["merged"]
        elif event["s"] == END:
            seen.ended = True
        else:
            assert event["ev"] == "quote", event
            seen.quotes.append((event["s"], event["n"], event["d"]))
    return seen


async def connect_and_watch(
    served: Daemon, symbols: list[str], gate: asyncio.Semaphore, ready: asyncio.Semaphore
) -> Watched:
    async with gate:
        connection = await open_websocket(served)
        client = Client(connection)
        await client.expect("welcome")
        answer = await client.subscribe(*symbols, END)
        assert answer["total"] == len(symbols) + 1
    ready.release()
    async with connection:
        return await watch(client)


def test_500_clients_get_exactly_their_quotes_of_10000_in_order(
    daemon: StartDaemon, publish: Publish, redis_server: RedisServer
) -> None:
    market = Market.made("fan", clients=500)
    served = daemon("--channels", "fan.*", "--heartbeat", "1000")

    async def run() -> list[Watched]:
        gate, ready = asyncio.Semaphore(CONNECT_AT_ONCE), asyncio.Semaphore(0)
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            watching = [
                group.create_task(connect_and_watch(served, symbols, gate, ready))
                for symbols in market.clients
            ]
            for _ in watching:
                await ready.acquire()
            await asyncio.to_thread(publish, redis_server, market.messages)
        return [task.result() for task in watching]

    seen = asyncio.run(run())
    for symbols, watched in zip(market.clients, seen, strict=True):
        market.check(symbols, watched.quotes)
        assert watched.merged == 0
    assert sum(len(watched.quotes) for watched in seen) > 190_000


# -- Node's ws -----------------------------------------------------------------------------------


def test_20_clients_of_node_s_ws_get_exactly_their_quotes_of_10000_in_order(
    daemon: StartDaemon,
    publish: Publish,
    redis_server: RedisServer,
    node_modules: Path,
    certs_directory: Path,
) -> None:
    market = Market.made("node", clients=20)
    served = daemon("--channels", "node.*", "--heartbeat", "1000")
    told = {
        "url": served.url,
        "ca": str(certs_directory / "dev.crt"),
        "end": END,
        "clients": market.clients,
    }
    seen = node_clients(node_modules, told, lambda: publish(redis_server, market.messages))
    for symbols, watched in zip(market.clients, seen, strict=True):
        market.check(symbols, watched["quotes"])
        assert watched["merged"] == 0


# -- quotepush.raw -------------------------------------------------------------------------------

RAW: Final = "quotepush.raw"

PAYLOADS: Final = [
    b'{"last":10.50,"volume":1e3}',
    b"10.50",
    '{"name":"贵州茅台","note":"Ünïcode \U0001f4c8"}'.encode(),
    "no JSON at all: 贵州茅台".encode(),
    b"",
    b" leading and trailing white space ",
    b'{"lines":\n[1,\r\n2]}\n',
    b"x" * 125,
    b"x" * 126,
    b"x" * 65535,
    b"x" * 65536,
    b'"' + b"m" * (1024 * 1024 - 2) + b'"',
]


@pytest.fixture
def raw_daemon(daemon: StartDaemon) -> Iterator[Daemon]:
    return daemon("--channels", "raw.*", "--max-symbols", "5")


def test_a_raw_client_gets_each_payload_byte_for_byte_as_one_text_message(
    raw_daemon: Daemon, publish: Publish, redis_server: RedisServer
) -> None:
    async def run() -> None:
        async with open_websocket(raw_daemon, RAW) as connection:
            assert connection.subprotocol == RAW
            await connection.send('{"op":"subscribe","symbols":["A"],"snapshot":false}')
            # Errors are the only answers: this one says that the subscription is done.
            await connection.send('{"op":"ping"}')
            assert set(json.loads(await connection.recv())) == {"error"}
            for payload in PAYLOADS:
                await asyncio.to_thread(publish, redis_server, [("raw.A", payload)])
                async with asyncio.timeout(20):
                    received = await connection.recv()
                assert isinstance(received, str)
                assert received.encode() == payload

    asyncio.run(run())


def test_publishes_that_arrive_in_one_read_are_several_raw_messages_and_one_json_message(
    raw_daemon: Daemon, publish: Publish, redis_server: RedisServer
) -> None:
    async def run() -> None:
        async with (
            open_websocket(raw_daemon, RAW) as raw,
            client_of(raw_daemon, "A", "B", subprotocol="quotepush.v1.json") as client,
        ):
            await raw.send("A,B")
            await raw.send('{"op":"list"}')
            await raw.recv()
            texts = ["1", "two", '{"three":3}']
            messages = list(zip(["raw.A", "raw.B", "raw.A"], texts, strict=True))
            await asyncio.to_thread(publish, redis_server, messages, together=True)
            async with asyncio.timeout(20):
                events = json.loads(await client.connection.recv())
                assert [await raw.recv() for _ in texts] == texts
            assert [(event["s"], event["n"]) for event in events] == [("A", 1), ("B", 1), ("A", 2)]

    asyncio.run(run())


def test_a_raw_client_may_send_bare_symbols_and_gets_their_last_payloads_at_once(
    raw_daemon: Daemon, publish: Publish, redis_server: RedisServer
) -> None:
    async def run() -> None:
        async with client_of(raw_daemon, "A", "C") as client:
            await asyncio.to_thread(publish, redis_server, [("raw.A", "old"), ("raw.C", "new")])
            for _ in range(2):
                await client.expect("quote")
        async with open_websocket(raw_daemon, RAW) as connection:
            await connection.send("A,B , C")
            assert [await connection.recv(), await connection.recv()] == ["old", "new"]
            messages = [("raw.A", "a"), ("raw.B", "b"), ("raw.C", "c"), ("raw.D", "d")]
            await asyncio.to_thread(publish, redis_server, [*messages, ("raw.C", "end")])
            async with asyncio.timeout(20):
                assert [await connection.recv() for _ in range(4)] == ["a", "b", "c", "end"]

    asyncio.run(run())


def test_errors_of_a_raw_client_are_json_objects(raw_daemon: Daemon) -> None:
    async def ask(connection: Any, text: str) -> list[dict[str, Any]]:
        await connection.send(text)
        # The answer to a second, wrong command marks the end of those to the first.
        await connection.send('{"op":"ping","id":"end"}')
        errors = []
        async with asyncio.timeout(20):
            while True:
                answer = json.loads(await connection.recv())
                assert list(answer) == ["error"]
                if answer["error"].get("id") == "end":
                    return errors
                errors.append(answer["error"])

    async def run() -> None:
        async with open_websocket(raw_daemon, RAW) as connection:
            assert await ask(connection, "A,B") == []
            assert await ask(connection, "") == []
            (bad,) = await ask(connection, "A,white space")
            assert bad["code"] == 411
            assert "white space" in bad["msg"]
            errors = await ask(connection, "C,D,E,F,G")
            assert [error["code"] for error in errors] == [405, 405]
            (malformed,) = await ask(connection, '{"op":')
            assert malformed["code"] == 400
            (unknown,) = await ask(connection, '{"op":"dance","id":7}')
            assert unknown["code"] == 400
            assert unknown["id"] == 7

    asyncio.run(run())
