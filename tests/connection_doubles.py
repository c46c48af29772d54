"""A server without sockets, and connections to it over transports that record."""

from __future__ import annotations

import json
import os
import struct
from ipaddress import ip_network
from typing import Any

from core_doubles import FixedClock, make_hub, unframe
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from pushservice.fanout.hub import Hub
from pushservice.limits import Limits
from pushservice.metrics import Counters
from pushservice.server.connections import Connections, Services
from pushservice.server.factory import QuoteFactory
from pushservice.server.proxies import NO_PROXIES, Trusted
from pushservice.server.websocket import (
    QuoteProtocol,
)
from pushservice.web import build_site

HOME, ELSEWHERE = "127.0.0.1", "192.0.2.1"

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%b\r\n"
)
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def masked(opcode: int, payload: bytes, *, final: bool = True, rsv1: bool = False) -> bytes:
    """A client's frame."""
    mask = os.urandom(4)
    size = len(payload)
    head = bytes([opcode | (0x80 if final else 0) | (0x40 if rsv1 else 0)])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65536:
        head += bytes([0x80 | 126]) + struct.pack("!H", size)
    else:
        head += bytes([0x80 | 127]) + struct.pack("!Q", size)
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


class RecordingTransport(StringTransport):
    """Counts aborts, and forgives an unregistered producer, as a TCP transport does."""

    aborts = 0

    def abortConnection(self) -> None:
        self.aborts += 1
        self.disconnecting = True

    def unregisterProducer(self) -> None:
        self.producer = None


@implementer(ISSLTransport)
class SecureTransport(RecordingTransport):
    """Looks like TLS; the test says when its handshake is done."""

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Change nothing."""

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Change nothing."""


class UnixTransport(RecordingTransport):
    """Looks like a connection on a Unix socket."""

    def getPeer(self) -> UNIXAddress:
        return UNIXAddress(None)

    getHost = getPeer


class Port:
    """A listening port: whether it accepts, and how often that changed."""

    connected = True

    def __init__(self) -> None:
        self.accepting = True
        self.changes = 0

    def stopReading(self) -> None:
        assert self.accepting, "stopped twice"
        self.accepting = False
        self.changes += 1

    def startReading(self) -> None:
        assert not self.accepting, "started twice"
        self.accepting = True
        self.changes += 1


PROXY = "10.0.0.1"
BEHIND_PROXIES = Trusted([ip_network("10.0.0.0/8"), "unix"])
PROXIES = {"TCP": (PROXY, RecordingTransport), "Unix": (PROXY, UnixTransport)}


def forwarded(*values: str) -> bytes:
    """The headers of a proxy that names these addresses."""
    return b"".join(b"X-Forwarded-For: %b\r\n" % value.encode("latin-1") for value in values)


def fail(*_: object) -> None:
    raise ZeroDivisionError("what is said here is for the log")


#: Limits by which a flood is soon found.
FIVE_A_SECOND = {"message_rate": 5, "byte_rate": 0, "close_timeout": 3}


class Server:
    """The server's factory with a clock, and connections over transports that record."""

    def __init__(
        self, *, page: bool = True, trusted: Trusted = NO_PROXIES, **limits: float
    ) -> None:
        self.clock = FixedClock()
        self.counters = Counters()
        self.hub: Hub = make_hub(self.clock, self.counters)
        self.limits = Limits(**{"connections": 10} | limits)
        site = build_site(self.clock, self.hub.recent_symbols, lambda: None, page)
        self.connections = Connections(
            self.clock, self.hub, self.limits, self.counters, Services(site), trusted=trusted
        )
        self.factory = QuoteFactory(self.connections)
        self.port = Port()
        self.connections.ports.add(self.port)

    def connect(self, host: str = HOME, transport: type = RecordingTransport) -> Connection:
        return Connection(self, host, transport)

    def drops(self, host: str = HOME) -> bool:
        """Whether a connection from `host` is dropped at the accept."""
        return self.factory.buildProtocol(IPv4Address("TCP", host, 54321)) is None

    def open(self, headers: bytes = b"", host: str = HOME) -> Connection:
        """A connection whose handshake is done and whose welcome is read."""
        connection = Connection(self, host)
        connection.send(REQUEST % headers)
        assert connection.transport.value().startswith(b"HTTP/1.1 101 ")
        connection.transport.clear()
        return connection


class Connection:
    """One client's end, on the wire's level."""

    def __init__(self, server: Server, host: str, transport: type = RecordingTransport) -> None:
        self.server = server
        self.transport = transport(peerAddress=IPv4Address("TCP", host, 54321))
        protocol = server.factory.buildProtocol(self.transport.getPeer())
        assert protocol is not None
        self.protocol: QuoteProtocol = protocol
        self.protocol.makeConnection(self.transport)

    def send(self, data: bytes) -> None:
        self.protocol.dataReceived(data)

    def lose(self, reason: Exception | None = None) -> None:
        self.protocol.connectionLost(Failure(reason or ConnectionDone()))

    def say(self, command: object) -> list[dict[str, Any]]:
        """Send a command and return the events that came since."""
        self.send(masked(1, json.dumps(command).encode()))
        return [event for _, text in self.frames() for event in json.loads(text)]

    def frames(self) -> list[tuple[int, bytes]]:
        data = self.transport.value()
        self.transport.clear()
        return unframe(data)

    def close_code(self) -> int:
        """The code of the close frame that came last."""
        first, payload = self.frames()[-1]
        assert first == 0x88
        return int.from_bytes(payload[:2])
