"""Clients that send too much: refused, closed, and not read any more."""

from __future__ import annotations

import json
from typing import Any

import pytest
from connection_doubles import (
    FIVE_A_SECOND,
    REQUEST,
    Server,
    masked,
)

from pushservice.protocol.close_codes import CloseCode
from pushservice.server.lean_autobahn import LeanProtocol

#: Fifty frames at once, five more that are refused with patience, and no more.


def flood(frames: list[tuple[int, bytes]]) -> tuple[list[dict[str, Any]], int]:
    """The events in `frames` and the code of the close that must be the last of them."""
    *texts, (first, close) = frames
    assert first == 0x88
    assert all(head == 0x81 for head, _ in texts)
    return [event for _, text in texts for event in json.loads(text)], int.from_bytes(close[:2])


def test_a_flood_is_refused_by_the_commands_ids_then_closed_and_no_longer_read():
    server = Server(**FIVE_A_SECOND)
    connection, other = server.open(), server.open()
    for number in range(60):
        connection.send(masked(1, b'{"op":"ping","id":%d}' % number))
    events, code = flood(connection.frames())
    assert code == 4029
    assert [event["id"] for event in events] == list(range(55))
    assert {event["ev"] for event in events[:50]} == {"pong"}
    assert {(event["ev"], event["code"]) for event in events[50:]} == {("error", 429)}
    assert "at most 5 messages a second" in events[50]["msg"]
    assert server.hub.count_outboxes() == 1
    assert connection.transport.producerState == "paused"
    assert (server.counters.messages_refused, server.counters.closed_flooding) == (5, 1)
    assert other.say({"op": "ping"}) == [{"ev": "pong"}]


def test_a_client_that_was_closed_for_its_flood_is_aborted_in_time_whatever_it_sends():
    server = Server(**FIVE_A_SECOND)
    connection = server.open()
    for _ in range(60):
        connection.send(masked(9, b""))
    connection.frames()
    connection.send(masked(8, b"\x0f\xbd"))
    connection.send(masked(9, b"") * 1000)
    assert connection.frames() == []
    server.clock.advance(2.9)
    assert connection.transport.aborts == 0
    server.clock.advance(0.2)
    assert connection.transport.aborts == 1
    connection.lose()
    assert server.clock.getDelayedCalls() == []


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
    server = Server(**FIVE_A_SECOND)
    connection = server.open()
    connection.send(IN_ONE_READ[what])
    assert len(begun) == 55
    assert connection.close_code() == 4029
    assert connection.transport.producerState == "paused"
    assert connection.protocol.data == b""
    assert server.counters.closed_flooding == 1
    server.clock.advance(3.1)
    assert connection.transport.aborts == 1


@pytest.mark.parametrize("what", IN_ONE_READ)
def test_a_flood_that_comes_along_with_the_handshake_is_one_too(what, begun):
    server = Server(**FIVE_A_SECOND)
    connection = server.connect()
    connection.send(REQUEST % b"" + IN_ONE_READ[what])
    assert len(begun) == 55
    assert connection.transport.producerState == "paused"
    assert server.counters.closed_flooding == 1


@pytest.mark.parametrize("what", ["pings", "empty fragments"])
def test_a_client_that_is_being_closed_can_not_flood_either(what, begun):
    server = Server(**FIVE_A_SECOND)
    connection = server.open()
    connection.send(masked(2, b"binary"))
    assert connection.close_code() == 1003
    begun.clear()
    for _ in range(10):
        connection.send(IN_ONE_READ[what])
    assert len(begun) <= 55


@pytest.mark.parametrize("how", ["refused", "their close", "our close answered"])
def test_what_comes_after_the_end_is_not_kept(how):
    # TLS goes on delivering until the peer has said its goodbye too.
    server = Server()
    connection = server.connect() if how == "refused" else server.open()
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
    server = Server(message=200)
    connection = server.open()
    connection.send(offence)
    for _ in range(100):
        connection.send(masked(1, b"y" * 10_000))
    kept = len(connection.protocol.data)
    assert kept <= 20_000


def test_a_flood_of_bytes_is_refused_then_closed():
    server = Server(message_rate=0, byte_rate=100, message=200)
    connection = server.open()
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
    server = Server(**FIVE_A_SECOND)
    connection = server.open()
    for _ in range(53):
        connection.say({"op": "ping"})
    assert [event["ev"] for event in connection.say({"op": "ping"})] == ["error"]
    server.clock.advance(1.1)
    assert connection.say({"op": "ping"}) == [{"ev": "pong"}]
    for _ in range(1000):
        server.clock.advance(0.2)
        assert connection.say({"op": "ping"}) == [{"ev": "pong"}]


def test_without_rates_nothing_is_a_flood():
    server = Server(message_rate=0, byte_rate=0)
    connection = server.open()
    connection.send(masked(9, b"p") * 20_000)
    assert connection.frames() == [(0x8A, b"p")] * 20_000


def test_a_flood_that_breaks_a_rule_first_is_closed_for_that():
    server = Server(**FIVE_A_SECOND)
    connection = server.open()
    connection.send(masked(9, b"") * 10 + masked(3, b""))
    assert connection.close_code() == 1002
