"""The PROXY protocol: headers in pieces, wrong, late or missing, and what is behind them."""

from __future__ import annotations

import gc
import socket
import ssl
import struct
import weakref
from contextlib import suppress
from ipaddress import ip_network
from typing import Any

import pytest
import pytest_twisted
from core_doubles import make_hub
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogLevel, globalLogPublisher
from twisted.python.failure import Failure
from waiting import until

from pushservice.limits import Limits
from pushservice.metrics import Counters
from pushservice.server.connections import Connections, Services
from pushservice.server.factory import QuoteFactory
from pushservice.server.outlets.choice import choose
from pushservice.server.outlets.portable import PortableOutlet
from pushservice.server.proxies import NO_PROXIES, Trusted
from pushservice.server.proxy_protocol import (
    MAX_AWAITED,
    MAX_V1,
    MAX_V2_LENGTH,
    BadHeader,
    Header,
    HeaderParser,
    NoHeader,
    ProxyHeaderFactory,
    Source,
)
from pushservice.tls.factory import TLSFactory, development_pair, server_options
from pushservice.web import build_site

PROXY, STRANGER = "127.0.0.1", "192.0.2.66"
TRUSTED = Trusted([ip_network("127.0.0.0/8"), ip_network("::1"), "unix"])
TIMEOUT = 3.0

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V1 = b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n"
V1_IPV6 = b"PROXY TCP6 2001:db8::1 2001:DB8:0:0:0:0:0:2 56324 443\r\n"
# As the specification has it: the longest there is.
V1_LONGEST = (
    b"PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
    b" ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n"
)


def version_2(command: int, family: int, block: bytes, length: int | None = None) -> bytes:
    size = len(block) if length is None else length
    return SIGNATURE + bytes([command, family]) + struct.pack("!H", size) + block


def addresses(family: int, source: str, destination: str, *ports: int) -> bytes:
    packed = (socket.inet_pton(family, address) for address in (source, destination))
    return b"".join(packed) + struct.pack("!HH", *ports)


BLOCK_4 = addresses(socket.AF_INET, "192.0.2.1", "198.51.100.1", 56324, 443)
BLOCK_6 = addresses(socket.AF_INET6, "2001:db8::1", "2001:db8::2", 56324, 443)
V2 = version_2(0x21, 0x11, BLOCK_4)
V2_IPV6 = version_2(0x21, 0x21, BLOCK_6)
V2_LOCAL = version_2(0x20, 0x00, b"")

CLIENT, CLIENT_6 = Source("192.0.2.1", 56324), Source("2001:db8::1", 56324)
REST = b"\x16\x03\x01PROXY \r\n"

GOOD = {
    "v1": (V1, CLIENT),
    "v1 of IPv6": (V1_IPV6, CLIENT_6),
    "v1 of IPv4 in IPv6 form": (
        b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.1 56324 443\r\n",
        CLIENT,
    ),
    "v1 of the highest and lowest": (
        b"PROXY TCP4 255.255.255.255 0.0.0.0 65535 0\r\n",
        Source("255.255.255.255", 65535),
    ),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", None),
    "v1 unknown with anything": (b"PROXY UNKNOWN \xff what ever\r\n", None),
    "v1 unknown, the longest": (V1_LONGEST, None),
    "v2": (V2, CLIENT),
    "v2 of IPv6": (V2_IPV6, CLIENT_6),
    "v2 of IPv4 in IPv6 form": (
        version_2(0x21, 0x21, addresses(socket.AF_INET6, "::ffff:192.0.2.1", "::", 56324, 443)),
        CLIENT,
    ),
    "v2 with what proxies add": (
        version_2(0x21, 0x11, BLOCK_4 + b"\x04\x00\x03abc" + b"\xea\x00\x01x"),
        CLIENT,
    ),
    "v2 of IPv6 with what proxies add": (version_2(0x21, 0x21, BLOCK_6 + b"\x03" * 7), CLIENT_6),
    "v2 of the greatest length": (
        version_2(0x21, 0x11, BLOCK_4.ljust(MAX_V2_LENGTH, b"\x04")),
        CLIENT,
    ),
    "v2 local": (V2_LOCAL, None),
    "v2 local with addresses": (version_2(0x20, 0x11, BLOCK_4), None),
    "v2 local of no family with anything": (version_2(0x20, 0xFF, b"\x00\x01\x02"), None),
    "v2 unspecified": (version_2(0x21, 0x00, b""), None),
    "v2 unspecified with anything": (version_2(0x21, 0x00, b"anything"), None),
    "v2 of a Unix socket": (version_2(0x21, 0x31, b"/path".ljust(216, b"\0")), None),
    "v2 of datagrams": (version_2(0x21, 0x12, BLOCK_4), None),
    "v2 of IPv6 datagrams": (version_2(0x21, 0x22, BLOCK_6), None),
    "v2 of Unix datagrams": (version_2(0x21, 0x32, bytes(216)), None),
}

