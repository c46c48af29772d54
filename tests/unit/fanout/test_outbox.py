"""The outbox: flowing, behind and closed, and the promise of `n`."""

from __future__ import annotations

import json

import pytest
from core_doubles import Client, FixedClock, make_hub, publish

from pushservice.fanout.announcements import Announcements
from pushservice.fanout.hub import Hub
from pushservice.fanout.interfaces import Progress
from pushservice.fanout.outbox import ANSWERS_BUDGET
from pushservice.fanout.shared_frames import SharedFrames
from pushservice.limits import Limits
from pushservice.metrics import Counters
from pushservice.protocol.close_codes import CloseCode
from pushservice.protocol.codecs import JSON, RAW, Codec
from pushservice.protocol.frames import frame_head


def watching(hub: Hub, *symbols: str, codec: Codec = JSON) -> Client:
    client = Client(hub, codec=codec)
    client.say({"op": "subscribe", "symbols": symbols})
    client.frames()
    return client


def test_a_client_that_is_behind_is_written_nothing():
    hub = make_hub()
    client = watching(hub, "A")
    client.outbox.blocked()
    client.outbox.blocked()
    publish(hub, ("A", b"1"))
    assert client.outbox.behind
    assert client.outlet.written == []


def test_when_it_drains_the_newest_of_each_changed_symbol_leaves_in_one_write():
    hub = make_hub()
    client = watching(hub, "A", "B", "C")
    client.outbox.blocked()
    for n in range(1, 101):
        publish(hub, ("A", b"%d" % n), ("B", b"%d" % -n))
    client.outbox.drained()
    assert len(client.outlet.written) == 1
    events = sorted(client.events(), key=lambda event: event["s"])
    assert [(e["ev"], e["s"], e["n"], e["d"]) for e in events] == [
        ("quote", "A", 100, 100),
        ("quote", "B", 100, -100),
    ]
    assert client.outbox.merged == 99 + 99


def test_nothing_is_merged_where_a_symbol_changed_once():
    hub = make_hub()
    client = watching(hub, "A")
    client.outbox.blocked()
    publish(hub, ("A", b"1"))
    client.outbox.drained()
    assert [event["n"] for event in client.events()] == [1]
    assert client.outbox.merged == 0


def test_after_draining_it_flows_again():
    hub = make_hub()
    client = watching(hub, "A")
    client.outbox.blocked()
    client.outbox.drained()
    assert client.outlet.written == []
    publish(hub, ("A", b"1"), ("A", b"2"))
    assert [event["n"] for event in client.events()] == [1, 2]


def test_draining_without_having_been_behind_does_nothing():
    hub = make_hub()
    client = watching(hub, "A")
    client.outbox.drained()
    assert client.outlet.written == []


def test_a_client_behind_does_not_hold_back_the_others():
    hub = make_hub()
    slow, quick = watching(hub, "A"), watching(hub, "A")
    slow.outbox.blocked()
    for n in range(10):
        publish(hub, ("A", b"%d" % n))
    assert [event["n"] for event in quick.events()] == list(range(1, 11))


def test_the_raw_codec_merges_too():
    hub = make_hub()
    client = watching(hub, "A", codec=RAW)
    client.outbox.blocked()
    publish(hub, ("A", b"1"))
    publish(hub, ("A", b"2"))
    client.outbox.drained()
    assert client.texts() == [b"2"]


def test_the_memory_of_a_client_behind_is_bounded_by_its_symbols():
    hub = make_hub()
    client = watching(hub, "A", "B")
    client.outbox.blocked()
    for _ in range(1000):
        publish(hub, ("A", b"1"), ("B", b"2"))
    assert client.outbox._backlog is not None
    assert len(client.outbox._backlog.missed) == 2
    assert client.outbox._pending == []


def test_unsubscribing_while_behind_takes_the_symbol_out():
    hub = make_hub()
    client = watching(hub, "A", "B")
    client.outbox.blocked()
    publish(hub, ("A", b"1"), ("B", b"1"))
    client.say({"op": "unsubscribe", "symbols": ["A"]})
    publish(hub, ("A", b"2"))
    client.outbox.drained()
    events = client.events()
    assert [(event["ev"], event.get("s")) for event in events] == [
        ("unsubscribed", None),
        ("quote", "B"),
    ]


