"""The hub: numbering, audiences, turns, last values, heartbeats, and leaving without a trace."""

from __future__ import annotations

import gc
import json

import pytest
from core_doubles import Client, FixedClock, RecordingOutlet, make_hub, publish

from pushservice.fanout.hub import Hub, TurnHooks
from pushservice.fanout.outbox import Outbox
from pushservice.fanout.subscriptions import NoRoom
from pushservice.fanout.topic import Topic
from pushservice.limits import Limits
from pushservice.metrics import Counters, Measures
from pushservice.protocol.codecs import JSON, RAW


def quotes_of(client: Client) -> list[tuple[str, int, object]]:
    return [(event["s"], event["n"], event["d"]) for event in client.events()]


def watching(hub: Hub, *symbols: str, **values: object) -> Client:
    client = Client(hub, **values)
    client.say({"op": "subscribe", "symbols": symbols})
    client.frames()
    return client


def test_a_quote_reaches_those_who_watch_its_symbol_and_nobody_else():
    hub = make_hub()
    both, one, none = watching(hub, "A", "B"), watching(hub, "B"), watching(hub)
    publish(hub, ("A", b"1"), ("B", b"2"), ("C", b"3"))
    assert quotes_of(both) == [("A", 1, 1), ("B", 1, 2)]
    assert quotes_of(one) == [("B", 1, 2)]
    assert quotes_of(none) == []


def test_all_that_one_turn_brings_a_client_leaves_in_one_frame_in_order():
    hub = make_hub()
    client = watching(hub, "A", "B")
    for n in range(50):
        hub.publish("A", b"%d" % n)
        hub.publish("B", b"%d" % n)
    assert client.outlet.written == []
    hub.flush()
    assert len(client.outlet.written) == 1
    events = client.events()
    assert [event["d"] for event in events] == [n for n in range(50) for _ in "AB"]
    assert [event["n"] for event in events if event["s"] == "A"] == list(range(1, 51))


def test_updates_are_numbered_from_one_whether_or_not_anybody_watches():
    hub = make_hub()
    publish(hub, ("A", b"1"))
    publish(hub, ("A", b"2"))
    client = watching(hub, "A")
    publish(hub, ("A", b"3"))
    assert quotes_of(client) == [("A", 3, 3)]


def test_the_receive_time_is_in_milliseconds_and_one_for_a_turn():
    clock = FixedClock(1_000.5)
    hub = make_hub(clock)
    client = watching(hub, "A")
    hub.publish("A", b"1")
    clock.rightNow = 1_001.0
    hub.publish("A", b"2")
    hub.flush()
    publish(hub, ("A", b"3"))
    assert [event["t"] for event in client.events()] == [1_000_500, 1_000_500, 1_001_000]


def test_payloads_that_are_no_json_become_strings_and_are_counted_once():
    counters = Counters()
    hub = make_hub(counters=counters)
    client, raw = watching(hub, "A"), watching(hub, "A", codec=RAW)
    publish(hub, ("A", b"\xff"), ("A", b"10.50"))
    assert [data for _, _, data in quotes_of(client)] == ["\ufffd", 10.5]
    assert raw.texts() == ["\ufffd".encode(), b"10.50"]
    assert counters.payloads_not_json == 1


def test_clients_of_both_subprotocols_are_served_from_one_publish():
    hub = make_hub()
    client, raw = watching(hub, "A"), watching(hub, "A", codec=RAW)
    publish(hub, ("A", b'{"p": 10.50}'), ("A", b"x"))
    assert client.texts() == [
        (
            b'[{"ev":"quote","s":"A","n":1,"t":1763799999123,"d":{"p": 10.50}},'
            b'{"ev":"quote","s":"A","n":2,"t":1763799999123,"d":"x"}]'
        )
    ]
    assert raw.texts() == [b'{"p": 10.50}', b"x"]


def test_equal_clients_share_the_very_same_frame():
    hub = make_hub()
    clients = [watching(hub, "A", "B") for _ in range(3)]
    publish(hub, ("A", b"1"), ("B", b"2"))
    frames = {id(client.outlet.written[0]) for client in clients}
    assert len(frames) == 1


def test_clients_with_different_symbols_do_not_share_frames():
    hub = make_hub()
    first, second = watching(hub, "A"), watching(hub, "B")
    publish(hub, ("A", b"1"), ("B", b"2"))
    assert quotes_of(first) == [("A", 1, 1)]
    assert quotes_of(second) == [("B", 1, 2)]


