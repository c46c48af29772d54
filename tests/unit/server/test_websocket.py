"""An open WebSocket connection: messages, violations, closing, faults."""

from __future__ import annotations

import json
import socket

import pytest
import pytest_twisted
from connection_doubles import (
    REQUEST,
    Server,
    fail,
    masked,
)
from core_doubles import publish, unframe
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Factory, Protocol
from waiting import until

from pushservice.protocol.close_codes import CloseCode
from pushservice.server.lean_autobahn import LeanProtocol
from pushservice.session.session import Session


def test_a_text_message_in_fragments_is_put_together():
    connection = Server().open()
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
    server = Server(message=200)
    connection = server.open()
    connection.say({"op": "subscribe", "symbols": ["A"]})
    for frame in frames:
        connection.send(frame)
    assert server.hub.count_outboxes() == 0
    publish(server.hub, ("A", b"1"))
    assert connection.close_code() == code
    connection.send(masked(1, b'{"op":"ping"}'))
    assert connection.frames() == []


def test_a_message_at_the_limit_is_read():
    connection = Server(message=200).open()
    text = b'{"op":"ping"}'.ljust(200)
    connection.send(masked(1, text))
    assert connection.frames() == [(0x81, b'[{"ev":"pong"}]')]


def test_a_clients_close_is_answered_and_nothing_follows_it():
    server = Server()
    connection = server.open()
    connection.say({"op": "subscribe", "symbols": ["A"]})
    connection.send(masked(8, b"\x03\xe8"))
    publish(server.hub, ("A", b"1"))
    assert connection.close_code() == 1000
    assert connection.transport.disconnecting
    assert server.hub.count_outboxes() == 0


def test_a_close_by_the_daemon_waits_for_the_answer_then_ends_in_order():
    server = Server()
    connection = server.open()
    connection.protocol.close(CloseCode.GOING_AWAY)
    assert server.hub.count_outboxes() == 0
    assert connection.close_code() == 1001
    assert not connection.transport.disconnecting
    connection.send(masked(8, b"\x03\xe9"))
    assert connection.transport.disconnecting
    connection.lose()
    assert server.clock.getDelayedCalls() == []


@pytest.mark.parametrize("begin", ["ours", "theirs", "refused"])
def test_a_close_that_is_not_answered_ends_in_an_abort(begin):
    server = Server(close_timeout=2.5)
    connection = server.connect() if begin == "refused" else server.open()
    if begin == "ours":
        connection.protocol.close(CloseCode.GOING_AWAY)
    elif begin == "theirs":
        connection.send(masked(8, b"\x03\xe8"))
    else:
        connection.send(b"\x00")
    server.clock.advance(2.4)
    assert connection.transport.aborts == 0
    server.clock.advance(0.2)
    assert connection.transport.aborts == 1


def test_closing_what_is_not_open_drops_it():
    server = Server()
    connection = server.connect()
    connection.protocol.close(CloseCode.GOING_AWAY)
    assert connection.transport.aborts == 1


def test_a_lost_connection_leaves_nothing_behind():
    server = Server()
    connection = server.open()
    connection.say({"op": "subscribe", "symbols": ["A"]})
    connection.lose(ConnectionLost())
    assert server.hub.count_outboxes() == server.hub.count_topics() == 0
    assert server.connections.limiter.connections == 0
    assert server.counters.connections_closed == 1
    assert server.clock.getDelayedCalls() == []


def test_a_fault_in_one_session_closes_that_client_alone_with_the_id_that_the_log_has(
    logged_failures, monkeypatch
):
    server = Server()
    broken, sound = server.open(), server.open()
    assert broken.protocol.session is not None

    def fail(text: bytes) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(type(broken.protocol.session), "receive", lambda self, text: fail(text))
    broken.send(masked(1, b"{}"))
    monkeypatch.undo()
    (_, told), (_, end) = broken.frames()
    assert int.from_bytes(end[:2]) == CloseCode.INTERNAL_ERROR
    assert server.hub.count_outboxes() == 1
    assert sound.say({"op": "ping"}) == [{"ev": "pong"}]
    [event] = logged_failures.flush(ZeroDivisionError)
    assert event["conn"] == broken.protocol.conn
    [error] = json.loads(told)
    assert (error["code"], error["msg"]) == (500, f"internal error: incident {event['incident']}")


def test_a_fault_before_a_handshake_is_sorted_out_is_500_too(logged_failures, monkeypatch):
    server = Server()
    monkeypatch.setattr(LeanProtocol, "processHandshake", fail)
    connection = server.connect()
    connection.send(REQUEST % b"")
    [event] = logged_failures.flush(ZeroDivisionError)
    assert connection.transport.value().startswith(b"HTTP/1.1 500 ")
    assert event["incident"].encode() in connection.transport.value()
    assert connection.transport.disconnecting


@pytest.mark.parametrize("at", ["open", "receive"])
def test_a_fault_while_a_connection_opens_closes_it_with_the_id_that_the_log_has(
    logged_failures, monkeypatch, at
):
    server = Server()
    monkeypatch.setattr(Session, at, fail)
    connection = server.connect()
    connection.send(REQUEST % b"" + masked(1, b"{}"))
    *_, (_, told), (_, end) = unframe(connection.transport.value().partition(b"\r\n\r\n")[2])
    [event] = logged_failures.flush(ZeroDivisionError)
    [error] = json.loads(told)
    assert (error["code"], error["msg"]) == (500, f"internal error: incident {event['incident']}")
    assert int.from_bytes(end[:2]) == CloseCode.INTERNAL_ERROR
    assert server.hub.count_outboxes() == 0


def test_a_failed_delivery_closes_its_client_with_1011(logged_failures):
    server = Server()
    connection = server.open()
    [outbox] = server.hub.outboxes()
    server.connections.failed(outbox, OSError("no"))
    assert connection.close_code() == 1011
    [event] = logged_failures.flush(OSError)
    assert event["conn"] == connection.protocol.conn
    assert "{conn}" in event["log_format"]


def test_a_client_behind_a_full_transport_gets_the_newest_when_it_drains():
    server = Server()
    connection = server.open()
    connection.say({"op": "subscribe", "symbols": ["A"]})
    connection.transport.producer.pauseProducing()
    for n in range(5):
        publish(server.hub, ("A", b"%d" % n))
    assert connection.frames() == []
    connection.transport.producer.resumeProducing()
    [(_, text)] = connection.frames()
    assert [event["n"] for event in json.loads(text)] == [5]


def test_connection_ids_are_unique_and_carry_the_epoch():
    server = Server()
    ids = [server.connect().protocol.conn for _ in range(3)]
    assert len(set(ids)) == 3
    assert all(conn.startswith("k7f3-") for conn in ids)


class Received(Protocol):
    """A client of a few bytes over a real socket."""

    def __init__(self) -> None:
        self.data = b""

    def dataReceived(self, data: bytes) -> None:
        self.data += data


@pytest_twisted.ensureDeferred
async def test_nagles_algorithm_is_off_on_an_accepted_socket():
    server = Server()
    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(server.factory)
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
    client = await endpoint.connect(Factory.forProtocol(Received))
    client.transport.write(REQUEST % b"")
    await until(lambda: server.hub.count_outboxes() == 1, "the handshake")
    [outbox] = server.hub.outboxes()
    accepted = outbox.outlet._transport.socket
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
    client.transport.loseConnection()
    await until(lambda: server.connections.limiter.connections == 0, "the end of the connection")
    await port.stopListening()
