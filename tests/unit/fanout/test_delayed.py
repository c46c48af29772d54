"""Tiers: each symbol so many seconds late, and no client a moment earlier than it may."""

from __future__ import annotations

import json

import pytest
from core_doubles import Client, FixedClock

from pushservice.fanout.announcements import Announcements
from pushservice.fanout.delayed import TURN_EVERY, TURN_QUOTES, CombinedInterest, Tiers, move
from pushservice.fanout.hub import Hub, TurnHooks
from pushservice.fanout.tape import Tape
from pushservice.limits import Limits
from pushservice.metrics import Counters, Measures
from pushservice.protocol.codecs import JSON, RAW, Codec


class Told:
    """Notes what the last listener of interest is told."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, str, str, bool]] = []
        self.turns: list[set[str]] = []

    def watched(self, client: str, symbol: str, first: bool) -> None:
        self.changes.append(("+", client, symbol, first))

    def unwatched(self, client: str, symbol: str, last: bool) -> None:
        self.changes.append(("-", client, symbol, last))

    def quoted(self, topics: dict) -> None:
        self.turns.append({topic.symbol for topic in topics})


class Daemon:
    """A hub with tiers, as a service composes them."""

    def __init__(
        self,
        *delays: float,
        budget: int = 1 << 20,
        limits: Limits | None = None,
        now: float = 10_000.0,
    ) -> None:
        def failed(outbox: object, failure: Exception) -> None:
            raise failure

        self.clock = FixedClock(now)
        self.told = Told()
        self.counters = Counters()
        together = CombinedInterest(self.told)
        self.hub = Hub(
            self.clock, "k", self.counters, TurnHooks(failed), limits=limits, interest=together
        )
        self.announcements = Announcements(self.hub, lambda share: None)
        self.tiers = Tiers(self.clock, self.hub, Tape(budget), delays, together, lambda share: None)
        self._conns = 0

    def client(self, delay: float, *symbols: str, codec: Codec = JSON, **way) -> Client:
        hub = self.tiers.tier_for(delay)
        assert hub is not None
        self._conns += 1
        client = Client(hub, f"t-{self._conns}", codec=codec)
        client.say({"op": "subscribe", "symbols": symbols, **way})
        client.frames()
        return client

    def publish(self, *quotes: tuple[str, object]) -> None:
        for symbol, value in quotes:
            self.tiers.publish(symbol, json.dumps(value).encode())
        self.tiers.flush()

    def feed(self, up: bool) -> None:
        self.announcements.feed_changed(up)
        self.tiers.feed_changed(up)


def told(client: Client) -> list[tuple]:
    """Quotes and snapshots as (event, symbol, n, value), all else as (event, symbol or state)."""
    return [
        (event["ev"], event["s"], event["n"], event["d"])
        if "n" in event
        else (event["ev"], event.get("s") or event.get("state") or event.get("symbols"))
        for event in client.events()
    ]


def test_a_quote_is_played_when_it_is_as_old_as_the_delay_and_no_moment_earlier():
    daemon = Daemon(900, now=1_763_799_999.1239)
    client, now = daemon.client(900, "A"), daemon.client(0, "A")
    daemon.publish(("A", 1))
    assert told(now) == [("quote", "A", 1, 1)]
    daemon.clock.pass_time(899.9996)
    assert told(client) == []
    [call] = daemon.clock.calls
    assert call.getTime() == 1_763_799_999.1239 + 900
    daemon.clock.pass_time(call.getTime() - daemon.clock.seconds())
    assert told(client) == [("quote", "A", 1, 1)]
    assert not daemon.clock.calls


def test_a_timer_that_is_early_plays_nothing_and_waits_again():
    daemon = Daemon(10)
    client = daemon.client(10, "A")
    daemon.publish(("A", 1))
    [call] = daemon.clock.calls
    daemon.clock.rightNow += 5
    # The clock was set back.
    call.reset(0)
    daemon.clock.advance(0)
    assert told(client) == []
    daemon.clock.pass_time(5)
    assert told(client) == [("quote", "A", 1, 1)]


def test_it_has_the_receive_time_and_the_number_that_it_had_in_real_time():
    daemon = Daemon(10, now=10_000.1239)
    late, now = daemon.client(10, "A"), daemon.client(0, "A")
    daemon.publish(("A", 1))
    daemon.clock.pass_time(0.0005)
    daemon.publish(("A", 2), ("A", 3))
    daemon.clock.pass_time(10.02)
    assert late.events() == now.events()


def test_a_turn_is_received_at_its_first_quote_and_stays_together():
    daemon = Daemon(10)
    client = daemon.client(10, "A", "B")
    daemon.tiers.publish("A", b"1")
    daemon.clock.rightNow += 0.5
    daemon.tiers.publish("B", b"2")
    daemon.tiers.flush()
    daemon.clock.pass_time(9.5)
    [text] = client.texts()
    assert [event["t"] for event in json.loads(text)] == [10_000_000, 10_000_000]


def test_a_snapshot_is_what_was_played_last_and_never_anything_newer():
    daemon = Daemon(10)
    daemon.publish(("A", 1))
    client = Client(daemon.tiers.tier_for(10))
    client.say({"op": "subscribe", "symbols": ["A"]})
    assert [event["ev"] for event in client.events()] == ["welcome", "subscribed"]
    daemon.clock.pass_time(5)
    daemon.publish(("A", 2))
    daemon.clock.pass_time(5)
    assert told(client) == [("quote", "A", 1, 1)]
    client.say({"op": "subscribe", "symbols": ["A"]})
    assert told(client)[1:] == [("snapshot", "A", 1, 1)]
    daemon.tiers.stop()


def test_values_from_elsewhere_never_reach_a_tier():
    daemon = Daemon(10)
    tier = daemon.tiers.tier_for(10)
    client = daemon.client(10, "A")
    assert not tier.values.inherit("A", 1, b"1")
    assert not tier.values.inherit("B", 1, b"1")
    tier.values.learn("A", b"1", 0, True)
    daemon.hub.values.learn("A", b"1", 0, True)
    assert client.events() == []
    assert tier.topic("A").payload is None
    assert tier.topic("B") is None


def test_all_delays_share_one_tape():
    daemon = Daemon(10, 5, 10)
    assert daemon.tiers.delays == [5, 10]
    five, ten = daemon.client(5, "A"), daemon.client(10, "A")
    daemon.publish(("A", 1))
    daemon.clock.pass_time(5)
    assert (told(five), told(ten)) == ([("quote", "A", 1, 1)], [])
    daemon.clock.pass_time(5)
    assert (told(five), told(ten)) == ([], [("quote", "A", 1, 1)])


@pytest.mark.parametrize(
    ("asked", "given"), [(0, 0), (0.001, 5), (5, 5), (5.001, 10), (10, 10), (10.001, None)]
)
def test_the_tier_for_a_delay_is_the_least_that_is_no_shorter(asked, given):
    tiers = Daemon(10, 5).tiers
    assert tiers.tier_for(asked) is (None if given is None else tiers.tier_for(given))
    assert len({id(tiers.tier_for(delay)) for delay in (0, 5, 10)}) == 3


@pytest.mark.parametrize("delay", [-1, float("nan")])
def test_what_is_no_delay_is_refused(delay):
    with pytest.raises(ValueError, match="no delay"):
        Daemon(10).tiers.tier_for(delay)


@pytest.mark.parametrize("delay", [0, -1, float("inf"), float("nan")])
def test_a_tier_needs_a_delay(delay):
    with pytest.raises(ValueError, match="more than 0"):
        Daemon(delay)


def test_many_quotes_make_fifty_turns_a_second_at_most():
    daemon = Daemon(10)
    client = daemon.client(10, "A")
    for _ in range(1000):
        daemon.publish(("A", 1))
        daemon.clock.pass_time(0.001)
    turns = 0
    while daemon.clock.calls:
        daemon.clock.pass_time(daemon.clock.calls[0].getTime() - daemon.clock.seconds())
        turns += len(client.outlet.written)
        client.frames()
    assert 45 <= turns <= 1 / TURN_EVERY + 1


def test_what_is_due_after_a_standstill_is_played_in_turns_with_room_between():
    daemon = Daemon(10)
    client = daemon.client(10, "A")
    for _ in range(3):
        daemon.publish(*[("A", 1)] * TURN_QUOTES)
    daemon.clock.rightNow += 60
    # A reactor makes calls that are new in its next round.
    daemon.clock.advance(0)
    assert [len(json.loads(text)) for text in client.texts()] == [TURN_QUOTES] * 3
    assert daemon.clock.seconds() == 10_060.0, "nothing waits that is due"


def test_paced_and_raw_clients_of_a_tier_are_served_as_such():
    daemon = Daemon(10)
    paced, raw = daemon.client(10, "A", interval=1000), daemon.client(10, "A", mode="raw")
    raw.outbox.blocked()
    daemon.publish(*[("A", value) for value in range(5)])
    daemon.clock.pass_time(11.5)
    assert told(paced) == [("quote", "A", 5, 4)]
    assert paced.outbox.merged == 4
    raw.outbox.drained()
    assert [n for _, _, n, _ in told(raw)] == [1, 2, 3, 4, 5]
    paced.session.close()


def test_clients_of_all_tiers_get_heartbeats_and_are_counted_and_sent_away():
    daemon = Daemon(10)
    clients = [daemon.client(delay, "A") for delay in (0, 10) * 10]
    assert daemon.hub.count_outboxes() == 20
    for _ in range(daemon.hub.groups):
        before = sum(len(client.outlet.written) for client in clients)
        daemon.announcements.beat()
        assert sum(len(client.outlet.written) for client in clients) - before <= 1, "dealt evenly"
    for client in clients:
        assert told(client) == [("heartbeat", None)]
    clients[1].outbox.blocked()
    assert list(daemon.hub.common.behind) == [clients[1].outbox]
    for client in clients:
        client.session.close()
    assert daemon.hub.count_outboxes() == 0
    assert not daemon.hub.common.behind


def test_each_tier_has_room_for_as_many_symbols_as_the_limits_say():
    daemon = Daemon(10, limits=Limits(total_symbols=2))
    now, late = daemon.client(0, "A", "B"), daemon.client(10, "C", "D")
    late.say({"op": "subscribe", "symbols": ["E"]})
    assert list(late.events()[0]["errors"]) == ["E"]
    daemon.publish(("A", 1), ("C", 1))
    daemon.clock.pass_time(10)
    assert told(now) == [("quote", "A", 1, 1)]
    assert told(late) == [("quote", "C", 1, 1)]


def test_what_there_is_no_room_for_counts_when_it_comes_and_not_once_more_for_each_delay():
    daemon = Daemon(10, 20, limits=Limits(total_symbols=1))
    clients = [daemon.client(delay, "A") for delay in (0, 10, 20)]
    daemon.publish(("B", 1), ("A", 1))
    daemon.clock.pass_time(20)
    assert [len(client.events()) for client in clients] == [1, 1, 1]
    assert daemon.counters.symbols_dropped == 1


def test_after_stop_nothing_is_left_with_the_clock_and_real_time_goes_on():
    daemon = Daemon(5, 10)
    late, now = daemon.client(5, "A"), daemon.client(0, "A")
    daemon.publish(("A", 1))
    daemon.tiers.stop()
    assert not daemon.clock.calls
    daemon.publish(("A", 2))
    daemon.feed(True)
    daemon.clock.pass_time(100)
    assert not daemon.clock.calls
    assert told(late) == [("feed", "up")]
    assert [n for _, _, n, _ in told(now)[:2]] == [1, 2]


# -- the feed's state ------------------------------------------------------------------------------


def test_the_feeds_state_is_told_at_once_and_the_gap_when_it_is_reached():
    daemon = Daemon(10)
    daemon.feed(True)
    daemon.clock.pass_time(100)
    now, late, raw = (
        daemon.client(0, "A"),
        daemon.client(10, "A", "B"),
        daemon.client(10, "A", codec=RAW),
    )
    daemon.publish(("A", 1))
    daemon.feed(False)
    daemon.clock.pass_time(5)
    daemon.feed(True)
    daemon.publish(("A", 2))
    assert told(now) == [
        ("quote", "A", 1, 1),
        ("feed", "down"),
        ("feed", "up"),
        ("gap", "A"),
        ("quote", "A", 2, 2),
    ]
    assert told(late) == [("feed", "down"), ("feed", "up")]
    daemon.clock.pass_time(9.999)
    assert told(late) == [("quote", "A", 1, 1)]
    daemon.clock.pass_time(0.001)
    assert told(late) == [("gap", "A"), ("gap", "B"), ("quote", "A", 2, 2)]
    assert raw.texts() == [b"1", b"2"]


def test_a_state_that_is_told_twice_is_on_the_tape_once():
    daemon = Daemon(10)
    client = daemon.client(10, "A")
    for up in (False, False, True, True):
        daemon.tiers.feed_changed(up)
    daemon.clock.pass_time(10)
    assert told(client) == [("gap", "A")]


def test_a_hole_in_the_tape_is_a_gap_where_it_is():
    daemon = Daemon(10, budget=4000)
    client, now = daemon.client(10, "A"), daemon.client(0, "A")
    for value in range(1000):
        daemon.publish(("A", [value, value * 7_919_777 % 1_000_003]))
        daemon.clock.pass_time(0.01)
    daemon.clock.pass_time(10)
    assert len(told(now)) == 1000
    events = told(client)
    values = [event[3][0] for event in events if event[0] == "quote"]
    assert len(values) < 1000
    assert values == sorted(values)
    last = -1
    gap = False
    for event in events:
        if event[0] == "gap":
            gap = True
        else:
            assert gap or event[3][0] == last + 1
            last, gap = event[3][0], False


def test_a_symbol_is_stale_on_a_tier_by_what_was_played():
    daemon = Daemon(10)
    daemon.feed(True)
    late = daemon.client(10, "A", "B")
    daemon.publish(("A", 1), ("B", 1))
    daemon.clock.pass_time(2)
    daemon.publish(("A", 2))
    daemon.clock.pass_time(8)
    late.events()
    daemon.tiers.look_for_stale(3000)
    assert late.events() == [], "both have just been played"
    daemon.clock.pass_time(3.5)
    daemon.tiers.look_for_stale(3000)
    late_events = late.events()
    assert late_events[-1] == {"ev": "stale", "symbols": ["B"]}
    daemon.publish(("B", 2))
    assert late.events() == []
    daemon.clock.pass_time(10)
    assert told(late) == [("fresh", ["B"]), ("quote", "B", 2, 2)]


def test_nothing_is_stale_where_the_feed_was_down_on_the_tape():
    daemon = Daemon(10)
    daemon.feed(True)
    late = daemon.client(10, "A")
    daemon.publish(("A", 1))
    daemon.feed(False)
    daemon.clock.pass_time(30)
    late.events()
    daemon.tiers.look_for_stale(3000)
    assert late.events() == []
    daemon.feed(True)
    daemon.clock.pass_time(12.9)
    late.events()
    daemon.tiers.look_for_stale(3000)
    assert late.events() == [], "it has the whole time again"
    daemon.clock.pass_time(0.2)
    daemon.tiers.look_for_stale(3000)
    assert late.events() == [{"ev": "stale", "symbols": ["A"]}]


# -- interest --------------------------------------------------------------------------------------


def test_the_first_and_the_last_are_those_of_all_tiers():
    daemon = Daemon(5, 10)
    one, two, three = (daemon.client(delay, "A") for delay in (5, 10, 0))
    for client in (one, three, two):
        client.session.close()
    assert daemon.told.changes == [
        ("+", "t-1", "A", True),
        ("+", "t-2", "A", False),
        # The first in real time is told once more, for those that look up its value.
        ("+", "t-3", "A", True),
        ("-", "t-1", "A", False),
        ("-", "t-3", "A", False),
        ("-", "t-2", "A", True),
    ]


def test_what_is_quoted_is_told_in_real_time_and_of_what_is_watched_in_real_time():
    daemon = Daemon(10)
    daemon.client(10, "A")
    daemon.client(0, "B")
    daemon.publish(("A", 1), ("B", 1))
    daemon.clock.pass_time(10)
    assert daemon.told.turns == [{"B"}]


def test_a_value_that_is_not_kept_up_to_date_is_forgotten_when_that_is_reached():
    daemon = Daemon(10)
    client = daemon.client(10, "B")
    daemon.publish(("A", 1), ("B", 1))
    daemon.clock.pass_time(5)
    daemon.tiers.forget_value("A")
    daemon.tiers.forget_value("B")
    daemon.clock.pass_time(5)
    tier = daemon.tiers.tier_for(10)
    assert tier.topic("A") is not None, "not yet"
    daemon.clock.pass_time(5)
    assert tier.topic("A") is None
    assert told(client) == [("quote", "B", 1, 1), ("gap", "B")], "somebody watches it again"


# -- moving ----------------------------------------------------------------------------------------


def raised(daemon: Daemon, client: Client, old: float, new: float) -> bool:
    return move(client.outbox, daemon.tiers.tier_for(old), daemon.tiers.tier_for(new))


def test_a_client_whose_rights_are_raised_keeps_its_symbols_and_sees_what_is_new():
    daemon = Daemon(10)
    client = daemon.client(10, "A", "B")
    for value in range(1, 6):
        daemon.publish(("A", value))
        daemon.clock.pass_time(3)
    assert [event[2] for event in told(client)] == [1, 2]
    assert raised(daemon, client, 10, 0)
    assert told(client) == [("gap", "A"), ("gap", "B"), ("snapshot", "A", 5, 5)]
    daemon.publish(("A", 6), ("B", 1))
    assert told(client) == [("quote", "A", 6, 6), ("quote", "B", 1, 1)]
    assert client.outbox.merged == daemon.counters.merged == 2, "those that the snapshot stands for"
    daemon.clock.pass_time(20)
    assert told(client) == [], "nothing comes twice"
    daemon.hub.leave(client.outbox)
    assert client.outbox.quotes == 2 + 1 + 2
    assert daemon.told.changes[-1] == ("-", "t-1", "B", True)


def test_it_keeps_its_ways_of_watching():
    daemon = Daemon(10, 5)
    client = daemon.client(10, "A", interval=1000)
    client.say({"op": "subscribe", "symbols": ["B"], "mode": "raw"})
    client.frames()
    assert raised(daemon, client, 10, 5)
    client.frames()
    daemon.publish(("A", 1), ("B", 1))
    daemon.publish(("A", 2), ("B", 2))
    daemon.clock.pass_time(5.02)
    client.outbox.blocked()
    daemon.publish(("B", 3))
    daemon.publish(("B", 4))
    daemon.clock.pass_time(6)
    client.outbox.drained()
    events = told(client)
    assert [event[2] for event in events if event[1] == "B"] == [1, 2, 3, 4]
    assert [event[2] for event in events if event[1] == "A"] == [2]
    daemon.tiers.tier_for(5).leave(client.outbox)
    daemon.tiers.stop()
    assert not daemon.clock.calls, "the timer of its interval is gone"


def test_symbols_of_one_interval_move_together():
    daemon = Daemon(10, 5)
    client = daemon.client(10, "A", "B", "C", interval=1000)
    other = daemon.client(10, "A", interval=1000)
    assert raised(daemon, client, 10, 5)
    told(client)
    daemon.publish(("A", 1), ("B", 1), ("C", 1))
    daemon.clock.pass_time(7)
    assert sorted(told(client)) == [("quote", symbol, 1, 1) for symbol in "ABC"]
    assert told(other) == [], "it is served by its own hub"
    assert daemon.tiers.tier_for(10).serves(other.outbox)
    daemon.clock.pass_time(5)
    assert told(other) == [("quote", "A", 1, 1)]
    daemon.tiers.tier_for(5).leave(client.outbox)
    daemon.tiers.tier_for(10).leave(other.outbox)
    daemon.tiers.stop()
    assert not daemon.clock.calls, "the timers of their intervals are gone"


def test_a_bare_client_gets_the_snapshots_alone():
    daemon = Daemon(10)
    client = daemon.client(10, "A", "B", codec=RAW)
    daemon.publish(("A", 1))
    assert raised(daemon, client, 10, 0)
    assert client.texts() == [b"1"]


def test_it_is_told_which_symbols_are_stale_there_and_which_are_not_any_more():
    daemon = Daemon(10)
    daemon.feed(True)
    client = daemon.client(10, "A", "B")
    other = daemon.client(0, "A", "B")
    daemon.publish(("A", 1), ("B", 1))
    daemon.clock.pass_time(14)
    daemon.tiers.look_for_stale(3000)
    daemon.publish(("A", 2))
    daemon.clock.pass_time(1)
    daemon.announcements.look_for_stale(3000, None)
    assert told(other)[-1] == ("stale", ["B"])
    assert told(client)[-1] == ("stale", ["A", "B"])
    assert raised(daemon, client, 10, 0)
    assert told(client)[-1] == ("fresh", ["A"]), "of B it knows"
    daemon.tiers.stop()


def test_a_client_that_is_behind_is_not_moved():
    daemon = Daemon(10)
    client = daemon.client(10, "A")
    client.outbox.blocked()
    assert not raised(daemon, client, 10, 0)
    assert daemon.tiers.tier_for(10).topic("A") in client.outbox.topics


def test_nobody_is_moved_where_there_is_no_room():
    daemon = Daemon(10, limits=Limits(total_symbols=2))
    daemon.client(0, "X")
    client = daemon.client(10, "A", "B")
    assert not raised(daemon, client, 10, 0)
    assert len(client.outbox.topics) == 2


def test_nobody_is_moved_to_where_a_number_would_fall():
    daemon = Daemon(10)
    daemon.publish(("A", 1))
    daemon.publish(("A", 2))
    client = daemon.client(10, "A")
    daemon.clock.pass_time(11)
    daemon.publish(("A", 3))
    assert not move(client.outbox, daemon.tiers.tier_for(10), Daemon(10).hub)
    # And so nobody is made later in place: what is on its way can't be taken back.
    other = daemon.client(0, "A")
    assert not raised(daemon, other, 0, 10)
    daemon.tiers.stop()


def test_a_client_that_watches_nothing_is_moved_without_a_word():
    daemon = Daemon(10)
    client = daemon.client(10)
    assert raised(daemon, client, 10, 0)
    assert client.events() == []


def test_each_turn_of_a_tier_is_measured_with_its_time():
    daemon = Daemon(10)
    daemon.client(10, "A")
    daemon.publish(("A", 1), ("A", 2))
    (late,) = daemon.tiers.hubs
    moments = iter(range(100))
    measures = late.measures = Measures(lambda: float(next(moments)))
    daemon.clock.pass_time(10)
    assert (sum(measures.turn_seconds.counts), measures.turn_seconds.sum) == (1, 1.0)
    assert (sum(measures.turn_events.counts), measures.turn_events.sum) == (1, 2)


def test_a_tier_measures_with_the_hub_that_it_belongs_to():
    daemon = Daemon(10)
    assert [hub.measures for hub in daemon.tiers.hubs] == [daemon.hub.measures]


def test_subscriptions_stay_as_many_when_a_client_moves():
    daemon = Daemon(10)
    client = daemon.client(10, "A", "B")
    (late,) = daemon.tiers.hubs
    assert daemon.hub.common.subscriptions == 2
    assert move(client.outbox, late, daemon.hub)
    assert daemon.hub.common.subscriptions == 2
    daemon.hub.leave(client.outbox)
    assert daemon.hub.common.subscriptions == 0


def test_the_tape_says_how_full_it_is_and_what_it_dropped():
    daemon = Daemon(10, budget=1 << 20)
    assert daemon.tiers.tape() == {"used": 0, "dropped": 0}
    daemon.publish(("A", 1))
    assert daemon.tiers.tape()["used"] > 0
