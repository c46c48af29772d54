"""The WebSocket edge: handshakes, refusals, closing, time-outs, and what leaves the hub when."""

from __future__ import annotations

import datetime
import json
import re
import socket
import ssl
import struct
import sys
import zlib
from contextlib import suppress
from ipaddress import ip_network
from itertools import cycle
from typing import Any

import pytest
import pytest_twisted
from core_doubles import inflated, publish, unframe
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from door_doubles import Verdicts
from edge_doubles import (
    ELSEWHERE,
    GET,
    HOME,
    REQUEST,
    Connection,
    Edge,
    RecordingTransport,
    SecureTransport,
    masked,
)
from OpenSSL import crypto
from twisted.internet import reactor
from twisted.internet import ssl as twisted_ssl
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, wrapClientTLS
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.python.failure import Failure
from waiting import until

from pushservice.auth.identity import Identity, Refused
from pushservice.auth.revocations import Revocations
from pushservice.protocol import deflate
from pushservice.protocol.close_codes import CloseCode
from pushservice.protocol.codecs import CODECS
from pushservice.server.client_log import ClientLog
from pushservice.server.connection_limits import PENDING_BURST
from pushservice.server.connections import Connections, Services
from pushservice.server.handshake import MAX_PAGE_REQUESTS, MAX_REQUEST_HEAD, PAGE_TIMEOUT
from pushservice.server.lean_autobahn import LeanProtocol
from pushservice.server.outlets.choice import choose
from pushservice.server.proxies import NOBODY, Trusted
from pushservice.server.websocket import (
    QuoteProtocol,
)
from pushservice.session.authentication import AccessControl
from pushservice.session.session import Session
from pushservice.tls.factory import Pair, TLSFactory, development_pair, server_options


def test_a_handshake_without_subprotocol_gets_the_json_one_and_a_welcome():
    edge = Edge()
    connection = edge.connect()
    connection.send(REQUEST % b"")
    head, _, rest = connection.transport.value().partition(b"\r\n\r\n")
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
    assert b"Sec-WebSocket-Protocol" not in head
    [(first, text)] = unframe(rest)
    assert first == 0x81
    [event] = json.loads(text)
    assert event["ev"] == "welcome"
    assert event["conn"] == connection.protocol.conn
    assert edge.counters.handshakes == 1


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (b"quotepush.v1.json", b"quotepush.v1.json"),
        (b"quotepush.raw", b"quotepush.raw"),
        (b"soap, quotepush.raw, quotepush.v1.json", b"quotepush.raw"),
    ],
)
def test_the_first_known_subprotocol_offered_is_chosen(offered, chosen):
    connection = Edge().connect()
    connection.send(REQUEST % (b"Sec-WebSocket-Protocol: " + offered + b"\r\n"))
    head = connection.transport.value().partition(b"\r\n\r\n")[0]
    assert b"Sec-WebSocket-Protocol: " + chosen in head


def test_a_client_that_offers_only_unknown_subprotocols_is_refused_in_words():
    connection = Edge().connect()
    connection.send(REQUEST % b"Sec-WebSocket-Protocol: soap\r\n")
    answer = connection.transport.value()
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"known are quotepush.v1.json, quotepush.raw" in answer
    assert connection.transport.disconnecting


def test_a_handshake_may_come_byte_by_byte():
    edge = Edge()
    connection = edge.connect()
    for at in range(len(REQUEST % b"")):
        connection.send((REQUEST % b"")[at : at + 1])
    assert connection.transport.value().startswith(b"HTTP/1.1 101 ")
    assert edge.counters.handshakes == 1


def test_messages_sent_along_with_the_handshake_are_answered():
    connection = Edge().connect()
    connection.send(REQUEST % b"" + masked(1, b'{"op":"ping","id":1}'))
    assert b'[{"ev":"pong","id":1}]' in connection.transport.value()


def test_a_handshake_that_takes_too_long_is_aborted():
    edge = Edge(upgrade_timeout=7, tls_timeout=3)
    silent, dribbling, done = edge.connect(), edge.connect(), edge.open()
    edge.clock.advance(4)
    dribbling.send(b"GET / HT")
    edge.clock.advance(2.9)
    assert not silent.transport.disconnecting
    edge.clock.advance(0.2)
    assert silent.transport.aborts == dribbling.transport.aborts == 1
    assert not done.transport.disconnecting
    assert edge.counters.aborted_handshakes == 2


def test_a_tls_handshake_has_a_time_of_its_own_and_the_upgrade_its_own_from_there():
    edge = Edge(tls_timeout=3, upgrade_timeout=7)
    silent, dribbling, quick = (edge.connect(transport=SecureTransport) for _ in range(3))
    edge.clock.advance(2.9)
    for each in (dribbling, quick):
        each.protocol.handshakeCompleted()
    edge.clock.advance(0.2)
    assert silent.transport.aborts == 1
    edge.clock.advance(6.7)
    quick.send(REQUEST % b"")
    assert not dribbling.transport.disconnecting
    edge.clock.advance(0.2)
    assert dribbling.transport.aborts == 1
    edge.clock.advance(1000)
    assert not quick.transport.disconnecting
    assert edge.counters.aborted_handshakes == 2


def test_real_tls_says_when_its_handshake_is_done(tmp_path):
    edge = Edge(tls_timeout=3, upgrade_timeout=7)
    files = development_pair(tmp_path)
    tls, transport = over_tls(edge, files)
    edge.clock.advance(2.9)
    shake_hands(tls, transport, files.certificate)
    edge.clock.advance(6.9)
    assert not transport.disconnecting, "the time of TLS is over, and no longer counts"
    edge.clock.advance(0.2)
    assert transport.aborts == 1


def test_real_tls_that_is_never_done_is_aborted_after_its_own_time(tmp_path):
    edge = Edge(tls_timeout=3, upgrade_timeout=7)
    _, transport = over_tls(edge, development_pair(tmp_path))
    edge.clock.advance(2.9)
    assert not transport.disconnecting
    edge.clock.advance(0.2)
    assert transport.aborts == 1


def over_tls(edge: Edge, files: Pair) -> tuple[Any, RecordingTransport]:
    """A connection under Twisted's own TLS: that, and the transport below it."""
    transport = RecordingTransport(peerAddress=IPv4Address("TCP", HOME, 54321))
    options = server_options(files.certificate, files.key)
    tls = TLSFactory(options, edge.factory, edge.clock).buildProtocol(transport.getPeer())
    assert tls is not None
    tls.makeConnection(transport)
    return tls, transport


