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


class Door:
    """An admission with its clock, and connections that come in when they are admitted."""

    def __init__(self, **limits: float) -> None:
        self.clock = Clock()
        self.clock.advance(1_763_799_999)
        self.limiter = ConnectionLimiter(Limits(**{"connect_rate": 0} | limits), self.clock)

    def knock(self, address: str | None = HOME) -> object | None:
        """A connection if it is admitted."""
        if not self.limiter.admits(address):
            return None
        connection = object()
        self.limiter.accepted(connection, address)
        return connection

    def let_in(self, count: int, address: str | None = HOME) -> int:
        """How many of `count` come in and become clients."""
        came = 0
        for _ in range(count):
            connection = self.knock(address)
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
    door = Door(per_address=2)
    for crowded_out in (False, False, True):
        door.knock()
        assert door.limiter.over_address_limit(HOME) is crowded_out
    assert not door.limiter.over_address_limit(ELSEWHERE)


def test_an_address_at_its_limit_is_let_in_a_few_times_more_to_be_told_so_and_then_not_at_all():
    door = Door(per_address=2)
    assert door.let_in(100) == 2 + 16
    assert door.let_in(1, ELSEWHERE) == 1


def test_a_connection_that_goes_makes_room_for_another_of_its_address():
    door = Door(per_address=1)
    connections = [door.knock() for _ in range(17)]
    assert door.knock() is None
    assert door.limiter.over_address_limit(HOME)
    for connection in connections[:16]:
        door.limiter.closed(connection, HOME)
    assert not door.limiter.over_address_limit(HOME)
    assert door.let_in(100) == 16


def test_all_addresses_of_an_ipv6_network_are_counted_together():
    door = Door(per_address=4)
    came = [door.knock(f"2001:db8:1:2::{at:x}") for at in range(100)]
    assert len(came) - came.count(None) == 4 + 16
    assert door.limiter.over_address_limit("2001:db8:1:2:abcd::")
    assert door.let_in(1, "2001:db8:1:3::1") == 1
    assert not door.limiter.over_address_limit("2001:db8:1:3::1")


def test_an_ipv4_address_in_ipv6_form_is_counted_with_the_same_address():
    door = Door(per_address=1)
    first, _ = door.knock(HOME), door.knock(f"::ffff:{HOME}")
    assert door.limiter.over_address_limit(HOME)
    door.limiter.closed(first, f"::ffff:{HOME}")
    assert not door.limiter.over_address_limit(HOME)


def test_without_a_limit_or_an_address_any_number_is_let_in():
    assert Door(per_address=0).let_in(3000) == 3000
    door = Door(per_address=1, connect_rate=1)
    assert door.let_in(3000, None) == 3000
    assert not door.limiter.over_address_limit(None)
    unlimited = Door(per_address=0)
    unlimited.let_in(3000)
    assert not unlimited.limiter.over_address_limit(HOME)


def test_connections_are_counted_from_their_coming_to_their_going():
    door = Door()
    connections = [door.knock(), door.knock(None), door.knock(ELSEWHERE)]
    assert door.limiter.connections == 3
    door.limiter.became_client(connections[0])
    door.limiter.closing(connections[0])
    assert door.limiter.connections == 3
    for connection, address in zip(connections, (HOME, None, ELSEWHERE), strict=True):
        door.limiter.closed(connection, address)
    assert door.limiter.connections == 0
    assert door.limiter.pending() == []


# -- connections that turn out to be from elsewhere ------------------------------------------------


def test_a_connection_that_is_known_as_another_counts_for_that_one_alone():
    door = Door(per_address=1)
    connections = [door.knock(HOME), door.knock(None), door.knock(None)]
    assert door.limiter.address_changed(HOME, ELSEWHERE)
    assert not door.limiter.over_address_limit(ELSEWHERE)
    assert door.limiter.address_changed(None, ELSEWHERE)
    assert door.limiter.over_address_limit(ELSEWHERE)
    assert door.limiter.address_changed(ELSEWHERE, None)
    assert not door.limiter.over_address_limit(ELSEWHERE)
    assert door.limiter.address_changed(None, None)
    assert door.knock(HOME) is not None
    assert not door.limiter.over_address_limit(HOME)
    assert door.limiter.connections == 4
    door.limiter.closed(connections[0], ELSEWHERE)
    assert {known.connections for known in door.limiter._addresses.values()} == {0, 1}


