"""Connections come and go, in every way they can, and the daemon is the same afterwards."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from free_ports import free_port
from system_clients import BareSocket, Client, bare_socket, client_of, frame, open_websocket
from system_harness import Daemon, Publish, RedisServer, StartDaemon, poll_async
from websockets.asyncio.client import unix_connect
from websockets.exceptions import InvalidStatus


async def closes(connection: BareSocket) -> None:
    await connection.send(frame(8, (1000).to_bytes(2)))
    assert await connection.close_code() == 1000
    assert await connection.rest() == b""


async def aborts(connection: BareSocket) -> None:
    underneath = connection.writer.get_extra_info("socket")
    underneath.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.writer.transport.abort()


async def vanishes_in_the_middle_of_a_frame(connection: BareSocket) -> None:
    await connection.send(frame(1, b'{"op":"ping"}')[:9])
    connection.writer.transport.abort()


async def vanishes_in_the_middle_of_a_message(connection: BareSocket) -> None:
    await connection.send(frame(1, b'{"op":', final=False))
    connection.writer.transport.abort()


@pytest.mark.parametrize(
    "leave",
    [
        closes,
        aborts,
        vanishes_in_the_middle_of_a_frame,
        vanishes_in_the_middle_of_a_message,
    ],
)
def test_a_client_that_leaves_takes_its_file_descriptor_with_it(
    daemon: StartDaemon,
    publish: Publish,
    redis_server: RedisServer,
    leave: Callable[[BareSocket], Awaitable[None]],
) -> None:
    prefix = f"life-{leave.__name__}"
    served = daemon("--channels", f"{prefix}.*")
    process = served.serving()

    async def run() -> None:
        async with client_of(served, "A") as watcher:
            before = process.num_fds()
            for n in range(1, 11):
                async with bare_socket(served) as leaver:
                    assert b" 101 " in await leaver.upgrade()
                    await leaver.send(frame(1, b'{"op":"subscribe","symbols":["A"]}'))
                    heard = b""
                    while b'"subscribed"' not in heard:
                        heard = (await leaver.frame())[1]
                    assert process.num_fds() > before
                    await leave(leaver)
                await asyncio.to_thread(publish, redis_server, [(f"{prefix}.A", str(n))])
                assert (await watcher.expect("quote"))["n"] == n
            await poll_async(
                lambda: process.num_fds() == before,
                f"{before} open files, as before",
            )
            await asyncio.to_thread(publish, redis_server, [(f"{prefix}.A", "11")])
            assert (await watcher.expect("quote"))["n"] == 11

    asyncio.run(run())


def test_heartbeats_come_on_a_quiet_connection_and_tell_the_state_of_the_feed(
    daemon: StartDaemon, publish: Publish, redis_server: RedisServer
) -> None:
    served = daemon("--channels", "beat.*", "--heartbeat", "200")

    async def run() -> None:
        async with open_websocket(served) as connection:
            client = Client(connection)
            assert (await client.expect("welcome"))["hb"] == 200
            assert (await client.event())["age"] is None
            await client.subscribe("A")
            await asyncio.to_thread(publish, redis_server, [("beat.A", "1")])
            quote = await client.expect("quote")
            beats = [await client.expect("heartbeat") for _ in range(5)]
        for beat in beats:
            assert set(beat) == {"ev", "t", "feed", "age", "merged"}
            assert beat["feed"] == "up"
            assert beat["merged"] == 0
            assert beat["age"] == beat["t"] - quote["t"]
        assert 600 < beats[-1]["t"] - beats[0]["t"] < 8000

    asyncio.run(run())


def test_a_client_beyond_the_limit_is_told_when_to_come_again_and_served_when_one_left(
    daemon: StartDaemon, publish: Publish, redis_server: RedisServer
) -> None:
    served = daemon("--channels", "full.*", "--max-connections", "3")

    async def run() -> None:
        async with client_of(served, "A") as first, client_of(served), client_of(served) as third:
            with pytest.raises(InvalidStatus) as refused:
                await open_websocket(served)
            response = refused.value.response
            assert response.status_code == 503
            assert int(response.headers["Retry-After"]) > 0
            assert b"full" in (response.body or b"")
            await third.connection.close()
            async with client_of(served, "A") as fourth:
                await asyncio.to_thread(publish, redis_server, [("full.A", "1")])
                assert (await first.expect("quote"))["n"] == 1
                assert (await fourth.expect("quote"))["n"] == 1

    asyncio.run(run())


async def gets_a_quote(client: Client, symbol: str, send: Callable[[], None]) -> None:
    await client.expect("welcome")
    await client.subscribe(symbol)
    await asyncio.to_thread(send)
    assert (await client.expect("quote"))["s"] == symbol


def over_unix_socket(served: Daemon, path: Path) -> unix_connect:
    context = served.ssl_context
    if context is None:
        return unix_connect(str(path), "ws://localhost/", compression=None)
    return unix_connect(str(path), "wss://localhost/", ssl=context, compression=None)


@pytest.mark.parametrize("options", [["--plain"], []], ids=["plain", "tls"])
def test_clients_are_served_over_a_unix_socket(
    daemon: StartDaemon,
    publish: Publish,
    redis_server: RedisServer,
    short_directory: Path,
    options: list[str],
) -> None:
    path = short_directory / "quotepush.sock"
    prefix = f"unix{len(options)}"
    served = daemon("--channels", f"{prefix}.*", "--listen", f"unix:{path}", *options)
    scheme = "ws" if options else "wss"
    assert f"{scheme}+unix:{path} is served" in served.output()

    async def run() -> None:
        async with over_unix_socket(served, path) as connection:
            await gets_a_quote(
                Client(connection), "A", lambda: publish(redis_server, [(f"{prefix}.A", "1")])
            )

    asyncio.run(run())
    assert served.stop() is not None
    assert not path.exists()


def test_every_listen_is_served_and_port_and_interface_are_not(
    daemon: StartDaemon, publish: Publish, redis_server: RedisServer, short_directory: Path
) -> None:
    path = short_directory / "quotepush.sock"
    port = free_port()
    endpoints = ["--listen", f"tcp:{port}:interface=127.0.0.1", "--listen", f"unix:{path}"]
    served = daemon("--channels", "two.*", *endpoints)
    served.wait_for("is served", times=2)
    unused, served.port = served.port, port

    async def run() -> None:
        async with open_websocket(served) as over_tcp, over_unix_socket(served, path) as over_unix:
            for n, connection in enumerate((over_tcp, over_unix), 1):
                await gets_a_quote(
                    Client(connection),
                    f"A{n}",
                    lambda n=n: publish(redis_server, [(f"two.A{n}", json.dumps(n))]),
                )
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", unused)

    asyncio.run(run())