def test_subscribing_while_behind_brings_answer_then_one_snapshot_of_the_newest():
    hub = make_hub()
    client = watching(hub, "A")
    publish(hub, ("B", b"1"))
    client.outbox.blocked()
    client.say({"op": "subscribe", "id": 1, "symbols": ["B", "NEVER"]})
    publish(hub, ("B", b"2"))
    publish(hub, ("B", b"3"))
    client.outbox.drained()
    answer, snapshot = client.events()
    assert answer["ev"] == "subscribed"
    assert (snapshot["ev"], snapshot["n"], snapshot["d"]) == ("snapshot", 3, 3)
    assert client.outbox.merged == 0, "nothing was merged into a first value"


def test_subscribing_without_snapshot_while_behind_brings_updates_only():
    hub = make_hub()
    publish(hub, ("B", b"1"))
    client = watching(hub, "A")
    client.outbox.blocked()
    client.say({"op": "subscribe", "symbols": ["B"], "snapshot": False})
    publish(hub, ("B", b"2"))
    publish(hub, ("B", b"3"))
    client.outbox.drained()
    assert [(e["ev"], e.get("n")) for e in client.events()] == [("subscribed", None), ("quote", 3)]
    assert client.outbox.merged == 1


def test_subscribing_again_while_behind_counts_what_the_snapshot_skips():
    hub = make_hub()
    client = watching(hub, "A")
    publish(hub, ("A", b"1"))
    client.frames()
    client.outbox.blocked()
    publish(hub, ("A", b"2"), ("A", b"3"))
    client.say({"op": "subscribe", "symbols": ["A"]})
    publish(hub, ("A", b"4"))
    client.outbox.drained()
    _, snapshot = client.events()
    assert (snapshot["ev"], snapshot["n"]) == ("snapshot", 4)
    assert client.outbox.merged == 2


def test_subscribing_again_while_behind_and_quiet_repeats_the_last_value():
    hub = make_hub()
    client = watching(hub, "A")
    publish(hub, ("A", b"1"))
    client.frames()
    client.outbox.blocked()
    client.say({"op": "subscribe", "symbols": ["A"]})
    client.outbox.drained()
    _, snapshot = client.events()
    assert (snapshot["ev"], snapshot["n"]) == ("snapshot", 1)
    assert client.outbox.merged == 0


def test_subscribing_again_while_behind_and_quiet_counts_what_comes_after():
    hub = make_hub()
    client = watching(hub, "A")
    publish(hub, ("A", b"1"))
    client.frames()
    client.outbox.blocked()
    client.say({"op": "subscribe", "symbols": ["A"]})
    publish(hub, ("A", b"2"), ("A", b"3"))
    client.outbox.drained()
    assert [(e["ev"], e.get("n")) for e in client.events()][1:] == [("snapshot", 3)]
    assert client.outbox.merged == 1


def test_a_snapshot_asked_for_and_given_up_while_behind_is_not_sent_later():
    hub = make_hub()
    publish(hub, ("A", b"1"))
    client = watching(hub)
    client.outbox.blocked()
    client.say({"op": "subscribe", "symbols": ["A"]})
    client.say({"op": "unsubscribe", "symbols": ["A"]})
    client.say({"op": "subscribe", "symbols": ["A"], "snapshot": False})
    publish(hub, ("A", b"2"))
    client.outbox.drained()
    events = [(e["ev"], e.get("n")) for e in client.events()]
    assert events[-1] == ("quote", 2)
    assert "snapshot" not in dict(events)


def test_answers_wait_in_order_while_behind_and_reading_stops_past_their_budget():
    hub = make_hub()
    client = watching(hub, "A")
    client.outbox.blocked()
    client.say({"op": "ping", "id": 1})
    assert client.outlet.reading
    asked = 1
    while client.outlet.reading:
        asked += 1
        client.say({"op": "ping", "id": asked})
        assert asked * 20 < 2 * ANSWERS_BUDGET, "reading must stop"
    client.outbox.drained()
    assert client.outlet.reading
    assert [event["id"] for event in client.events()] == list(range(1, asked + 1))
    client.outbox.blocked()
    client.say({"op": "ping", "id": 0})
    assert client.outlet.reading, "the budget begins anew"


def test_only_the_latest_ping_is_answered_while_behind():
    hub = make_hub()
    client = watching(hub)
    client.session.ping(b"0")
    client.outbox.blocked()
    client.session.ping(b"1")
    client.session.ping(b"2")
    client.outbox.drained()
    assert client.frames() == [(0x8A, b"0"), (0x8A, b"2")]


