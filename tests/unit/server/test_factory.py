"""Where connections arrive: limits, crowds, draining, and other processes beside this one."""

from __future__ import annotations

import pytest
import pytest_twisted
from connection_doubles import (
    ELSEWHERE,
    GET,
    REQUEST,
    RecordingTransport,
    Server,
)
from twisted.internet import defer
from twisted.internet.address import UNIXAddress

from pushservice.protocol.close_codes import CloseCode
from pushservice.server.balance import PAUSE, Balance
from pushservice.server.client_counts import ClientCounts
from pushservice.server.connection_limits import PENDING_GRACE
from pushservice.server.connections import CROWDED_PAUSE, DRAIN_CHECK_EVERY, DRAIN_GRACE


def test_a_full_server_answers_503_with_retry_after_and_serves_on():
    server = Server(connections=2)
    inside = [server.open(), server.open()]
    refused = server.connect()
    refused.send(REQUEST % b"")
    answer = refused.transport.value()
    assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"Retry-After: 5" in answer
    assert refused.transport.disconnecting
    assert server.counters.connections_refused == 1
    assert inside[0].say({"op": "ping"}) == [{"ev": "pong"}]
    inside[1].lose()
    server.open()


def test_a_draining_server_answers_503():
    server = Server()
    server.connections.draining = True
    connection = server.connect()
    connection.send(REQUEST % b"")
    assert connection.transport.value().startswith(b"HTTP/1.1 503 ")


def test_an_address_with_too_many_connections_is_told_so_and_others_are_not():
    server = Server(per_address=2)
    inside = [server.open(), server.open()]
    refused = server.connect()
    refused.send(REQUEST % b"")
    answer = refused.transport.value()
    assert answer.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    assert b"\r\nRetry-After: 5\r\n" in answer
    assert b"more than 2 connections from your address" in answer
    assert refused.transport.disconnecting
    assert (server.counters.connections_refused, server.counters.handshakes_refused) == (1, 1)
    server.open(host=ELSEWHERE)
    refused.lose()
    inside[0].lose()
    server.open()


def test_unfinished_handshakes_count_for_their_address_too():
    server = Server(per_address=2)
    server.connect()
    server.connect()
    late = server.connect()
    late.send(REQUEST % b"")
    assert late.transport.value().startswith(b"HTTP/1.1 429 ")


def test_far_beyond_its_limit_an_address_is_not_even_let_in():
    server = Server(per_address=1)
    connections = [server.connect() for _ in range(1 + 16)]
    assert server.drops()
    assert server.drops("::ffff:127.0.0.1")
    assert not server.drops(ELSEWHERE)
    assert server.counters.connections_refused == 2
    assert server.counters.connections_accepted == server.connections.limiter.connections == 17
    for connection in connections:
        connection.lose()
    assert server.connections.limiter.connections == 0
    assert not server.drops()


def test_an_address_that_connects_too_fast_is_not_let_in_until_it_stops():
    server = Server(connect_rate=1)
    for _ in range(10):
        server.open().lose()
    assert server.drops()
    assert not server.drops(ELSEWHERE)
    server.clock.advance(1.1)
    server.open()
    assert server.drops()
    assert server.counters.connections_refused == 2


def test_clients_of_a_unix_socket_have_no_address_and_no_limit_for_one():
    server = Server(per_address=1, connect_rate=1)
    for _ in range(50):
        transport = RecordingTransport(peerAddress=UNIXAddress(b""))
        protocol = server.factory.buildProtocol(transport.getPeer())
        protocol.makeConnection(transport)
    protocol.dataReceived(REQUEST % b"")
    assert transport.value().startswith(b"HTTP/1.1 101 ")


# -- too many that are no clients ------------------------------------------------------------------


def test_in_a_crowd_the_oldest_pending_makes_room_and_all_others_stay():
    server = Server(handshakes=3)
    client, first = server.open(), server.connect()
    server.clock.advance(PENDING_GRACE - 1)
    second = server.connect()
    server.clock.advance(1.1)
    third = server.connect()
    assert [each.transport.aborts for each in (client, first, second, third)] == [0, 1, 0, 0]
    assert server.counters.aborted_handshakes == 1
    assert server.port.changes == 0
    first.lose()
    third.send(REQUEST % b"")
    assert third.transport.value().startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize("guest", ["page", "closing"])
