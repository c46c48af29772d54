"""Where connections arrive: limits, crowds, draining, and other processes beside this one."""

from __future__ import annotations

import pytest
import pytest_twisted
from edge_doubles import (
    ELSEWHERE,
    GET,
    REQUEST,
    Edge,
    RecordingTransport,
)
from twisted.internet import defer
from twisted.internet.address import UNIXAddress

from pushservice.protocol.close_codes import CloseCode
from pushservice.server.balance import PAUSE, Balance
from pushservice.server.client_counts import ClientCounts
from pushservice.server.connection_limits import PENDING_GRACE
from pushservice.server.connections import CROWDED_PAUSE, DRAIN_CHECK_EVERY, DRAIN_GRACE


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
    edge.connections.draining = True
    connection = edge.connect()
    connection.send(REQUEST % b"")
    assert connection.transport.value().startswith(b"HTTP/1.1 503 ")


def test_an_address_with_too_many_connections_is_told_so_and_others_are_not():
    edge = Edge(per_address=2)
    inside = [edge.open(), edge.open()]
    refused = edge.connect()
    refused.send(REQUEST % b"")
    answer = refused.transport.value()
    assert answer.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    assert b"\r\nRetry-After: 5\r\n" in answer
    assert b"more than 2 connections from your address" in answer
    assert refused.transport.disconnecting
    assert (edge.counters.connections_refused, edge.counters.handshakes_refused) == (1, 1)
    edge.open(host=ELSEWHERE)
    refused.lose()
    inside[0].lose()
    edge.open()


def test_unfinished_handshakes_count_for_their_address_too():
    edge = Edge(per_address=2)
    edge.connect()
    edge.connect()
    late = edge.connect()
    late.send(REQUEST % b"")
    assert late.transport.value().startswith(b"HTTP/1.1 429 ")


def test_far_beyond_its_limit_an_address_is_not_even_let_in():
    edge = Edge(per_address=1)
    connections = [edge.connect() for _ in range(1 + 16)]
    assert edge.refuses()
    assert edge.refuses("::ffff:127.0.0.1")
    assert not edge.refuses(ELSEWHERE)
    assert edge.counters.connections_refused == 2
    assert edge.counters.connections_accepted == edge.connections.limiter.connections == 17
    for connection in connections:
        connection.lose()
    assert edge.connections.limiter.connections == 0
    assert not edge.refuses()


def test_an_address_that_connects_too_fast_is_not_let_in_until_it_stops():
    edge = Edge(connect_rate=1)
    for _ in range(10):
        edge.open().lose()
    assert edge.refuses()
    assert not edge.refuses(ELSEWHERE)
    edge.clock.advance(1.1)
    edge.open()
    assert edge.refuses()
    assert edge.counters.connections_refused == 2


def test_clients_of_a_unix_socket_have_no_address_and_no_limit_for_one():
    edge = Edge(per_address=1, connect_rate=1)
    for _ in range(50):
        transport = RecordingTransport(peerAddress=UNIXAddress(b""))
        protocol = edge.factory.buildProtocol(transport.getPeer())
        protocol.makeConnection(transport)
    protocol.dataReceived(REQUEST % b"")
    assert transport.value().startswith(b"HTTP/1.1 101 ")


# -- too many that are no clients ------------------------------------------------------------------


def test_in_a_crowd_the_oldest_pending_makes_room_and_all_others_stay():
    edge = Edge(handshakes=3)
    client, first = edge.open(), edge.connect()
    edge.clock.advance(PENDING_GRACE - 1)
    second = edge.connect()
    edge.clock.advance(1.1)
    third = edge.connect()
    assert [each.transport.aborts for each in (client, first, second, third)] == [0, 1, 0, 0]
    assert edge.counters.aborted_handshakes == 1
    assert edge.port.changes == 0
    first.lose()
    third.send(REQUEST % b"")
    assert third.transport.value().startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize("guest", ["page", "closing"])