def test_interest_changed_between_turns_counts_from_the_next_publish():
    hub = make_hub()
    client = watching(hub, "A")
    publish(hub, ("A", b"1"))
    client.frames()
    client.say({"op": "unsubscribe", "symbols": ["A"]})
    client.frames()
    publish(hub, ("A", b"2"))
    assert client.frames() == []


def test_a_flush_without_quotes_writes_nothing():
    hub = make_hub()
    client = watching(hub, "A")
    hub.flush()
    publish(hub, ("B", b"1"))
    assert client.outlet.written == []


def test_one_clients_failure_is_reported_after_the_others_are_served():
    failed: list[tuple[Outbox, Exception]] = []
    counters = Counters()
    hub = Hub(FixedClock(), "k7f3", counters, TurnHooks(lambda *failure: failed.append(failure)))
    clients = [watching(hub, "A") for _ in range(5)]
    clients[2].outlet.broken = True
    publish(hub, ("A", b"1"))
    assert [outbox for outbox, _ in failed] == [clients[2].outbox]
    assert isinstance(failed[0][1], OSError)
    assert counters.client_failures == 1
    for client in clients[:2] + clients[3:]:
        assert quotes_of(client) == [("A", 1, 1)]


def test_leaving_takes_a_client_out_of_everything():
    counters = Counters()
    hub = make_hub(counters=counters)
    client, other = watching(hub, "A", "B"), watching(hub, "A")
    publish(hub, ("A", b"1"), ("B", b"1"))
    client.frames()
    client.session.close()
    client.session.close()
    publish(hub, ("A", b"2"), ("B", b"2"))
    assert client.outlet.written == []
    assert client.outbox.closed
    assert hub.count_outboxes() == 1
    assert [n for _, n, _ in quotes_of(other)] == [1, 2]


def test_a_client_that_left_is_kept_by_nothing():
    hub = make_hub()
    client = watching(hub, "A", "B")
    publish(hub, ("A", b"1"))
    marker = id(client.outbox)
    client.session.close()
    del client
    gc.collect()
    assert marker not in {id(found) for found in gc.get_objects() if type(found) is Outbox}


def test_a_symbol_nobody_ever_quoted_is_forgotten_with_its_last_watcher():
    hub = make_hub()
    first, second = watching(hub, "INVENTED"), watching(hub, "INVENTED")
    first.session.close()
    assert hub.count_topics() == 1
    second.say({"op": "unsubscribe"})
    assert hub.count_topics() == 0


def test_a_quoted_symbol_keeps_its_last_value_when_its_last_watcher_leaves():
    hub = make_hub()
    watching(hub, "A").session.close()
    publish(hub, ("A", b"7"))
    late = Client(hub)
    late.events()
    late.say({"op": "subscribe", "symbols": ["A"]})
    assert late.events()[-1]["d"] == 7


def test_recent_symbols_are_those_quoted_the_newest_first():
    clock = FixedClock(1.0)
    hub = make_hub(clock)
    watching(hub, "NEVER")
    for symbol in ("A", "B", "C", "A"):
        clock.rightNow += 1
        publish(hub, (symbol, b"1"))
    assert hub.recent_symbols(10) == ["A", "C", "B"]
    assert hub.recent_symbols(2) == ["A", "C"]


def test_a_turn_is_counted_in_frames_events_and_bytes():
    counters = Counters()
    hub = make_hub(counters=counters)
    clients = [watching(hub, "A", "B") for _ in range(2)]
    publish(hub, ("A", b"1"), ("B", b"2"))
    assert (counters.frames_out, counters.events_out) == (2, 4)
    assert counters.bytes_out == sum(len(client.outlet.written[0]) for client in clients)


def test_a_piece_is_encoded_once_per_codec(monkeypatch: pytest.MonkeyPatch):
    hub = make_hub()
    clients = [watching(hub, "A") for _ in range(4)]
    calls: list[bytes] = []
    encode = JSON.quote

    def counting(symbol: bytes, n: int, t: int, body: bytes) -> bytes:
        calls.append(body)
        return encode(symbol, n, t, body)

    monkeypatch.setattr(JSON, "quote", counting)
    publish(hub, ("A", b"1"))
    assert calls == [b"1"]
    assert all(json.loads(client.texts()[0])[0]["n"] == 1 for client in clients)


