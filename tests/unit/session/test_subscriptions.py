"""What commands do to what a client watches, by its rights."""

from __future__ import annotations

from typing import Any

import pytest
from core_doubles import FixedClock, RecordingOutlet, make_hub, publish

from pushservice.auth.identity import Rights
from pushservice.fanout.outbox import Outbox
from pushservice.fanout.shared_frames import SharedFrames
from pushservice.fanout.watchlist import RAW, raw_and_interval
from pushservice.protocol import events
from pushservice.protocol.close_codes import ErrorCode
from pushservice.protocol.codecs import JSON
from pushservice.protocol.commands import Subscribe
from pushservice.session.subscriptions import review, subscribe, unsubscribe


class Place:
    """A hub and the outbox of one client."""

    def __init__(self) -> None:
        self.clock = FixedClock()
        self.hub = make_hub(self.clock)
        self.outlet = RecordingOutlet()
        self.outbox = Outbox(JSON, self.outlet, self.hub.common, "t-1")
        self.hub.enter(self.outbox)

    def subscribe(self, *symbols: object, rights: Rights | None = None, most: int = 9, **how: Any):
        command = Subscribe(None, symbols, **how)
        accepted, errors = subscribe(self.hub, self.outbox, command, rights, most)
        return (
            {topic.symbol: is_new for topic, is_new in accepted.items()},
            {symbol: code for symbol, (code, _) in errors.items()},
        )

    def review(self, rights: Rights, most: int = 9) -> dict[str, ErrorCode]:
        errors = review(self.hub, self.outbox, rights, most)
        return {symbol: code for symbol, (code, _) in errors.items()}

    def watched(self) -> dict[str, tuple[bool, int]]:
        return {topic.symbol: raw_and_interval(kind) for topic, kind in self.outbox.topics.items()}


@pytest.fixture
def place() -> Place:
    return Place()


def test_without_rights_everything_may_be_watched(place):
    assert place.subscribe("A", "B") == ({"A": True, "B": True}, {})
    assert place.subscribe("A", "A") == ({"A": False}, {})


def test_a_symbol_that_the_rights_do_not_cover_is_refused_and_unknown_to_the_hub(place):
    rights = Rights(("*.SH",))
    accepted, errors = place.subscribe("1.SH", "AAPL", 5, rights=rights)
    assert accepted == {"1.SH": True}
    assert errors == {"AAPL": ErrorCode.NOT_ENTITLED, "5": ErrorCode.BAD_SYMBOL}
    assert place.hub.topic("AAPL") is None


def test_who_may_have_one_update_an_interval_gets_no_more_however_it_asks(place):
    rights = Rights(min_interval_ms=500)
    assert place.subscribe("A", rights=rights) == ({"A": True}, {})
    place.subscribe("B", rights=rights, interval_ms=2000)
    assert place.subscribe("C", "A", rights=rights, raw=True)[1] == {
        "C": ErrorCode.NOT_ENTITLED,
        "A": ErrorCode.NOT_ENTITLED,
    }
    assert place.watched() == {"A": (False, 500), "B": (False, 2000)}


def test_symbols_past_the_most_are_refused_and_those_watched_may_be_asked_for_again(place):
    assert place.subscribe("A", "B", "C", most=2)[1] == {"C": ErrorCode.TOO_MANY_SYMBOLS}
    assert place.subscribe("A", most=2) == ({"A": False}, {})
    assert place.subscribe("D", most=0)[1] == {"D": ErrorCode.TOO_MANY_SYMBOLS}


def test_unsubscribing_ends_what_is_named_or_everything(place):
    place.subscribe("A", "B", "C")
    assert unsubscribe(place.hub, place.outbox, ["A", "X", "A"]) == (["A", "X"], {})
    gone, errors = unsubscribe(place.hub, place.outbox, ["x y"])
    assert (gone, errors["x y"][0]) == ([], ErrorCode.BAD_SYMBOL)
    assert unsubscribe(place.hub, place.outbox, None) == (["B", "C"], {})
    assert place.watched() == {}


def test_a_review_ends_what_is_not_allowed_any_more_and_leaves_the_rest_as_it_was(place):
    place.subscribe("A")
    place.subscribe("B", raw=True)
    place.subscribe("C", interval_ms=100)
    assert place.review(Rights(("B", "C"))) == {"A": ErrorCode.NOT_ENTITLED}
    assert place.watched() == {"B": (True, 0), "C": (False, 100)}


def test_a_review_slows_down_what_is_too_fast_and_ends_what_can_not_be(place):
    place.subscribe("A")
    place.subscribe("B", raw=True)
    place.subscribe("C", interval_ms=100)
    place.subscribe("D", interval_ms=5000)
    assert place.review(Rights(min_interval_ms=1000)) == {"B": ErrorCode.NOT_ENTITLED}
    assert place.watched() == {"A": (False, 1000), "C": (False, 1000), "D": (False, 5000)}


def test_a_review_keeps_the_first_of_those_that_are_too_many(place):
    place.subscribe("A", "B", "C", "D")
    assert place.review(Rights(("!A",)), most=2) == {
        "A": ErrorCode.NOT_ENTITLED,
        "D": ErrorCode.TOO_MANY_SYMBOLS,
    }
    assert list(place.watched()) == ["B", "C"]


@pytest.mark.parametrize("how", [{}, {"raw": True}, {"interval_ms": 100}])
def test_nothing_that_waits_for_a_client_that_is_behind_outlives_its_right(place, how):
    publish(place.hub, ("A", b"0"), ("B", b"0"))
    place.subscribe("A", "B", **how)
    place.outbox.blocked()
    publish(place.hub, ("A", b"1"), ("B", b"1"))
    place.clock.pass_time(1)
    place.outbox.send_snapshots([(topic, False) for topic in place.outbox.topics])
    place.outbox.tell_gaps(
        {t: events.gap(t.symbol_text) for t in place.outbox.topics}, SharedFrames()
    )
    place.outbox.tell_quiet(list(place.outbox.topics), stale=True)
    assert place.review(Rights(("B",))) == {"A": ErrorCode.NOT_ENTITLED}
    place.outbox.drained()
    place.clock.pass_time(1)
    sent = b"".join(place.outlet.written)
    assert b'"s":"B"' in sent
    assert b'"A"' not in sent
    place.hub.leave(place.outbox)
    assert place.clock.calls == []


def test_what_waits_for_its_interval_does_not_outlive_the_right_either(place):
    place.subscribe("A", "B", interval_ms=100)
    publish(place.hub, ("A", b"1"), ("B", b"1"))
    place.review(Rights(("B",)))
    place.clock.pass_time(1)
    sent = b"".join(place.outlet.written)
    assert (b'"s":"A"' in sent, b'"s":"B"' in sent) == (False, True)
    place.hub.leave(place.outbox)


def test_raw_is_told_from_the_others():
    assert raw_and_interval(RAW) == (True, 0)
    assert raw_and_interval(None) == (False, 0)
