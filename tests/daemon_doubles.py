"""A daemon on the reactor of the tests, and WebSocket clients of it."""

from __future__ import annotations

import json
from typing import Any

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from twisted.internet import defer, reactor
from twisted.internet.endpoints import TCP4ClientEndpoint
from waiting import until

from pushservice.config.config import Config
from pushservice.limits import Limits
from pushservice.service.daemon import Daemon

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
_COMMAND = b'{"op":"subscribe","symbols":["A"]}'
#: Masked with zeros.
SUBSCRIBE_A = bytes([0x81, 0x80 | len(_COMMAND), 0, 0, 0, 0]) + _COMMAND


class Listener(WebSocketClientProtocol):
    """A client that keeps what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []
        self.code: int | None = None
        self.gone = False

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.events += json.loads(payload)

    def onClose(self, wasClean: bool, code: int, reason: str) -> None:
        self.code = code
        self.gone = True

    def say(self, command: object) -> None:
        self.sendMessage(json.dumps(command).encode())

    def named(self, ev: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["ev"] == ev]


async def connect(daemon: Daemon) -> Listener:
    """A client that has been welcomed."""
    port = daemon.ports[0].getHost().port
    factory = WebSocketClientFactory(f"ws://127.0.0.1:{port}", protocols=["quotepush.v1.json"])
    factory.protocol = Listener
    factory.noisy = False
    client: Listener = await TCP4ClientEndpoint(reactor, "127.0.0.1", port).connect(factory)
    await until(lambda: client.events, "the welcome")
    return client


def address_of(daemon: Daemon) -> tuple[str, int]:
    return "127.0.0.1", daemon.ports[0].getHost().port


async def stop(daemon: Daemon, *clients: Listener) -> None:
    """Stop the daemon and see each client's end."""
    await daemon.stopService()
    await until(lambda: all(client.gone for client in clients), "the clients' ends")


async def a_turn() -> None:
    """Let the reactor turn once."""
    turn: defer.Deferred[None] = defer.Deferred()
    reactor.callLater(0, turn.callback, None)
    await turn


def local(**values: Any) -> Config:
    """A configuration for a loopback port of the system's choice, without TLS."""
    return Config(listen=("tcp:0:interface=127.0.0.1",), plain=True, **values)


BRISK = Limits(heartbeat_ms=100)


def started(config: Config) -> Daemon:
    daemon = Daemon(reactor, config)
    daemon.privilegedStartService()
    daemon.startService()
    return daemon