def shake_hands(tls: Any, transport: RecordingTransport, certificate: Any) -> None:
    """Be a TLS client of `tls` until the handshake is done on both sides."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context(cafile=str(certificate))
    client = context.wrap_bio(to_client, to_server, server_hostname="localhost")
    for _ in range(4):
        with suppress(ssl.SSLWantReadError):
            client.do_handshake()
        if to_server.pending:
            tls.dataReceived(to_server.read())
        to_client.write(transport.value())
        transport.clear()
    assert client.version()


def test_an_endless_request_head_is_refused():
    connection = Edge().connect()
    connection.send(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (MAX_REQUEST_HEAD // 6))
    assert connection.transport.value().startswith(b"HTTP/1.1 431 ")
    assert connection.transport.disconnecting


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00\x01", b"\x00", b"*1\r\n", b"\r\n"])
def test_what_is_no_http_is_refused_at_once(data):
    connection = Edge().connect()
    connection.send(data)
    assert connection.transport.value().startswith(b"HTTP/1.1 400 ")
    assert connection.transport.disconnecting


def test_methods_other_than_get_and_head_are_refused():
    connection = Edge().connect()
    connection.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
    answer = connection.transport.value()
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"Allow: GET, HEAD" in answer


def test_a_request_without_upgrade_gets_the_page_and_may_ask_again():
    edge = Edge()
    connection = edge.connect()
    for _ in range(2):
        connection.send(GET)
        assert connection.transport.value().startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"<title>" in connection.transport.value()
        connection.transport.clear()
    edge.clock.advance(edge.limits.upgrade_timeout + 1)
    assert not connection.transport.disconnecting, "a page is no unfinished handshake"
    connection.lose()
    assert edge.connections.limiter.connections == 0
    assert edge.clock.getDelayedCalls() == []


def test_a_connection_that_fetches_pages_ends_however_often_it_asks():
    edge = Edge()
    connection = edge.connect()
    for _ in range(6):
        connection.send(GET)
        assert connection.transport.value().startswith(b"HTTP/1.1 200 OK\r\n")
        connection.transport.clear()
        edge.clock.advance((PAGE_TIMEOUT - 1) / 6)
    assert not connection.transport.disconnecting
    edge.clock.advance(1.1)
    assert connection.transport.aborts == 1


def test_tls_that_is_done_changes_nothing_for_a_page_or_for_a_refusal():
    edge = Edge(upgrade_timeout=3, close_timeout=2)
    page, refused = (edge.connect(transport=SecureTransport) for _ in range(2))
    page.send(GET)
    refused.send(b"\x00")
    for each in (page, refused):
        each.protocol.handshakeCompleted()
    edge.clock.advance(2.1)
    assert refused.transport.aborts == 1
    edge.clock.advance(10)
    assert not page.transport.disconnecting


def test_a_connection_that_fetches_pages_may_ask_for_so_much_and_no_more():
    edge = Edge()
    connection = edge.connect()
    request = b"GET /favicon.ico HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n"
    request %= b"x" * (8192 - len(request % b""))
    for _ in range(MAX_PAGE_REQUESTS // len(request)):
        connection.send(request)
        assert connection.transport.value().startswith(b"HTTP/1.1 ")
        connection.transport.clear()
    assert not connection.transport.disconnecting
    connection.send(b"G")
    assert connection.transport.aborts == 1
    connection.send(GET[1:])
    assert connection.transport.value() == b""


def test_without_the_page_a_request_is_told_to_upgrade():
    connection = Edge(page=False).connect()
    connection.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert connection.transport.value().startswith(b"HTTP/1.1 426 ")
    connection.lose()


def test_a_header_that_only_mentions_upgrading_is_no_upgrade():
    connection = Edge().connect()
    connection.send(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade-Insecure-Requests: 1\r\n\r\n")
    assert connection.transport.value().startswith(b"HTTP/1.1 200 ")
    connection.lose()


# -- floods ----------------------------------------------------------------------------------------

#: Fifty frames at once, five more that are refused with patience, and no more.
FIVE_A_SECOND = {"message_rate": 5, "byte_rate": 0, "close_timeout": 3}


def flood(frames: list[tuple[int, bytes]]) -> tuple[list[dict[str, Any]], int]:
    """The events in `frames` and the code of the close that must be the last of them."""
    *texts, (first, close) = frames
    assert first == 0x88
    assert all(head == 0x81 for head, _ in texts)
    return [event for _, text in texts for event in json.loads(text)], int.from_bytes(close[:2])


def test_a_flood_is_refused_by_the_commands_ids_then_closed_and_no_longer_read():
    edge = Edge(**FIVE_A_SECOND)
    connection, other = edge.open(), edge.open()
    for number in range(60):
        connection.send(masked(1, b'{"op":"ping","id":%d}' % number))
    events, code = flood(connection.frames())
    assert code == 4029
    assert [event["id"] for event in events] == list(range(55))
    assert {event["ev"] for event in events[:50]} == {"pong"}
    assert {(event["ev"], event["code"]) for event in events[50:]} == {("error", 429)}
    assert "at most 5 messages a second" in events[50]["msg"]
    assert edge.hub.count_outboxes() == 1
    assert connection.transport.producerState == "paused"
    assert (edge.counters.messages_refused, edge.counters.closed_flooding) == (5, 1)
    assert other.say({"op": "ping"}) == [{"ev": "pong"}]


def test_a_client_that_was_closed_for_its_flood_is_aborted_in_time_whatever_it_sends():
    edge = Edge(**FIVE_A_SECOND)
    connection = edge.open()
    for _ in range(60):
        connection.send(masked(9, b""))
    connection.frames()
    connection.send(masked(8, b"\x0f\xbd"))
    connection.send(masked(9, b"") * 1000)
    assert connection.frames() == []
    edge.clock.advance(2.9)
    assert connection.transport.aborts == 0
    edge.clock.advance(0.2)
    assert connection.transport.aborts == 1
    connection.lose()
    assert edge.clock.getDelayedCalls() == []


@pytest.fixture
def begun(monkeypatch) -> list[int]:
    """The opcode of each frame that a connection began to look at past the flood control."""
    opcodes: list[int] = []
    begin = LeanProtocol.onFrameBegin

    def counted(self: LeanProtocol) -> None:
        opcodes.append(self.current_frame.opcode)
        begin(self)

    monkeypatch.setattr(LeanProtocol, "onFrameBegin", counted)
    return opcodes


IN_ONE_READ = {
    "pings": masked(9, b"p") * 5000,
    "pongs": masked(10, b"p") * 5000,
    "messages": masked(1, b'{"op":"list"}') * 5000,
    "no messages": masked(1, b"") * 5000,
    "fragments": masked(1, b" ", final=False) + masked(0, b" ", final=False) * 5000,
    "empty fragments": masked(1, b"", final=False) + masked(0, b"", final=False) * 5000,
}


@pytest.mark.parametrize("what", IN_ONE_READ)
def test_the_rest_of_a_read_is_not_looked_at_once_it_is_a_flood(what, begun):
    edge = Edge(**FIVE_A_SECOND)
    connection = edge.open()
    connection.send(IN_ONE_READ[what])
    assert len(begun) == 55
    assert connection.close_code() == 4029
    assert connection.transport.producerState == "paused"
    assert connection.protocol.data == b""
    assert edge.counters.closed_flooding == 1
    edge.clock.advance(3.1)
    assert connection.transport.aborts == 1


@pytest.mark.parametrize("what", IN_ONE_READ)
def test_a_flood_that_comes_along_with_the_handshake_is_one_too(what, begun):
    edge = Edge(**FIVE_A_SECOND)
    connection = edge.connect()
    connection.send(REQUEST % b"" + IN_ONE_READ[what])
    assert len(begun) == 55
    assert connection.transport.producerState == "paused"
    assert edge.counters.closed_flooding == 1


@pytest.mark.parametrize("what", ["pings", "empty fragments"])
def test_a_client_that_is_being_closed_can_not_flood_either(what, begun):
    edge = Edge(**FIVE_A_SECOND)
    connection = edge.open()
    connection.send(masked(2, b"binary"))
    assert connection.close_code() == 1003
    begun.clear()
    for _ in range(10):
        connection.send(IN_ONE_READ[what])
    assert len(begun) <= 55


@pytest.mark.parametrize("how", ["refused", "their close", "our close answered"])
def test_what_comes_after_the_end_is_not_kept(how):
    # TLS goes on delivering until the peer has said its goodbye too.
    edge = Edge()
    connection = edge.connect() if how == "refused" else edge.open()
    if how == "refused":
        connection.send(b"\x00")
    elif how == "our close answered":
        connection.protocol.close(CloseCode.GOING_AWAY)
    if how != "refused":
        connection.send(masked(8, b"\x03\xe8"))
    assert connection.transport.disconnecting
    for _ in range(100):
        connection.send(b"x" * 10_000)
    kept = len(connection.protocol.data)
    assert kept <= 10_000


@pytest.mark.parametrize(
    "offence",
    [masked(2, b"x"), masked(1, b"x" * 201), masked(3, b""), masked(1, b"\xff")],
    ids=["binary", "too long", "reserved", "no UTF-8"],
)
def test_what_comes_while_it_is_closed_for_an_offence_is_not_kept(offence):
    edge = Edge(message=200)
    connection = edge.open()
    connection.send(offence)
    for _ in range(100):
        connection.send(masked(1, b"y" * 10_000))
    kept = len(connection.protocol.data)
    assert kept <= 20_000


def test_a_flood_of_bytes_is_refused_then_closed():
    edge = Edge(message_rate=0, byte_rate=100, message=200)
    connection = edge.open()
    codes = []
    for number in range(9):
        text = (b'{"op":"ping","id":%d}' % number).ljust(122)
        connection.send(masked(1, text))
        codes += [
            int.from_bytes(payload[:2]) if first == 0x88 else json.loads(payload)[0].get("code")
            for first, payload in connection.frames()
        ]
    # Messages of 128 bytes, where a thousand are allowed and two hundred refused with patience.
    assert codes == [None] * 7 + [429, 429]
    connection.send(masked(1, b'{"op":"ping"}'.ljust(122)))
    assert connection.close_code() == 4029


def test_who_was_refused_is_answered_again_after_a_while_and_closed_no_sooner():
    edge = Edge(**FIVE_A_SECOND)
    connection = edge.open()
    for _ in range(53):
        connection.say({"op": "ping"})
    assert [event["ev"] for event in connection.say({"op": "ping"})] == ["error"]
    edge.clock.advance(1.1)
    assert connection.say({"op": "ping"}) == [{"ev": "pong"}]
    for _ in range(1000):
        edge.clock.advance(0.2)
        assert connection.say({"op": "ping"}) == [{"ev": "pong"}]


def test_without_rates_nothing_is_a_flood():
    edge = Edge(message_rate=0, byte_rate=0)
    connection = edge.open()
    connection.send(masked(9, b"p") * 20_000)
    assert connection.frames() == [(0x8A, b"p")] * 20_000


def test_a_flood_that_breaks_a_rule_first_is_closed_for_that():
    edge = Edge(**FIVE_A_SECOND)
    connection = edge.open()
    connection.send(masked(9, b"") * 10 + masked(3, b""))
    assert connection.close_code() == 1002


# -- behind a trusted proxy ------------------------------------------------------------------------

PROXY = "10.0.0.1"
BEHIND_PROXIES = Trusted([ip_network("10.0.0.0/8"), "unix"])


class UnixTransport(RecordingTransport):
    """Looks like a connection on a Unix socket."""

    def getPeer(self) -> UNIXAddress:
        return UNIXAddress(None)

    getHost = getPeer


def forwarded(*values: str) -> bytes:
    return b"".join(b"X-Forwarded-For: %b\r\n" % value.encode("latin-1") for value in values)


def status(connection: Connection, headers: bytes = b"", request: bytes = REQUEST) -> int:
    """What a request is answered with."""
    connection.send(request % headers)
    return int(connection.transport.value().split(b" ", 2)[1])


PAGE_REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n"
PROXIES = {"TCP": (PROXY, RecordingTransport), "Unix": (PROXY, UnixTransport)}
through_each = pytest.mark.parametrize("proxy", PROXIES.values(), ids=PROXIES)


@through_each
def test_clients_behind_one_proxy_have_limits_of_their_own(proxy):
    edge = Edge(per_address=2, trusted=BEHIND_PROXIES)
    one, other = forwarded("192.0.2.1"), forwarded("192.0.2.2")
    clients = [edge.connect(*proxy) for _ in range(6)]
    answers = [
        status(client, headers)
        for client, headers in zip(clients, (one, one, one, other, other, other), strict=True)
    ]
    assert answers == [101, 101, 429, 101, 101, 429]
    assert b"more than 2 connections from your address" in clients[2].transport.value()
    assert b"\r\nRetry-After: 5\r\n" in clients[2].transport.value()
    assert edge.counters.connections_refused == edge.counters.handshakes_refused == 2
    for client in clients[:3]:
        client.lose()
    assert status(edge.connect(*proxy), one) == 101


@through_each
def test_a_client_behind_a_proxy_and_the_same_one_without_are_counted_together(proxy):
    edge = Edge(per_address=1, trusted=BEHIND_PROXIES)
    client = edge.connect(*proxy)
    assert status(client, forwarded(ELSEWHERE)) == 101
    assert status(edge.connect(ELSEWHERE)) == 429
    client.lose()
    assert edge.connections.limiter.connections == 1


@through_each
def test_a_client_can_not_choose_as_whom_it_is_counted(proxy):
    edge = Edge(per_address=1, trusted=BEHIND_PROXIES)
    assert status(edge.connect(*proxy), forwarded("192.0.2.1")) == 101
    for invented in (
        forwarded("203.0.113.9, 192.0.2.1"),
        forwarded("203.0.113.9", "192.0.2.1"),
        forwarded("10.0.0.9, 192.0.2.1, 10.0.0.2"),
        forwarded("unknown, 192.0.2.1:4711"),
        forwarded("192.0.2.1") + b"X-Forwarded-For : 203.0.113.9\r\n",
        forwarded("192.0.2.1") + b"X-Forwarded-For-Too: 203.0.113.9\r\n",
        forwarded("192.0.2.1") + b"X: \nX-Forwarded-For: 203.0.113.9\r\n",
        b"x-forwarded-FOR:192.0.2.1\r\n" + b"X: X-Forwarded-For: 203.0.113.9\r\n",
    ):
        assert status(edge.connect(*proxy), invented) == 429, invented


@pytest.mark.parametrize("trusted", [NOBODY, BEHIND_PROXIES])
def test_what_a_stranger_says_about_its_address_is_ignored(trusted):
    edge = Edge(per_address=1, trusted=trusted)
    assert status(edge.connect(), forwarded(ELSEWHERE)) == 101
    assert status(edge.connect(), forwarded("192.0.2.2")) == 429
    assert status(edge.connect(ELSEWHERE)) == 101


def test_on_a_unix_socket_that_is_not_trusted_nobody_is_counted():
    edge = Edge(per_address=1, trusted=Trusted([ip_network("10.0.0.0/8")]))
    for _ in range(3):
        connection = edge.connect(transport=UnixTransport)
        assert status(connection, forwarded(ELSEWHERE)) == 101
    assert edge.connections.limiter._addresses == {}


@through_each
@pytest.mark.parametrize(
    "headers", [b"", forwarded("unknown"), forwarded("10.0.0.2"), forwarded("192.0.2.1, ")]
)
def test_a_proxy_that_names_nobody_has_no_limit_but_room(headers, proxy):
    edge = Edge(per_address=1, connect_rate=1, connections=50, trusted=BEHIND_PROXIES)
    assert [status(edge.connect(*proxy), headers) for _ in range(50)] == [101] * 50
    assert edge.connections.limiter._addresses == {}
    silent = Edge(handshakes=2, trusted=BEHIND_PROXIES)
    for _ in range(2 + PENDING_BURST):
        silent.connect(*proxy)
    assert silent.refuses(PROXY)


@through_each
def test_a_client_behind_a_proxy_that_connects_too_fast_is_told_so(proxy):
    edge = Edge(connect_rate=1, trusted=BEHIND_PROXIES)
    for _ in range(10):
        client = edge.connect(*proxy)
        assert status(client, forwarded(ELSEWHERE)) == 101
        client.lose()
    for request in (REQUEST, PAGE_REQUEST):
        refused = edge.connect(*proxy)
        assert status(refused, forwarded(ELSEWHERE), request) == 429
        assert b"\r\nRetry-After: 5\r\n" in refused.transport.value()
        assert b"too many connections from your address" in refused.transport.value()
        assert refused.transport.disconnecting
        refused.lose()
    assert edge.counters.connections_refused == edge.counters.handshakes_refused == 2
    assert status(edge.connect(*proxy), forwarded("192.0.2.2")) == 101
    assert edge.refuses(ELSEWHERE), "it is the same address without a proxy"
    edge.clock.advance(1.1)
    assert status(edge.connect(*proxy), forwarded(ELSEWHERE)) == 101
    assert edge.connections.limiter.connections == 2


@through_each
def test_pages_are_counted_as_their_clients_too(proxy):
    edge = Edge(per_address=2, trusted=BEHIND_PROXIES)
    pages = [edge.connect(*proxy) for _ in range(2 + 16)]
    for page in pages:
        assert status(page, forwarded(ELSEWHERE), PAGE_REQUEST) == 200
    assert status(edge.connect(*proxy), forwarded(ELSEWHERE)) == 429
    assert status(edge.connect(*proxy), forwarded(ELSEWHERE), PAGE_REQUEST) == 429
    assert status(edge.connect(*proxy), forwarded("192.0.2.2"), PAGE_REQUEST) == 200
    assert edge.refuses(ELSEWHERE)
    for page in pages:
        page.lose()
    assert not edge.refuses(ELSEWHERE)


@through_each
def test_a_flood_behind_a_proxy_costs_the_client_that_made_it(proxy):
    edge = Edge(connect_rate=5, trusted=BEHIND_PROXIES, **FIVE_A_SECOND)
    client = edge.connect(*proxy)
    assert status(client, forwarded(ELSEWHERE)) == 101
    client.transport.clear()
    client.send(masked(9, b"") * 100)
    assert edge.counters.closed_flooding == 1
    assert [edge.refuses(ELSEWHERE) for _ in range(45)] == [False] * 44 + [True]


@through_each
def test_a_head_that_comes_in_pieces_is_counted_once(proxy):
    edge = Edge(connect_rate=1, trusted=BEHIND_PROXIES)
    connection = edge.connect(*proxy)
    for byte in REQUEST % forwarded(ELSEWHERE):
        connection.send(bytes([byte]))
    assert connection.transport.value().startswith(b"HTTP/1.1 101 ")
    assert [edge.refuses(ELSEWHERE) for _ in range(10)] == [False] * 9 + [True]
    connection.lose()
    assert edge.connections.limiter._addresses[ELSEWHERE].connections == 0


def test_an_open_client_behind_a_proxy_keeps_no_more_than_another():
    edge = Edge(trusted=BEHIND_PROXIES)
    behind, direct = edge.connect(PROXY), edge.connect()
    assert status(behind, forwarded(ELSEWHERE)) == status(direct) == 101
    assert vars(behind.protocol).keys() == vars(direct.protocol).keys()


# -- messages, rules, closing ----------------------------------------------------------------------


def test_a_text_message_in_fragments_is_put_together():
    connection = Edge().open()
    text = b'{"op":"ping","id":1}'
    connection.send(masked(1, text[:5], final=False))
    connection.send(masked(0, text[5:9], final=False))
    connection.send(masked(9, b"in between"))
    connection.send(masked(0, text[9:]))
    assert connection.frames() == [(0x8A, b"in between"), (0x81, b'[{"ev":"pong","id":1}]')]


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([masked(2, b"binary")], 1003),
        ([masked(1, b"\xff\xfe")], 1007),
        ([masked(1, b"x" * 201)], 1009),
        ([masked(1, b"x" * 150, final=False), masked(0, b"x" * 51)], 1009),
        ([b"\x81\x05hello"], 1002),
        ([masked(3, b"reserved")], 1002),
        ([masked(0, b"nothing to continue")], 1002),
        ([masked(0x41, b"reserved bit")], 1002),
        ([masked(9, b"x" * 126)], 1002),
    ],
)
def test_what_breaks_the_rules_is_closed_with_its_code_and_leaves_the_hub_first(frames, code):
    edge = Edge(message=200)
    connection = edge.open()
    connection.say({"op": "subscribe", "symbols": ["A"]})
    for frame in frames:
        connection.send(frame)
    assert edge.hub.count_outboxes() == 0
    publish(edge.hub, ("A", b"1"))
    assert connection.close_code() == code
    connection.send(masked(1, b'{"op":"ping"}'))
    assert connection.frames() == []


def test_a_message_at_the_limit_is_read():
    connection = Edge(message=200).open()
    text = b'{"op":"ping"}'.ljust(200)
    connection.send(masked(1, text))
    assert connection.frames() == [(0x81, b'[{"ev":"pong"}]')]


def test_a_clients_close_is_answered_and_nothing_follows_it():
    edge = Edge()
    connection = edge.open()
    connection.say({"op": "subscribe", "symbols": ["A"]})
    connection.send(masked(8, b"\x03\xe8"))
    publish(edge.hub, ("A", b"1"))
    assert connection.close_code() == 1000
    assert connection.transport.disconnecting
    assert edge.hub.count_outboxes() == 0


def test_a_close_by_the_daemon_waits_for_the_answer_then_ends_in_order():
    edge = Edge()
    connection = edge.open()
    connection.protocol.close(CloseCode.GOING_AWAY)
    assert edge.hub.count_outboxes() == 0
    assert connection.close_code() == 1001
    assert not connection.transport.disconnecting
    connection.send(masked(8, b"\x03\xe9"))
    assert connection.transport.disconnecting
    connection.lose()
    assert edge.clock.getDelayedCalls() == []


@pytest.mark.parametrize("begin", ["ours", "theirs", "refused"])
def test_a_close_that_is_not_answered_ends_in_an_abort(begin):
    edge = Edge(close_timeout=2.5)
    connection = edge.connect() if begin == "refused" else edge.open()
    if begin == "ours":
        connection.protocol.close(CloseCode.GOING_AWAY)
    elif begin == "theirs":
        connection.send(masked(8, b"\x03\xe8"))
    else:
        connection.send(b"\x00")
    edge.clock.advance(2.4)
    assert connection.transport.aborts == 0
    edge.clock.advance(0.2)
    assert connection.transport.aborts == 1


def test_closing_what_is_not_open_drops_it():
    edge = Edge()
    connection = edge.connect()
    connection.protocol.close(CloseCode.GOING_AWAY)
    assert connection.transport.aborts == 1


def test_a_lost_connection_leaves_nothing_behind():
    edge = Edge()
    connection = edge.open()
    connection.say({"op": "subscribe", "symbols": ["A"]})
    connection.lose(ConnectionLost())
    assert edge.hub.count_outboxes() == edge.hub.count_topics() == 0
    assert edge.connections.limiter.connections == 0
    assert edge.counters.connections_closed == 1
    assert edge.clock.getDelayedCalls() == []


def test_a_fault_in_one_session_closes_that_client_alone_with_the_id_that_the_log_has(
    logged_failures, monkeypatch
):
    edge = Edge()
    broken, sound = edge.open(), edge.open()
    assert broken.protocol.session is not None

    def fail(text: bytes) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(type(broken.protocol.session), "receive", lambda self, text: fail(text))
    broken.send(masked(1, b"{}"))
    monkeypatch.undo()
    (_, told), (_, end) = broken.frames()
    assert int.from_bytes(end[:2]) == CloseCode.INTERNAL_ERROR
    assert edge.hub.count_outboxes() == 1
    assert sound.say({"op": "ping"}) == [{"ev": "pong"}]
    [event] = logged_failures.flush(ZeroDivisionError)
    assert event["conn"] == broken.protocol.conn
    [error] = json.loads(told)
    assert (error["code"], error["msg"]) == (500, f"internal error: incident {event['incident']}")


def fail(*_: object) -> None:
    raise ZeroDivisionError("what is said here is for the log")


def test_a_fault_before_a_handshake_is_sorted_out_is_500_too(logged_failures, monkeypatch):
    edge = Edge()
    monkeypatch.setattr(LeanProtocol, "processHandshake", fail)
    connection = edge.connect()
    connection.send(REQUEST % b"")
    [event] = logged_failures.flush(ZeroDivisionError)
    assert connection.transport.value().startswith(b"HTTP/1.1 500 ")
    assert event["incident"].encode() in connection.transport.value()
    assert connection.transport.disconnecting


@pytest.mark.parametrize("at", ["open", "receive"])
def test_a_fault_while_a_connection_opens_closes_it_with_the_id_that_the_log_has(
    logged_failures, monkeypatch, at
):
    edge = Edge()
    monkeypatch.setattr(Session, at, fail)
    connection = edge.connect()
    connection.send(REQUEST % b"" + masked(1, b"{}"))
    *_, (_, told), (_, end) = unframe(connection.transport.value().partition(b"\r\n\r\n")[2])
    [event] = logged_failures.flush(ZeroDivisionError)
    [error] = json.loads(told)
    assert (error["code"], error["msg"]) == (500, f"internal error: incident {event['incident']}")
    assert int.from_bytes(end[:2]) == CloseCode.INTERNAL_ERROR
    assert edge.hub.count_outboxes() == 0


def test_a_failed_delivery_closes_its_client_with_1011(logged_failures):
    edge = Edge()
    connection = edge.open()
    [outbox] = edge.hub.outboxes()
    edge.connections.failed(outbox, OSError("no"))
    assert connection.close_code() == 1011
    [event] = logged_failures.flush(OSError)
    assert event["conn"] == connection.protocol.conn
    assert "{conn}" in event["log_format"]


def test_a_client_behind_a_full_transport_gets_the_newest_when_it_drains():
    edge = Edge()
    connection = edge.open()
    connection.say({"op": "subscribe", "symbols": ["A"]})
    connection.transport.producer.pauseProducing()
    for n in range(5):
        publish(edge.hub, ("A", b"%d" % n))
    assert connection.frames() == []
    connection.transport.producer.resumeProducing()
    [(_, text)] = connection.frames()
    assert [event["n"] for event in json.loads(text)] == [5]


def test_connection_ids_are_unique_and_carry_the_epoch():
    edge = Edge()
    ids = [edge.connect().protocol.conn for _ in range(3)]
    assert len(set(ids)) == 3
    assert all(conn.startswith("k7f3-") for conn in ids)


# -- compression -----------------------------------------------------------------------------------

OFFER = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
AGREED = b"permessage-deflate; server_no_context_takeover; client_no_context_takeover"
#: Ways in which the header's name is written.
NAMES = (b"Sec-WebSocket-Extensions", b"sec-websocket-extensions")


def compressing(**limits: float) -> Edge:
    """An edge that compresses whatever it may."""
    edge = Edge(**limits)
    edge.connections.deflated = deflate.codecs(edge.counters, 1)
    return edge


def deflated(text: bytes) -> bytes:
    """A client's compressed message."""
    stream = zlib.compressobj(wbits=-15)
    return (stream.compress(text) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]


