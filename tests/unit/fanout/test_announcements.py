"""Announcements: heartbeats, the feed's state, gaps, stale symbols, goodbye."""

from __future__ import annotations

import pytest
from core_doubles import Client, FixedClock, make_hub, publish

from pushservice.fanout.announcements import Announcements
from pushservice.fanout.hub import Hub, TurnHooks
from pushservice.fanout.outbox import Outbox
from pushservice.metrics import Counters
from pushservice.protocol.close_codes import CloseCode
from pushservice.protocol.codecs import RAW


def announcing(hub: Hub) -> Announcements:
    return Announcements(hub, lambda share: None)


def watching(hub: Hub, *symbols: str, **values: object) -> Client:
    client = Client(hub, **values)
    client.say({"op": "subscribe", "symbols": symbols})
    client.frames()
    return client


def told(client: Client) -> list[object]:
    """The events of a client, each without its moment."""
    events = client.events()
    for event in events:
        event.pop("t", None)
    return events


# -- heartbeats and goodbye ------------------------------------------------------------------------


def test_heartbeats_reach_each_connection_once_a_round():
    clock = FixedClock(1_000.0)
    hub = make_hub(clock)
    announcements = announcing(hub)
    clients = [watching(hub) for _ in range(45)]
    announcements.feed_changed(True)
    for client in clients:
        client.frames()
    publish(hub, ("A", b"1"))
    clock.rightNow = 1_002.0
    per_beat = []
    for _ in range(hub.groups):
        announcements.beat()
        per_beat.append(sum(len(client.outlet.written) for client in clients) - sum(per_beat))
    assert max(per_beat) <= 3, "the connections are dealt evenly"
    for client in clients:
        assert client.events() == [
            {"ev": "heartbeat", "t": 1_002_000, "feed": "up", "age": 2000, "merged": 0}
        ]


def test_a_heartbeat_before_the_first_message_has_no_age_and_says_that_the_feed_is_down():
    hub = make_hub()
    announcements = announcing(hub)
    client = watching(hub)
    announcements.beat()
    [event] = client.events()
    assert (event["feed"], event["age"]) == ("down", None)


def test_raw_clients_and_clients_that_are_behind_get_no_heartbeat():
    hub = make_hub()
    announcements = announcing(hub)
    raw, stalled = watching(hub, codec=RAW), watching(hub)
    stalled.outbox.blocked()
    for _ in range(hub.groups):
        announcements.beat()
    assert raw.outlet.written == stalled.outlet.written == []


def test_a_heartbeat_that_fails_is_reported_and_the_others_go_out():
    failed: list[Outbox] = []
    hub = Hub(
        FixedClock(), "k", Counters(), TurnHooks(lambda outbox, _: failed.append(outbox)), beats=1
    )
    announcements = announcing(hub)
    broken, sound = Client(hub), Client(hub)
    broken.outlet.broken = True
    sound.frames()
    announcements.beat()
    assert failed == [broken.outbox]
    assert [event["ev"] for event in sound.events()] == ["heartbeat"]


def test_dismissal_says_goodbye_and_begins_every_close():
    hub = make_hub()
    announcements = announcing(hub)
    client, raw = watching(hub), watching(hub, codec=RAW)
    waits = iter([100, 200])
    announcements.dismiss(CloseCode.GOING_AWAY, lambda: next(waits))
    assert client.events() == [{"ev": "bye", "code": 1001, "retry": 100}]
    assert raw.outlet.written == []
    assert client.outlet.closed_with == raw.outlet.closed_with == CloseCode.GOING_AWAY


# -- the feed --------------------------------------------------------------------------------------

DOWN = {"ev": "feed", "state": "down"}
UP = {"ev": "feed", "state": "up"}


def test_everybody_is_told_that_the_feed_is_lost_and_once():
    hub = make_hub()
    announcements = announcing(hub)
    announcements.feed_changed(True)
    client, idle, raw = watching(hub, "A"), watching(hub), watching(hub, "A", codec=RAW)
    announcements.feed_changed(False)
    announcements.feed_changed(False)
    assert told(client) == told(idle) == [DOWN]
    assert raw.outlet.written == []


def test_when_it_is_back_each_client_is_told_of_which_symbols_updates_may_be_missing():
    hub = make_hub()
    announcements = announcing(hub)
    client, idle, raw = watching(hub, "A", "B"), watching(hub), watching(hub, "A", codec=RAW)
    paced = Client(hub)
    paced.say({"op": "subscribe", "symbols": ["B"], "interval": 1000})
    paced.frames()
    announcements.feed_changed(False)
    announcements.feed_changed(True)
    assert told(client) == [DOWN, UP, {"ev": "gap", "s": "A"}, {"ev": "gap", "s": "B"}]
    assert told(paced) == [DOWN, UP, {"ev": "gap", "s": "B"}]
    assert told(idle) == [DOWN, UP]
    assert raw.outlet.written == []
    paced.session.close()