def test_pages_and_closing_clients_make_room_as_handshakes_do(guest):
    edge = Edge(handshakes=2)
    if guest == "page":
        old = edge.connect()
        old.send(GET)
    else:
        old = edge.open()
        old.protocol.close(CloseCode.GOING_AWAY)
    edge.clock.advance(PENDING_GRACE + 0.1)
    edge.connect()
    assert old.transport.aborts == 1


def test_in_a_crowd_of_newcomers_nobody_is_accepted_until_the_oldest_had_its_time():
    edge = Edge(handshakes=3)
    guests = [edge.connect() for _ in range(3)]
    assert not edge.port.accepting
    edge.clock.pump([CROWDED_PAUSE] * round(PENDING_GRACE / CROWDED_PAUSE - 1))
    assert not edge.port.accepting
    assert edge.counters.aborted_handshakes == 0
    edge.clock.pump([CROWDED_PAUSE] * 2)
    assert edge.port.accepting
    assert guests[0].transport.aborts == 1
    assert edge.port.changes == 2
    for guest in guests:
        guest.lose()
    edge.clock.advance(CROWDED_PAUSE)
    assert edge.clock.getDelayedCalls() == []


def test_a_crowd_that_became_clients_leaves_room_at_the_next_look():
    edge = Edge(handshakes=2)
    guests = [edge.connect() for _ in range(2)]
    assert not edge.port.accepting
    for guest in guests:
        guest.send(REQUEST % b"")
    assert not edge.port.accepting
    edge.clock.advance(CROWDED_PAUSE)
    assert edge.port.accepting
    assert edge.counters.aborted_handshakes == 0
    edge.clock.advance(100)
    assert edge.port.changes == 2


def test_who_comes_from_the_kernels_queue_while_no_more_are_accepted_stops_nothing_twice():
    edge = Edge(handshakes=2)
    for _ in range(5):
        edge.connect()
    assert edge.port.changes == 1
    assert len(edge.clock.getDelayedCalls()) == 5 + 1, "a deadline for each, and one next look"
    edge.clock.pump([CROWDED_PAUSE] * round(PENDING_GRACE / CROWDED_PAUSE + 1))
    assert edge.counters.aborted_handshakes == 4, "as many as it takes until there is room for one"
    assert edge.port.accepting


@pytest_twisted.ensureDeferred
async def test_draining_in_a_crowd_never_accepts_again():
    edge = Edge(handshakes=2)
    guests = [edge.connect() for _ in range(2)]
    assert not edge.port.accepting
    edge.connections.draining = True
    drained = defer.Deferred.fromCoroutine(edge.connections.drain())
    for guest in guests:
        assert guest.transport.aborts == 1
        guest.lose()
    await drained
    assert edge.clock.getDelayedCalls() == []
    assert not edge.port.accepting


def test_a_crowd_that_leaves_before_the_drain_begins_opens_no_port_either():
    edge = Edge(handshakes=2)
    guests = [edge.connect() for _ in range(2)]
    edge.connections.draining = True
    edge.clock.advance(CROWDED_PAUSE)
    for guest in guests:
        guest.lose()
    assert edge.clock.getDelayedCalls() == [], "who accepts no more need not look for room"
    edge.clock.advance(10)
    assert not edge.port.accepting
    assert edge.clock.getDelayedCalls() == []


@pytest_twisted.ensureDeferred
async def test_draining_drops_handshakes_and_waits_for_those_that_say_goodbye():
    edge = Edge()
    handshaking, client = edge.connect(), edge.open()
    client.protocol.close(CloseCode.GOING_AWAY)
    edge.connections.draining = True
    drained = defer.Deferred.fromCoroutine(edge.connections.drain())
    assert handshaking.transport.disconnecting
    handshaking.lose()
    assert not drained.called
    client.lose()
    await drained
    await edge.connections.drain()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("newcomer", ["handshake", "page"])
