"""The PROXY protocol: what proxies say about a connection's client before its first byte.

Must not know: TLS, WebSockets, or how many connections an address may have. Versions 1 and 2 are
read as HAProxy specifies them: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt

Own code: Twisted's haproxy wrapper believes every peer, sets no deadline, closes a connection whose
header comes in pieces, and stays between the transport and the protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Any, Final, NamedTuple, TypeAlias

from twisted.internet import address
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pushservice.server.proxies import Trusted, plain

#: Bytes of a header of version 1, its CR LF among them.
MAX_V1: Final = 107
#: Bytes of a header of version 2 after the first 16: what proxies add, such as a client's
#: certificate, is read past.
MAX_V2_LENGTH: Final = 4096
#: Connections whose header is awaited; with more, the oldest is ended.
MAX_AWAITED: Final = 512

_V1_START: Final = b"PROXY "
_V2_START: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_HEAD: Final = len(_V2_START) + 4
_V2_LOCAL, _V2_PROXY = 0x20, 0x21
_V2_TCP4, _V2_TCP6 = 0x11, 0x21
#: The least bytes of addresses that each family and transport of version 2 has. Only those of TCP
#: are used; others leave the peer as it is, as the specification asks.
_V2_ADDRESSES: Final = {
    0x00: 0,
    _V2_TCP4: 12,
    0x12: 12,
    _V2_TCP6: 36,
    0x22: 36,
    0x31: 216,
    0x32: 216,
}
_MAX_PORT: Final = 65535
_MAX_PORT_DIGITS: Final = 5


# -- the header, without I/O ----------------------------------------------------------------------


class Source(NamedTuple):
    """Where a client is: its address, as IPv4 where it is IPv4 in IPv6 form, and its port."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Header:
    """A whole header. A `source` of None leaves the peer as it is; `rest` came after the header."""

    source: Source | None
    rest: bytes


@dataclass(frozen=True, slots=True)
class NoHeader:
    """No header begins the connection; `rest` is all that came."""

    rest: bytes


@dataclass(frozen=True, slots=True)
class BadHeader:
    """A malformed header, and the reason; nothing after it can be trusted."""

    reason: str


Outcome: TypeAlias = Header | NoHeader | BadHeader