def test_a_client_that_comes_while_the_feed_is_down_is_told():
    hub = make_hub()
    announcements = announcing(hub)
    client = watching(hub)
    announcements.greet(client.outbox)
    assert told(client) == [], "nothing is known yet"
    announcements.feed_changed(False)
    client.frames()
    announcements.greet(client.outbox)
    assert told(client) == [DOWN]
    announcements.feed_changed(True)
    client.frames()
    announcements.greet(client.outbox)
    assert told(client) == []


def test_a_client_behind_is_told_the_latest_before_the_newest_quotes():
    hub = make_hub()
    announcements = announcing(hub)
    client = watching(hub, "A", "B", "C")
    client.outbox.blocked()
    publish(hub, ("A", b"1"))
    for up in (False, True, False, True):
        announcements.feed_changed(up)
    publish(hub, ("A", b"2"))
    client.say({"op": "unsubscribe", "symbols": ["C"]})
    client.outbox.drained()
    assert [(event["ev"], event.get("s"), event.get("n")) for event in told(client)] == [
        ("unsubscribed", None, None),
        ("feed", None, None),
        ("gap", "A", None),
        ("gap", "B", None),
        ("quote", "A", 2),
    ]


def test_a_raw_client_behind_finds_the_gap_at_its_place():
    hub = make_hub()
    announcements = announcing(hub)
    client = Client(hub)
    client.say({"op": "subscribe", "symbols": ["A"], "mode": "raw"})
    client.frames()
    client.outbox.blocked()
    publish(hub, ("A", b"1"))
    announcements.feed_changed(False)
    announcements.feed_changed(True)
    publish(hub, ("A", b"2"))
    client.outbox.drained()
    assert [(event["ev"], event.get("n")) for event in told(client)] == [
        ("feed", None),
        ("quote", 1),
        ("gap", None),
        ("quote", 2),
    ]


def test_one_client_that_fails_does_not_keep_the_others_from_being_told():
    failed: list[Outbox] = []
    hub = Hub(FixedClock(), "k", Counters(), TurnHooks(lambda outbox, _: failed.append(outbox)))
    announcements = announcing(hub)
    clients = [watching(hub, "A") for _ in range(3)]
    clients[1].outlet.broken = True
    announcements.feed_changed(False)
    assert [told(clients[0]), told(clients[2])] == [[DOWN], [DOWN]]
    assert failed == [clients[1].outbox]


# -- quiet symbols ---------------------------------------------------------------------------------


class Quiet:
    """A hub that is up, a clock, and looks for what has gone quiet."""

    def __init__(self, symbol_ms: float | None = 3000, feed_ms: float | None = None) -> None:
        self.clock = FixedClock()
        self.hub = make_hub(self.clock)
        self.announcements = announcing(self.hub)
        self.announcements.feed_changed(True)
        self._limits = symbol_ms, feed_ms

    def look_after(self, seconds: float) -> None:
        self.clock.pass_time(seconds)
        self.announcements.look_for_stale(*self._limits)


def test_watchers_are_told_once_when_a_symbol_is_quiet_and_at_once_when_it_is_back():
    quiet = Quiet()
    client, other = watching(quiet.hub, "A", "B"), watching(quiet.hub, "B")
    publish(quiet.hub, ("A", b"1"), ("B", b"1"))
    quiet.look_after(2)
    publish(quiet.hub, ("B", b"2"))
    client.frames()
    other.frames()
    quiet.look_after(2)
    quiet.look_after(0.5)
    assert client.events() == [{"ev": "stale", "symbols": ["A"]}]
    assert other.events() == []
    publish(quiet.hub, ("A", b"2"))
    assert [event["ev"] for event in client.events()] == ["fresh", "quote"]
    quiet.look_after(4)
    assert {tuple(event["symbols"]) for event in client.events()} == {("A", "B")}


def test_a_paced_watcher_is_told_too_and_a_raw_subprotocol_has_no_words_for_it():
    quiet = Quiet()
    paced, raw = Client(quiet.hub), watching(quiet.hub, "A", codec=RAW)
    paced.say({"op": "subscribe", "symbols": ["A"], "interval": 1000})
    publish(quiet.hub, ("A", b"1"))
    quiet.look_after(1)
    paced.frames()
    raw.frames()
    quiet.look_after(3)
    publish(quiet.hub, ("A", b"2"))
    assert [event["ev"] for event in paced.events()] == ["stale", "fresh"]
    assert raw.texts() == [b"2"]
    paced.session.close()


