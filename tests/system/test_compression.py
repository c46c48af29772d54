"""Compression, by clients that have it from others: each gets what it would get without."""

from __future__ import annotations

import asyncio
import json
import urllib.request
import zlib
from pathlib import Path
from typing import Any, Final

import pytest
from free_ports import free_port
from system_clients import Client, Ledger, Puppet, client_of, node_clients, open_websocket
from system_harness import Daemon, Publish, RedisServer, StartDaemon
from websockets.asyncio.client import ClientConnection

#: So many that what they share is always compressed.
MANY: Final = 110
CONNECT_AT_ONCE: Final = 25
WAYS: Final = [
    (outlet, options)
    for outlet in ("portable", "direct", "batched")
    for options in ([], ["--plain"])
]


class Watched:
    """A daemon of one process, and what it has counted."""

    def __init__(
        self, start: StartDaemon, *options: str, env: dict[str, str] | None = None
    ) -> None:
        self._admin = free_port()
        admin = f"127.0.0.1:{self._admin}"
        self.daemon: Daemon = start(*options, "--workers", "0", "--admin", admin, env=env)

    def counters(self) -> dict[str, int]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._admin}/status", timeout=20) as answer:
            status: dict[str, Any] = json.load(answer)
        counters: dict[str, int] = status["counters"]
        return counters


def market(prefix: str, symbols: str, count: int) -> list[tuple[str, bytes]]:
    """Quotes that take turns among `symbols`, of several sizes, with text that is not ASCII."""
    made = []
    for number in range(count):
        payload = {"i": number, "name": "贵州茅台", "last": number / 4, "bid": number / 4}
        if number % 50 == 0:
            payload["book"] = str([[number + level, 100] for level in range(150)])
        text = json.dumps(payload, ensure_ascii=False)
        made.append((f"{prefix}.{symbols[number % len(symbols)]}", text.encode()))
    return made


def compresses(connection: ClientConnection) -> bool:
    """Whether compression was agreed on, and with what the daemon always says."""
    used = [repr(extension) for extension in connection.protocol.extensions]
    assert all("remote_no_context_takeover=True" in each for each in used)
    return bool(used)


async def texts_of(connection: ClientConnection, until: str) -> list[str]:
    """Messages of quotes up to the one that has `until`."""
    texts: list[str] = []
    while not texts or until not in texts[-1]:
        async with asyncio.timeout(60):
            text = await connection.recv()
        assert isinstance(text, str)
        if '"ev":"heartbeat"' not in text:
            texts.append(text)
    return texts


@pytest.mark.parametrize(
    ("outlet", "options"), WAYS, ids=[f"{way}-{'tcp' if more else 'tls'}" for way, more in WAYS]
)
def test_many_clients_get_compressed_what_others_get_plain(
    daemon: StartDaemon,
    publish: Publish,
    redis_server: RedisServer,
    outlet: str,
    options: list[str],
) -> None:
    env = {"QUOTEPUSH_OUTLET": outlet}
    served = Watched(daemon, "--channels", "zip.*", *options, env=env)
    messages = [*market("zip", "ABC", 200), ("zip.A", b'"the end"')]

    async def run() -> list[list[Any]]:
        gate = asyncio.Semaphore(CONNECT_AT_ONCE)

        async def join(compression: str | None, subprotocol: str | None) -> ClientConnection:
            async with gate:
                connection = await open_websocket(
                    served.daemon, subprotocol, compression=compression
                )
                assert compresses(connection) == (compression is not None)
                # What the client says is compressed too.
                subscribe = {"op": "subscribe", "symbols": ["A", "B", "C"], "snapshot": False}
                await connection.send(json.dumps(subscribe))
                await connection.send('{"op":"ping","id":"subscribed"}')
                while "subscribed" not in await connection.recv():
                    pass
                if subprotocol is None:
                    await texts_of(connection, "pong")
            return connection

        kinds = [("deflate", None)] * MANY + [(None, None)] * 2
        kinds += [("deflate", "quotepush.raw")] * MANY + [(None, "quotepush.raw")] * 2
        connections = await asyncio.gather(*(join(*kind) for kind in kinds))
        await asyncio.to_thread(publish, redis_server, messages)
        seen = await asyncio.gather(*(texts_of(each, "the end") for each in connections))
        await asyncio.gather(*(each.close() for each in connections))
        return [
            [text] if subprotocol else [event for each in text for event in json.loads(each)]
            for text, (_, subprotocol) in zip(seen, kinds, strict=True)
        ]

    seen = asyncio.run(run())
    plain, raw = seen[MANY], seen[-1]
    assert [event["d"] for event in plain] == [json.loads(payload) for _, payload in messages]
    assert raw == [[payload.decode() for _, payload in messages]]
    assert all(events == plain for events in seen[: MANY + 2])
    assert all(texts == raw for texts in seen[MANY + 2 :])
    counters = served.counters()
    assert counters["deflated_events"] >= 2 * len(messages) - 2
    assert 0 < counters["deflated_bytes_out"] < counters["deflated_bytes_in"]