BAD = {
    "107 bytes without an end": (b"PROXY ".ljust(MAX_V1, b"x"), "longer than 107 bytes"),
    "108 bytes without an end": (b"PROXY ".ljust(MAX_V1 + 1, b"x"), "longer than 107 bytes"),
    "an end after 107 bytes": (
        V1_LONGEST.replace(b"\r\n", b" \r\n"),
        "longer than 107 bytes",
    ),
    "no CR": (b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\n", "without a CR"),
    "no CR of an unknown": (b"PROXY UNKNOWN\n", "without a CR"),
    "no protocol": (b"PROXY \r\n", "'' is none of TCP4, TCP6"),
    "another protocol": (b"PROXY UDP4 192.0.2.1 198.51.100.1 56324 443\r\n", "'UDP4'"),
    "a small protocol": (b"PROXY tcp4 192.0.2.1 198.51.100.1 56324 443\r\n", "'tcp4'"),
    "two spaces": (b"PROXY TCP4  192.0.2.1 198.51.100.1 56324 443\r\n", "5 fields, not by 4"),
    "a tab": (b"PROXY TCP4\t192.0.2.1 198.51.100.1 56324 443\r\n", "none of TCP4, TCP6"),
    "a field too few": (b"PROXY TCP4 192.0.2.1 198.51.100.1 56324\r\n", "3 fields, not by 4"),
    "a field too many": (V1.replace(b"\r\n", b" 1\r\n"), "5 fields, not by 4"),
    "a space at the end": (V1.replace(b"\r\n", b" \r\n"), "5 fields, not by 4"),
    "a CR within": (V1.replace(b" 443", b"\r 443"), "'56324\\r' is no port"),
    "IPv6 in TCP4": (
        b"PROXY TCP4 2001:db8::1 198.51.100.1 56324 443\r\n",
        "'2001:db8::1' is no address of TCP4",
    ),
    "IPv4 in TCP6": (
        b"PROXY TCP6 192.0.2.1 2001:db8::2 56324 443\r\n",
        "'192.0.2.1' is no address of TCP6",
    ),
    "a wrong address": (b"PROXY TCP4 192.0.2.256 198.51.100.1 1 2\r\n", "'192.0.2.256' is no"),
    "a leading zero": (b"PROXY TCP4 192.0.2.01 198.51.100.1 1 2\r\n", "'192.0.2.01' is no"),
    "a name": (b"PROXY TCP4 localhost 198.51.100.1 1 2\r\n", "'localhost' is no address"),
    "a wrong destination": (b"PROXY TCP4 192.0.2.1 nowhere 1 2\r\n", "'nowhere' is no address"),
    "a wrong IPv6 destination": (b"PROXY TCP6 ::1 ::2::3 1 2\r\n", "'::2::3' is no address"),
    "a scope": (b"PROXY TCP6 fe80::1%eth0 fe80::2 1 2\r\n", "'fe80::1%eth0' is no address"),
    **{
        f"port {port!r}": (
            b"PROXY TCP4 192.0.2.1 198.51.100.1 %b 443\r\n" % port,
            f"{port.decode('latin-1')!r} is no port",
        )
        for port in (
            b"65536",
            b"-1",
            b"+1",
            b"080",
            b"00",
            b"x",
            b"0x50",
            b"1_0",
            b"\xb2",
            b"9" * 30,
        )
    },
    "no port": (b"PROXY TCP4 192.0.2.1 198.51.100.1  443\r\n", "'' is no port"),
    "a wrong port of the destination": (
        b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 65536\r\n",
        "'65536' is no port",
    ),
    "version 1 in binary": (version_2(0x11, 0x11, BLOCK_4), "are 0x11, not 0x20 or 0x21"),
    "version 3": (version_2(0x31, 0x11, BLOCK_4), "are 0x31"),
    "another command": (version_2(0x22, 0x11, BLOCK_4), "are 0x22"),
    "another family": (version_2(0x21, 0x41, BLOCK_4), "no address family and transport 0x41"),
    "another transport": (version_2(0x21, 0x13, BLOCK_4), "transport 0x13"),
    "IPv4 without a transport": (version_2(0x21, 0x10, BLOCK_4), "transport 0x10"),
    "a transport alone": (version_2(0x21, 0x01, BLOCK_4), "transport 0x01"),
    "IPv4 too short": (version_2(0x21, 0x11, BLOCK_4[:-1]), "is 11, which is too short for 0x11"),
    "IPv6 too short": (version_2(0x21, 0x21, BLOCK_6[:-1]), "is 35, which is too short"),
    "a Unix socket too short": (version_2(0x21, 0x31, bytes(215)), "is 215, which is too short"),
    "too long": (version_2(0x21, 0x11, b"", MAX_V2_LENGTH + 1), "is 4097, over 4096"),
    "as long as can be": (version_2(0x20, 0x00, b"", 65535), "is 65535, over 4096"),
}

NONE = {
    "a TLS handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a request": b"GET / HTTP/1.1\r\n\r\n",
    "a request that begins alike": b"PROPFIND / HTTP/1.1\r\n\r\n",
    "the word alone": b"PROXY\r\n",
    "the word in small letters": b"proxy TCP4 192.0.2.1 198.51.100.1 56324 443\r\n",
    "another word": b"PROXYTCP4 ",
    "empty lines": b"\r\n\r\n\r\n",
    "another signature": b"\r\n\r\n\x00\r\nQUIT\r\n",
    "zeros": bytes(20),
}


def each(cases: dict[str, Any]) -> Any:
    """A decorator: the test is run with each of the values, by the names of `cases`."""
    return pytest.mark.parametrize("case", cases.values(), ids=cases)


# -- the parser ------------------------------------------------------------------------------------


@each(GOOD)
def test_a_header_is_read_and_what_follows_is_kept(case):
    data, source = case
    for rest in (b"", REST):
        assert HeaderParser().feed(data + rest) == Header(source, rest)


@each(GOOD)
def test_a_header_may_come_byte_by_byte(case):
    data, source = case
    parser = HeaderParser()
    for at in range(len(data) - 1):
        assert parser.feed(data[at : at + 1]) is None
    assert parser.feed(data[-1:] + REST) == Header(source, REST)


@each(BAD)
def test_what_is_wrong_with_a_header_is_said(case):
    data, reason = case
    for rest in (b"", REST):
        outcome = HeaderParser().feed(data + rest)
        assert isinstance(outcome, BadHeader)
        assert reason in outcome.reason


@each(NONE)
def test_what_begins_without_a_header_is_kept_whole(case):
    assert HeaderParser().feed(case) == NoHeader(case)
    parser = HeaderParser()
    for at in range(len(case)):
        outcome = parser.feed(case[at : at + 1])
        if outcome is not None:
            break
    assert outcome == NoHeader(case[: at + 1])


def test_a_header_that_is_too_long_is_known_from_its_head():
    assert isinstance(HeaderParser().feed(version_2(0x20, 0, b"", 65535)), BadHeader)
    parser = HeaderParser()
    assert parser.feed(b"PROXY ".ljust(MAX_V1 - 1, b"x")) is None
    assert isinstance(parser.feed(b"x"), BadHeader)


# -- the factory -----------------------------------------------------------------------------------


class Wire(StringTransport):
    """A transport below which nobody is."""

    aborts = 0
    protocol: Any

    def abortConnection(self) -> None:
        self.aborts += 1


class Within(Protocol):
    """What is behind: keeps what it sees."""

    def __init__(self, addr: object) -> None:
        self.addr = addr
        self.data: list[bytes] = []
        self.lost = 0

    def connectionMade(self) -> None:
        self.peer = self.transport.getPeer()

    def dataReceived(self, data: bytes) -> None:
        self.data.append(data)

    def connectionLost(self, reason=None) -> None:
        self.lost += 1


class WithinFactory(Factory):
    """Makes them, and refuses those of the addresses it is told to."""

    def __init__(self) -> None:
        self.made: list[Within] = []
        self.refused: list[str] = []
        self.events: list[str] = []

    def startFactory(self) -> None:
        self.events.append("started")

    def stopFactory(self) -> None:
        self.events.append("stopped")

    def buildProtocol(self, addr) -> Within | None:
        if getattr(addr, "host", None) in self.refused:
            return None
        self.made.append(Within(addr))
        return self.made[-1]


class Front:
    """A ProxyHeaderFactory before a factory that records, and connections to it."""

    def __init__(self, trusted: Trusted = TRUSTED) -> None:
        self.clock = Clock()
        self.within = WithinFactory()
        self.factory = ProxyHeaderFactory(self.within, trusted, self.clock, TIMEOUT)

    def connect(self, peer: Any = PROXY) -> Wire:
        if isinstance(peer, str):
            kind = IPv6Address if ":" in peer else IPv4Address
            peer = kind("TCP", peer, 40000)
        transport = Wire(peerAddress=peer)
        transport.protocol = self.factory.buildProtocol(peer)
        transport.protocol.makeConnection(transport)
        return transport

    def only(self) -> Within:
        """The one protocol within that was made."""
        [made] = self.within.made
        return made


def lose(transport: Wire) -> None:
    transport.protocol.connectionLost(Failure(ConnectionDone()))


@pytest.mark.parametrize("peer", [PROXY, "::1", "::ffff:127.0.0.1", UNIXAddress(None)])
@each({name: GOOD[name] for name in ("v1", "v1 unknown", "v2", "v2 of IPv6", "v2 local")})
def test_behind_a_header_the_connection_is_as_if_the_client_had_made_it(case, peer):
    data, source = case
    front = Front()
    transport = front.connect(peer)
    own_peer = transport.getPeer()
    transport.protocol.dataReceived(data + REST)
    within = front.only()
    assert transport.protocol is within
    assert within.transport is transport
    assert within.data == [REST]
    assert within.addr == within.peer == transport.getPeer()
    if source is None:
        assert within.peer == own_peer
    else:
        assert (within.peer.type, within.peer.host, within.peer.port) == ("TCP", *source)
        assert isinstance(within.peer, IPv6Address if source is CLIENT_6 else IPv4Address)
    assert front.clock.getDelayedCalls() == []
    transport.protocol.dataReceived(b"more")
    assert within.data == [REST, b"more"]
    lose(transport)
    assert within.lost == 1


def test_a_header_alone_begins_the_connection_without_data():
    front = Front()
    transport = front.connect()
    for byte in V2:
        assert front.within.made == []
        transport.protocol.dataReceived(bytes([byte]))
    assert front.only().data == []
    transport.protocol.dataReceived(b"x")
    assert front.only().data == [b"x"]


def test_a_second_header_is_no_header_any_more():
    front = Front()
    transport = front.connect()
    transport.protocol.dataReceived(V1 + V2)
    assert front.only().data == [V2]
    assert transport.getPeer().host == CLIENT.host


@each(NONE)
def test_a_trusted_peer_may_send_no_header(case):
    front = Front()
    transport = front.connect()
    transport.protocol.dataReceived(case[:1])
    transport.protocol.dataReceived(case[1:])
    assert b"".join(front.only().data) == case
    assert transport.protocol is front.only()
    assert front.only().peer == front.only().addr == IPv4Address("TCP", PROXY, 40000)
    assert front.clock.getDelayedCalls() == []


@pytest.mark.parametrize("peer", [STRANGER, "2001:db8::66"])
def test_the_header_of_an_untrusted_peer_is_data_like_any_other(peer):
    front = Front()
    transport = front.connect(peer)
    assert transport.protocol is front.only(), "nothing stands between"
    transport.protocol.dataReceived(V1)
    assert front.only().data == [V1]
    assert transport.getPeer().host == peer
    assert front.clock.getDelayedCalls() == []


def test_without_trusted_proxies_no_peer_is_trusted():
    front = Front(NO_PROXIES)
    for peer in (PROXY, "::1", UNIXAddress(None)):
        assert front.connect(peer).protocol is front.within.made[-1]


def test_an_untrusted_peer_that_the_inner_factory_refuses_is_refused():
    front = Front()
    front.within.refused.append(STRANGER)
    assert front.factory.buildProtocol(IPv4Address("TCP", STRANGER, 1)) is None


@pytest.mark.parametrize("refused", ["the client", "the proxy"])
def test_a_client_that_the_factory_within_refuses_is_aborted(refused):
    front = Front()
    front.within.refused.append(CLIENT.host if refused == "the client" else PROXY)
    transport = front.connect()
    transport.protocol.dataReceived((V1 if refused == "the client" else b"") + REST)
    assert transport.aborts == 1
    assert front.within.made == []
    assert front.clock.getDelayedCalls() == []
    transport.protocol.dataReceived(b"more")
    lose(transport)
    assert front.within.made == []


def test_a_connection_whose_header_is_wrong_is_aborted_and_nobody_within_hears_of_it():
    front = Front()
    for data, _ in BAD.values():
        transport = front.connect()
        transport.protocol.dataReceived(data)
        assert transport.aborts == 1
        assert front.clock.getDelayedCalls() == []
        transport.protocol.dataReceived(V1 + REST)
        lose(transport)
        assert transport.aborts == 1
    assert front.within.made == []


@pytest.mark.parametrize("begin", [b"", b"P", V1[:-1], V2[:-1], SIGNATURE])
def test_a_header_that_comes_too_late_aborts_the_connection(begin):
    front = Front()
    transport = front.connect()
    front.clock.advance(TIMEOUT / 2)
    transport.protocol.dataReceived(begin)
    front.clock.advance(TIMEOUT / 2 - 0.1)
    assert transport.aborts == 0
    front.clock.advance(0.2)
    assert transport.aborts == 1
    transport.protocol.dataReceived(V1)
    lose(transport)
    assert transport.aborts == 1
    assert front.within.made == []
    assert front.clock.getDelayedCalls() == []


def test_a_header_in_time_leaves_no_deadline():
    front = Front()
    transport = front.connect()
    front.clock.advance(TIMEOUT - 0.1)
    transport.protocol.dataReceived(V1)
    front.clock.advance(1000)
    assert transport.aborts == 0


@pytest.mark.parametrize("begin", [b"", V1[:10], V2[:20]])
def test_a_connection_lost_before_its_header_is_whole_leaves_nothing_behind(begin):
    front = Front()
    transport = front.connect()
    transport.protocol.dataReceived(begin)
    lose(transport)
    assert front.clock.getDelayedCalls() == []
    assert front.within.made == []
    waiting = weakref.ref(transport.protocol)
    del transport
    gc.collect()
    assert waiting() is None


def test_what_read_the_header_is_gone_once_it_is_read():
    front = Front()
    transport = front.connect()
    waiting = weakref.ref(transport.protocol)
    transport.protocol.dataReceived(V1)
    gc.collect()
    assert waiting() is None


def test_of_too_many_that_are_awaited_the_oldest_goes():
    front = Front()
    first, second, *others = [front.connect() for _ in range(MAX_AWAITED)]
    second.protocol.dataReceived(V1)
    newest = front.connect()
    assert first.aborts == 0, "the second's place was free"
    front.connect()
    assert [transport.aborts for transport in (first, second, *others)] == [1] + [0] * (
        MAX_AWAITED - 1
    )
    newest.protocol.dataReceived(V1)
    assert len(front.within.made) == 2


def test_the_factory_within_is_started_and_stopped_with_the_port():
    front = Front()
    front.factory.doStart()
    assert front.within.events == ["started"]
    waiting, begun = front.connect(), front.connect()
    begun.protocol.dataReceived(V1)
    front.factory.doStop()
    assert front.within.events == ["started", "stopped"]
    assert (waiting.aborts, begun.aborts) == (1, 0)
    assert front.clock.getDelayedCalls() == []


def test_what_is_dropped_is_logged_for_those_who_look_closely_alone():
    events: list[Any] = []
    globalLogPublisher.addObserver(events.append)
    try:
        transport = Front().connect()
        transport.protocol.dataReceived(b"PROXY secret\r\n")
    finally:
        globalLogPublisher.removeObserver(events.append)
    [event] = [event for event in events if event["log_namespace"].endswith("ProxyHeaderFactory")]
    assert event["log_level"] is LogLevel.debug
    assert event["peer"].host == PROXY


# -- before the real ones, over real sockets -------------------------------------------------------

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%b\r\n"
)


