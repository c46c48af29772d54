"""The opening handshake: upgrades, refusals, pages, deadlines."""

from __future__ import annotations

import json
import ssl
from contextlib import suppress
from typing import Any

import pytest
from connection_doubles import (
    GET,
    HOME,
    REQUEST,
    RecordingTransport,
    SecureTransport,
    Server,
    masked,
)
from core_doubles import unframe
from twisted.internet.address import IPv4Address

from pushservice.server.handshake import MAX_PAGE_REQUESTS, MAX_REQUEST_HEAD, PAGE_TIMEOUT
from pushservice.tls.factory import Pair, TLSFactory, development_pair, server_options


def test_a_handshake_without_subprotocol_gets_the_json_one_and_a_welcome():
    server = Server()
    connection = server.connect()
    connection.send(REQUEST % b"")
    head, _, rest = connection.transport.value().partition(b"\r\n\r\n")
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
    assert b"Sec-WebSocket-Protocol" not in head
    [(first, text)] = unframe(rest)
    assert first == 0x81
    [event] = json.loads(text)
    assert event["ev"] == "welcome"
    assert event["conn"] == connection.protocol.conn
    assert server.counters.handshakes == 1


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (b"quotepush.v1.json", b"quotepush.v1.json"),
        (b"quotepush.raw", b"quotepush.raw"),
        (b"soap, quotepush.raw, quotepush.v1.json", b"quotepush.raw"),
    ],
)
def test_the_first_known_subprotocol_offered_is_chosen(offered, chosen):
    connection = Server().connect()
    connection.send(REQUEST % (b"Sec-WebSocket-Protocol: " + offered + b"\r\n"))
    head = connection.transport.value().partition(b"\r\n\r\n")[0]
    assert b"Sec-WebSocket-Protocol: " + chosen in head


def test_a_client_that_offers_only_unknown_subprotocols_is_refused_in_words():
    connection = Server().connect()
    connection.send(REQUEST % b"Sec-WebSocket-Protocol: soap\r\n")
    answer = connection.transport.value()
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"known are quotepush.v1.json, quotepush.raw" in answer
    assert connection.transport.disconnecting


def test_a_handshake_may_come_byte_by_byte():
    server = Server()
    connection = server.connect()
    for at in range(len(REQUEST % b"")):
        connection.send((REQUEST % b"")[at : at + 1])
    assert connection.transport.value().startswith(b"HTTP/1.1 101 ")
    assert server.counters.handshakes == 1


def test_messages_sent_along_with_the_handshake_are_answered():
    connection = Server().connect()
    connection.send(REQUEST % b"" + masked(1, b'{"op":"ping","id":1}'))
    assert b'[{"ev":"pong","id":1}]' in connection.transport.value()


def test_a_handshake_that_takes_too_long_is_aborted():
    server = Server(upgrade_timeout=7, tls_timeout=3)
    silent, dribbling, done = server.connect(), server.connect(), server.open()
    server.clock.advance(4)
    dribbling.send(b"GET / HT")
    server.clock.advance(2.9)
    assert not silent.transport.disconnecting
    server.clock.advance(0.2)
    assert silent.transport.aborts == dribbling.transport.aborts == 1
    assert not done.transport.disconnecting
    assert server.counters.aborted_handshakes == 2


def test_a_tls_handshake_has_a_time_of_its_own_and_the_upgrade_its_own_from_there():
    server = Server(tls_timeout=3, upgrade_timeout=7)
    silent, dribbling, quick = (server.connect(transport=SecureTransport) for _ in range(3))
    server.clock.advance(2.9)
    for each in (dribbling, quick):
        each.protocol.handshakeCompleted()
    server.clock.advance(0.2)
    assert silent.transport.aborts == 1
    server.clock.advance(6.7)
    quick.send(REQUEST % b"")
    assert not dribbling.transport.disconnecting
    server.clock.advance(0.2)
    assert dribbling.transport.aborts == 1
    server.clock.advance(1000)
    assert not quick.transport.disconnecting
    assert server.counters.aborted_handshakes == 2