def squeezed(command: object) -> bytes:
    """A command in a compressed message, as a frame."""
    return masked(1, deflated(json.dumps(command).encode()), rsv1=True)


@pytest.mark.parametrize(
    ("offer", "agreed"),
    [
        (b"permessage-deflate", AGREED),
        (
            b"permessage-deflate; client_max_window_bits",
            AGREED + b"; client_max_window_bits=12",
        ),
        (
            b'permessage-deflate; server_max_window_bits="13"',
            AGREED + b"; server_max_window_bits=12",
        ),
        (b"permessage-deflate; server_max_window_bits=8, permessage-deflate", AGREED),
        (b"permessage-deflate; server_max_window_bits=8", None),
        (b"permessage-deflate; server_max_window_bits=99", None),
        (b"permessage-deflate; unheard_of", None),
        (b"permessage-bzip2, x-webkit-deflate-frame", None),
    ],
)
def test_compression_is_agreed_on_or_declined_and_the_client_is_served(offer, agreed):
    connection = compressing().connect()
    connection.send(REQUEST % (b"Sec-WebSocket-Extensions: " + offer + b"\r\n"))
    head, _, rest = connection.transport.value().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    found = re.findall(rb"(?i)\r\nsec-websocket-extensions: ([^\r]*)", head)
    assert found == ([] if agreed is None else [agreed])
    assert unframe(rest)[0][0] == 0x81, "the welcome"