class Server:
    """A port with all that the daemon has behind it, but Redis."""

    def __init__(self, tmp_path: Any, mode: str = "auto", **limits: float) -> None:
        self.counters = Counters()
        self.outlets = choose(mode, reactor)
        self.hub = make_hub(reactor, self.counters)
        site = build_site(reactor, self.hub.recent_symbols, lambda: None, True)
        self.connections = Connections(
            reactor,
            self.hub,
            Limits(**{"connections": 100} | limits),
            self.counters,
            Services(site, self.outlets.make),
            trusted=TRUSTED,
        )
        self.quotes = QuoteFactory(self.connections)
        self.files = development_pair(tmp_path)
        self.path = str(tmp_path / "socket")
        self.ports: list[Any] = []

    def listen(self, kind: str, *, tls: bool = False) -> None:
        factory: Any = self.quotes
        if tls:
            options = server_options(self.files.certificate, self.files.key)
            factory = TLSFactory(options, factory, reactor)
        factory = ProxyHeaderFactory(factory, TRUSTED, reactor, 20)
        if kind == "unix":
            self.ports.append(reactor.listenUNIX(self.path, factory))
        else:
            self.ports.append(reactor.listenTCP(0, factory, interface=kind))

    def connect(self, *, tls: bool = False) -> Client:
        return Client(self, tls=tls)

    async def stop(self, *clients: Client) -> None:
        for client in clients:
            client.close()
        await until(lambda: self.connections.limiter.connections == 0, "the end of all connections")
        for port in self.ports:
            await port.stopListening()


