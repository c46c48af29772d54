"""What is due by now: a market at its rate, a recording at its pace, whatever the clock does."""

from __future__ import annotations

import pytest

from pushservice.market.playback import PlaybackSource, SimulatedSource
from pushservice.market.recording_format import BadLine, Mark, Message
from pushservice.market.simulator import Market

NOW = 1_763_800_000.0
ROOM = 100_000
#: arrivals at 0, 0.1, 0.1 and 2.5 seconds, with an outage in between
MESSAGES = [
    Message(5_000_000, "quote.A", b"1"),
    Message(5_100_000, "quote.B", b"2"),
    Mark(5_100_000, up=False),
    Message(5_100_000, "quote.A", b"3"),
    Mark(5_200_000, up=True),
    Message(7_500_000, "quote.A", b"4"),
]


def texts(found) -> list[bytes]:
    return [payload for _, payload in found]


# -- a recording -----------------------------------------------------------------------------------


def test_a_recording_is_due_with_the_time_between_its_messages_as_it_was():
    playback = PlaybackSource(lambda: MESSAGES)
    assert playback.due(NOW, ROOM) == [(b"quote.A", b"1")]
    assert playback.wait() == pytest.approx(0.1)
    assert playback.due(NOW + 0.0999, ROOM) == []
    assert texts(playback.due(NOW + 0.1001, ROOM)) == [b"2", b"3"]
    assert playback.wait() == pytest.approx(2.4, abs=1e-3)
    for late in (1.0, 1.9, 2.4999):
        assert playback.due(NOW + late, ROOM) == []
    assert not playback.ended
    assert texts(playback.due(NOW + 2.5001, ROOM)) == [b"4"]
    assert playback.ended


@pytest.mark.parametrize("speed", [0.5, 4.0, 100.0])
def test_a_speed_divides_the_time_between_messages(speed):
    playback = PlaybackSource(lambda: MESSAGES, speed)
    assert texts(playback.due(NOW, ROOM)) == [b"1"]
    assert playback.wait() == pytest.approx(0.1 / speed, abs=1e-3)
    assert playback.due(NOW + 0.0999 / speed, ROOM) == []
    assert texts(playback.due(NOW + 0.1001 / speed, ROOM)) == [b"2", b"3"]


def test_without_a_speed_all_is_due_as_fast_as_there_is_room():
    playback = PlaybackSource(lambda: MESSAGES, None)
    assert texts(playback.due(NOW, 3)) == [b"1", b"2", b"3"]
    assert playback.wait() == 0
    assert playback.due(NOW, 0) == []
    assert texts(playback.due(NOW, 3)) == [b"4"]
    assert playback.ended


def test_without_a_speed_it_is_still_given_in_pieces():
    playback = PlaybackSource(lambda: MESSAGES[:1] * 5000, None)
    assert [len(playback.due(NOW, ROOM)) for _ in range(3)] == [2000, 2000, 1000]


def test_what_there_was_no_room_for_is_given_later_and_none_is_lost():
    playback = PlaybackSource(lambda: MESSAGES)
    assert playback.due(NOW, 0) == []
    assert texts(playback.due(NOW + 0.2, 1)) == [b"1"]
    assert texts(playback.due(NOW + 0.2, 1)) == [b"2"]
    assert texts(playback.due(NOW + 0.2, 1)) == [b"3"]


def test_playback_pauses_while_nothing_can_be_published():
    playback = PlaybackSource(lambda: MESSAGES)
    playback.hold(NOW)
    assert texts(playback.due(NOW, ROOM)) == [b"1"]
    for second in range(100):
        playback.hold(NOW + second)
    assert playback.due(NOW + 99.05, ROOM) == []
    assert texts(playback.due(NOW + 99.11, ROOM)) == [b"2", b"3"]


def test_a_machine_that_slept_does_not_flood():
    playback = PlaybackSource(lambda: MESSAGES)
    playback.due(NOW, ROOM)
    assert texts(playback.due(NOW + 3600, ROOM)) == [b"2", b"3"]


def test_a_clock_that_is_set_back_delays_nothing():
    playback = PlaybackSource(lambda: MESSAGES)
    playback.due(NOW, ROOM)
    playback.due(NOW - 3600, ROOM)
    assert texts(playback.due(NOW - 3599.8, ROOM)) == [b"2", b"3"]


def test_in_a_loop_it_begins_again_at_its_end():
    begun = []
    playback = PlaybackSource(lambda: begun.append(1) or MESSAGES, loop=True)
    found, now = [], NOW
    while len(found) < 12:
        found += texts(playback.due(now, ROOM))
        now += 0.05
    # The first of a pass follows the last of the one before at once.
    assert found == [b"1", b"2", b"3", b"4"] * 3 + [b"1"]
    assert len(begun) == 4
    # Two waits of 2.5 s lie between the three last messages.
    assert now - NOW == pytest.approx(7.5, abs=0.3)
    assert not playback.ended


