"""ConnectionLimiter: who may connect, by address, network and rate; which goes first."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from pushservice.limits import BURST_SECONDS, Limits
from pushservice.server.connection_limits import (
    PENDING_BURST,
    PENDING_GRACE,
    ConnectionLimiter,
    network,
)

HOME = "192.0.2.1"
ELSEWHERE = "192.0.2.2"


class Limited:
    """A limiter with its clock, and connections that it admits."""

    def __init__(self, **limits: float) -> None:
        self.clock = Clock()
        self.clock.advance(1_763_799_999)
        self.limiter = ConnectionLimiter(Limits(**{"connect_rate": 0} | limits), self.clock)

    def connect(self, address: str | None = HOME) -> object | None:
        """A connection if it is admitted."""
        if not self.limiter.admits(address):
            return None
        connection = object()
        self.limiter.accepted(connection, address)
        return connection

    def connect_clients(self, count: int, address: str | None = HOME) -> int:
        """How many of `count` come in and become clients."""
        came = 0
        for _ in range(count):
            connection = self.connect(address)
            if connection is not None:
                self.limiter.became_client(connection)
                came += 1
        return came


# -- whom an address is counted as -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "counted_as"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::FFFF:c000:201", "192.0.2.1"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::/64"),
        ("2001:0DB8:0001:0002:0000:0000:0000:0001", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::1", "::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_an_ipv4_address_is_counted_as_itself_and_an_ipv6_one_as_its_network(host, counted_as):
    assert network(host) == counted_as


# -- connections of one address --------------------------------------------------------------------


def test_an_address_has_too_many_only_beyond_its_limit():
    limited = Limited(per_address=2)
    for over in (False, False, True):
        limited.connect()
        assert limited.limiter.over_address_limit(HOME) is over
    assert not limited.limiter.over_address_limit(ELSEWHERE)


def test_an_address_at_its_limit_is_let_in_a_few_times_more_to_be_told_so_and_then_not_at_all():
    limited = Limited(per_address=2)
    assert limited.connect_clients(100) == 2 + 16
    assert limited.connect_clients(1, ELSEWHERE) == 1


def test_a_connection_that_goes_makes_room_for_another_of_its_address():
    limited = Limited(per_address=1)
    connections = [limited.connect() for _ in range(17)]
    assert limited.connect() is None
    assert limited.limiter.over_address_limit(HOME)
    for connection in connections[:16]:
        limited.limiter.closed(connection, HOME)
    assert not limited.limiter.over_address_limit(HOME)
    assert limited.connect_clients(100) == 16


def test_all_addresses_of_an_ipv6_network_are_counted_together():
    limited = Limited(per_address=4)
    came = [limited.connect(f"2001:db8:1:2::{at:x}") for at in range(100)]
    assert len(came) - came.count(None) == 4 + 16
    assert limited.limiter.over_address_limit("2001:db8:1:2:abcd::")
    assert limited.connect_clients(1, "2001:db8:1:3::1") == 1
    assert not limited.limiter.over_address_limit("2001:db8:1:3::1")


def test_an_ipv4_address_in_ipv6_form_is_counted_with_the_same_address():
    limited = Limited(per_address=1)
    first, _ = limited.connect(HOME), limited.connect(f"::ffff:{HOME}")
    assert limited.limiter.over_address_limit(HOME)
    limited.limiter.closed(first, f"::ffff:{HOME}")
    assert not limited.limiter.over_address_limit(HOME)


def test_without_a_limit_or_an_address_any_number_is_let_in():
    assert Limited(per_address=0).connect_clients(3000) == 3000
    limited = Limited(per_address=1, connect_rate=1)
    assert limited.connect_clients(3000, None) == 3000
    assert not limited.limiter.over_address_limit(None)
    unlimited = Limited(per_address=0)
    unlimited.connect_clients(3000)
    assert not unlimited.limiter.over_address_limit(HOME)


def test_connections_are_counted_from_their_coming_to_their_going():
    limited = Limited()
    connections = [limited.connect(), limited.connect(None), limited.connect(ELSEWHERE)]
    assert limited.limiter.connections == 3
    limited.limiter.became_client(connections[0])
    limited.limiter.closing(connections[0])
    assert limited.limiter.connections == 3
    for connection, address in zip(connections, (HOME, None, ELSEWHERE), strict=True):
        limited.limiter.closed(connection, address)
    assert limited.limiter.connections == 0
    assert limited.limiter.pending() == []


# -- connections that turn out to be from elsewhere ------------------------------------------------


def test_a_connection_that_is_known_as_another_counts_for_that_one_alone():
    limited = Limited(per_address=1)
    connections = [limited.connect(HOME), limited.connect(None), limited.connect(None)]
    assert limited.limiter.address_changed(HOME, ELSEWHERE)
    assert not limited.limiter.over_address_limit(ELSEWHERE)
    assert limited.limiter.address_changed(None, ELSEWHERE)
    assert limited.limiter.over_address_limit(ELSEWHERE)
    assert limited.limiter.address_changed(ELSEWHERE, None)
    assert not limited.limiter.over_address_limit(ELSEWHERE)
    assert limited.limiter.address_changed(None, None)
    assert limited.connect(HOME) is not None
    assert not limited.limiter.over_address_limit(HOME)
    assert limited.limiter.connections == 4
    limited.limiter.closed(connections[0], ELSEWHERE)
    assert {known.connections for known in limited.limiter._addresses.values()} == {0, 1}


def test_a_connection_known_late_is_welcome_where_it_would_have_been_let_in():
    limited = Limited(per_address=2)
    for _ in range(2 + 16):
        limited.connect(None)
        assert limited.limiter.address_changed(None, HOME)
    limited.connect(None)
    assert not limited.limiter.address_changed(None, HOME)
    assert limited.connect(HOME) is None
    # It is counted even so, until it is gone.
    for connection in limited.limiter.pending()[:2]:
        assert limited.connect(HOME) is None
        limited.limiter.closed(connection, HOME)
    assert limited.connect(HOME) is not None


def test_being_known_is_an_attempt_that_counts_for_the_rate():
    limited = Limited(per_address=0, connect_rate=1)
    known = [limited.limiter.address_changed(None, f"2001:db8::{at:x}") for at in range(20)]
    assert known == [True] * 10 + [False] * 10
    assert limited.connect("2001:db8::1") is None
    assert limited.limiter.address_changed(None, ELSEWHERE)
    limited.clock.advance(1)
    assert limited.connect("2001:db8::1") is not None


# -- how fast --------------------------------------------------------------------------------------


def test_ten_seconds_worth_of_connections_may_come_at_once():
    limited = Limited(connect_rate=3, per_address=0)
    assert limited.connect_clients(100) == 3 * BURST_SECONDS
    assert limited.connect_clients(1, ELSEWHERE) == 1


def test_the_rate_comes_back_with_time_and_never_beyond_a_burst():
    limited = Limited(connect_rate=3, per_address=0)
    assert limited.connect_clients(30) == 30
    limited.clock.advance(2)
    assert limited.connect_clients(100) == 6
    limited.clock.advance(BURST_SECONDS)
    assert limited.connect_clients(100) == 30
    limited.clock.advance(1000)
    assert limited.connect_clients(100) == 30


def test_who_keeps_to_the_rate_is_always_let_in():
    limited = Limited(connect_rate=4, per_address=0)
    for _ in range(400):
        limited.clock.advance(0.25)
        assert limited.connect_clients(1) == 1


def test_a_flood_gets_no_share_while_it_floods_and_its_rate_when_it_stops():
    limited = Limited(connect_rate=4, per_address=0)
    assert limited.connect_clients(40) == 40
    for _ in range(1000):
        limited.clock.advance(0.125)
        assert limited.connect_clients(1) == 0, "twice as fast as allowed brings nothing at all"
    limited.clock.advance(0.25)
    assert limited.connect_clients(2) == 1
    limited.clock.advance(5)
    assert limited.connect_clients(100) == 20


def test_a_flood_from_one_address_takes_nothing_from_another():
    limited = Limited(connect_rate=1, per_address=0)
    limited.connect_clients(1000)
    assert limited.connect_clients(20, ELSEWHERE) == 10


def test_connections_that_go_give_none_of_the_rate_back():
    limited = Limited(connect_rate=1, per_address=0)
    for _ in range(10):
        limited.limiter.closed(limited.connect(), HOME)
    assert limited.connect() is None


def test_attempts_beyond_the_limit_of_an_address_count_against_its_rate():
    limited = Limited(connect_rate=2, per_address=1)
    came = [limited.connect() for _ in range(19)]
    assert came.count(None) == 2
    for connection in filter(None, came):
        limited.limiter.closed(connection, HOME)
    assert [limited.connect() is None for _ in range(2)] == [False, True]


def test_a_clock_that_is_set_back_neither_gives_nor_takes():
    limited = Limited(connect_rate=1, per_address=0)
    limited.connect_clients(5)
    limited.clock.rightNow -= 1000
    assert limited.connect_clients(100) == 5
    limited.clock.advance(3)
    assert limited.connect_clients(100) == 3


# -- addresses are forgotten -----------------------------------------------------------------------


def addresses(count: int, first: int = 0) -> list[str]:
    return [f"10.{at >> 16}.{at >> 8 & 255}.{at & 255}" for at in range(first, first + count)]


@pytest.mark.parametrize("rate", [0, 5])
def test_addresses_without_a_connection_are_forgotten_once_there_are_many(rate):
    limited = Limited(connect_rate=rate)
    for address in addresses(20_000):
        limited.limiter.closed(limited.connect(address), address)
        limited.clock.advance(0.1)
    # A hundred came in the last ten seconds.
    assert len(limited.limiter._addresses) <= 1024


def test_an_address_that_has_connections_is_never_forgotten():
    limited = Limited(per_address=1)
    for _ in range(2):
        limited.connect(HOME)
    limited.clock.advance(1000)
    for address in addresses(5000):
        limited.limiter.closed(limited.connect(address), address)
    assert limited.limiter.over_address_limit(HOME)
    assert not limited.limiter.over_address_limit(ELSEWHERE)


def test_an_address_that_spent_its_rate_just_now_is_not_forgotten():
    limited = Limited(connect_rate=1, per_address=0)
    for _ in range(10):
        limited.limiter.closed(limited.connect(HOME), HOME)
    limited.clock.advance(BURST_SECONDS - 0.5)
    for address in addresses(5000):
        limited.limiter.closed(limited.connect(address), address)
    assert limited.connect_clients(100, HOME) == 9, (
        "nine seconds' worth, and no full purse as a newcomer has"
    )


def test_not_each_new_address_costs_a_pass_over_all():
    limited = Limited()
    looks = []
    prune = limited.limiter._prune

    def counted(now: float) -> None:
        looks.append(now)
        prune(now)

    limited.limiter._prune = counted
    # All of them stay connected, so no look finds any.
    for address in addresses(20_000):
        limited.limiter.accepted(object(), address)
    assert 1 <= len(looks) <= 6


# -- pending connections ---------------------------------------------------------------------------


def test_a_connection_is_a_pending_until_it_is_a_client_and_again_when_it_closes():
    limited = Limited()
    first, second = limited.connect(), limited.connect()
    assert limited.limiter.pending() == [first, second]
    limited.limiter.became_client(first)
    assert limited.limiter.pending() == [second]
    limited.limiter.closing(first)
    assert limited.limiter.pending() == [second, first]
    limited.limiter.closed(first, HOME)
    assert limited.limiter.pending() == [second]


def test_there_is_a_crowd_when_as_many_pendings_are_there_as_may_be():
    limited = Limited(handshakes=3)
    connections = [limited.connect() for _ in range(2)]
    assert not limited.limiter.crowded
    connections.append(limited.connect())
    assert limited.limiter.crowded
    limited.limiter.became_client(connections[1])
    assert not limited.limiter.crowded
    limited.limiter.closing(connections[1])
    assert limited.limiter.crowded


def test_clients_are_no_crowd():
    limited = Limited(handshakes=3, per_address=0)
    assert limited.connect_clients(1000) == 1000
    assert not limited.limiter.crowded
    assert limited.limiter.oldest_pending() is None


def test_the_oldest_pending_is_the_first_that_came_and_is_left_in_peace_for_a_while():
    limited = Limited(handshakes=3)
    assert limited.limiter.oldest_pending() is None
    first = limited.connect()
    limited.clock.advance(PENDING_GRACE / 2)
    second = limited.connect()
    assert limited.limiter.oldest_pending() is None
    limited.clock.advance(PENDING_GRACE / 2)
    assert limited.limiter.oldest_pending() is first
    limited.limiter.closed(first, HOME)
    assert limited.limiter.oldest_pending() is None
    limited.clock.advance(PENDING_GRACE / 2)
    assert limited.limiter.oldest_pending() is second


def test_a_client_that_closes_is_as_old_a_pending_as_its_close():
    limited = Limited()
    client = limited.connect()
    limited.limiter.became_client(client)
    newcomer = limited.connect()
    limited.clock.advance(100)
    limited.limiter.closing(client)
    assert limited.limiter.oldest_pending() is newcomer
    limited.limiter.became_client(newcomer)
    assert limited.limiter.oldest_pending() is None
    limited.clock.advance(PENDING_GRACE)
    assert limited.limiter.oldest_pending() is client


def test_a_pending_that_closes_is_no_younger_for_it():
    limited = Limited()
    pending = limited.connect()
    limited.clock.advance(PENDING_GRACE)
    limited.limiter.closing(pending)
    assert limited.limiter.oldest_pending() is pending


def test_far_beyond_the_pending_limit_none_is_admitted_even_without_an_address():
    limited = Limited(handshakes=20, per_address=0)
    came = [limited.connect() for _ in range(1000)]
    assert len(came) - came.count(None) == 20 + PENDING_BURST
    assert limited.connect(ELSEWHERE) is None
    assert limited.connect(None) is None
    limited.limiter.became_client(came[0])
    assert limited.connect(ELSEWHERE) is not None
    assert limited.connect(ELSEWHERE) is None


def test_who_is_refused_for_lack_of_room_spends_none_of_its_rate():
    limited = Limited(handshakes=20, per_address=0, connect_rate=1)
    pendings = [limited.connect(None) for _ in range(20 + PENDING_BURST)]
    assert [limited.connect(HOME) for _ in range(100)] == [None] * 100
    for pending in pendings:
        limited.limiter.became_client(pending)
    assert limited.connect_clients(100, HOME) == 10


def test_a_client_closed_for_flooding_costs_its_address_a_second_of_connections():
    clock = Clock()
    admission = ConnectionLimiter(Limits(connect_rate=5), clock)
    admission.flooded("10.0.0.1")
    assert sum(admission.admits("10.0.0.1") for _ in range(100)) == 45
    admission.flooded("10.0.0.1")
    admission.flooded("10.0.0.1")
    admission.flooded(None)
    clock.advance(1.0)
    assert not admission.admits("10.0.0.1"), "what it owes is a second's worth at most"
    clock.advance(0.3)
    assert admission.admits("10.0.0.1")
    assert admission.admits("10.0.0.2")
    assert sum(admission.admits("10.0.0.2") for _ in range(100)) == 49