class Client:
    """A client's or a proxy's end of a real socket, never blocking the reactor."""

    def __init__(self, server: Server, *, tls: bool) -> None:
        host = server.ports[-1].getHost()
        if isinstance(host, UNIXAddress):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(server.path)
        else:
            self.socket = socket.create_connection((host.host, host.port), 20)
        self.socket.setblocking(False)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls: ssl.SSLObject | None = None
        if tls:
            context = ssl.create_default_context(cafile=str(server.files.certificate))
            self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.received = b""
        self.ended = False

    def send(self, data: bytes) -> None:
        """Send bytes as they are, below TLS."""
        self.socket.sendall(data)

    async def say(self, data: bytes) -> None:
        """Send bytes within TLS, where there is any."""
        if self.tls is None:
            self.send(data)
            return
        if self.tls.version() is None:
            await until(self._handshaken, "the TLS handshake")
        self.tls.write(data)
        self.send(self.outgoing.read())

    def _handshaken(self) -> bool:
        with suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        if self.outgoing.pending:
            self.send(self.outgoing.read())
        with suppress(BlockingIOError):
            self.incoming.write(self.socket.recv(65536))
        return self.tls.version() is not None

    def read(self) -> bytes:
        """All that came so far; an end or a reset is noted."""
        try:
            while data := self.socket.recv(65536):
                self.incoming.write(data)
            self.ended = True
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.ended = True
        if self.tls is None:
            self.received += self.incoming.read()
        else:
            with suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                while data := self.tls.read(65536):
                    self.received += data
        return self.received

    async def open(self, header: bytes = b"", request: bytes = REQUEST % b"") -> bytes:
        """Send a PROXY header and a request; returns the status line of the answer."""
        if header:
            self.send(header)
        await self.say(request)
        await until(lambda: b"\r\n\r\n" in self.read(), "an answer")
        return self.received.partition(b"\r\n")[0]

    def close(self) -> None:
        self.socket.close()