@pytest.mark.parametrize(
    ("offers", "agreed"),
    [
        ([b"permessage-deflate", b"x-webkit-deflate-frame"], AGREED),
        (
            [b"unheard-of", b"permessage-deflate; client_max_window_bits"],
            AGREED + b"; client_max_window_bits=12",
        ),
        (
            [b"permessage-deflate; server_max_window_bits=8", b"", b"permessage-deflate"],
            AGREED,
        ),
        ([b"one", b"another"], None),
    ],
)
def test_offers_may_come_in_several_headers(offers, agreed):
    connection = compressing().connect()
    headers = [b"%b: %b\r\n" % pair for pair in zip(cycle(NAMES), offers, strict=False)]
    between = b"X-Other: 1\r\n"
    ping = masked(1, b'{"op":"ping","id":1}')
    connection.send(REQUEST % between.join(headers) + ping)
    head, _, rest = connection.transport.value().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    found = re.findall(rb"(?i)\r\nsec-websocket-extensions: ([^\r]*)", head)
    assert found == ([] if agreed is None else [agreed])
    [_welcome, pong] = unframe(rest)
    assert pong == (0x81, b'[{"ev":"pong","id":1}]'), "what came along with the request is kept"


def test_nothing_is_agreed_on_where_compression_is_off():
    connection = Edge().connect()
    connection.send(REQUEST % OFFER)
    assert connection.transport.value().startswith(b"HTTP/1.1 101 ")
    assert b"deflate" not in connection.transport.value()