def test_who_subscribes_to_a_stale_symbol_is_told_after_the_snapshot():
    quiet = Quiet()
    watching(quiet.hub, "A")
    publish(quiet.hub, ("A", b"1"))
    quiet.look_after(4)
    late = Client(quiet.hub)
    late.say({"op": "subscribe", "symbols": ["A", "B"]})
    events = late.events()[1:]
    assert [event["ev"] for event in events] == ["subscribed", "snapshot", "stale"]
    assert events[-1]["symbols"] == ["A"]


def test_a_symbol_that_was_never_quoted_is_not_called_stale():
    quiet = Quiet()
    client = watching(quiet.hub, "A")
    quiet.look_after(100)
    assert client.events() == []


def test_nothing_is_called_stale_while_the_feed_is_down_nor_right_after():
    quiet = Quiet()
    client = watching(quiet.hub, "A")
    publish(quiet.hub, ("A", b"1"))
    quiet.announcements.feed_changed(False)
    client.frames()
    quiet.look_after(100)
    assert client.events() == []
    quiet.announcements.feed_changed(True)
    client.frames()
    quiet.look_after(2)
    assert client.events() == []
    quiet.look_after(2)
    assert [event["ev"] for event in client.events()] == ["stale"]


def test_a_client_behind_is_told_how_each_symbol_stands_when_it_drains():
    quiet = Quiet()
    client = watching(quiet.hub, "A", "B", "C")
    publish(quiet.hub, ("A", b"1"), ("B", b"1"), ("C", b"1"))
    client.frames()
    client.outbox.blocked()
    quiet.look_after(4)
    publish(quiet.hub, ("A", b"2"))
    client.say({"op": "unsubscribe", "symbols": ["C"]})
    client.outbox.drained()
    events = [event for event in client.events() if event["ev"] in ("stale", "fresh")]
    assert events == [{"ev": "stale", "symbols": ["B"]}, {"ev": "fresh", "symbols": ["A"]}]


def test_everybody_is_told_when_the_whole_feed_has_gone_quiet_and_when_it_is_back():
    quiet = Quiet(symbol_ms=None, feed_ms=3000)
    client, idle = watching(quiet.hub, "A"), watching(quiet.hub)
    quiet.look_after(4)
    stale = {"ev": "stale", "symbols": [], "all": True}
    assert client.events() == idle.events() == [stale]
    late = watching(quiet.hub)
    quiet.announcements.greet(late.outbox)
    assert late.events() == [stale]
    quiet.look_after(4)
    publish(quiet.hub, ("UNWATCHED", b"1"))
    quiet.look_after(0.1)
    fresh = {"ev": "fresh", "symbols": [], "all": True}
    assert client.events() == idle.events() == late.events() == [fresh]


@pytest.mark.parametrize("limits", [(None, None), (3000, None), (None, 3000)])
def test_nothing_is_said_of_a_feed_that_was_never_up(limits):
    hub = make_hub()
    announcements = announcing(hub)
    client = watching(hub, "A")
    publish(hub, ("A", b"1"))
    client.frames()
    announcements.look_for_stale(*limits)
    assert client.events() == []


def test_so_many_are_dismissed_and_no_more():
    hub = make_hub()
    clients = [watching(hub, "A") for _ in range(5)]
    asked: list[int] = []
    announcements = announcing(hub)

    def retry() -> int:
        asked.append(1)
        return 7

    announcements.dismiss(CloseCode.RESTARTING, retry, 2)
    dismissed = [client for client in clients if client.outlet.closed_with is not None]
    assert len(dismissed) == len(asked) == 2
    announcements.dismiss(CloseCode.RESTARTING, retry, 0)
    assert len(asked) == 2


def test_who_fails_at_the_goodbye_is_reported_and_the_others_are_dismissed():
    failed = []
    hooks = TurnHooks(lambda outbox, failure: failed.append((outbox, failure)))
    hub = Hub(FixedClock(), "k", Counters(), hooks)
    clients = [watching(hub, "A") for _ in range(3)]
    clients[1].outlet.broken = True
    announcing(hub).dismiss(CloseCode.GOING_AWAY, lambda: 1)
    assert [client.outlet.closed_with for client in clients] == [1001, None, 1001]
    [(outbox, failure)] = failed
    assert outbox is clients[1].outbox
    assert isinstance(failure, OSError)