KINDS = [(kind, tls) for kind in (PROXY, "::1", "unix") for tls in (False, True)]
KIND_NAMES = [f"{kind}{' over TLS' if tls else ''}" for kind, tls in KINDS]
SWITCHING = b"HTTP/1.1 101 Switching Protocols"
TOO_MANY = b"HTTP/1.1 429 Too Many Requests"


@pytest.mark.parametrize(("kind", "tls"), KINDS, ids=KIND_NAMES)
@pytest.mark.parametrize("mode", ["portable", "direct", "batched"])
@pytest_twisted.ensureDeferred
async def test_the_outlet_behind_a_header_is_the_one_without(mode, kind, tls, tmp_path):
    server = Server(tmp_path, mode)
    server.listen(kind, tls=tls)
    clients, outlets = [], []
    for header in (b"", V1, V2_IPV6, V2_LOCAL):
        before = set(server.hub.outboxes())
        clients.append(server.connect(tls=tls))
        assert await clients[-1].open(header) == SWITCHING
        [outbox] = set(server.hub.outboxes()) - before
        outlets.append(type(outbox.outlet))
        await until(lambda client=clients[-1]: b'"welcome"' in client.read(), "the welcome")
    assert len(set(outlets)) == 1
    assert (outlets[0] is PortableOutlet) is (mode == "portable")
    # The client of a trusted proxy that names nobody has no address that counts.
    known = server.connections.limiter._addresses
    assert {name: known[name].connections for name in known} == {
        "192.0.2.1": 1,
        "2001:db8::/64": 1,
    }
    await clients[1].say(b"\x81\x8d\0\0\0\0" + b'{"op":"ping"}')
    await until(lambda: b'"pong"' in clients[1].read(), "the answer to a command")
    await server.stop(*clients)
    assert {name: known[name].connections for name in known} == dict.fromkeys(known, 0)