@pytest.mark.parametrize("name", list(CODECS))
def test_a_client_with_compression_gets_its_subprotocol_compressed(name):
    edge = compressing()
    plain = edge.open(b"Sec-WebSocket-Protocol: %b\r\n" % name.encode())
    connection = edge.open(OFFER + b"Sec-WebSocket-Protocol: %b\r\n" % name.encode())
    for each in (plain, connection):
        each.send(masked(1, b'{"op":"subscribe","symbols":["A"]}'))
        each.transport.clear()
    publish(edge.hub, ("A", b'{"last":1.50,"bid":1.50,"ask":1.50,"open":1.50}'))
    [(one, payload)], [(other, text)] = connection.frames(), plain.frames()
    assert (one, other) == (0xC1, 0x81)
    assert inflated(payload) == text


def test_a_compressed_command_is_understood_in_whatever_fragments_it_comes():
    connection = compressing().open(OFFER)
    assert connection.say({"op": "ping"}) == [{"ev": "pong"}]
    connection.send(squeezed({"op": "ping", "id": 1}))
    data = deflated(b'{"op":"ping","id":2}')
    parts = [data[:5], data[5:9], data[9:]]
    for at, part in enumerate(parts):
        connection.send(masked(0 if at else 1, part, final=at == 2, rsv1=at == 0))
        connection.send(masked(9, b"between"))
    for byte in squeezed({"op": "ping", "id": 3}):
        connection.send(bytes([byte]))
    pong = (0x8A, b"between")
    assert connection.frames() == [
        (0x81, b'[{"ev":"pong","id":1}]'),
        *(pong, pong, (0x81, b'[{"ev":"pong","id":2}]'), pong),
        (0x81, b'[{"ev":"pong","id":3}]'),
    ]


@pytest.mark.parametrize("offer", [b"", OFFER])
@pytest.mark.parametrize(
    "frames",
    [
        [masked(9, b"p", rsv1=True)],
        [masked(8, b"\x03\xe8", rsv1=True)],
        [masked(1, b"a", final=False), masked(0, b"b", rsv1=True)],
        [masked(1, deflated(b"a"), final=False, rsv1=True), masked(0, b"", rsv1=True)],
    ],
)
def test_what_may_not_be_compressed_is_a_violation(offer, frames):
    connection = compressing().open(offer)
    for frame in frames:
        connection.send(frame)
    assert connection.close_code() == 1002