class HeaderParser:
    """Parses the header at the start of one connection, in whatever pieces it comes."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> Outcome | None:
        """The outcome after `data`; None asks for more. After an outcome, feed no more."""
        data = self._data + data
        self._data = data
        if data.startswith(_V1_START):
            return _version_1(data)
        if data.startswith(_V2_START):
            return _version_2(data)
        if _V1_START.startswith(data) or _V2_START.startswith(data):
            return None
        return NoHeader(data)


class _Malformed(Exception):
    """A malformed header; the text is the reason."""


def _version_1(data: bytes) -> Outcome | None:
    end = data.find(b"\n", 0, MAX_V1)
    if end < 0:
        if len(data) < MAX_V1:
            return None
        return BadHeader(f"the line is longer than {MAX_V1} bytes")
    try:
        return Header(_source_1(data[: end + 1]), data[end + 1 :])
    except _Malformed as wrong:
        return BadHeader(str(wrong))


def _source_1(line: bytes) -> Source | None:
    if not line.endswith(b"\r\n"):
        raise _Malformed("the line ends without a CR")
    # Its first word is known to be PROXY, and is followed by a space.
    _, protocol, *fields = line[:-2].decode("latin-1").split(" ")
    if protocol == "UNKNOWN":
        return None
    if protocol not in ("TCP4", "TCP6"):
        raise _Malformed(f"{protocol!r} is none of TCP4, TCP6 and UNKNOWN")
    if len(fields) != 4:
        raise _Malformed(f"{protocol} is followed by {len(fields)} fields, not by 4")
    source, destination, source_port, destination_port = fields
    parsed = _address(protocol, source)
    _address(protocol, destination)
    port = _port(source_port)
    _port(destination_port)
    return Source(str(plain(parsed)), port)


def _address(protocol: str, text: str) -> IPv4Address | IPv6Address:
    try:
        if protocol == "TCP4":
            return IPv4Address(text)
        if "%" not in text:
            return IPv6Address(text)
    except AddressValueError:
        pass
    raise _Malformed(f"{text!r} is no address of {protocol}")


def _port(text: str) -> int:
    fits = text.isascii() and text.isdigit() and len(text) <= _MAX_PORT_DIGITS
    if not fits or int(text) > _MAX_PORT or str(int(text)) != text:
        raise _Malformed(f"{text!r} is no port from 0 to {_MAX_PORT} without leading zeros")
    return int(text)


def _version_2(data: bytes) -> Outcome | None:
    if len(data) < _V2_HEAD:
        return None
    at = len(_V2_START)
    command, family = data[at], data[at + 1]
    length = int.from_bytes(data[at + 2 : _V2_HEAD])
    if command not in (_V2_LOCAL, _V2_PROXY):
        return BadHeader(f"version and command are {command:#04x}, not 0x20 or 0x21")
    if length > MAX_V2_LENGTH:
        return BadHeader(f"its length is {length}, over {MAX_V2_LENGTH}")
    if command == _V2_PROXY:
        needed = _V2_ADDRESSES.get(family)
        if needed is None:
            return BadHeader(f"there is no address family and transport {family:#04x}")
        if length < needed:
            return BadHeader(f"its length is {length}, which is too short for {family:#04x}")
    end = _V2_HEAD + length
    if len(data) < end:
        return None
    # The addresses of LOCAL are skipped, whatever its family is.
    source = _source_2(family, data[_V2_HEAD:end]) if command == _V2_PROXY else None
    return Header(source, data[end:])


def _source_2(family: int, block: bytes) -> Source | None:
    """Both addresses come first, then both ports, the client's before the proxy's."""
    if family == _V2_TCP4:
        return Source(str(IPv4Address(block[:4])), int.from_bytes(block[8:10]))
    if family == _V2_TCP6:
        return Source(str(plain(IPv6Address(block[:16]))), int.from_bytes(block[32:34]))
    return None


# -- in front of a factory ------------------------------------------------------------------------


@implementer(IProtocolFactory)
class ProxyHeaderFactory:
    """Stands between a listening port and a factory, which sees the clients' own addresses.

    For ports whose transports are bare TCP or Unix connections: the header comes before TLS.
    """

    log = Logger()

    def __init__(
        self, factory: IProtocolFactory, trusted: Trusted, clock: IReactorTime, timeout: float
    ) -> None:
        """Peers in `trusted` have `timeout` seconds to send a header, or to begin without one."""
        self.doStart = factory.doStart
        self.inner = factory
        self.clock = clock
        self.timeout = timeout
        # The connections whose header is awaited, the oldest first.
        self._awaited: dict[_Awaited, None] = {}
        self._trusted = trusted

    def doStop(self) -> None:
        """The port is closed: connections that have sent no header yet are dropped."""
        for connection in list(self._awaited):
            connection.drop("the port was closed")
        self.inner.doStop()

    def buildProtocol(self, addr: IAddress) -> IProtocol | None:
        """The inner factory's protocol; for trusted peers, one that reads a header first.

        None where the inner factory refuses a connection from `addr`.
        """
        if self._trusted.includes(getattr(addr, "host", None)):
            return _Awaited(self, addr)
        return self.inner.buildProtocol(addr)

    def connected(self, connection: _Awaited) -> None:
        """A trusted peer connected."""
        if len(self._awaited) >= MAX_AWAITED:
            next(iter(self._awaited)).drop(f"over {MAX_AWAITED} others wait for a header too")
        self._awaited[connection] = None

    def settled(self, connection: _Awaited) -> None:
        """The header of a connection is awaited no more; may be called twice."""
        self._awaited.pop(connection, None)


class _Awaited(Protocol):
    """Reads the header, if there is one, and then hands the connection to the inner protocol."""

    transport: Any

    def __init__(self, owner: ProxyHeaderFactory, peer: IAddress) -> None:
        self._owner = owner
        self._peer = peer
        self._parser = HeaderParser()
        self._deadline: IDelayedCall | None = None

    def connectionMade(self) -> None:
        owner = self._owner
        assert self.transport.protocol is self, "headers come before the TLS of an endpoint"
        owner.connected(self)
        self._deadline = owner.clock.callLater(owner.timeout, self._too_late)

    def dataReceived(self, data: bytes) -> None:
        if self._deadline is None:
            # It is being aborted.
            return
        outcome = self._parser.feed(data)
        if isinstance(outcome, BadHeader):
            self.drop(outcome.reason)
        elif isinstance(outcome, NoHeader):
            self._hand_over(None, outcome.rest)
        elif outcome is not None:
            self._hand_over(outcome.source, outcome.rest)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._settle()

    def drop(self, reason: str) -> None:
        """End the connection, which the inner factory does not know of."""
        self._settle()
        self._owner.log.debug(
            "a connection of the proxy {peer} is dropped: {reason}", peer=self._peer, reason=reason
        )
        self.transport.abortConnection()

    def _too_late(self) -> None:
        self._deadline = None
        self.drop(f"it did not begin within {self._owner.timeout:g} seconds")

    def _settle(self) -> None:
        self._owner.settled(self)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _hand_over(self, source: Source | None, rest: bytes) -> None:
        self._settle()
        transport = self.transport
        client = self._peer if source is None else _twisted_address(source)
        inner = self._owner.inner.buildProtocol(client)
        if inner is None:
            self.drop("it may not come in")
            return
        if source is not None:
            transport.getPeer = lambda: client
        # From here on the transport belongs to the inner protocol alone.
        transport.protocol = inner
        inner.makeConnection(transport)
        if rest:
            inner.dataReceived(rest)


def _twisted_address(source: Source) -> IAddress:
    kind = address.IPv6Address if ":" in source.host else address.IPv4Address
    return kind("TCP", source.host, source.port)