@pytest_twisted.ensureDeferred
async def test_tls_after_a_header_may_come_byte_by_byte(tmp_path):
    server = Server(tmp_path)
    server.listen(PROXY, tls=True)
    client = server.connect(tls=True)
    with suppress(ssl.SSLWantReadError):
        client.tls.do_handshake()
    for byte in V2 + client.outgoing.read():
        client.send(bytes([byte]))
    assert await client.open() == SWITCHING
    await server.stop(client)


@pytest_twisted.ensureDeferred
async def test_limits_count_the_address_of_the_header_for_each_client_behind_one_proxy(tmp_path):
    server = Server(tmp_path, per_address=2)
    server.listen(PROXY)
    other = V1.replace(b"192.0.2.1", b"192.0.2.2")
    clients = [server.connect() for _ in range(6)]
    answers = [
        await client.open(header)
        for client, header in zip(clients, (V1, V2, other, V1, other, V2), strict=True)
    ]
    assert answers == [SWITCHING, SWITCHING, SWITCHING, TOO_MANY, SWITCHING, TOO_MANY]
    clients[0].close()
    # The two that were refused count until they are gone as well.
    clients[3].close()
    clients[5].close()
    await until(lambda: server.connections.limiter.connections == 3, "the end of three")
    clients.append(server.connect())
    assert await clients[-1].open(V2) == SWITCHING
    await server.stop(*clients)