@pytest.mark.parametrize("offer", [b"", OFFER])
def test_empty_fragments_of_a_message_are_not_kept(offer):
    connection = compressing(message_rate=10_000).open(offer)
    text = b'{"op":"ping","id":1}'
    data = deflated(text) if offer else text
    connection.send(masked(1, data[:5], final=False, rsv1=bool(offer)))
    kept = len(connection.protocol.message_data)
    for _ in range(200):
        connection.send(masked(0, b"", final=False))
    assert len(connection.protocol.message_data) == kept <= 1
    connection.send(masked(0, data[5:]))
    assert connection.frames() == [(0x81, b'[{"ev":"pong","id":1}]')]


def test_a_compressed_message_without_agreement_is_a_violation():
    connection = compressing().open()
    connection.send(squeezed({"op": "ping"}))
    assert connection.close_code() == 1002


@pytest.mark.parametrize("fragments", [1, 3])
def test_a_message_that_inflates_to_more_than_may_be_is_closed_as_too_big(fragments):
    edge = compressing(message=200)
    connection = edge.open(OFFER)
    connection.send(masked(1, deflated(b" " * 200), rsv1=True))
    assert [first for first, _ in connection.frames()] == [0x81], "as long as may be"
    bomb = deflated(b" " * 100_000)
    size = -(-len(bomb) // fragments)
    parts = [bomb[at : at + size] for at in range(0, len(bomb), size)]
    for at, part in enumerate(parts):
        last = at == len(parts) - 1
        connection.send(masked(0 if at else 1, part, final=last, rsv1=at == 0))
    assert connection.close_code() == 1009
    connection.send(masked(8, b"\x03\xf1"))
    assert connection.transport.disconnecting, "the answer to the close is understood"
    assert connection.protocol.wasClean


@pytest.mark.parametrize("message", [b"\x07", deflated(b"x" * 100)[:-2]])
def test_a_message_that_cannot_be_inflated_is_closed_as_invalid(message):
    connection = compressing().open(OFFER)
    connection.send(masked(1, message, rsv1=True))
    assert connection.close_code() == 1007
    connection.send(masked(8, b"\x03\xef"))
    assert connection.protocol.wasClean, "the answer to the close is understood"


def test_a_message_that_is_no_text_once_inflated_is_closed_as_invalid():
    connection = compressing().open(OFFER)
    connection.send(masked(1, deflated(b"\xff"), rsv1=True))
    assert connection.close_code() == 1007


def test_what_a_client_sends_compressed_counts_as_what_it_becomes():
    connection = compressing(byte_rate=2000, message=16_384).open(OFFER)
    told: list[dict[str, Any]] = []
    for _ in range(5):
        connection.send(squeezed({"op": "ping", "x": " " * 10_000}))
        told += [event for _, text in connection.frames() for event in json.loads(text)]
    assert [event.get("code") for event in told] == [None, None, None, 429, 429]


def test_nothing_is_kept_for_compression_between_messages():
    edge = compressing()
    connection, plain = edge.open(OFFER), edge.open()
    connection.send(squeezed({"op": "ping"}))
    inflater = connection.protocol.__dict__["_perMessageCompress"]
    kept = {name: getattr(inflater, name) for name in type(inflater).__slots__}
    assert kept == {"_message": None, "_window_bits": 12}
    assert "_perMessageCompress" not in plain.protocol.__dict__


class Received(Protocol):
    """A client of a few bytes over a real socket."""

    def __init__(self) -> None:
        self.data = b""

    def dataReceived(self, data: bytes) -> None:
        self.data += data


@pytest_twisted.ensureDeferred
async def test_nagles_algorithm_is_off_on_an_accepted_socket():
    edge = Edge()
    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(edge.factory)
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
    client = await endpoint.connect(Factory.forProtocol(Received))
    client.transport.write(REQUEST % b"")
    await until(lambda: edge.hub.count_outboxes() == 1, "the handshake")
    [outbox] = edge.hub.outboxes()
    accepted = outbox.outlet._transport.socket
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
    client.transport.loseConnection()
    await until(lambda: edge.connections.limiter.connections == 0, "the end of the connection")
    await port.stopListening()


# -- lines about clients ---------------------------------------------------------------------------


def logging(edge: Edge, rate: int = 100) -> Edge:
    """`edge`, which writes lines about the clients that come and go."""
    edge.connections.client_log = ClientLog(edge.clock, rate)
    return edge


def told(events: list[LogEvent]) -> list[LogEvent]:
    """What the log was told of clients since the last call."""
    lines = [event for event in events if "client_log" in event["log_namespace"]]
    events.clear()
    return lines


def test_a_client_that_comes_and_goes_is_told_of():
    with capturedLogs() as events:
        edge = logging(Edge())
        connection = edge.open(b"Sec-WebSocket-Protocol: quotepush.v1.json\r\n")
        conn = connection.protocol.conn
        [came] = told(events)
        assert formatEvent(came) == f"{conn} came from {HOME} (quotepush.v1.json)"
        connection.say({"op": "subscribe", "symbols": ["A"]})
        publish(edge.hub, ("A", b"1"), ("A", b"2"))
        connection.transport.producer.pauseProducing()
        publish(edge.hub, ("A", b"3"), ("A", b"4"))
        connection.transport.producer.resumeProducing()
        edge.clock.pass_time(2.5)
        connection.send(masked(8, struct.pack("!H", 1001)))
        assert told(events) == []
        connection.lose()
        connection.lose()
        [went] = told(events)
    assert formatEvent(went) == (
        f"{conn} went after 2.5 s: 3 quotes, 1 merged, closed by client with 1001"
    )
    assert went["address"] == HOME
    assert went["subprotocol"] == "quotepush.v1.json"
    assert "bytes" not in went, "this transport has no socket"


@pytest.mark.parametrize(
    ("proxy", "headers", "shown"),
    [
        (PROXIES["TCP"], forwarded("192.0.2.1"), "192.0.2.1"),
        (PROXIES["TCP"], b"", PROXY),
        (PROXIES["Unix"], forwarded("192.0.2.1"), "192.0.2.1"),
        (PROXIES["Unix"], b"", "unix"),
    ],
)
def test_of_clients_behind_a_proxy_that_does_not_name_them_the_proxy_is_named(
    proxy, headers, shown
):
    with capturedLogs() as events:
        edge = logging(Edge(trusted=BEHIND_PROXIES))
        connection = edge.connect(*proxy)
        connection.send(REQUEST % headers)
        assert (connection.protocol.about().address or "unix") == shown
        connection.lose()
        lines = told(events)
    assert [line["address"] for line in lines] == [shown, shown]


def close_by_daemon(connection: Connection) -> None:
    [outbox] = connection.edge.hub.outboxes()
    outbox.outlet.close(CloseCode.RESTARTING)


def close_by_both(connection: Connection) -> None:
    close_by_daemon(connection)
    connection.send(masked(8, struct.pack("!H", 1000)))


@pytest.mark.parametrize(
    ("end", "by", "code"),
    [
        (lambda c: c.send(masked(8, struct.pack("!H", 1000))), "client", 1000),
        (lambda c: c.send(masked(8, b"")), "client", None),
        (close_by_daemon, "server", CloseCode.RESTARTING),
        (close_by_both, "server", CloseCode.RESTARTING),
        (lambda c: c.send(masked(2, b"x")), "server", CloseCode.UNSUPPORTED_DATA),
        (lambda c: c.send(masked(8, struct.pack("!H", 999))), "server", 1002),
        (lambda c: c.lose(ConnectionLost()), "lost", None),
        (lambda c: c.lose(), "lost", None),
    ],
)
def test_who_closed_first_is_told_and_with_which_code(end, by, code):
    with capturedLogs() as events:
        edge = logging(Edge())
        connection = edge.open()
        told(events)
        end(connection)
        connection.lose()
        [went] = told(events)
    assert (went["by"], went["code"]) == (by, code)
    assert type(went["code"]) in (int, type(None))


def test_what_never_became_a_client_is_not_told_of():
    with capturedLogs() as events:
        edge = logging(Edge(connections=1))
        edge.connect().lose()
        page = edge.connect()
        page.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        page.lose()
        edge.open()
        told(events)
        refused = edge.connect()
        refused.send(REQUEST % b"")
        refused.lose()
        assert told(events) == []


def test_where_nothing_is_to_be_told_nothing_is_kept_for_it():
    edge = Edge()
    services = Services(edge.connections.site, client_log=ClientLog(edge.clock, 0))
    silent = Connections(edge.clock, edge.hub, edge.limits, edge.counters, services)
    assert silent.client_log is None
    with capturedLogs() as events:
        connection = edge.open()
        assert "_logged_since" not in vars(connection.protocol)
        connection.lose()
        assert told(events) == []


def test_a_client_that_is_told_of_takes_little_more_memory():
    plain, told_of = (vars(edge.open().protocol) for edge in (Edge(), logging(Edge())))
    assert set(told_of) - set(plain) == {"_logged_since"}
    assert sys.getsizeof(told_of) == sys.getsizeof(plain)


class Counting(Protocol):
    """A client over a real socket that counts what it is sent."""

    def __init__(self) -> None:
        self.size = 0
        self.lost = False

    def dataReceived(self, data: bytes) -> None:
        self.size += len(data)

    def connectionLost(self, reason: Failure) -> None:
        self.lost = True


@pytest.mark.parametrize("end", ["by a close", "by the daemon", "by hanging up", "by an abort"])
@pytest.mark.parametrize("mode", ["portable", "auto"])
@pytest_twisted.ensureDeferred
async def test_the_bytes_that_were_sent_are_known_however_it_ends(mode, end):
    edge = logging(Edge())
    edge.connections.reactor = reactor
    edge.connections.make_outlet = choose(mode, reactor).make
    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(edge.factory)
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
    with capturedLogs() as events:
        client = await endpoint.connect(Factory.forProtocol(Counting))
        client.transport.write(REQUEST % b"")
        await until(lambda: edge.hub.count_outboxes() == 1, "the handshake")
        [outbox] = edge.hub.outboxes()
        outbox.send(outbox.codec.frames([b'"%b"' % (b"x" * 50_000)]))
        await until(lambda: client.size > 50_000, "what was sent")
        size = client.size
        if end == "by a close":
            client.transport.write(masked(8, struct.pack("!H", 1000)))
        elif end == "by the daemon":
            outbox.outlet.close(CloseCode.RESTARTING)
            await until(lambda: client.size > size, "the close frame")
            size = client.size
            client.transport.write(masked(8, struct.pack("!H", 1012)))
        elif end == "by hanging up":
            client.transport.loseConnection()
        else:
            outbox.outlet.abort()
        await until(lambda: edge.connections.limiter.connections == 0, "the end")
        await until(lambda: client.lost, "the end at the client")
        went = told(events)[-1]
    assert went["bytes"] == size
    await port.stopListening()


@pytest.mark.parametrize("mode", ["portable", "auto"])
@pytest.mark.parametrize("secure", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_client_that_is_told_of_falls_behind_and_catches_up_as_any(mode, secure, tmp_path):
    edge = logging(Edge())
    edge.connections.reactor = reactor
    edge.connections.make_outlet = choose(mode, reactor).make
    listening: Any = edge.factory
    files = development_pair(tmp_path)
    if secure:
        listening = TLSFactory(server_options(files.certificate, files.key), listening, reactor)
    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(listening)
    endpoint: Any = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
    if secure:
        root = twisted_ssl.Certificate.loadPEM(files.certificate.read_bytes())
        trusting = twisted_ssl.optionsForClientTLS("localhost", trustRoot=root)
        endpoint = wrapClientTLS(trusting, endpoint)
    with capturedLogs() as events:
        client = await endpoint.connect(Factory.forProtocol(Counting))
        client.transport.write(REQUEST % b"")
        await until(lambda: edge.hub.count_outboxes() == 1, "the handshake")
        [outbox] = edge.hub.outboxes()
        client.transport.pauseProducing()
        sent = 0
        while not outbox.behind:
            outbox.send(b"\x00" * 500_000)
            sent += 500_000
        client.transport.resumeProducing()
        await until(lambda: not outbox.behind, "it to catch up")
        await until(lambda: client.size > sent, "all that was sent")
        client.transport.abortConnection()
        await until(lambda: edge.connections.limiter.connections == 0, "the end")
        await until(lambda: client.lost, "the end at the client")
        went = told(events)[-1]
    # What TLS adds is sent too.
    added = went["bytes"] - client.size
    assert 100 < added < client.size // 20 if secure else added == 0
    await port.stopListening()


# -- who may connect -------------------------------------------------------------------------------


class Door:
    """An edge whose clients have to say who they are."""

    def __init__(self, **limits: float) -> None:
        self.edge = Edge(**limits)
        self.verdicts = Verdicts()
        self.revocations = Revocations(self.edge.clock)
        self.edge.connections.access_control = AccessControl(
            self.edge.clock, self.verdicts, self.revocations, 10, 5, lambda _delay: self.edge.hub
        )

    def ask(self, headers: bytes = b"", request: bytes = REQUEST, rest: bytes = b"") -> Connection:
        connection = self.edge.connect()
        connection.send(request % headers + rest)
        return connection


BEARER = b"Authorization: Bearer %b\r\n"


def status_of(connection: Connection) -> int:
    return int(connection.transport.value().split()[1])


def events_after_upgrade(connection: Connection) -> list[dict[str, Any]]:
    head, _, data = connection.transport.value().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    connection.transport.clear()
    return [event for _, text in unframe(data) for event in json.loads(text)]


@pytest.mark.parametrize(
    "headers",
    [
        BEARER % b"ann",
        b"Sec-WebSocket-Protocol: quotepush.auth.ann\r\n",
        b"Sec-WebSocket-Protocol: quotepush.v1.json, quotepush.auth.ann\r\n",
    ],
)
def test_a_token_in_the_handshake_says_who_it_is(headers):
    door = Door()
    connection = door.ask(headers)
    assert b"quotepush.auth" not in connection.transport.value()
    welcome, authenticated = events_after_upgrade(connection)
    assert (welcome["auth"], authenticated["user"]) == ("done", "ann")
    assert connection.say({"op": "subscribe", "symbols": ["A"]})[0]["ev"] == "subscribed"
    connection.lose()
    assert door.edge.clock.calls == []


def test_without_a_token_in_the_handshake_it_is_a_stranger():
    connection = Door().ask()
    assert [event["auth"] for event in events_after_upgrade(connection)] == ["required"]
    assert connection.say({"op": "list"})[0]["code"] == 401
    assert connection.say({"op": "auth", "token": "ann"})[0]["ev"] == "authenticated"
    connection.lose()


def test_a_stranger_that_takes_too_long_is_closed_in_order():
    door = Door()
    connection = door.ask()
    connection.transport.clear()
    door.edge.clock.pass_time(10.25)
    assert connection.close_code() == CloseCode.AUTHENTICATION_TOO_LATE
    assert door.edge.hub.count_outboxes() == 0


@pytest.mark.parametrize(
    ("headers", "status", "words"),
    [
        (BEARER % b"secret", 401, b"the token is refused: nobody knows it"),
        (BEARER % b"busy", 503, b"the token is refused: later"),
        (b"Authorization: Basic secret\r\n", 401, b"is understood as: Bearer TOKEN"),
        (
            BEARER % b"secret" + b"Sec-WebSocket-Protocol: quotepush.auth.secret\r\n",
            401,
            b"several were sent",
        ),
        (BEARER % b"ann" + b"Sec-WebSocket-Protocol: other\r\n", 400, b"none of the subprotocols"),
    ],
)
def test_a_token_that_is_refused_refuses_the_handshake_and_is_not_repeated(headers, status, words):
    door = Door()
    door.verdicts.known["busy"] = Refused("later", temporary=True)
    connection = door.ask(headers)
    answer = connection.transport.value()
    assert status_of(connection) == status
    assert words in answer
    assert b"secret" not in answer
    assert (b"WWW-Authenticate: Bearer\r\n" in answer) is (status == 401)
    assert (b"Retry-After: " in answer) is (status == 503)
    assert connection.transport.disconnecting
    assert door.edge.hub.count_outboxes() == 0


def test_a_token_in_the_url_is_taken_only_where_that_is_allowed():
    request = REQUEST.replace(b"GET / ", b"GET /?token=ann ")
    door = Door()
    assert status_of(door.ask(request=request)) == 401
    door.edge.connections.token_in_url = True
    assert events_after_upgrade(door.ask(request=request))[1]["user"] == "ann"


def test_where_nobody_is_asked_what_a_handshake_carries_is_no_concern():
    edge = Edge()
    for headers in (
        b"Authorization: Basic dTpw\r\n",
        BEARER % b"secret",
        b"Sec-WebSocket-Protocol: quotepush.v1.json, quotepush.auth.secret\r\n",
    ):
        edge.open(headers)
    connection = edge.connect()
    connection.send(REQUEST.replace(b"GET / ", b"GET /?token=x ") % b"")
    assert status_of(connection) == 101


def test_while_a_token_is_looked_at_nothing_is_read_and_what_came_along_is_answered_after():
    door = Door()
    door.verdicts.later = True
    connection = door.ask(BEARER % b"ann", rest=masked(1, b'{"op":"ping","id":1}'))
    assert connection.transport.producerState == "paused"
    connection.send(masked(1, b'{"op":"ping","id":2}'))
    assert connection.transport.value() == b""
    door.verdicts.answer()
    assert connection.transport.producerState == "producing"
    assert [event["ev"] for event in events_after_upgrade(connection)] == [
        *("welcome", "authenticated", "pong", "pong"),
    ]


def test_a_verdict_on_who_is_gone_opens_nothing():
    door = Door()
    door.verdicts.later = True
    connection = door.ask(BEARER % b"ann")
    connection.lose()
    door.verdicts.answer()
    assert connection.transport.value() == b""
    assert door.edge.hub.count_outboxes() == 0
    assert door.edge.counters.handshakes == 0
    assert door.edge.clock.calls == []


def test_a_token_that_nobody_looks_at_ends_with_the_time_for_the_handshake():
    door = Door()
    door.verdicts.later = True
    connection = door.ask(BEARER % b"ann")
    door.edge.clock.pass_time(door.edge.limits.upgrade_timeout)
    assert connection.transport.aborts == 1


def test_who_is_revoked_while_looked_at_is_refused():
    door = Door()
    door.verdicts.known["t"] = Identity("ann", "7")
    door.verdicts.later = True
    connection = door.ask(BEARER % b"t")
    door.revocations.revoke("token", "7")
    door.verdicts.answer()
    assert status_of(connection) == 401


@pytest.mark.parametrize("why", ["full", "restarting"])
def test_when_a_token_was_looked_at_there_must_still_be_room(why):
    door = Door(connections=1)
    door.verdicts.later = True
    first, second = door.ask(BEARER % b"ann"), door.ask(BEARER % b"ann")
    door.verdicts.answer()
    assert status_of(first) == 101
    if why == "restarting":
        first.lose()
        door.edge.connections.draining = True
    door.verdicts.answer()
    assert status_of(second) == 503
    assert why.encode() in second.transport.value()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"Origin: http://localhost\r\n", 101),
        (b"Origin: http://localhost:8008\r\n", 403),
        (b"Origin: https://evil.example\r\n", 403),
        (b"Origin: null\r\n", 403),
        (b"", 101),
    ],
)
def test_pages_of_other_origins_are_refused_before_any_token_is_looked_at(headers, status):
    door = Door()
    connection = door.ask(headers + BEARER % b"ann")
    assert status_of(connection) == status
    assert door.edge.counters.origins_refused == (status == 403)


