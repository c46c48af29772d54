"""Pacing: one update per symbol and interval, the newest, in time; and what the timers cost."""

from __future__ import annotations

from itertools import pairwise

import pytest
from core_doubles import Client, FixedClock, make_hub, publish

from pushservice.fanout.hub import Hub, TurnHooks
from pushservice.fanout.pacing import COARSE_INTERVALS, EXACT_INTERVALS, Pacing
from pushservice.metrics import Counters
from pushservice.protocol.codecs import JSON, RAW, Codec


class Setting:
    """A hub with a clock and paced clients."""

    def __init__(self) -> None:
        self.clock = FixedClock()
        self.counters = Counters()
        self.hub: Hub = make_hub(self.clock, self.counters)

    def client(
        self, *symbols: str, interval: int = 100, codec: Codec = JSON, **more: object
    ) -> Client:
        client = Client(self.hub, codec=codec, counters=self.counters)
        self.subscribe(client, *symbols, interval=interval, **more)
        return client

    @staticmethod
    def subscribe(client: Client, *symbols: str, interval: int, **more: object) -> None:
        client.say({"op": "subscribe", "symbols": symbols, "interval": interval} | more)
        client.frames()


@pytest.fixture
def setting() -> Setting:
    return Setting()


def numbers(client: Client) -> list[tuple[str, int]]:
    return [(event["s"], event["n"]) for event in client.events()]


def test_nothing_leaves_before_its_time_and_then_the_newest_of_each_symbol_in_one_frame(setting):
    client = setting.client("A", "B")
    for n in range(1, 11):
        publish(setting.hub, ("A", b"%d" % n), ("B", b"%d" % n))
    assert client.events() == []
    setting.clock.pass_time(0.1)
    [text] = client.texts()
    assert text.count(b'"n":10') == 2
    assert client.outbox.merged == setting.counters.merged == 18
    assert setting.counters.events_out == 2


@pytest.mark.parametrize("interval", [1, 40, 100, 250, 60_000])
def test_updates_come_once_an_interval_and_no_later_than_one_after_they_came(setting, interval):
    client = setting.client("A", interval=interval)
    seconds = interval / 1000
    came = []
    for n in range(1, 46):
        publish(setting.hub, ("A", b"%d" % n))
        # A tenth and what the clock's numbers are rounded by.
        setting.clock.pass_time(seconds / 10 + 1e-6)
        came += [(setting.clock.seconds(), event["n"]) for event in client.events()]
    moments = [moment for moment, _ in came]
    assert len(moments) in (4, 5)
    # They are seen at the end of the tenth in which they came.
    for one, next_one in pairwise(moments):
        assert seconds * 0.89 <= next_one - one <= seconds * 1.11
    assert came[0][0] - 1_763_799_999.123 <= seconds * 1.11


def test_a_quiet_symbol_brings_nothing(setting):
    client = setting.client("A")
    setting.clock.pass_time(5)
    assert client.outlet.written == []


def test_a_new_subscription_brings_the_snapshot_at_once(setting):
    publish(setting.hub, ("A", b"1"))
    client = Client(setting.hub)
    client.say({"op": "subscribe", "symbols": ["A"], "interval": 100})
    assert [event["ev"] for event in client.events()] == ["welcome", "subscribed", "snapshot"]
    setting.clock.pass_time(1)
    assert client.events() == []
    assert client.outbox.merged == 0


def test_a_client_that_came_in_the_middle_of_an_interval_is_not_told_again_what_it_has(setting):
    first = setting.client("A", interval=20)
    publish(setting.hub, ("A", b"1"), ("A", b"2"))
    second = setting.client("A", interval=20)
    publish(setting.hub, ("A", b"3"), ("A", b"4"))
    third = setting.client("A", interval=20)
    setting.clock.pass_time(0.02)
    assert numbers(first) == [("A", 4)]
    assert numbers(second) == [("A", 4)]
    assert numbers(third) == [], "it has the newest from its snapshot"
    assert [each.outbox.merged for each in (first, second, third)] == [3, 1, 0]
    publish(setting.hub, ("A", b"5"))
    setting.clock.pass_time(0.02)
    assert numbers(third) == [("A", 5)]
    assert third.outbox.merged == 0


def test_paced_and_unpaced_symbols_go_side_by_side_on_one_connection(setting):
    client = setting.client("SLOW")
    setting.subscribe(client, "FAST", interval=0)
    publish(setting.hub, ("SLOW", b"1"), ("FAST", b"1"))
    assert numbers(client) == [("FAST", 1)]
    setting.clock.pass_time(0.1)
    assert numbers(client) == [("SLOW", 1)]


def test_two_intervals_go_side_by_side_on_one_connection(setting):
    client = setting.client("A", interval=20)
    setting.subscribe(client, "B", interval=60_000)
    publish(setting.hub, ("A", b"1"), ("B", b"1"))
    setting.clock.pass_time(0.02)
    assert numbers(client) == [("A", 1)]
    setting.clock.pass_time(60)
    assert numbers(client) == [("B", 1)]


def test_a_paced_client_of_the_raw_subprotocol_gets_payloads(setting):
    client = setting.client("A", codec=RAW)
    publish(setting.hub, ("A", b"1"), ("A", b"2"))
    setting.clock.pass_time(0.1)
    assert client.texts() == [b"2"]


def test_equal_clients_share_the_very_same_frame(setting):
    clients = [setting.client("A", interval=20) for _ in range(3)]
    publish(setting.hub, ("A", b"1"))
    setting.clock.pass_time(0.02)
    frames = {id(client.outlet.written[0]) for client in clients}
    assert len(frames) == 1