@pytest.mark.parametrize("speed", [1.0, 10.0])
def test_in_a_loop_a_recording_of_a_moment_is_no_flood(speed):
    moment = [Message(7_500_000, "quote.A", b"1"), Message(7_500_100, "quote.A", b"2")]
    playback = PlaybackSource(lambda: moment, speed, loop=True)
    now, found = NOW, []
    for _ in range(4):
        found.append(len(playback.due(now, ROOM) + playback.due(now + 0.001, ROOM)))
        assert playback.due(now + 0.99 / speed, ROOM) == []
        now += 1.001 / speed
    assert found == [2, 2, 2, 2]


@pytest.mark.parametrize("loop", [True, False])
def test_an_empty_recording_ends_at_once(loop):
    playback = PlaybackSource(lambda: [Mark(1, up=False)], loop=loop)
    assert playback.due(NOW, ROOM) == []
    assert playback.ended


def test_a_count_ends_it():
    playback = PlaybackSource(lambda: MESSAGES, None, loop=True, count=6)
    assert texts(playback.due(NOW, ROOM)) == [b"1", b"2", b"3", b"4", b"1", b"2"]
    assert playback.ended


def test_channels_are_renamed():
    playback = PlaybackSource(lambda: MESSAGES, channel_of=lambda channel: f"my.{channel}")
    assert playback.due(NOW, ROOM) == [(b"my.quote.A", b"1")]


def test_what_is_not_there_yet_is_looked_for_again():
    playback = PlaybackSource(lambda: iter([None, MESSAGES[0], None, None, MESSAGES[1]]), loop=True)
    assert playback.due(NOW, ROOM) == []
    assert playback.wait() > 0
    assert texts(playback.due(NOW + 50, ROOM)) == [b"1"]
    assert playback.due(NOW + 50.05, ROOM) == []
    assert not playback.ended
    assert playback.due(NOW + 50.06, ROOM) == [], "it is there, and due later"
    assert texts(playback.due(NOW + 50.11, ROOM)) == [b"2"]


def test_what_is_wrong_with_the_recording_comes_out():
    def messages():
        yield MESSAGES[0]
        raise BadLine("oops")

    playback = PlaybackSource(messages)
    assert texts(playback.due(NOW, ROOM)) == [b"1"]
    assert not playback.ended
    with pytest.raises(BadLine, match="oops"):
        playback.due(NOW, ROOM)


# -- a market --------------------------------------------------------------------------------------


def market(rate: float, count: int | None = None):
    dropped = []
    source = SimulatedSource(Market(1), "quote.{}".format, rate, dropped.append, count)
    source.hold(NOW)
    return source, dropped


@pytest.mark.parametrize("rate", [0.5, 7, 200])
def test_a_market_keeps_its_rate(rate):
    source, dropped = market(rate)
    counts = [len(source.due(NOW + 0.02 * (n + 1) + 1e-6, ROOM)) for n in range(500)]
    assert sum(counts) == pytest.approx(10 * rate, abs=1)
    assert max(counts) - min(counts) <= 1
    assert dropped == []


def test_quotes_without_room_are_dropped_and_counted():
    source, dropped = market(100)
    assert len(source.due(NOW + 0.1001, 4)) == 4
    assert dropped == [6]


def test_a_market_makes_up_for_a_second_at_most():
    source, _ = market(100)
    assert len(source.due(NOW + 3600, ROOM)) == 100
    source.hold(NOW + 7200)
    assert source.due(NOW + 7200, ROOM) == []


def test_a_market_ends_after_its_count():
    source, _ = market(100, 15)
    assert len(source.due(NOW + 0.1001, ROOM)) == 10
    assert not source.ended
    assert len(source.due(NOW + 0.2001, ROOM)) == 5
    assert source.ended


def test_what_is_left_out_does_not_count():
    source, dropped = market(100, 10)
    assert len(source.due(NOW + 0.1001, 4)) == 4
    assert dropped == [6]
    assert not source.ended
    assert len(source.due(NOW + 0.2001, ROOM)) == 6
    assert source.ended


def test_quotes_are_those_of_the_market_on_their_channels():
    source, _ = market(100)
    [(channel, payload)] = source.due(NOW + 0.0101, ROOM)
    symbol, expected = Market(1).tick(int((NOW + 0.0101) * 1000))
    assert (channel, payload) == (f"quote.{symbol}".encode(), expected)