class CertifiedTransport(SecureTransport):
    """TLS with a client's certificate."""

    shown: Any = None

    def getPeerCertificate(self) -> Any:
        return self.shown


def certified(door: Door, headers: bytes, *, subject: str | None) -> Connection:
    door.edge.connections.by_certificate = True
    connection = door.edge.connect(transport=CertifiedTransport)
    if subject is not None:
        name = x509.Name.from_rfc4514_string(subject)
        connection.transport.shown = crypto.X509.from_cryptography(certificate_of(name))
    connection.send(REQUEST % headers)
    return connection


def certificate_of(name: x509.Name) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    day = datetime.datetime(2026, 11, 22, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    builder = builder.public_key(key.public_key()).not_valid_before(day)
    return builder.not_valid_after(day + datetime.timedelta(days=1)).sign(key, hashes.SHA256())


def test_a_clients_certificate_says_who_it_is_by_its_subject():
    door = Door()
    connection = certified(door, b"", subject="CN=ann,O=Shop")
    assert events_after_upgrade(connection)[1]["user"] == "CN=ann,O=Shop"
    door.revocations.revoke("user", "CN=ann,O=Shop")
    assert status_of(certified(door, b"", subject="CN=ann,O=Shop")) == 401
    connection.lose()


@pytest.mark.parametrize("subject", [None, "", "CN=" + "a" * 60 + ",O=" + "b" * 64])
def test_a_certificate_that_names_nobody_is_refused(subject):
    assert status_of(certified(Door(), b"", subject=subject)) == 401


@pytest.mark.parametrize("end", [b"\r", b"\x0b", b"\x0c", b"\x1c", b"\x1d", b"\x1e", b"\x85"])
def test_a_header_does_not_end_where_http_has_no_end_of_a_line(end):
    door = Door()
    connection = door.ask(b"Cookie: a=\xc3" + end + BEARER % b"ann")
    [welcome] = events_after_upgrade(connection)
    assert welcome["auth"] == "required"
    connection.lose()


def test_a_token_that_is_offered_twice_is_not_shown():
    offers = b"Sec-WebSocket-Protocol: quotepush.auth.s3cr3t, quotepush.auth.s3cr3t\r\n"
    connection = Door().ask(offers)
    assert status_of(connection) == 400
    assert b"s3cr3t" not in connection.transport.value()
    assert b'duplicate protocol "quotepush.auth.' in connection.transport.value()


def test_who_is_revoked_while_a_token_is_looked_at_may_answer_the_close():
    door = Door()
    connection = door.ask(BEARER % b"ann")
    door.verdicts.later = True
    connection.send(masked(1, b'{"op":"auth","token":"ann"}'))
    assert connection.transport.producerState == "paused"
    door.revocations.revoke("user", "ann")
    door.edge.connections.access_control.end_revoked("ann", None)
    assert connection.transport.producerState == "producing"
    connection.send(masked(8, CloseCode.AUTHENTICATION_FAILED.to_bytes(2)))
    assert connection.transport.disconnecting
    assert connection.transport.aborts == 0
    connection.lose()


def test_an_open_client_keeps_nothing_of_its_token():
    door = Door()
    connection = door.ask(BEARER % b"ann")
    kept = vars(connection.protocol).keys()
    assert not {"_identity", "_verifying", "http_headers", "http_request_data"} & kept
    assert "_verifying" not in vars(Door().ask().protocol)
    connection.lose()


@pytest.mark.parametrize("later", [False, True])
def test_a_fault_in_a_handshake_is_500_with_the_id_that_the_log_has(
    logged_failures, monkeypatch, later
):
    door = Door()
    door.verdicts.later = later
    monkeypatch.setattr(QuoteProtocol, "_accept", fail)
    connection = door.ask(BEARER % b"ann")
    if later:
        door.verdicts.answer()
    head, _, body = connection.transport.value().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    [event] = logged_failures.flush(ZeroDivisionError)
    assert body.decode() == f"internal error: incident {event['incident']}\n"
    assert event["conn"] == connection.protocol.conn
    assert connection.transport.disconnecting
    assert door.edge.counters.client_failures == 1
