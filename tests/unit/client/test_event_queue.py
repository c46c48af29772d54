"""What waits for a slow reader: bounded, counted exactly, and no gap left out."""

from __future__ import annotations

from pushservice.client.event_queue import EventQueue
from pushservice.client.events import (
    Event,
    Feed,
    Fresh,
    Gap,
    Heartbeat,
    Quote,
    Refused,
    Stale,
    State,
)


def quote(symbol: str, n: int, merged: int = 0, *, snapshot: bool = False) -> Quote:
    return Quote(symbol, n, n, b"1", snapshot, merged, "e")


def rest(queue: EventQueue) -> list[Event]:
    found = []
    while (event := queue.take()) is not None:
        found.append(event)
    return found


def test_up_to_its_room_all_waits_as_it_came():
    queue = EventQueue(4)
    events = [quote("A", 1), Gap("A", "feed"), quote("A", 2), quote("A", 3)]
    queue.put(events)
    assert queue.full
    assert rest(queue) == events
    assert queue.take() is None


def test_beyond_it_the_newest_of_each_symbol_waits_and_counts_the_others():
    queue = EventQueue(1)
    queue.put([quote("A", 1), quote("A", 2, 3), quote("B", 7), quote("A", 6), quote("A", 9, 2)])
    assert rest(queue) == [quote("A", 1), quote("A", 9, 2 + 1 + 1 + 3), quote("B", 7)]


def test_a_snapshot_that_is_left_out_was_no_update():
    queue = EventQueue(1)
    queue.put([Feed(up=True, t=1), quote("A", 5, snapshot=True), quote("A", 6)])
    assert rest(queue)[1:] == [quote("A", 6)]


def test_a_gap_is_kept_where_it_lies_whatever_is_merged():
    gap, feed = Gap("A", "link"), Feed(up=True, t=1)
    for events, expected in (
        ([gap, quote("A", 5)], [gap, quote("A", 5)]),
        ([quote("A", 5), gap], [quote("A", 5), gap]),
        ([quote("A", 5), gap, quote("A", 9)], [gap, quote("A", 9, 1)]),
        ([gap, quote("A", 5), gap, quote("A", 9)], [gap, quote("A", 9, 1)]),
        ([gap, quote("A", 5), gap, gap], [gap, quote("A", 5), gap]),
        ([gap, gap], [gap]),
    ):
        queue = EventQueue(1)
        queue.put([feed, *events])
        assert rest(queue) == [feed, *expected]


def test_of_other_events_the_newest_of_each_kind_waits():
    queue = EventQueue(1)
    queue.put(
        [
            State("open"),
            Stale(None, "link"),
            State("waiting"),
            Stale(("A", "B"), "quiet"),
            Refused("A", 409, "x"),
            Fresh(("B",)),
            Refused("A", 409, "y"),
            Heartbeat(1, up=True, age=None, merged=0),
            Fresh(None),
            State("open"),
        ]
    )
    assert rest(queue) == [
        State("open"),
        Stale(("A",), "quiet"),
        Fresh(("B",)),
        Refused("A", 409, "y"),
        Heartbeat(1, up=True, age=None, merged=0),
        Fresh(None),
        State("open"),
    ]


def test_it_stays_bounded_whatever_comes():
    queue = EventQueue(10)
    for n in range(1, 10_000):
        symbol = f"S{n % 5}"
        queue.put([quote(symbol, n), Gap(symbol, "link"), State("open"), Refused(symbol, 409, "")])
        queue.put([Heartbeat(n, up=True, age=1, merged=0), Stale((symbol,), "quiet")])
    assert len(queue) <= 10 + 4 * 5 + 3
    assert len(rest(queue)) <= 10 + 5 * 5 + 3


def test_keeping_all_it_merges_nothing():
    queue = EventQueue(2, keep_all=True)
    events = [quote("A", n) for n in range(5)]
    queue.put(events)
    assert queue.full
    assert rest(queue) == events


def test_what_is_forgotten_is_not_read():
    queue = EventQueue(2)
    queue.put([quote("A", 1), quote("B", 1), quote("A", 2), Gap("B", "feed"), State("open")])
    queue.forget({"A"})
    assert rest(queue) == [quote("B", 1), Gap("B", "feed"), State("open")]
    queue.put([quote("A", 3)])
    queue.clear()
    assert rest(queue) == []
