"""A peer: Autobahn on Twisted's epoll reactor, with a prepared message sent to each client.

Redis is read by txredisapi with hiredis. Nagle's algorithm is off, as it is not by default.
"""

from __future__ import annotations

import argparse
from typing import Any

import txredisapi
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from common import BACKLOG, SUBSCRIBED, arguments, ready
from twisted.internet import endpoints, reactor

#: symbol -> the clients that watch it
audiences: dict[bytes, list[Client]] = {}


class Client(WebSocketServerProtocol):
    """One connection."""

    tcpNoDelay = True
    symbols: list[bytes] = []  # noqa: RUF012 - replaced, never changed

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.symbols = payload.split(b",")
        for symbol in self.symbols:
            audiences.setdefault(symbol, []).append(self)
        self.sendMessage(SUBSCRIBED)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        symbols, self.symbols = self.symbols, []
        for symbol in symbols:
            audiences[symbol].remove(self)


class Subscriber(txredisapi.SubscriberProtocol):
    """Redis's messages, one call each."""

    factory: Any

    def connectionMade(self) -> None:
        super().connectionMade()
        self.psubscribe("quote.*").addCallback(lambda _: ready())

    def messageReceived(self, pattern: bytes, channel: bytes, message: bytes) -> None:
        audience = audiences.get(channel[6:])
        if audience:
            prepared = audience[0].factory.prepareMessage(message)
            for client in audience:
                client.sendPreparedMessage(prepared)


class SubscriberFactory(txredisapi.SubscriberFactory):
    """Quotes as bytes, not as numbers."""

    protocol = Subscriber
    noisy = False

    def __init__(self) -> None:
        super().__init__()
        self.convertNumbers = False
        self.charset = None


def main(given: argparse.Namespace) -> None:
    """Serve until killed."""
    factory = WebSocketServerFactory()
    factory.protocol = Client
    factory.noisy = False
    where = f"{given.port}:interface=127.0.0.1:backlog={BACKLOG}"
    kind = "tcp"
    if given.cert is not None:
        kind = "ssl"
        where += f":certKey={given.cert}:privateKey={given.key}"
    listening = endpoints.serverFromString(reactor, f"{kind}:{where}").listen(factory)
    redis = endpoints.UNIXClientEndpoint(reactor, str(given.redis))
    listening.addCallback(lambda _: SubscriberFactory().startConnecting(redis))
    reactor.run()


if __name__ == "__main__":
    main(arguments())