def test_it_can_fall_behind_again_from_inside_the_catching_up_write():
    hub = make_hub()
    client = watching(hub, "A")
    client.outbox.blocked()
    publish(hub, ("A", b"1"))
    write = client.outlet.write

    def full(data: bytes) -> None:
        write(data)
        client.outbox.blocked()

    client.outlet.write = full
    client.outbox.drained()
    assert client.outbox.behind
    publish(hub, ("A", b"2"), ("A", b"3"))
    client.outlet.write = write
    client.outbox.drained()
    assert [event["n"] for event in client.events()] == [1, 3]
    assert client.outbox.merged == 1


@pytest.mark.parametrize("behind", [False, True])
def test_a_closed_outbox_takes_nothing(behind):
    hub = make_hub()
    client = watching(hub, "A")
    if behind:
        client.outbox.blocked()
        publish(hub, ("A", b"1"))
        client.say({"op": "ping"})
        client.session.ping(b"1")
    client.session.close()
    client.outbox.offer(b"late")
    client.outbox.flush({}, [], SharedFrames())
    client.outbox.send(b"late")
    client.outbox.send_pong(b"late")
    client.outbox.send_snapshots([])
    client.outbox.blocked()
    client.outbox.drained()
    assert client.outbox.closed
    assert not client.outbox.behind
    assert client.outlet.written == []
    assert client.outbox._pending == []


# -- raw: every update ------------------------------------------------------------------------


def raw_watching(hub: Hub, *symbols: str, codec: Codec = JSON, **more: object) -> Client:
    client = Client(hub, codec=codec)
    client.say({"op": "subscribe", "symbols": symbols, "mode": "raw"} | more)
    client.frames()
    return client


def quotes_of(client: Client) -> list[tuple[str, str, int]]:
    return [(event["ev"], event["s"], event["n"]) for event in client.events()]


def test_a_raw_subscription_that_flows_is_like_any_other():
    hub = make_hub()
    client = raw_watching(hub, "A")
    publish(hub, ("A", b"1"), ("A", b"2"))
    assert quotes_of(client) == [("quote", "A", 1), ("quote", "A", 2)]


def test_a_raw_client_behind_gets_every_update_in_order_across_symbols():
    hub = make_hub()
    client = raw_watching(hub, "A", "B")
    client.outbox.blocked()
    publish(hub, ("A", b"1"), ("B", b"1"), ("A", b"2"))
    publish(hub, ("B", b"2"))
    client.outbox.drained()
    assert [(s, n) for _, s, n in quotes_of(client)] == [("A", 1), ("B", 1), ("A", 2), ("B", 2)]
    assert client.outbox.merged == 0
    publish(hub, ("A", b"3"))
    assert quotes_of(client) == [("quote", "A", 3)]


def test_modes_are_mixed_on_one_connection():
    hub = make_hub()
    client = raw_watching(hub, "RAW")
    client.say({"op": "subscribe", "symbols": ["AUTO"]})
    client.frames()
    client.outbox.blocked()
    for n in range(1, 4):
        publish(hub, ("AUTO", b"%d" % n), ("RAW", b"%d" % n))
    client.outbox.drained()
    assert quotes_of(client) == [
        ("quote", "RAW", 1),
        ("quote", "RAW", 2),
        ("quote", "RAW", 3),
        ("quote", "AUTO", 3),
    ]
    assert client.outbox.merged == 2


def test_clients_of_both_codecs_keep_their_own_raw_updates():
    hub = make_hub()
    clients = [raw_watching(hub, "A", codec=codec) for codec in (JSON, RAW)]
    for client in clients:
        client.outbox.blocked()
    publish(hub, ("A", b"10.50"))
    for client in clients:
        client.outbox.drained()
    assert [event["d"] for event in clients[0].events()] == [10.5]
    assert clients[1].texts() == [b"10.50"]


def test_a_raw_client_past_its_budget_is_closed_as_too_slow():
    counters = Counters()
    hub = make_hub(counters=counters, limits=Limits(raw_budget=1000))
    client, other = raw_watching(hub, "A"), raw_watching(hub, "A")
    client.outbox.blocked()
    for n in range(1, 100):
        publish(hub, ("A", b'"%050d"' % n))
        if client.outlet.closed_with is not None:
            break
    assert client.outlet.closed_with is CloseCode.TOO_SLOW
    assert 5 < n < 15
    assert counters.closed_too_slow == 1
    assert len(other.events()) == n