def test_real_tls_says_when_its_handshake_is_done(tmp_path):
    server = Server(tls_timeout=3, upgrade_timeout=7)
    files = development_pair(tmp_path)
    tls, transport = over_tls(server, files)
    server.clock.advance(2.9)
    shake_hands(tls, transport, files.certificate)
    server.clock.advance(6.9)
    assert not transport.disconnecting, "the time of TLS is over, and no longer counts"
    server.clock.advance(0.2)
    assert transport.aborts == 1


def test_real_tls_that_is_never_done_is_aborted_after_its_own_time(tmp_path):
    server = Server(tls_timeout=3, upgrade_timeout=7)
    _, transport = over_tls(server, development_pair(tmp_path))
    server.clock.advance(2.9)
    assert not transport.disconnecting
    server.clock.advance(0.2)
    assert transport.aborts == 1


def over_tls(server: Server, files: Pair) -> tuple[Any, RecordingTransport]:
    """A connection under Twisted's own TLS: that, and the transport below it."""
    transport = RecordingTransport(peerAddress=IPv4Address("TCP", HOME, 54321))
    options = server_options(files.certificate, files.key)
    tls = TLSFactory(options, server.factory, server.clock).buildProtocol(transport.getPeer())
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
    connection = Server().connect()
    connection.send(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (MAX_REQUEST_HEAD // 6))
    assert connection.transport.value().startswith(b"HTTP/1.1 431 ")
    assert connection.transport.disconnecting


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00\x01", b"\x00", b"*1\r\n", b"\r\n"])
def test_what_is_no_http_is_refused_at_once(data):
    connection = Server().connect()
    connection.send(data)
    assert connection.transport.value().startswith(b"HTTP/1.1 400 ")
    assert connection.transport.disconnecting


def test_methods_other_than_get_and_head_are_refused():
    connection = Server().connect()
    connection.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
    answer = connection.transport.value()
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"Allow: GET, HEAD" in answer


def test_a_request_without_upgrade_gets_the_page_and_may_ask_again():
    server = Server()
    connection = server.connect()
    for _ in range(2):
        connection.send(GET)
        assert connection.transport.value().startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"<title>" in connection.transport.value()
        connection.transport.clear()
    server.clock.advance(server.limits.upgrade_timeout + 1)
    assert not connection.transport.disconnecting, "a page is no unfinished handshake"
    connection.lose()
    assert server.connections.limiter.connections == 0
    assert server.clock.getDelayedCalls() == []


def test_a_connection_that_fetches_pages_ends_however_often_it_asks():
    server = Server()
    connection = server.connect()
    for _ in range(6):
        connection.send(GET)
        assert connection.transport.value().startswith(b"HTTP/1.1 200 OK\r\n")
        connection.transport.clear()
        server.clock.advance((PAGE_TIMEOUT - 1) / 6)
    assert not connection.transport.disconnecting
    server.clock.advance(1.1)
    assert connection.transport.aborts == 1


def test_tls_that_is_done_changes_nothing_for_a_page_or_for_a_refusal():
    server = Server(upgrade_timeout=3, close_timeout=2)
    page, refused = (server.connect(transport=SecureTransport) for _ in range(2))
    page.send(GET)
    refused.send(b"\x00")
    for each in (page, refused):
        each.protocol.handshakeCompleted()
    server.clock.advance(2.1)
    assert refused.transport.aborts == 1
    server.clock.advance(10)
    assert not page.transport.disconnecting


def test_a_connection_that_fetches_pages_may_ask_for_so_much_and_no_more():
    server = Server()
    connection = server.connect()
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
    connection = Server(page=False).connect()
    connection.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert connection.transport.value().startswith(b"HTTP/1.1 426 ")
    connection.lose()


def test_a_header_that_only_mentions_upgrading_is_no_upgrade():
    connection = Server().connect()
    connection.send(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade-Insecure-Requests: 1\r\n\r\n")
    assert connection.transport.value().startswith(b"HTTP/1.1 200 ")
    connection.lose()