def test_an_outlet_that_is_never_written_to_is_not_needed_by_entering():
    hub = make_hub()
    outbox = Outbox(JSON, RecordingOutlet(), hub.common, "t-1")
    hub.enter(outbox)
    hub.leave(outbox)
    assert hub.count_outboxes() == 0
    assert list(hub.outboxes()) == []


# -- how many symbols are known --------------------------------------------------------------------


def test_the_oldest_value_that_nobody_watches_makes_room_for_a_new_symbol():
    hub = make_hub(limits=Limits(total_symbols=3))
    watcher = watching(hub, "W")
    for symbol in ("A", "B", "A", "C"):
        publish(hub, (symbol, b"1"))
    assert {symbol for symbol in "ABCW" if hub.topic(symbol)} == {"A", "C", "W"}
    assert hub.count_topics() == 3
    publish(hub, ("W", b"1"))
    assert len(watcher.events()) == 1


def test_a_symbol_that_is_watched_no_more_counts_as_old_from_then_on():
    hub = make_hub(limits=Limits(total_symbols=2))
    client = watching(hub, "A")
    publish(hub, ("A", b"1"), ("B", b"1"))
    client.say({"op": "unsubscribe"})
    publish(hub, ("C", b"1"))
    assert hub.topic("A") is not None
    assert hub.topic("B") is None


def test_a_new_symbol_is_dropped_and_counted_where_all_are_watched():
    counters = Counters()
    hub = make_hub(counters=counters, limits=Limits(total_symbols=2))
    client = watching(hub, "A", "B")
    publish(hub, ("C", b"1"), ("A", b"1"))
    assert hub.topic("C") is None
    assert counters.symbols_dropped == 1
    assert quotes_of(client) == [("A", 1, 1)]


def test_no_further_symbol_can_be_subscribed_where_all_are_watched():
    hub = make_hub(limits=Limits(total_symbols=2))
    client, other = watching(hub, "A", "B"), watching(hub)
    with pytest.raises(NoRoom):
        hub.subscribe(other.outbox, "C")
    assert hub.subscribe(other.outbox, "A").symbol == "A"
    client.session.close()
    assert hub.subscribe(other.outbox, "C").symbol == "C"
    assert hub.count_topics() == 2


def test_subscribing_takes_the_place_of_an_old_value():
    hub = make_hub(limits=Limits(total_symbols=1))
    publish(hub, ("OLD", b"1"))
    client = watching(hub, "NEW")
    publish(hub, ("NEW", b"1"))
    assert [event["s"] for event in client.events()] == ["NEW"]
    assert hub.recent_symbols(5) == ["NEW"]


def test_a_forgotten_symbol_never_goes_back_in_its_numbers():
    hub = make_hub(limits=Limits(total_symbols=1))
    for _ in range(5):
        publish(hub, ("A", b"1"))
    publish(hub, ("B", b"1"))
    client = watching(hub, "A")
    publish(hub, ("A", b"1"))
    assert [event["n"] for event in client.events()] == [6 + 1]


def test_a_paced_symbol_is_watched():
    hub = make_hub(limits=Limits(total_symbols=1))
    client = Client(hub)
    client.say({"op": "subscribe", "symbols": ["A"], "interval": 1000})
    publish(hub, ("A", b"1"), ("B", b"1"))
    assert hub.topic("A") is not None
    client.session.close()
    publish(hub, ("B", b"1"))
    assert hub.topic("A") is None


def test_a_piece_of_a_codec_that_nobody_wants_any_more_is_not_kept():
    hub = make_hub()
    watching(hub, "A")
    client = watching(hub, "A", codec=RAW)
    publish(hub, ("A", b"1"))
    client.session.close()
    publish(hub, ("A", b"2"))
    again = watching(hub, "A", codec=RAW)
    again.outbox.blocked()
    publish(hub, ("A", b"3"))
    again.outbox.drained()
    assert again.texts() == [b"3"]


# -- when nobody takes an update at once -----------------------------------------------------------


def test_updates_that_only_clients_behind_would_get_are_made_into_bytes_once_a_turn(monkeypatch):
    hub = make_hub()
    clients = [watching(hub, "A") for _ in range(2)]
    made: list[int] = []
    encode = JSON.quote

    def counting(symbol: bytes, n: int, t: int, body: bytes) -> bytes:
        made.append(n)
        return encode(symbol, n, t, body)

    monkeypatch.setattr(JSON, "quote", counting)
    for client in clients:
        client.outbox.blocked()
    publish(hub, *[("A", b"%d" % n) for n in range(1, 101)])
    assert made == [1]
    for client in clients:
        client.outbox.drained()
        assert quotes_of(client) == [("A", 100, 100)]
        assert client.outbox.merged == 99


