"""Liveness: silent clients are found by pings, stalled ones by what they take."""

from __future__ import annotations

import pytest
from core_doubles import Client, FixedClock, make_hub, publish

from pushservice.fanout.interfaces import Progress
from pushservice.fanout.liveness import Liveness
from pushservice.limits import Limits
from pushservice.metrics import Counters

PING = (0x89, b"")


class Watch:
    """A hub that is looked after, and who was given up."""

    def __init__(self, **limits: float) -> None:
        self.clock = FixedClock()
        self.counters = Counters()
        self.limits = Limits(**limits)
        self.hub = make_hub(self.clock, self.counters, self.limits)
        self.given_up: list[tuple[str, str]] = []
        self.liveness = Liveness(
            self.hub,
            self.clock,
            self.limits,
            self.counters,
            lambda outbox, why: self.given_up.append((outbox.conn, why)),
        )
        self.liveness.start()

    def client(self, conn: str = "t-1") -> Client:
        client = Client(self.hub, conn)
        client.say({"op": "subscribe", "symbols": ["A"]})
        client.frames()
        return client


def pinged(client: Client) -> bool:
    frames = client.frames()
    assert all(frame == PING for frame in frames)
    assert len(frames) <= 1
    return bool(frames)


def test_each_client_is_pinged_once_an_interval_and_not_all_at_once():
    watch = Watch(ping_interval=20, ping_timeout=10)
    clients = [watch.client(f"t-{at}") for at in range(20)]
    for _ in range(3):
        at_once = []
        for _ in range(20):
            watch.clock.pass_time(1)
            asked = [client for client in clients if pinged(client)]
            for client in asked:
                client.session.arrived(6)
            at_once.append(len(asked))
        assert at_once == [1] * 20
    assert watch.given_up == []


def test_a_client_that_does_not_answer_is_aborted_after_the_timeout_and_not_before():
    watch = Watch(ping_interval=20, ping_timeout=10)
    silent, lively = watch.client("silent"), watch.client("lively")
    asked = None
    while asked is None:
        watch.clock.pass_time(1)
        if pinged(silent):
            asked = watch.clock.seconds()
    for _ in range(99):
        watch.clock.pass_time(0.1)
        if pinged(lively):
            lively.session.arrived(6)
    assert not silent.outlet.aborted
    watch.clock.pass_time(0.2)
    assert silent.outlet.aborted
    assert not lively.outlet.aborted
    assert watch.given_up == [("silent", "no answer to a ping for 10 s")]
    assert watch.counters.aborted_silent == 1


def test_a_client_gone_silent_is_found_within_interval_and_timeout():
    watch = Watch(ping_interval=20, ping_timeout=10)
    client = watch.client()
    watch.clock.pass_time(7)
    client.session.arrived(6)
    watch.clock.pass_time(30)
    assert client.outlet.aborted


@pytest.mark.parametrize("say", [{"op": "ping"}, b"nonsense"])
def test_whatever_comes_from_a_client_shows_that_it_lives(say):
    watch = Watch(ping_interval=20, ping_timeout=10)
    client = watch.client()
    for _ in range(100):
        watch.clock.pass_time(1)
        if any(frame == PING for frame in client.frames()):
            client.session.arrived(20)
            client.say(say)
    assert not client.outlet.aborted


def test_a_client_that_still_takes_what_is_on_its_way_gets_more_time_for_the_answer():
    watch = Watch(ping_interval=20, ping_timeout=10)
    client = watch.client()
    for taken in range(0, 60_000, 1000):
        client.outlet.now_taken = Progress(taken, 100_000)
        watch.clock.pass_time(1)
    assert not client.outlet.aborted
    assert client.frames() == [PING], "no second ping before the first is answered"
    watch.clock.pass_time(41)
    assert client.outlet.aborted, "it takes nothing any more"


def test_a_client_that_took_all_and_does_not_answer_is_aborted():
    watch = Watch(ping_interval=20, ping_timeout=10)
    client = watch.client()
    client.outlet.now_taken = Progress(0, 2)
    watch.clock.pass_time(20)
    client.outlet.now_taken = Progress(2, 0)
    watch.clock.pass_time(10)
    assert client.outlet.aborted


def test_where_nobody_can_say_what_a_client_takes_the_answer_alone_counts():
    watch = Watch(ping_interval=20, ping_timeout=10)
    client = watch.client()
    client.outlet.now_taken = None
    watch.clock.pass_time(30)
    assert client.outlet.aborted


def test_a_client_that_is_behind_is_neither_pinged_nor_held_to_an_answer():
    watch = Watch(ping_interval=20, ping_timeout=10, stall_timeout=1000)
    client = watch.client()
    while not pinged(client):
        watch.clock.pass_time(1)
    client.outbox.blocked()
    watch.clock.pass_time(100)
    assert client.outlet.written == []
    assert not client.outlet.aborted
    client.outbox.drained()
    watch.clock.pass_time(20)
    assert pinged(client)


def test_without_an_interval_there_are_no_pings():
    watch = Watch(ping_interval=0)
    client = watch.client()
    watch.clock.pass_time(1000)
    assert client.frames() == []
    assert not client.outlet.aborted


def test_a_client_that_takes_nothing_while_behind_is_aborted_in_time():
    watch = Watch(stall_timeout=30, ping_interval=0)
    client = watch.client("stalled")
    client.outlet.now_taken = Progress(5000, 70_000)
    client.outbox.blocked()
    watch.clock.pass_time(29.9)
    assert not client.outlet.aborted
    watch.clock.pass_time(1.2)
    assert client.outlet.aborted
    assert watch.given_up == [("stalled", "behind, and took nothing for 30 s")]
    assert watch.counters.aborted_stalled == 1


def test_a_client_that_takes_a_little_now_and_then_is_kept():
    watch = Watch(stall_timeout=30, ping_interval=0)
    client = watch.client()
    client.outbox.blocked()
    for taken in range(20):
        client.outlet.now_taken = Progress(taken, 70_000 - taken)
        watch.clock.pass_time(25)
    assert not client.outlet.aborted
    watch.clock.pass_time(31)
    assert client.outlet.aborted


def test_where_nobody_can_say_what_it_takes_the_time_behind_counts():
    watch = Watch(stall_timeout=30, ping_interval=0)
    client = watch.client()
    client.outlet.now_taken = None
    client.outbox.blocked()
    watch.clock.pass_time(31.1)
    assert client.outlet.aborted


def test_a_client_that_drains_in_time_starts_anew():
    watch = Watch(stall_timeout=30, ping_interval=0)
    client = watch.client()
    for _ in range(3):
        client.outbox.blocked()
        publish(watch.hub, ("A", b"1"))
        watch.clock.pass_time(29)
        client.outbox.drained()
    assert not client.outlet.aborted
    assert not watch.hub.common.behind


def test_a_client_that_left_is_not_looked_after():
    watch = Watch(ping_interval=20, ping_timeout=10, stall_timeout=5)
    client = watch.client()
    while not pinged(client):
        watch.clock.pass_time(1)
    client.outbox.blocked()
    client.session.close()
    watch.clock.pass_time(100)
    assert not client.outlet.aborted


def test_stopping_leaves_nothing_with_the_clock():
    watch = Watch(ping_interval=20, ping_timeout=10)
    watch.client()
    watch.clock.pass_time(15)
    watch.liveness.stop()
    assert not watch.clock.calls