def test_compression_off_is_declined_and_nothing_else_changes(
    daemon: StartDaemon, publish: Publish, redis_server: RedisServer
) -> None:
    served = daemon("--channels", "off.*", "--compression", "off")

    async def run() -> None:
        async with client_of(served, "A", compression="deflate") as client:
            assert not compresses(client.connection)
            await asyncio.to_thread(publish, redis_server, [("off.A", b"1.50")])
            assert (await client.expect("quote"))["d"] == 1.5

    asyncio.run(run())


def test_a_message_that_inflates_to_more_than_may_be_is_closed_with_1009(
    daemon: StartDaemon,
) -> None:
    served = daemon("--channels", "bomb.*")

    async def run() -> None:
        async with client_of(served, compression="deflate") as client:
            assert compresses(client.connection)
            # Some kilobytes on the wire.
            await client.connection.send(" " * 10_000_000)
            assert await client.closed() == 1009

    asyncio.run(run())


# -- behind --------------------------------------------------------------------------------------


class Squeezed(Puppet):
    """A puppet that agrees on compression, and counts what comes compressed."""

    compressed = 0

    def frame(self) -> tuple[int, bytes]:
        first, length = self._take(2)
        if length > 125:
            length = int.from_bytes(self._take(2 if length == 126 else 8))
        payload = self._take(length)
        if first & 0x40:
            self.compressed += 1
            payload = zlib.decompressobj(-12).decompress(payload + b"\x00\x00\xff\xff")
        return first & 0x0F, payload


@pytest.mark.parametrize("options", [["--plain"], []], ids=["plain", "tls"])
def test_a_compressed_client_that_stops_reading_gets_the_newest_once_it_reads_again(
    daemon: StartDaemon, publish: Publish, redis_server: RedisServer, options: list[str]
) -> None:
    prefix = f"lag{len(options)}"
    served = daemon("--channels", f"{prefix}.*", "--heartbeat", "200", *options)
    count = 40_000
    messages = market(prefix, "ABCD", count)

    async def run() -> None:
        others = [await open_websocket(served, compression="deflate") for _ in range(12)]
        for each in others:
            client = Client(each)
            await client.expect("welcome")
            await client.subscribe(*"ABCD", snapshot=False)
        puppet = await asyncio.to_thread(Squeezed, served, receive_buffer=16_384)
        with puppet:
            offer = "Sec-WebSocket-Extensions: permessage-deflate"
            await asyncio.to_thread(puppet.upgrade, offer)
            await asyncio.to_thread(puppet.subscribe, *"ABCD", snapshot=False)
            for at in range(0, count, 500):
                await asyncio.to_thread(publish, redis_server, messages[at : at + 500])
            last = f'"i": {count - 1},'
            for each in others:
                while last not in (await asyncio.wait_for(each.recv(), 60)):
                    pass
            ledger = Ledger()
            while ledger.last != dict.fromkeys("ABCD", count // 4) or not ledger.jumped:
                for event in await asyncio.to_thread(puppet.events):
                    ledger.enter(event)
            # The heartbeat's total is held against the books.
            ledger.enter(await asyncio.to_thread(puppet.expect, "heartbeat"))
        assert puppet.compressed > 0
        assert 0 < ledger.jumped < count
        for each in others:
            await each.close()

    asyncio.run(run())


# -- Node's ws -----------------------------------------------------------------------------------


def test_clients_of_node_s_ws_get_compressed_what_was_published(
    daemon: StartDaemon,
    publish: Publish,
    redis_server: RedisServer,
    node_modules: Path,
    certs_directory: Path,
) -> None:
    served = Watched(daemon, "--channels", "nodezip.*", "--heartbeat", "1000")
    told = {
        "url": served.daemon.url,
        "ca": str(certs_directory / "dev.crt"),
        "end": "END",
        "clients": [["A", "B"]] * MANY,
        "extensions": "permessage-deflate",
    }
    messages = market("nodezip", "AB", 200)
    seen = node_clients(
        node_modules,
        told,
        lambda: publish(redis_server, [*messages, ("nodezip.END", b'"end"')]),
    )
    wanted = [
        ["AB"[at % 2], at // 2 + 1, json.loads(payload)] for at, (_, payload) in enumerate(messages)
    ]
    for watched in seen:
        assert watched["quotes"] == wanted
    assert served.counters()["deflated_events"] >= len(messages)