@pytest.mark.parametrize("tls", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_client_that_connects_too_fast_is_dropped_behind_its_proxy_too(tls, tmp_path):
    server = Server(tmp_path, connect_rate=1)
    server.listen(PROXY, tls=tls)
    clients = []
    # Ten at once, and one more for each second that this takes.
    while len(clients) < 1000:
        clients.append(server.connect())
        clients[-1].send(V1)
        accepted = server.counters.connections_accepted
        await until(
            lambda known=accepted: (
                server.counters.connections_accepted > known
                or clients[-1].read()
                or clients[-1].ended
            ),
            "a word or an end",
        )
        if clients[-1].ended:
            break
    assert len(clients) >= 11
    assert server.counters.connections_refused == 1
    assert clients[-1].received == b""
    stranger = server.connect(tls=tls)
    assert await stranger.open(V1.replace(b"192.0.2.1", b"192.0.2.2")) == SWITCHING
    await server.stop(*clients, stranger)


@pytest_twisted.ensureDeferred
async def test_health_checks_do_no_harm(tmp_path):
    server = Server(tmp_path)
    server.listen(PROXY, tls=True)
    checks = [server.connect() for _ in range(4)]
    checks[1].send(V2_LOCAL)
    checks[2].send(V1[:10])
    checks[3].send(b"PROXY UNKNOWN\r\n")
    await until(lambda: server.connections.limiter.connections == 2, "two whole headers")
    for check in checks:
        check.close()
    await until(lambda: server.connections.limiter.connections == 0, "the end of the checks")
    assert server.connections.limiter._addresses == {}
    client = server.connect(tls=True)
    assert await client.open(V2) == SWITCHING
    await server.stop(client)


@pytest_twisted.ensureDeferred
async def test_a_wrong_header_is_reset_and_counted_nowhere(tmp_path):
    server = Server(tmp_path)
    server.listen(PROXY)
    client = server.connect()
    client.send(V1.replace(b"443", b"65536"))
    await until(lambda: client.read() or client.ended, "the end of the connection")
    assert client.received == b""
    assert server.counters == Counters()
    await server.stop(client)


@pytest_twisted.ensureDeferred
async def test_a_port_that_is_closed_drops_those_that_said_nothing(tmp_path):
    server = Server(tmp_path)
    server.listen(PROXY)
    waiting, speaking = server.connect(), server.connect()
    assert await speaking.open(V1) == SWITCHING
    await server.ports.pop().stopListening()
    await until(lambda: waiting.read() or waiting.ended, "the end of who said nothing")
    assert not speaking.ended
    waiting.close()
    await server.stop(speaking)


@pytest_twisted.ensureDeferred
async def test_a_header_and_x_forwarded_for_are_believed_by_the_same_rule(tmp_path):
    # A client by a header, and a proxy by a header that names a client in its request.
    server = Server(tmp_path)
    server.listen(PROXY)
    request = REQUEST % b"X-Forwarded-For: 203.0.113.5\r\n"
    clients = [server.connect() for _ in range(2)]
    assert await clients[0].open(V1, request) == SWITCHING
    assert await clients[1].open(V1.replace(b"192.0.2.1", b"127.0.0.9"), request) == SWITCHING
    assert set(server.connections.limiter._addresses) == {"192.0.2.1", "203.0.113.5"}
    await server.stop(*clients)


@pytest_twisted.ensureDeferred
async def test_the_kernel_keeps_as_little_for_clients_behind_a_proxy_on_a_unix_socket(tmp_path):
    server = Server(tmp_path, send_buffer=20_000)
    server.listen("unix")
    client = server.connect()
    assert await client.open(V1) == SWITCHING
    [outbox] = server.hub.outboxes()
    accepted = outbox.outlet._transport.socket
    # Linux doubles what it is told.
    assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 40_000
    await server.stop(client)