def test_an_auto_client_has_no_such_budget():
    hub = make_hub(limits=Limits(raw_budget=1000))
    client = watching(hub, "A")
    client.outbox.blocked()
    for n in range(100):
        publish(hub, ("A", b'"%050d"' % n))
    assert client.outlet.closed_with is None


def test_raw_updates_leave_in_pieces_so_that_a_full_outlet_can_say_stop():
    hub = make_hub()
    client = raw_watching(hub, "A")
    client.outbox.blocked()
    for n in range(1, 401):
        publish(hub, ("A", b'"%01000d"' % n))
    client.outlet.room = 0
    client.outbox.drained()
    assert client.outbox.behind
    [(_, text)] = client.frames()
    assert 64 * 1024 <= len(text) <= 68 * 1024
    publish(hub, ("A", b"401"))
    numbers = [event["n"] for event in json.loads(text)]
    client.outlet.room = None
    client.outbox.drained()
    assert not client.outbox.behind
    assert numbers + [n for _, _, n in quotes_of(client)] == list(range(1, 402))


def test_the_budget_counts_what_is_kept_now():
    hub = make_hub(limits=Limits(raw_budget=1000))
    client = raw_watching(hub, "A")
    for _ in range(10):
        client.outbox.blocked()
        for n in range(8):
            publish(hub, ("A", b'"%050d"' % n))
        client.outbox.drained()
    assert client.outlet.closed_with is None
    assert len(client.events()) == 80


def test_what_was_unsubscribed_counts_no_more_when_the_budget_is_reached():
    hub = make_hub(limits=Limits(raw_budget=1000))
    client = raw_watching(hub, "A", "B")
    client.outbox.blocked()
    for n in range(8):
        publish(hub, ("A", b'"%050d"' % n))
    client.say({"op": "unsubscribe", "symbols": ["A"]})
    for n in range(8):
        publish(hub, ("B", b'"%050d"' % n))
    assert client.outlet.closed_with is None
    client.outbox.drained()
    assert {event["s"] for event in client.events() if event["ev"] == "quote"} == {"B"}


def test_a_symbol_subscribed_anew_while_behind_brings_nothing_of_before():
    hub = make_hub()
    client = raw_watching(hub, "A")
    client.outbox.blocked()
    publish(hub, ("A", b"1"), ("A", b"2"))
    client.say({"op": "unsubscribe"})
    client.say({"op": "subscribe", "symbols": ["A"], "mode": "raw"})
    publish(hub, ("A", b"3"))
    client.outbox.drained()
    assert [(event["ev"], event.get("n")) for event in client.events()] == [
        ("unsubscribed", None),
        ("subscribed", None),
        ("snapshot", 2),
        ("quote", 3),
    ]


def test_asking_for_raw_while_behind_merges_what_was_and_nothing_after():
    hub = make_hub()
    client = watching(hub, "A")
    client.outbox.blocked()
    publish(hub, ("A", b"1"), ("A", b"2"))
    client.say({"op": "subscribe", "symbols": ["A"], "mode": "raw", "snapshot": False})
    publish(hub, ("A", b"3"), ("A", b"4"))
    client.outbox.drained()
    assert [event.get("n") for event in client.events()] == [None, 2, 3, 4]
    assert client.outbox.merged == 1


def test_going_back_to_auto_while_behind_merges_from_then_on():
    hub = make_hub()
    client = raw_watching(hub, "A")
    client.outbox.blocked()
    publish(hub, ("A", b"1"), ("A", b"2"))
    client.say({"op": "subscribe", "symbols": ["A"], "snapshot": False})
    publish(hub, ("A", b"3"), ("A", b"4"))
    client.outbox.drained()
    assert [event.get("n") for event in client.events()] == [None, 1, 2, 4]
    assert client.outbox.merged == 1


def test_what_leaves_after_a_drain_is_counted():
    counters = Counters()
    hub = make_hub(counters=counters)
    client = watching(hub, "A")
    before = counters.bytes_out
    client.outbox.blocked()
    publish(hub, ("A", b"1"), ("A", b"2"))
    client.outbox.drained()
    assert (counters.events_out, counters.frames_out, counters.merged) == (1, 1, 1)
    assert counters.bytes_out - before == len(client.outlet.written[0])