def test_pages_and_closing_clients_make_room_as_handshakes_do(guest):
    server = Server(handshakes=2)
    if guest == "page":
        old = server.connect()
        old.send(GET)
    else:
        old = server.open()
        old.protocol.close(CloseCode.GOING_AWAY)
    server.clock.advance(PENDING_GRACE + 0.1)
    server.connect()
    assert old.transport.aborts == 1


def test_while_all_pending_connections_are_new_none_is_accepted():
    server = Server(handshakes=3)
    guests = [server.connect() for _ in range(3)]
    assert not server.port.accepting
    server.clock.pump([CROWDED_PAUSE] * round(PENDING_GRACE / CROWDED_PAUSE - 1))
    assert not server.port.accepting
    assert server.counters.aborted_handshakes == 0
    server.clock.pump([CROWDED_PAUSE] * 2)
    assert server.port.accepting
    assert guests[0].transport.aborts == 1
    assert server.port.changes == 2
    for guest in guests:
        guest.lose()
    server.clock.advance(CROWDED_PAUSE)
    assert server.clock.getDelayedCalls() == []


def test_a_crowd_that_became_clients_leaves_room_at_the_next_look():
    server = Server(handshakes=2)
    guests = [server.connect() for _ in range(2)]
    assert not server.port.accepting
    for guest in guests:
        guest.send(REQUEST % b"")
    assert not server.port.accepting
    server.clock.advance(CROWDED_PAUSE)
    assert server.port.accepting
    assert server.counters.aborted_handshakes == 0
    server.clock.advance(100)
    assert server.port.changes == 2


def test_who_comes_from_the_kernels_queue_while_no_more_are_accepted_stops_nothing_twice():
    server = Server(handshakes=2)
    for _ in range(5):
        server.connect()
    assert server.port.changes == 1
    assert len(server.clock.getDelayedCalls()) == 5 + 1, "a deadline for each, and one next look"
    server.clock.pump([CROWDED_PAUSE] * round(PENDING_GRACE / CROWDED_PAUSE + 1))
    assert server.counters.aborted_handshakes == 4, (
        "as many as it takes until there is room for one"
    )
    assert server.port.accepting


@pytest_twisted.ensureDeferred
async def test_draining_in_a_crowd_never_accepts_again():
    server = Server(handshakes=2)
    guests = [server.connect() for _ in range(2)]
    assert not server.port.accepting
    server.connections.draining = True
    drained = defer.Deferred.fromCoroutine(server.connections.drain())
    for guest in guests:
        assert guest.transport.aborts == 1
        guest.lose()
    await drained
    assert server.clock.getDelayedCalls() == []
    assert not server.port.accepting


def test_a_crowd_that_leaves_before_the_drain_begins_opens_no_port_either():
    server = Server(handshakes=2)
    guests = [server.connect() for _ in range(2)]
    server.connections.draining = True
    server.clock.advance(CROWDED_PAUSE)
    for guest in guests:
        guest.lose()
    assert server.clock.getDelayedCalls() == [], "who accepts no more need not look for room"
    server.clock.advance(10)
    assert not server.port.accepting
    assert server.clock.getDelayedCalls() == []


@pytest_twisted.ensureDeferred
async def test_draining_drops_handshakes_and_waits_for_those_that_say_goodbye():
    server = Server()
    handshaking, client = server.connect(), server.open()
    client.protocol.close(CloseCode.GOING_AWAY)
    server.connections.draining = True
    drained = defer.Deferred.fromCoroutine(server.connections.drain())
    assert handshaking.transport.disconnecting
    handshaking.lose()
    assert not drained.called
    client.lose()
    await drained
    await server.connections.drain()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("newcomer", ["handshake", "page"])
