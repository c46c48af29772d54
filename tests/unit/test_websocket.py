"""The WebSocket edge: handshakes, refusals, closing, time-outs, and what leaves the hub when."""

from __future__ import annotations

import json
import os
import socket
import struct
from typing import Any

import pytest
import pytest_twisted
from core_doubles import FixedClock, make_hub, publish, unframe
from twisted.internet import defer, reactor
from twisted.internet.address import IPv4Address
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from waiting import until

from pushservice.closing import CloseCode
from pushservice.hub import Hub
from pushservice.metrics import Counters
from pushservice.session import Limits
from pushservice.web import build_site
from pushservice.websocket import (
    CLOSE_TIMEOUT,
    HANDSHAKE_TIMEOUT,
    MAX_REQUEST_HEAD,
    SPARE_CONNECTIONS,
    Bounds,
    QuoteFactory,
    QuoteProtocol,
)

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%b\r\n"
)


def masked(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    """A client's frame."""
    mask = os.urandom(4)
    size = len(payload)
    head = bytes([opcode | (0x80 if final else 0)])
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


class Edge:
    """A factory over a clock, and connections over transports that record."""

    def __init__(self, *, page: bool = True, connections: int = 10, **limits: int) -> None:
        self.clock = Clock()
        self.counters = Counters()
        self.hub: Hub = make_hub(FixedClock(), self.counters)
        site = build_site(self.clock, self.hub.recent_symbols, lambda: None, page)
        self.factory = QuoteFactory(
            self.clock, self.hub, Limits(**limits), Bounds(connections), site, self.counters
        )

    def connect(self) -> Connection:
        return Connection(self)

    def open(self, headers: bytes = b"") -> Connection:
        """A connection whose handshake is done and whose welcome is read."""
        connection = Connection(self)
        connection.send(REQUEST % headers)
        assert connection.transport.value().startswith(b"HTTP/1.1 101 ")
        connection.transport.clear()
        return connection


class Connection:
    """One client's end, on the wire's level."""

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self.transport = RecordingTransport(peerAddress=IPv4Address("TCP", "127.0.0.1", 54321))
        self.protocol: QuoteProtocol = edge.factory.buildProtocol(self.transport.getPeer())
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
    edge = Edge()
    silent, dribbling, done = edge.connect(), edge.connect(), edge.open()
    dribbling.send(b"GET / HT")
    edge.clock.advance(HANDSHAKE_TIMEOUT - 0.1)
    assert not silent.transport.disconnecting
    edge.clock.advance(0.2)
    assert silent.transport.aborts == dribbling.transport.aborts == 1
    assert not done.transport.disconnecting
    assert edge.counters.handshakes_refused == 2


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
        connection.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.transport.value().startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"<title>" in connection.transport.value()
        connection.transport.clear()
    edge.clock.advance(HANDSHAKE_TIMEOUT + 1)
    assert not connection.transport.disconnecting, "a page is no unfinished handshake"
    connection.lose()
    assert edge.factory.open_connections == 0
    edge.clock.advance(120)


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


def test_a_full_server_answers_503_with_retry_after_and_serves_on():
    edge = Edge(connections=2)
    inside = [edge.open(), edge.open()]
    refused = edge.connect()
    refused.send(REQUEST % b"")
    answer = refused.transport.value()
    assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"Retry-After: 5" in answer
    assert refused.transport.disconnecting
    assert edge.counters.connections_refused == 1
    assert inside[0].say({"op": "ping"}) == [{"ev": "pong"}]
    inside[1].lose()
    edge.open()


def test_a_draining_server_answers_503():
    edge = Edge()
    edge.factory.draining = True
    connection = edge.connect()
    connection.send(REQUEST % b"")
    assert connection.transport.value().startswith(b"HTTP/1.1 503 ")


def test_connections_far_beyond_the_limit_are_dropped_at_the_door():
    edge = Edge(connections=1)
    connections = [edge.connect() for _ in range(2 + SPARE_CONNECTIONS)]
    assert [c.transport.disconnecting for c in connections].count(True) == 1
    assert connections[-1].transport.disconnecting
    for connection in connections:
        connection.lose()
    assert edge.factory.open_connections == 0


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
    edge.clock.advance(CLOSE_TIMEOUT + 1)


@pytest.mark.parametrize("begin", ["ours", "theirs", "refused"])
def test_a_close_that_is_not_answered_ends_in_an_abort(begin):
    edge = Edge()
    connection = edge.connect() if begin == "refused" else edge.open()
    if begin == "ours":
        connection.protocol.close(CloseCode.GOING_AWAY)
    elif begin == "theirs":
        connection.send(masked(8, b"\x03\xe8"))
    else:
        connection.send(b"\x00")
    edge.clock.advance(CLOSE_TIMEOUT - 0.1)
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
    assert edge.factory.open_connections == 0
    assert edge.counters.connections_closed == 1
    assert edge.clock.getDelayedCalls() == []


def test_a_fault_in_one_session_aborts_that_client_alone(logged_failures, monkeypatch):
    edge = Edge()
    broken, sound = edge.open(), edge.open()
    assert broken.protocol.session is not None

    def fail(text: bytes) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(type(broken.protocol.session), "receive", lambda self, text: fail(text))
    broken.send(masked(1, b"{}"))
    monkeypatch.undo()
    assert broken.transport.aborts == 1
    assert edge.hub.count_outboxes() == 1
    assert sound.say({"op": "ping"}) == [{"ev": "pong"}]
    assert len(logged_failures.flush(ZeroDivisionError)) == 1


def test_a_failed_delivery_closes_its_client_with_1011(logged_failures):
    edge = Edge()
    connection = edge.open()
    [outbox] = edge.hub.outboxes()
    edge.factory.failed(outbox, OSError("no"))
    assert connection.close_code() == 1011
    assert len(logged_failures.flush(OSError)) == 1


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


@pytest_twisted.ensureDeferred
async def test_draining_drops_handshakes_and_waits_for_those_that_say_goodbye():
    edge = Edge()
    handshaking, client = edge.connect(), edge.open()
    client.protocol.close(CloseCode.GOING_AWAY)
    drained = defer.Deferred.fromCoroutine(edge.factory.drain())
    assert handshaking.transport.disconnecting
    handshaking.lose()
    assert not drained.called
    client.lose()
    await drained
    await edge.factory.drain()


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
    await until(lambda: edge.factory.open_connections == 0, "the end of the connection")
    await port.stopListening()