def test_of_what_leaves_after_a_drain_only_updates_are_counted():
    counters = Counters()
    hub = make_hub(counters=counters)
    client = watching(hub, "A", "B")
    client.outbox.blocked()
    client.say({"op": "ping", "id": 1})
    client.outbox.drained()
    assert (counters.events_out, counters.frames_out, counters.bytes_out) == (0, 0, 0)
    assert client.events() == [{"ev": "pong", "id": 1}]
    client.outbox.blocked()
    client.say({"op": "ping", "id": 2})
    publish(hub, ("A", b"1"), ("B", b"1"))
    client.outbox.drained()
    _pong, (_, quotes) = client.frames()
    assert (counters.events_out, counters.frames_out) == (2, 1)
    assert counters.bytes_out == len(frame_head(len(quotes))) + len(quotes)


def test_bare_payloads_are_a_frame_each_in_a_turn_and_after_a_drain():
    counters = Counters()
    hub = make_hub(counters=counters)
    client = Client(hub, codec=RAW)
    client.say({"op": "subscribe", "symbols": ["A", "B"]})
    publish(hub, ("A", b"1"), ("B", b"1"), ("A", b"2"))
    assert (counters.events_out, counters.frames_out) == (3, 3)
    client.outbox.blocked()
    publish(hub, ("A", b"3"), ("B", b"2"))
    client.outbox.drained()
    assert (counters.events_out, counters.frames_out) == (5, 5)
    assert counters.bytes_out == sum(map(len, client.outlet.written))


def test_what_was_pending_of_a_pace_and_leaves_as_that_ends_is_counted():
    counters = Counters()
    hub = make_hub(counters=counters)
    client = Client(hub)
    client.say({"op": "subscribe", "symbols": ["A"], "interval": 1000})
    publish(hub, ("A", b"1"), ("A", b"2"))
    client.frames()
    client.say({"op": "subscribe", "symbols": ["A"], "snapshot": False})
    assert [event["n"] for event in client.events() if event["ev"] == "quote"] == [2]
    assert (counters.events_out, counters.frames_out, counters.merged) == (1, 1, 1)


def test_the_last_words_go_out_even_to_a_client_that_is_behind():
    hub = make_hub()
    client = watching(hub, "A")
    client.outbox.blocked()
    publish(hub, ("A", b"1"))
    Announcements(hub, lambda share: None).dismiss(CloseCode.GOING_AWAY, lambda: 7)
    assert client.events() == [{"ev": "bye", "code": 1001, "retry": 7}]
    assert client.outlet.closed_with is CloseCode.GOING_AWAY
    client.session.close()
    client.outbox.send_last(b"late")
    assert client.outlet.written == []


def test_what_was_merged_before_raw_was_asked_for_counts_when_the_client_gets_it():
    hub = make_hub()
    client = watching(hub, "A", "B")
    client.outbox.blocked()
    publish(hub, ("A", b"1"), ("A", b"2"), ("B", b"1"), ("B", b"2"))
    client.say({"op": "subscribe", "symbols": ["A", "B"], "mode": "raw", "snapshot": False})
    client.say({"op": "unsubscribe", "symbols": ["B"]})
    assert client.outbox.merged == 0
    client.outbox.drained()
    assert [event["n"] for event in client.events() if event["ev"] == "quote"] == [2]
    assert client.outbox.merged == 1, "of B it got nothing that would show a jump"


# -- how many it was handed ------------------------------------------------------------------------


def handed(client: Client) -> int:
    client.session.close()
    return client.outbox.quotes


def test_it_knows_how_many_updates_it_was_handed():
    hub = make_hub()
    publish(hub, ("A", b"0"), ("A", b"0"))
    client = watching(hub, "A", "B")
    publish(hub, ("A", b"1"), ("A", b"2"), ("B", b"1"), ("C", b"1"))
    client.say({"op": "unsubscribe", "symbols": ["A"]})
    publish(hub, ("A", b"3"), ("B", b"2"))
    assert handed(client) == 4


def test_what_waits_for_a_client_that_goes_was_not_handed_over():
    hub = make_hub()
    client = watching(hub, "A", "B")
    client.say({"op": "subscribe", "symbols": ["C"], "mode": "raw"})
    publish(hub, ("A", b"1"), ("B", b"1"), ("C", b"1"))
    client.outbox.blocked()
    for n in range(10):
        publish(hub, ("A", b"%d" % n), ("C", b"%d" % n))
    client.say({"op": "subscribe", "symbols": ["C"], "mode": "raw"})
    client.say({"op": "unsubscribe", "symbols": ["B"]})
    assert handed(client) == 3