def test_a_connection_known_late_is_welcome_where_it_would_have_been_let_in():
    door = Door(per_address=2)
    for _ in range(2 + 16):
        door.knock(None)
        assert door.limiter.address_changed(None, HOME)
    door.knock(None)
    assert not door.limiter.address_changed(None, HOME)
    assert door.knock(HOME) is None
    # It is counted even so, until it is gone.
    for connection in door.limiter.pending()[:2]:
        assert door.knock(HOME) is None
        door.limiter.closed(connection, HOME)
    assert door.knock(HOME) is not None


def test_being_known_is_an_attempt_that_counts_for_the_rate():
    door = Door(per_address=0, connect_rate=1)
    known = [door.limiter.address_changed(None, f"2001:db8::{at:x}") for at in range(20)]
    assert known == [True] * 10 + [False] * 10
    assert door.knock("2001:db8::1") is None
    assert door.limiter.address_changed(None, ELSEWHERE)
    door.clock.advance(1)
    assert door.knock("2001:db8::1") is not None


# -- how fast --------------------------------------------------------------------------------------


def test_ten_seconds_worth_of_connections_may_come_at_once():
    door = Door(connect_rate=3, per_address=0)
    assert door.let_in(100) == 3 * BURST_SECONDS
    assert door.let_in(1, ELSEWHERE) == 1


def test_the_rate_comes_back_with_time_and_never_beyond_a_burst():
    door = Door(connect_rate=3, per_address=0)
    assert door.let_in(30) == 30
    door.clock.advance(2)
    assert door.let_in(100) == 6
    door.clock.advance(BURST_SECONDS)
    assert door.let_in(100) == 30
    door.clock.advance(1000)
    assert door.let_in(100) == 30


def test_who_keeps_to_the_rate_is_always_let_in():
    door = Door(connect_rate=4, per_address=0)
    for _ in range(400):
        door.clock.advance(0.25)
        assert door.let_in(1) == 1


def test_a_flood_gets_no_share_while_it_floods_and_its_rate_when_it_stops():
    door = Door(connect_rate=4, per_address=0)
    assert door.let_in(40) == 40
    for _ in range(1000):
        door.clock.advance(0.125)
        assert door.let_in(1) == 0, "twice as fast as allowed brings nothing at all"
    door.clock.advance(0.25)
    assert door.let_in(2) == 1
    door.clock.advance(5)
    assert door.let_in(100) == 20


def test_a_flood_from_one_address_takes_nothing_from_another():
    door = Door(connect_rate=1, per_address=0)
    door.let_in(1000)
    assert door.let_in(20, ELSEWHERE) == 10


def test_connections_that_go_give_none_of_the_rate_back():
    door = Door(connect_rate=1, per_address=0)
    for _ in range(10):
        door.limiter.closed(door.knock(), HOME)
    assert door.knock() is None


def test_attempts_beyond_the_limit_of_an_address_count_against_its_rate():
    door = Door(connect_rate=2, per_address=1)
    came = [door.knock() for _ in range(19)]
    assert came.count(None) == 2
    for connection in filter(None, came):
        door.limiter.closed(connection, HOME)
    assert [door.knock() is None for _ in range(2)] == [False, True]


def test_a_clock_that_is_set_back_neither_gives_nor_takes():
    door = Door(connect_rate=1, per_address=0)
    door.let_in(5)
    door.clock.rightNow -= 1000
    assert door.let_in(100) == 5
    door.clock.advance(3)
    assert door.let_in(100) == 3


# -- addresses are forgotten -----------------------------------------------------------------------


def addresses(count: int, first: int = 0) -> list[str]:
    return [f"10.{at >> 16}.{at >> 8 & 255}.{at & 255}" for at in range(first, first + count)]


@pytest.mark.parametrize("rate", [0, 5])
def test_addresses_without_a_connection_are_forgotten_once_there_are_many(rate):
    door = Door(connect_rate=rate)
    for address in addresses(20_000):
        door.limiter.closed(door.knock(address), address)
        door.clock.advance(0.1)
    # A hundred came in the last ten seconds.
    assert len(door.limiter._addresses) <= 1024


def test_an_address_that_has_connections_is_never_forgotten():
    door = Door(per_address=1)
    for _ in range(2):
        door.knock(HOME)
    door.clock.advance(1000)
    for address in addresses(5000):
        door.limiter.closed(door.knock(address), address)
    assert door.limiter.over_address_limit(HOME)
    assert not door.limiter.over_address_limit(ELSEWHERE)


