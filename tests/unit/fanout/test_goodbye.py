"""Goodbye: all clients are sent away, evenly over the time there is; latecomers too."""

from __future__ import annotations

from itertools import count, pairwise

import pytest
from core_doubles import Client, FixedClock, make_hub

from pushservice.fanout.announcements import Announcements
from pushservice.fanout.goodbye import LEAST_RATE, STEP, Goodbye
from pushservice.fanout.hub import Hub, TurnHooks
from pushservice.protocol.close_codes import CloseCode


class Clients:
    """Clients of one hub, which leave it when they are closed."""

    def __init__(self, number: int) -> None:
        self.clock = FixedClock(1000.0)
        self.hub: Hub = make_hub(self.clock)
        self.announcements = Announcements(self.hub, lambda _share: None)
        self.ids = count()
        #: when each was told, in order
        self.told_at: list[float] = []
        self.clients: list[Client] = []
        for _ in range(number):
            self.come()

    def come(self) -> Client:
        client = Client(self.hub, f"k7f3-{next(self.ids)}")
        client.frames()
        close = client.outlet.close

        def closed(code: CloseCode) -> None:
            close(code)
            self.told_at.append(self.clock.seconds())
            client.session.close()

        client.outlet.close = closed
        self.clients.append(client)
        return client

    def goodbye(self, seconds: float, code: CloseCode = CloseCode.RESTARTING) -> Goodbye:
        self.asked = count(100)
        return Goodbye(
            self.clock, self.hub, self.announcements, code, seconds, lambda: next(self.asked)
        )


def test_all_at_once_are_told_before_it_returns():
    clients = Clients(50)
    goodbye = clients.goodbye(0, CloseCode.GOING_AWAY)
    goodbye.start()
    assert goodbye.over
    assert clients.hub.count_outboxes() == 0
    assert {client.outlet.closed_with for client in clients.clients} == {CloseCode.GOING_AWAY}
    byes = [client.events() for client in clients.clients]
    assert sorted(bye["retry"] for [bye] in byes) == list(range(100, 150)), "asked for each"
    goodbye.stop()
    assert clients.clock.getDelayedCalls() == []


def test_many_are_told_evenly_over_the_time_there_is():
    clients = Clients(5000)
    goodbye = clients.goodbye(10)
    goodbye.start()
    end = clients.clock.seconds() + 10
    shares = []
    while clients.clock.seconds() < end - STEP:
        before = len(clients.told_at)
        assert not goodbye.over
        clients.clock.pass_time(1.0)
        shares.append(len(clients.told_at) - before)
    assert len(clients.told_at) == 5000
    assert max(clients.told_at) <= end
    assert max(shares[:-1]) - min(shares[:-1]) <= 0.05 * 500, shares
    clients.clock.pass_time(STEP)
    assert goodbye.over
    goodbye.stop()


def test_few_are_told_sooner_than_they_might_be():
    clients = Clients(round(LEAST_RATE / 2))
    goodbye = clients.goodbye(10)
    goodbye.start()
    assert 0 < len(clients.told_at) < 20, "not all in the first instant"
    clients.clock.pass_time(0.5)
    assert clients.hub.count_outboxes() == 0
    assert goodbye.over
    goodbye.stop()


@pytest.mark.parametrize("number", [1, 2, 99, 101, 997])
@pytest.mark.parametrize("seconds", [0, 0.01, STEP, 0.3, 10])
def test_nobody_is_left_once_it_is_over(number, seconds):
    clients = Clients(number)
    goodbye = clients.goodbye(seconds)
    goodbye.start()
    clients.clock.pass_time(seconds + STEP)
    assert clients.hub.count_outboxes() == 0
    assert goodbye.over
    goodbye.stop()


def test_latecomers_are_told_within_the_time_and_after_it_at_the_next_step():
    clients = Clients(1000)
    goodbye = clients.goodbye(5)
    goodbye.start()
    clients.clock.pass_time(2.5)
    for _ in range(500):
        clients.come()
    clients.clock.pass_time(2.5 + STEP)
    assert len(clients.told_at) == 1500
    late = clients.come()
    clients.clock.pass_time(STEP)
    assert late.outlet.closed_with == CloseCode.RESTARTING
    goodbye.stop()


def test_a_second_half_that_comes_in_a_rush_does_not_go_in_one():
    clients = Clients(1000)
    goodbye = clients.goodbye(5)
    goodbye.start()
    clients.clock.pass_time(2.5)
    for _ in range(1000):
        clients.come()
    clients.clock.pass_time(2.5 + STEP)
    times = sorted(set(clients.told_at))
    most = max(clients.told_at.count(at) for at in times)
    assert most <= 2 * 1500 / 2.5 * STEP
    assert all(later - earlier <= 2 * STEP for earlier, later in pairwise(times))
    goodbye.stop()


def test_in_a_hurry_the_rest_is_told_at_once_and_it_goes_on_with_latecomers():
    clients = Clients(1000)
    goodbye = clients.goodbye(10)
    goodbye.start()
    clients.clock.pass_time(1)
    assert clients.hub.count_outboxes() > 500
    goodbye.hurry()
    assert clients.hub.count_outboxes() == 0
    assert goodbye.over
    assert len(clients.clock.getDelayedCalls()) == 1
    late = clients.come()
    clients.clock.pass_time(STEP)
    assert late.outlet.closed_with == CloseCode.RESTARTING
    goodbye.stop()


def test_once_stopped_nobody_is_sent_away():
    clients = Clients(1000)
    goodbye = clients.goodbye(10)
    goodbye.start()
    goodbye.stop()
    goodbye.stop()
    told = len(clients.told_at)
    clients.clock.pass_time(20)
    assert len(clients.told_at) == told
    assert clients.clock.getDelayedCalls() == []


def test_one_client_that_fails_does_not_keep_the_others(monkeypatch):
    clients = Clients(3)
    failed = []
    hooks = TurnHooks(lambda outbox, failure: failed.append(outbox))
    monkeypatch.setattr(clients.hub, "_hooks", hooks)
    clients.clients[0].outlet.broken = True
    goodbye = clients.goodbye(0)
    goodbye.start()
    assert [client.outlet.closed_with for client in clients.clients[1:]] == [1012, 1012]
    assert failed == [clients.clients[0].outbox]
    goodbye.stop()