def test_what_a_turn_brought_and_did_not_send_was_not_handed_over():
    hub = make_hub()
    client = watching(hub, "A")
    publish(hub, ("A", b"1"))
    hub.publish("A", b"2")
    assert handed(client) == 1


def test_raw_updates_of_a_symbol_it_gave_up_while_behind_were_not_handed_over():
    hub = make_hub()
    client = watching(hub, "A")
    client.say({"op": "subscribe", "symbols": ["R", "S"], "mode": "raw"})
    client.outbox.blocked()
    publish(hub, *[("R", b"1"), ("S", b"1")] * 5)
    client.say({"op": "unsubscribe", "symbols": ["R"]})
    client.outbox.drained()
    assert sum(event["ev"] == "quote" for event in client.events()) == 5
    assert handed(client) == 5


def test_what_was_merged_into_a_raw_update_that_is_never_sent_was_not_handed_over():
    hub = make_hub()
    client = watching(hub, "A")
    client.outbox.blocked()
    publish(hub, ("A", b"1"), ("A", b"2"), ("A", b"3"))
    client.say({"op": "subscribe", "symbols": ["A"], "mode": "raw", "snapshot": False})
    client.say({"op": "unsubscribe", "symbols": ["A"]})
    client.outbox.drained()
    assert handed(client) == 0


@pytest.mark.parametrize("pieces", [1, 40])
def test_raw_updates_that_are_dropped_to_make_room_were_not_handed_over(pieces):
    hub = make_hub(limits=Limits(raw_budget=1000))
    client = watching(hub)
    client.say({"op": "subscribe", "symbols": ["R", "S"], "mode": "raw"})
    client.outbox.blocked()
    publish(hub, *[("R", b"1")] * 10)
    client.say({"op": "unsubscribe", "symbols": ["R"]})
    publish(hub, *[("S", b"1")] * pieces)
    client.outbox.drained()
    assert handed(client) == pieces


def test_a_symbol_that_was_forgotten_and_numbered_anew_counts_right():
    hub = make_hub(limits=Limits(total_symbols=2))
    client = watching(hub, "A")
    publish(hub, *[("A", b"1")] * 5)
    client.say({"op": "unsubscribe", "symbols": ["A"]})
    publish(hub, ("B", b"1"), ("C", b"1"))
    assert hub.topic("A") is None
    client.say({"op": "subscribe", "symbols": ["A"]})
    publish(hub, *[("A", b"1")] * 3)
    assert handed(client) == 8


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("everybody", [False, True])
def test_values_that_were_learnt_are_no_updates(behind, everybody):
    hub = make_hub()
    hub.values.can_be_learnt = True
    client = watching(hub, "A", "B")
    if behind:
        client.outbox.blocked()
    hub.values.learn("A", b"9", 0, everybody)
    hub.values.learn("B", b"9", 0, everybody)
    publish(hub, ("A", b"1"), ("A", b"2"))
    client.outbox.drained()
    quotes = [event for event in client.events() if event["ev"] == "quote"]
    assert handed(client) == len(quotes) == (0 if behind else 2)


def test_when_it_fell_behind_is_known_while_it_is():
    clock = FixedClock(1000.0)
    client = Client(make_hub(clock))
    assert client.outbox.behind_since is None
    client.outbox.blocked()
    clock.advance(5)
    client.outbox.blocked()
    assert client.outbox.behind_since == 1000.0
    client.outbox.drained()
    assert client.outbox.behind_since is None
    client.outbox.blocked()
    assert client.outbox.behind_since == 1005.0
    client.session.close()
    assert client.outbox.behind_since is None


def test_what_is_kept_for_it_and_what_its_outlet_has_is_queued():
    hub = make_hub()
    client = Client(hub)
    client.say({"op": "subscribe", "symbols": ["A"], "mode": "raw"})
    client.outlet.now_taken = Progress(0, 50)
    assert client.outbox.queued() == 50
    client.outbox.blocked()
    assert client.outbox.queued() == 50
    publish(hub, ("A", b"1" * 200))
    kept = client.outbox.queued() - 50
    assert 200 < kept < 400
    client.say({"op": "ping"})
    assert client.outbox.queued() > 50 + kept
    client.outbox.drained()
    assert client.outbox.queued() == 50
