"""Whatever a stranger sends in place of a handshake, it is refused, and no client is disturbed.

As in test_bad_input.py, a well-behaved client watches an ever quoted symbol all the while.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
from typing import Final

import pytest
from system_clients import Undisturbed, bare_socket, open_websocket
from system_harness import DEADLINE, Daemon, StartDaemon
from websockets.exceptions import InvalidStatus


@pytest.fixture(scope="module")
def served(module_daemon: StartDaemon) -> Daemon:
    """One daemon for all of the tests that need no options of their own."""
    return module_daemon("--channels", "bad.*")


async def answer_to(served: Daemon, request: str, *, tls: bool | None = None) -> str:
    async with bare_socket(served, tls=tls) as connection:
        await connection.send(request.encode())
        return (await connection.rest()).decode()


GET: Final = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def test_http_requests_get_the_page_or_a_readable_refusal(
    served: Daemon, daemon: StartDaemon, undisturbed: Undisturbed
) -> None:
    without = daemon("--channels", "bad.*", "--no-page", fed=False)

    async def run() -> None:
        async with undisturbed(served):
            page = await answer_to(served, GET)
            assert page.startswith("HTTP/1.1 200 ")
            assert "content-type: text/html" in page.lower()
            assert (await answer_to(without, GET)).startswith("HTTP/1.1 426 ")
            posted = await answer_to(served, GET.replace("GET", "POST"))
            assert posted.startswith("HTTP/1.1 405 ")
            assert "allow: get" in posted.lower()
            assert (await answer_to(served, GET.replace(" / ", " /no "))).startswith(
                "HTTP/1.1 404 "
            )
            endless = f"GET / HTTP/1.1\r\nUpgrade: websocket\r\nCookie: {'x' * 20_000}"
            assert (await answer_to(served, endless)).startswith("HTTP/1.1 431 ")
            assert (await answer_to(served, "\x16\x03\x01nonsense")).startswith("HTTP/1.1 400 ")

    asyncio.run(run())


def test_a_client_that_knows_only_other_subprotocols_is_refused_at_the_handshake(
    served: Daemon, undisturbed: Undisturbed
) -> None:
    async def run() -> None:
        async with undisturbed(served):
            with pytest.raises(InvalidStatus) as refused:
                await open_websocket(served, "graphql-ws")
            assert refused.value.response.status_code == 400
            assert b"quotepush.v1.json" in (refused.value.response.body or b"")
            async with bare_socket(served) as connection:
                offer = "Sec-WebSocket-Protocol: graphql-ws, quotepush.v1.json"
                answer = await connection.upgrade(offer)
                assert b" 101 " in answer
                assert b"sec-websocket-protocol: quotepush.v1.json" in answer.lower()

    asyncio.run(run())


def test_plain_http_on_the_tls_port_is_told_so_and_tls_on_a_plain_port_is_closed_at_once(
    served: Daemon, daemon: StartDaemon, undisturbed: Undisturbed
) -> None:
    plain = daemon("--channels", "bad.*", "--plain", fed=False)

    async def run() -> None:
        async with undisturbed(served):
            told = await answer_to(served, GET, tls=False)
            assert told.startswith("HTTP/1.1 400 ")
            assert "https://" in told
            head, _, body = told.partition("\r\n\r\n")
            assert f"Content-Length: {len(body)}" in head
            async with asyncio.timeout(5):
                with pytest.raises(ssl.SSLError):
                    await asyncio.open_connection(
                        "127.0.0.1",
                        plain.port,
                        ssl=served.ssl_context,
                        server_hostname="localhost",
                    )

    asyncio.run(run())


def test_a_handshake_that_never_ends_is_closed_by_the_server(
    served: Daemon, undisturbed: Undisturbed
) -> None:
    async def silent_before_tls() -> bytes:
        async with bare_socket(served, tls=False) as connection:
            return await connection.rest()

    async def silent_in_the_middle_of_tls() -> bytes:
        async with bare_socket(served, tls=False) as connection:
            await connection.send(b"\x16\x03\x01\x02\x00\x01")
            return await connection.rest()

    async def silent_after_tls() -> bytes:
        async with bare_socket(served) as connection:
            return await connection.rest()

    async def dribbling() -> bytes:
        async with bare_socket(served) as connection:

            async def dribble() -> None:
                for byte in itertools.chain(b"GET / HTTP/1.1\r\n", itertools.repeat(b"x"[0])):
                    await connection.send(bytes([byte]))
                    # The pace of the bytes; nothing is waited for here.
                    await asyncio.sleep(0.2)

            dribbler = asyncio.create_task(dribble())
            try:
                return await connection.rest()
            finally:
                dribbler.cancel()
                await asyncio.gather(dribbler, return_exceptions=True)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with undisturbed(served):
            began = loop.time()
            heard = await asyncio.gather(
                silent_before_tls(), silent_in_the_middle_of_tls(), silent_after_tls(), dribbling()
            )
            assert heard == [b""] * 4
            assert 9 < loop.time() - began < DEADLINE

    asyncio.run(run())
