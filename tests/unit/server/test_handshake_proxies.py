"""Clients behind trusted proxies: which address is counted, and what it may."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from connection_doubles import (
    BEHIND_PROXIES,
    ELSEWHERE,
    FIVE_A_SECOND,
    PROXIES,
    PROXY,
    REQUEST,
    Connection,
    Server,
    UnixTransport,
    forwarded,
    masked,
)

from pushservice.server.connection_limits import PENDING_BURST
from pushservice.server.proxies import NO_PROXIES, Trusted


def status(connection: Connection, headers: bytes = b"", request: bytes = REQUEST) -> int:
    """What a request is answered with."""
    connection.send(request % headers)
    return int(connection.transport.value().split(b" ", 2)[1])


PAGE_REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n"
through_each = pytest.mark.parametrize("proxy", PROXIES.values(), ids=PROXIES)


@through_each
def test_clients_behind_one_proxy_have_limits_of_their_own(proxy):
    server = Server(per_address=2, trusted=BEHIND_PROXIES)
    one, other = forwarded("192.0.2.1"), forwarded("192.0.2.2")
    clients = [server.connect(*proxy) for _ in range(6)]
    answers = [
        status(client, headers)
        for client, headers in zip(clients, (one, one, one, other, other, other), strict=True)
    ]
    assert answers == [101, 101, 429, 101, 101, 429]
    assert b"more than 2 connections from your address" in clients[2].transport.value()
    assert b"\r\nRetry-After: 5\r\n" in clients[2].transport.value()
    assert server.counters.connections_refused == server.counters.handshakes_refused == 2
    for client in clients[:3]:
        client.lose()
    assert status(server.connect(*proxy), one) == 101


@through_each
def test_a_client_behind_a_proxy_and_the_same_one_without_are_counted_together(proxy):
    server = Server(per_address=1, trusted=BEHIND_PROXIES)
    client = server.connect(*proxy)
    assert status(client, forwarded(ELSEWHERE)) == 101
    assert status(server.connect(ELSEWHERE)) == 429
    client.lose()
    assert server.connections.limiter.connections == 1


@through_each
def test_a_client_can_not_choose_the_address_it_is_counted_by(proxy):
    server = Server(per_address=1, trusted=BEHIND_PROXIES)
    assert status(server.connect(*proxy), forwarded("192.0.2.1")) == 101
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
        assert status(server.connect(*proxy), invented) == 429, invented


@pytest.mark.parametrize("trusted", [NO_PROXIES, BEHIND_PROXIES])
def test_the_forwarded_address_of_an_untrusted_peer_is_ignored(trusted):
    server = Server(per_address=1, trusted=trusted)
    assert status(server.connect(), forwarded(ELSEWHERE)) == 101
    assert status(server.connect(), forwarded("192.0.2.2")) == 429
    assert status(server.connect(ELSEWHERE)) == 101


def test_on_a_unix_socket_that_is_not_trusted_nobody_is_counted():
    server = Server(per_address=1, trusted=Trusted([ip_network("10.0.0.0/8")]))
    for _ in range(3):
        connection = server.connect(transport=UnixTransport)
        assert status(connection, forwarded(ELSEWHERE)) == 101
    assert server.connections.limiter._addresses == {}


@through_each
@pytest.mark.parametrize(
    "headers", [b"", forwarded("unknown"), forwarded("10.0.0.2"), forwarded("192.0.2.1, ")]
)
def test_a_proxy_that_names_nobody_has_no_limit_but_room(headers, proxy):
    server = Server(per_address=1, connect_rate=1, connections=50, trusted=BEHIND_PROXIES)
    assert [status(server.connect(*proxy), headers) for _ in range(50)] == [101] * 50
    assert server.connections.limiter._addresses == {}
    silent = Server(handshakes=2, trusted=BEHIND_PROXIES)
    for _ in range(2 + PENDING_BURST):
        silent.connect(*proxy)
    assert silent.drops(PROXY)


@through_each
def test_a_client_behind_a_proxy_that_connects_too_fast_is_told_so(proxy):
    server = Server(connect_rate=1, trusted=BEHIND_PROXIES)
    for _ in range(10):
        client = server.connect(*proxy)
        assert status(client, forwarded(ELSEWHERE)) == 101
        client.lose()
    for request in (REQUEST, PAGE_REQUEST):
        refused = server.connect(*proxy)
        assert status(refused, forwarded(ELSEWHERE), request) == 429
        assert b"\r\nRetry-After: 5\r\n" in refused.transport.value()
        assert b"too many connections from your address" in refused.transport.value()
        assert refused.transport.disconnecting
        refused.lose()
    assert server.counters.connections_refused == server.counters.handshakes_refused == 2
    assert status(server.connect(*proxy), forwarded("192.0.2.2")) == 101
    assert server.drops(ELSEWHERE), "it is the same address without a proxy"
    server.clock.advance(1.1)
    assert status(server.connect(*proxy), forwarded(ELSEWHERE)) == 101
    assert server.connections.limiter.connections == 2


@through_each
def test_pages_are_counted_as_their_clients_too(proxy):
    server = Server(per_address=2, trusted=BEHIND_PROXIES)
    pages = [server.connect(*proxy) for _ in range(2 + 16)]
    for page in pages:
        assert status(page, forwarded(ELSEWHERE), PAGE_REQUEST) == 200
    assert status(server.connect(*proxy), forwarded(ELSEWHERE)) == 429
    assert status(server.connect(*proxy), forwarded(ELSEWHERE), PAGE_REQUEST) == 429
    assert status(server.connect(*proxy), forwarded("192.0.2.2"), PAGE_REQUEST) == 200
    assert server.drops(ELSEWHERE)
    for page in pages:
        page.lose()
    assert not server.drops(ELSEWHERE)


@through_each
def test_a_flood_behind_a_proxy_costs_the_client_that_made_it(proxy):
    server = Server(connect_rate=5, trusted=BEHIND_PROXIES, **FIVE_A_SECOND)
    client = server.connect(*proxy)
    assert status(client, forwarded(ELSEWHERE)) == 101
    client.transport.clear()
    client.send(masked(9, b"") * 100)
    assert server.counters.closed_flooding == 1
    assert [server.drops(ELSEWHERE) for _ in range(45)] == [False] * 44 + [True]


@through_each
def test_a_head_that_comes_in_pieces_is_counted_once(proxy):
    server = Server(connect_rate=1, trusted=BEHIND_PROXIES)
    connection = server.connect(*proxy)
    for byte in REQUEST % forwarded(ELSEWHERE):
        connection.send(bytes([byte]))
    assert connection.transport.value().startswith(b"HTTP/1.1 101 ")
    assert [server.drops(ELSEWHERE) for _ in range(10)] == [False] * 9 + [True]
    connection.lose()
    assert server.connections.limiter._addresses[ELSEWHERE].connections == 0


def test_an_open_client_behind_a_proxy_keeps_no_more_than_another():
    server = Server(trusted=BEHIND_PROXIES)
    behind, direct = server.connect(PROXY), server.connect()
    assert status(behind, forwarded(ELSEWHERE)) == status(direct) == 101
    assert vars(behind.protocol).keys() == vars(direct.protocol).keys()