def test_clients_of_an_interval_are_served_in_turns_by_one_timer(setting):
    clients = [setting.client("A", interval=160) for _ in range(16)]
    assert len(setting.clock.calls) == 1
    setting.clock.pass_time(0.16)
    publish(setting.hub, ("A", b"1"))
    served = []
    for _ in range(8):
        setting.clock.pass_time(0.02)
        served.append(sum(bool(client.events()) for client in clients))
    assert served == [2] * 8


def test_another_interval_replaces_the_former_and_delivers_what_was_pending(setting):
    client = setting.client("A", interval=60_000)
    publish(setting.hub, ("A", b"1"), ("A", b"2"))
    setting.subscribe(client, "A", interval=60_000, snapshot=False)
    setting.clock.pass_time(1)
    assert client.events() == [], "the same interval again changes nothing"
    client.say({"op": "subscribe", "symbols": ["A"], "interval": 20, "snapshot": False})
    assert [event["ev"] for event in client.events()] == ["quote", "subscribed"]
    assert client.outbox.merged == 1
    publish(setting.hub, ("A", b"3"))
    setting.clock.pass_time(0.02)
    assert numbers(client) == [("A", 3)]
    assert len(setting.clock.calls) == 1


def test_a_snapshot_asked_for_again_brings_the_newest_before_its_time_and_counts_it(setting):
    client = setting.client("A", interval=60_000)
    publish(setting.hub, ("A", b"1"), ("A", b"2"))
    client.say({"op": "subscribe", "symbols": ["A"], "interval": 60_000})
    assert [(event["ev"], event.get("n")) for event in client.events()] == [
        ("subscribed", None),
        ("snapshot", 2),
    ]
    setting.clock.pass_time(60)
    assert client.events() == []
    assert client.outbox.merged == 1


def test_a_client_behind_gets_what_was_due_when_it_drains_and_is_paced_on(setting):
    client = setting.client("A", "B", interval=20)
    client.outbox.blocked()
    publish(setting.hub, ("A", b"1"))
    setting.clock.pass_time(0.02)
    publish(setting.hub, ("A", b"2"), ("B", b"1"))
    assert client.outlet.written == []
    client.outbox.drained()
    assert numbers(client) == [("A", 2)], "B is not due yet"
    setting.clock.pass_time(0.02)
    assert numbers(client) == [("B", 1)], "A was told already"
    assert client.outbox.merged == 1


def test_a_client_that_falls_behind_again_is_not_told_twice_of_one_update(setting):
    client = setting.client("A", interval=20)
    client.outbox.blocked()
    publish(setting.hub, ("A", b"1"))
    setting.clock.pass_time(0.02)
    publish(setting.hub, ("A", b"2"))
    client.outbox.drained()
    assert numbers(client) == [("A", 2)]
    client.outbox.blocked()
    setting.clock.pass_time(0.02)
    client.outbox.drained()
    assert client.events() == []


def test_unsubscribing_ends_what_was_pending_and_the_last_one_the_timer(setting):
    client = setting.client("A", "B")
    publish(setting.hub, ("A", b"1"), ("B", b"1"))
    client.say({"op": "unsubscribe", "symbols": ["A"]})
    client.frames()
    setting.clock.pass_time(0.1)
    assert numbers(client) == [("B", 1)]
    client.say({"op": "unsubscribe"})
    assert not setting.clock.calls


def test_leaving_ends_the_timer(setting):
    client = setting.client("A")
    publish(setting.hub, ("A", b"1"))
    client.session.close()
    assert not setting.clock.calls
    assert setting.hub.topic("A") is not None


def test_a_delivery_that_fails_is_reported_and_the_others_go_out(setting):
    failed = []
    hub = Hub(
        setting.clock, "k7f3", setting.counters, TurnHooks(lambda outbox, _: failed.append(outbox))
    )
    clients = [Client(hub, f"t-{at}") for at in range(3)]
    for client in clients:
        setting.subscribe(client, "A", interval=20)
    clients[1].outlet.broken = True
    publish(hub, ("A", b"1"))
    setting.clock.pass_time(0.02)
    assert [numbers(client) for client in clients] == [[("A", 1)], [], [("A", 1)]]
    assert failed == [clients[1].outbox]
    assert setting.counters.client_failures == 1
    for client in clients:
        client.session.close()


def test_a_process_that_was_held_up_serves_every_group_once_and_keeps_the_grid(setting):
    clients = [setting.client("A", interval=160) for _ in range(8)]
    publish(setting.hub, ("A", b"1"))
    # All at once, as after a long pause: the calls come late.
    setting.clock.advance(3)
    assert [len(client.events()) for client in clients] == [1] * 8
    [call] = setting.clock.calls
    assert 0 < call.getTime() - setting.clock.seconds() <= 0.0201


def test_a_clock_set_back_does_not_stop_the_timer(setting):
    client = setting.client("A", interval=20)
    [call] = setting.clock.calls
    setting.clock.rightNow -= 3600
    publish(setting.hub, ("A", b"1"))
    setting.clock.pass_time(call.getTime() - setting.clock.seconds())
    assert numbers(client) == [("A", 1)]


def test_intervals_beyond_a_number_are_rounded_up_to_coarse_ones():
    pacing = Pacing(FixedClock(), lambda group: None)
    for interval in range(1001, 1001 + EXACT_INTERVALS):
        assert pacing.interval(interval) == interval
        pacing.new(interval)
    assert pacing.interval(1001) == 1001, "one that is there costs no other timer"
    assert [pacing.interval(asked) for asked in (1, 10, 249, 3000, 60_000)] == [
        10,
        10,
        250,
        5000,
        60_000,
    ]
    for interval in range(1, 60_001, 7):
        pacing.new(pacing.interval(interval))
    assert pacing.count() <= EXACT_INTERVALS + len(COARSE_INTERVALS)
