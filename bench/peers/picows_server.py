"""A peer: picows on uvloop.

As its broadcast example does: `transport.send` to each client for each quote. With --joined, what
one read of Redis brought for a client goes out as one JSON array, as quotepush does it.
"""

from __future__ import annotations

import argparse

import uvloop
from asyncio_feed import subscribe
from common import BACKLOG, SUBSCRIBED, arguments, tls_context
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_create_server

#: symbol -> the clients that watch it
audiences: dict[bytes, list[Client]] = {}
#: with --joined: the clients that this read has something for
waiting: dict[Client, None] = {}


class Client(WSListener):
    """One connection."""

    transport: WSTransport

    def __init__(self) -> None:
        self.symbols: list[bytes] = []
        self.pieces: list[bytes] = []

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            self.symbols = frame.get_payload_as_bytes().split(b",")
            for symbol in self.symbols:
                audiences.setdefault(symbol, []).append(self)
            transport.send(WSMsgType.TEXT, SUBSCRIBED)
        elif frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        for symbol in self.symbols:
            audiences[symbol].remove(self)


def send(symbol: bytes, payload: bytes) -> None:
    """One message per client."""
    text = WSMsgType.TEXT
    for client in audiences.get(symbol, ()):
        client.transport.send(text, payload)


def collect(symbol: bytes, payload: bytes) -> None:
    """Keep the quote for each client until the end of the read."""
    clients = audiences.get(symbol, ())
    for client in clients:
        client.pieces.append(payload)
    waiting.update(dict.fromkeys(clients))


def send_collected() -> None:
    """One message per client, with all that waits for it."""
    for client in waiting:
        client.transport.send(WSMsgType.TEXT, b"[" + b",".join(client.pieces) + b"]")
        client.pieces.clear()
    waiting.clear()


async def main(given: argparse.Namespace) -> None:
    """Serve until Redis is gone."""
    server = await ws_create_server(
        lambda _: Client(),
        "127.0.0.1",
        given.port,
        ssl=tls_context(given),
        backlog=BACKLOG,
    )
    if given.joined:
        await subscribe(given.redis, collect, send_collected)
    else:
        await subscribe(given.redis, send, lambda: None)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(arguments()))