@pytest.mark.parametrize("mode", ["auto", "raw"])
def test_one_client_that_wants_them_has_all_updates_made(mode):
    hub = make_hub()
    stalled, other = watching(hub, "A"), watching(hub)
    stalled.outbox.blocked()
    other.say({"op": "subscribe", "symbols": ["A"], "mode": mode})
    other.frames()
    if mode == "raw":
        other.outbox.blocked()
    publish(hub, *[("A", b"%d" % n) for n in range(1, 11)])
    other.outbox.drained()
    assert [n for _, n, _ in quotes_of(other)] == list(range(1, 11))


def test_paced_clients_get_the_newest_where_all_others_are_behind():
    clock = FixedClock()
    hub = make_hub(clock)
    stalled = watching(hub, "A")
    stalled.outbox.blocked()
    paced = Client(hub)
    paced.say({"op": "subscribe", "symbols": ["A"], "interval": 20})
    paced.frames()
    publish(hub, *[("A", b"%d" % n) for n in range(1, 11)])
    clock.pass_time(0.02)
    assert quotes_of(paced) == [("A", 10, 10)]
    assert paced.outbox.merged == 9
    paced.session.close()


# -- interest --------------------------------------------------------------------------------------


class Told:
    """Notes what the hub tells of interest."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, str, str, bool]] = []
        self.turns: list[set[str]] = []

    def watched(self, client: str, symbol: str, first: bool) -> None:
        self.changes.append(("+", client, symbol, first))

    def unwatched(self, client: str, symbol: str, last: bool) -> None:
        self.changes.append(("-", client, symbol, last))

    def quoted(self, topics: dict[Topic, object]) -> None:
        self.turns.append({topic.symbol for topic in topics})


def test_interest_is_told_with_the_first_watcher_and_the_last():
    told = Told()
    hub = Hub(FixedClock(), "k", Counters(), TurnHooks(lambda outbox, failure: None), interest=told)
    one, two = Client(hub, "one"), Client(hub, "two")
    one.say({"op": "subscribe", "symbols": ["A"]})
    two.say({"op": "subscribe", "symbols": ["A"], "interval": 1000})
    one.say({"op": "subscribe", "symbols": ["A"], "mode": "raw"})
    one.session.close()
    two.say({"op": "unsubscribe"})
    assert told.changes == [
        ("+", "one", "A", True),
        ("+", "two", "A", False),
        ("-", "one", "A", False),
        ("-", "two", "A", True),
    ]


def test_the_symbols_of_a_turn_that_anybody_watches_are_told_once():
    told = Told()
    hub = Hub(FixedClock(), "k", Counters(), TurnHooks(lambda outbox, failure: None), interest=told)
    client = Client(hub)
    client.say({"op": "subscribe", "symbols": ["A"]})
    client.say({"op": "subscribe", "symbols": ["B"], "interval": 1000})
    publish(hub, ("A", b"1"), ("A", b"2"), ("B", b"1"), ("C", b"1"))
    publish(hub, ("C", b"1"))
    assert told.turns == [{"A", "B"}]
    client.session.close()


# -- tiers -----------------------------------------------------------------------------------------


def test_a_tier_has_symbols_numbers_and_values_of_its_own_and_clients_that_count_in_its_parent():
    hub = make_hub()
    tier = hub.tier(None)
    now, late = watching(hub, "A"), watching(tier, "A")
    publish(hub, ("A", b"1"), ("A", b"2"))
    publish(tier, ("A", b"1"))
    assert quotes_of(now) == [("A", 1, 1), ("A", 2, 2)]
    assert quotes_of(late) == [("A", 1, 1)]
    assert tier.epoch == hub.epoch
    assert list(tier.outboxes()) == list(hub.outboxes())
    assert hub.count_outboxes() == 2
    late.outbox.blocked()
    assert list(hub.common.behind) == [late.outbox]
    late.session.close()
    assert list(hub.outboxes()) == [now.outbox]
    assert not hub.common.behind


def test_clients_of_a_hub_and_its_tiers_are_dealt_to_groups_together():
    hub = make_hub()
    tiers = [hub, hub.tier(None), hub.tier(None)]
    for number in range(hub.groups * 3):
        Client(tiers[number % 3])
    assert {len(hub.group(at)) for at in range(hub.groups)} == {3}


def test_a_failure_on_a_tier_is_reported_to_whom_its_parent_reports():
    failed: list[Outbox] = []
    hub = Hub(FixedClock(), "k", Counters(), TurnHooks(lambda outbox, _: failed.append(outbox)))
    tier = hub.tier(None)
    client = watching(tier, "A")
    client.outlet.broken = True
    publish(tier, ("A", b"1"))
    assert failed == [client.outbox]


def test_the_receive_time_can_be_given_anew_within_a_turn():
    hub = make_hub()
    client = watching(hub, "A")
    for t in (5, 5, 7):
        hub.receive_at(t)
        hub.publish("A", b"1")
    hub.flush()
    publish(hub, ("A", b"1"))
    assert [event["t"] for event in client.events()] == [5, 5, 7, 1_763_799_999_123]


def test_a_hub_serves_those_that_watch_something_there():
    hub = make_hub()
    tier = hub.tier(None)
    now, late, idle = watching(hub, "A"), watching(tier, "A"), watching(hub)
    clients = (now, late, idle)
    assert [hub.serves(client.outbox) for client in clients] == [True, False, False]
    assert [tier.serves(client.outbox) for client in clients] == [False, True, False]


def test_there_is_room_for_symbols_until_as_many_are_known_as_may_be():
    hub = make_hub(limits=Limits(total_symbols=2))
    assert hub.room() == 2
    publish(hub, ("A", b"1"))
    assert hub.room() == 1
    watching(hub, "B")
    publish(hub, ("C", b"1"))
    assert hub.room() == 0


# -- what is counted and measured ------------------------------------------------------------------


def test_subscriptions_are_counted_as_they_come_and_go_in_whatever_way():
    hub = make_hub()
    common = hub.common
    one, two = Client(hub, "t-1"), Client(hub, "t-2")
    one.say({"op": "subscribe", "symbols": ["A", "B", "bad symbol", "A"]})
    assert common.subscriptions == 2
    two.say({"op": "subscribe", "symbols": ["A"], "interval": 1000})
    two.say({"op": "subscribe", "symbols": ["C"], "mode": "raw"})
    assert common.subscriptions == 4
    # Another way to watch it is no other subscription.
    two.say({"op": "subscribe", "symbols": ["A"]})
    one.say({"op": "subscribe", "symbols": ["A"], "interval": 1000})
    assert common.subscriptions == 4
    one.say({"op": "unsubscribe", "symbols": ["A", "Z"]})
    assert common.subscriptions == 3
    two.session.close()
    two.session.close()
    assert common.subscriptions == 1
    one.say({"op": "unsubscribe"})
    assert common.subscriptions == 0


def test_one_that_is_refused_for_lack_of_room_is_none():
    hub = make_hub(limits=Limits(total_symbols=1))
    client = Client(hub)
    client.say({"op": "subscribe", "symbols": ["A", "B"]})
    assert hub.common.subscriptions == 1


def test_those_of_a_tier_are_counted_with_the_others():
    hub = make_hub()
    late = hub.tier(None)
    client = Client(hub)
    late.subscribe(client.outbox, "A")
    assert hub.common.subscriptions == late.common.subscriptions == 1
    late.unsubscribe(client.outbox, late.topic("A"))
    assert hub.common.subscriptions == 0


def test_the_events_of_a_turn_are_measured_and_a_paced_turn_is_one_with_its_time():
    clock, moments = FixedClock(), iter(range(100))
    measures = Measures(lambda: float(next(moments)))
    hub = Hub(clock, "k", Counters(), TurnHooks(lambda *_: None, measures=measures))
    for conn in ("1", "2", "3"):
        Client(hub, conn).say({"op": "subscribe", "symbols": ["A", "B"]})
    publish(hub, ("A", b"1"), ("A", b"2"), ("B", b"1"))
    assert (sum(measures.turn_events.counts), measures.turn_events.sum) == (1, 9)
    assert sum(measures.turn_seconds.counts) == 0, "whoever reads the feed measures that"
    Client(hub, "4").say({"op": "subscribe", "symbols": ["A"], "interval": 20})
    publish(hub, ("A", b"3"))
    clock.pass_time(0.02)
    assert (sum(measures.turn_events.counts), measures.turn_events.sum) == (3, 9 + 3 + 1)
    assert (sum(measures.turn_seconds.counts), measures.turn_seconds.sum) == (1, 1.0)