def test_an_address_that_spent_its_rate_just_now_is_not_forgotten():
    door = Door(connect_rate=1, per_address=0)
    for _ in range(10):
        door.limiter.closed(door.knock(HOME), HOME)
    door.clock.advance(BURST_SECONDS - 0.5)
    for address in addresses(5000):
        door.limiter.closed(door.knock(address), address)
    assert door.let_in(100, HOME) == 9, "nine seconds' worth, and no full purse as a newcomer has"


def test_looking_for_addresses_to_forget_does_not_cost_each_newcomer():
    door = Door()
    looks = []
    prune = door.limiter._prune

    def counted(now: float) -> None:
        looks.append(now)
        prune(now)

    door.limiter._prune = counted
    # All of them stay connected, so no look finds any.
    for address in addresses(20_000):
        door.limiter.accepted(object(), address)
    assert 1 <= len(looks) <= 6


# -- guests ----------------------------------------------------------------------------------------


def test_a_connection_is_a_guest_until_it_is_a_client_and_again_when_it_closes():
    door = Door()
    first, second = door.knock(), door.knock()
    assert door.limiter.pending() == [first, second]
    door.limiter.became_client(first)
    assert door.limiter.pending() == [second]
    door.limiter.closing(first)
    assert door.limiter.pending() == [second, first]
    door.limiter.closed(first, HOME)
    assert door.limiter.pending() == [second]


def test_there_is_a_crowd_when_as_many_guests_are_there_as_may_be():
    door = Door(handshakes=3)
    connections = [door.knock() for _ in range(2)]
    assert not door.limiter.crowded
    connections.append(door.knock())
    assert door.limiter.crowded
    door.limiter.became_client(connections[1])
    assert not door.limiter.crowded
    door.limiter.closing(connections[1])
    assert door.limiter.crowded


def test_clients_are_no_crowd():
    door = Door(handshakes=3, per_address=0)
    assert door.let_in(1000) == 1000
    assert not door.limiter.crowded
    assert door.limiter.oldest_pending() is None


def test_the_oldest_pending_is_the_first_that_came_and_is_left_in_peace_for_a_while():
    door = Door(handshakes=3)
    assert door.limiter.oldest_pending() is None
    first = door.knock()
    door.clock.advance(PENDING_GRACE / 2)
    second = door.knock()
    assert door.limiter.oldest_pending() is None
    door.clock.advance(PENDING_GRACE / 2)
    assert door.limiter.oldest_pending() is first
    door.limiter.closed(first, HOME)
    assert door.limiter.oldest_pending() is None
    door.clock.advance(PENDING_GRACE / 2)
    assert door.limiter.oldest_pending() is second


def test_a_client_that_closes_is_as_old_a_guest_as_its_close():
    door = Door()
    client = door.knock()
    door.limiter.became_client(client)
    newcomer = door.knock()
    door.clock.advance(100)
    door.limiter.closing(client)
    assert door.limiter.oldest_pending() is newcomer
    door.limiter.became_client(newcomer)
    assert door.limiter.oldest_pending() is None
    door.clock.advance(PENDING_GRACE)
    assert door.limiter.oldest_pending() is client


def test_a_guest_that_closes_is_no_younger_for_it():
    door = Door()
    guest = door.knock()
    door.clock.advance(PENDING_GRACE)
    door.limiter.closing(guest)
    assert door.limiter.oldest_pending() is guest


def test_nobody_is_let_in_far_beyond_the_guests_that_may_be_not_even_without_an_address():
    door = Door(handshakes=20, per_address=0)
    came = [door.knock() for _ in range(1000)]
    assert len(came) - came.count(None) == 20 + PENDING_BURST
    assert door.knock(ELSEWHERE) is None
    assert door.knock(None) is None
    door.limiter.became_client(came[0])
    assert door.knock(ELSEWHERE) is not None
    assert door.knock(ELSEWHERE) is None


def test_who_is_refused_for_lack_of_room_spends_none_of_its_rate():
    door = Door(handshakes=20, per_address=0, connect_rate=1)
    guests = [door.knock(None) for _ in range(20 + PENDING_BURST)]
    assert [door.knock(HOME) for _ in range(100)] == [None] * 100
    for guest in guests:
        door.limiter.became_client(guest)
    assert door.let_in(100, HOME) == 10


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
