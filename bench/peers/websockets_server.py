"""A peer: websockets on uvloop, with `broadcast`, which its documentation recommends."""

from __future__ import annotations

import argparse
import asyncio
import logging

import uvloop
from asyncio_feed import subscribe
from common import BACKLOG, SUBSCRIBED, arguments, tls_context
from websockets.asyncio.server import ServerConnection, broadcast, serve

#: symbol -> the clients that watch it
audiences: dict[bytes, set[ServerConnection]] = {}


async def client(connection: ServerConnection) -> None:
    """Serve one connection."""
    symbols: list[bytes] = []
    try:
        async for message in connection:
            symbols = str(message).encode().split(b",")
            for symbol in symbols:
                audiences.setdefault(symbol, set()).add(connection)
            await connection.send(SUBSCRIBED.decode())
    finally:
        for symbol in symbols:
            audiences[symbol].discard(connection)


def send(symbol: bytes, payload: bytes) -> None:
    """Broadcast one quote; a str makes a text message."""
    audience = audiences.get(symbol)
    if audience:
        broadcast(audience, payload.decode())


async def main(given: argparse.Namespace) -> None:
    """Serve until Redis is gone."""
    # Clients that hang up without a goodbye are not worth a traceback each.
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    async with serve(
        client,
        "127.0.0.1",
        given.port,
        ssl=tls_context(given),
        compression=None,
        backlog=BACKLOG,
    ):
        await subscribe(given.redis, send, lambda: None)
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    uvloop.run(main(arguments()))