async def test_where_clients_are_sent_elsewhere_newcomers_have_a_moment_first(newcomer):
    edge = Edge(upgrade_timeout=60)
    slow, quick, client = edge.connect(), edge.connect(), edge.open()
    if newcomer == "page":
        slow.send(GET)
    drained = defer.Deferred.fromCoroutine(edge.connections.drain())
    quick.send(REQUEST % b"")
    assert quick.transport.value().startswith(b"HTTP/1.1 101 "), "it becomes a client, to be told"
    edge.clock.pump([DRAIN_CHECK_EVERY] * round(DRAIN_GRACE / DRAIN_CHECK_EVERY - 1))
    assert slow.transport.aborts == 0
    edge.clock.pump([DRAIN_CHECK_EVERY] * 2)
    assert [each.transport.aborts for each in (slow, quick, client)] == [1, 0, 0]
    for connection in (slow, quick, client):
        assert not drained.called
        connection.lose()
    await drained
    assert edge.clock.getDelayedCalls() == []


@pytest_twisted.ensureDeferred
async def test_newcomers_that_are_served_in_time_are_waited_for_no_longer():
    edge = Edge()
    newcomer = edge.connect()
    drained = defer.Deferred.fromCoroutine(edge.connections.drain())
    newcomer.send(REQUEST % b"")
    edge.clock.advance(DRAIN_CHECK_EVERY)
    assert not drained.called
    newcomer.lose()
    await drained
    assert edge.clock.getDelayedCalls() == []


def test_an_abort_drops_clients_those_that_are_being_closed_and_guests():
    edge = Edge()
    client, closing, guest, page = edge.open(), edge.open(), edge.connect(), edge.connect()
    closing.protocol.close(CloseCode.GOING_AWAY)
    page.send(GET)
    edge.connections.abort()
    assert [each.transport.aborts for each in (client, closing, guest, page)] == [1] * 4
    for each in (client, closing, guest, page):
        each.lose()
    assert edge.clock.getDelayedCalls() == []


# -- together with other processes -----------------------------------------------------------------


class Together:
    """An edge, and another process that serves beside it."""

    def __init__(self, others: int, most: int | None = None) -> None:
        self.edge = Edge(handshakes=10)
        self.counts = ClientCounts()
        self.edge.connections.balance = Balance(
            self.edge.clock, self.counts, 0, self.edge.connections.ports
        )
        self.edge.connections.most_together = most
        self.edge.connections.balance.serve()
        self.counts.write(1, others)

    def close(self) -> None:
        self.edge.connections.balance.leave()
        self.counts.close()


def test_the_tally_knows_each_connection_that_comes_and_goes():
    together = Together(0)
    first, second = together.edge.connect(), together.edge.open()
    assert together.counts.serving() == [2, 0]
    first.lose()
    second.lose()
    assert together.counts.serving() == [0, 0]
    together.close()


def test_a_process_with_more_than_its_share_looks_away_for_a_moment():
    together = Together(0)
    edge = together.edge
    accepting = []
    while not accepting or accepting[-1]:
        edge.connect()
        accepting.append(edge.port.accepting)
        assert len(accepting) < 100, "it never looks away"
    assert edge.counters.aborted_handshakes == 0
    edge.clock.advance(PAUSE)
    assert edge.port.accepting
    together.close()


def test_a_port_that_is_held_for_a_crowd_is_not_opened_by_the_balance():
    together = Together(0)
    edge = together.edge
    for _ in range(10):
        edge.connect()
    edge.clock.advance(PAUSE)
    assert not edge.port.accepting, "the crowd is still there"
    together.close()
    assert not edge.port.accepting


@pytest.mark.parametrize(("others", "status_line"), [(2, b"101"), (3, b"503")])
def test_clients_of_all_processes_count_for_the_most_that_there_may_be(others, status_line):
    together = Together(others, most=4)
    together.edge.open()
    connection = together.edge.connect()
    connection.send(REQUEST % b"")
    assert connection.transport.value().startswith(b"HTTP/1.1 %b " % status_line)
    together.close()


def test_alone_only_its_own_limit_holds():
    edge = Edge(connections=2)
    edge.connections.most_together = 1
    edge.open()
    assert not edge.connections.full()
    edge.open()
    assert edge.connections.full()