async def test_while_clients_move_opening_connections_get_time_to_finish(newcomer):
    server = Server(upgrade_timeout=60)
    slow, quick, client = server.connect(), server.connect(), server.open()
    if newcomer == "page":
        slow.send(GET)
    drained = defer.Deferred.fromCoroutine(server.connections.drain())
    quick.send(REQUEST % b"")
    assert quick.transport.value().startswith(b"HTTP/1.1 101 "), "it becomes a client, to be told"
    server.clock.pump([DRAIN_CHECK_EVERY] * round(DRAIN_GRACE / DRAIN_CHECK_EVERY - 1))
    assert slow.transport.aborts == 0
    server.clock.pump([DRAIN_CHECK_EVERY] * 2)
    assert [each.transport.aborts for each in (slow, quick, client)] == [1, 0, 0]
    for connection in (slow, quick, client):
        assert not drained.called
        connection.lose()
    await drained
    assert server.clock.getDelayedCalls() == []


@pytest_twisted.ensureDeferred
async def test_a_drain_waits_no_longer_than_opening_connections_take():
    server = Server()
    newcomer = server.connect()
    drained = defer.Deferred.fromCoroutine(server.connections.drain())
    newcomer.send(REQUEST % b"")
    server.clock.advance(DRAIN_CHECK_EVERY)
    assert not drained.called
    newcomer.lose()
    await drained
    assert server.clock.getDelayedCalls() == []


def test_an_abort_drops_clients_and_pending_connections():
    server = Server()
    client, closing, guest, page = server.open(), server.open(), server.connect(), server.connect()
    closing.protocol.close(CloseCode.GOING_AWAY)
    page.send(GET)
    server.connections.abort()
    assert [each.transport.aborts for each in (client, closing, guest, page)] == [1] * 4
    for each in (client, closing, guest, page):
        each.lose()
    assert server.clock.getDelayedCalls() == []


# -- together with other processes -----------------------------------------------------------------


class Together:
    """A server, and another process that serves beside it."""

    def __init__(self, others: int, most: int | None = None) -> None:
        self.server = Server(handshakes=10)
        self.counts = ClientCounts()
        self.server.connections.balance = Balance(
            self.server.clock, self.counts, 0, self.server.connections.ports
        )
        self.server.connections.most_together = most
        self.server.connections.balance.serve()
        self.counts.write(1, others)

    def close(self) -> None:
        self.server.connections.balance.leave()
        self.counts.close()


def test_the_counts_know_each_connection_that_comes_and_goes():
    together = Together(0)
    first, second = together.server.connect(), together.server.open()
    assert together.counts.serving() == [2, 0]
    first.lose()
    second.lose()
    assert together.counts.serving() == [0, 0]
    together.close()


def test_a_process_with_more_than_its_share_looks_away_for_a_moment():
    together = Together(0)
    server = together.server
    accepting = []
    while not accepting or accepting[-1]:
        server.connect()
        accepting.append(server.port.accepting)
        assert len(accepting) < 100, "it never looks away"
    assert server.counters.aborted_handshakes == 0
    server.clock.advance(PAUSE)
    assert server.port.accepting
    together.close()


def test_a_port_that_is_held_for_a_crowd_is_not_opened_by_the_balance():
    together = Together(0)
    server = together.server
    for _ in range(10):
        server.connect()
    server.clock.advance(PAUSE)
    assert not server.port.accepting, "the crowd is still there"
    together.close()
    assert not server.port.accepting


@pytest.mark.parametrize(("others", "status_line"), [(2, b"101"), (3, b"503")])
def test_clients_of_all_processes_count_for_the_most_that_there_may_be(others, status_line):
    together = Together(others, most=4)
    together.server.open()
    connection = together.server.connect()
    connection.send(REQUEST % b"")
    assert connection.transport.value().startswith(b"HTTP/1.1 %b " % status_line)
    together.close()


def test_alone_only_its_own_limit_holds():
    server = Server(connections=2)
    server.connections.most_together = 1
    server.open()
    assert not server.connections.full()
    server.open()
    assert server.connections.full()
