"""Events become lines, or changes of a board."""

from __future__ import annotations

import io
import json

import pytest

from pushservice.cli.board import Board
from pushservice.cli.watch_views import Lines, Table, describe_event, json_line, raw_line
from pushservice.client import (
    Feed,
    Fresh,
    Gap,
    Heartbeat,
    Quote,
    Refused,
    Stale,
    State,
    Welcome,
)

QUOTE = Quote("贵", 7, 1_763_799_999_123, b'{"last":10.50}', merged=3)


def test_a_line_of_json_is_the_event_with_the_payload_byte_for_byte():
    assert json_line(QUOTE) == (
        '{"ev":"quote","s":"贵","n":7,"t":1763799999123,"merged":3,"d":{"last":10.50}}\n'.encode()
    )
    snapshot = Quote("A", 7, 1, b"10.50", snapshot=True)
    assert json_line(snapshot) == b'{"ev":"snapshot","s":"A","n":7,"t":1,"d":10.50}\n'
    assert json.loads(json_line(QUOTE))["d"]["last"] == 10.5


def test_a_raw_line_is_the_payload():
    assert raw_line(QUOTE) == b'{"last":10.50}\n'


def lines_of(*events) -> tuple[bytes, str]:
    out, err = io.BytesIO(), io.StringIO()
    view = Lines(out, err, raw_line)
    for event in events:
        view.take(event)
    return out.getvalue(), err.getvalue()


def test_quotes_go_to_one_stream_and_the_rest_to_the_other():
    out, err = lines_of(
        Welcome("c", "e", 5.0, 10, 100, None),
        State("open"),
        Feed(True, 1),
        QUOTE,
        Heartbeat(1, True, 0.1, 0),
        Gap("A\x1b", "link"),
        Feed(False, 1),
        Feed(False, 1),
        Feed(True, 1),
        Refused("B", 409, "not entitled to this symbol"),
        State("waiting", 1.25, 1006, "Connection refused"),
    )
    assert out == raw_line(QUOTE)
    assert err.splitlines() == [
        "gap: quotes of A\ufffd may be missing, between the daemon and here",
        "the feed is down",
        "the feed is up",
        "refused: B: not entitled to this symbol (409)",
        "no connection: Connection refused, again in 1.2 s",
    ]


def test_a_gap_of_the_feed_is_before_the_daemon():
    assert describe_event(Gap("A", "feed")).endswith("may be missing, before the daemon")


def test_a_closed_pipe_raises_an_error():
    class Closed(io.BytesIO):
        def write(self, data):
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        Lines(Closed(), io.StringIO(), raw_line).take(QUOTE)


def test_events_change_the_board():
    board = Board(["贵", "B", "C"])
    table = Table(board, "wss://h:1/")
    for event in (
        State("open"),
        Heartbeat(1, True, 0.1, 0),
        QUOTE,
        Gap("B", "feed"),
        Refused("C", 411, "bad symbol"),
        Refused(None, 429, "too many messages"),
        Stale(("B",), "quiet"),
    ):
        table.take(event)
    assert (board.state, board.feed_up, board.merged, board.gaps) == ("open", True, 3, 1)
    assert [row.symbol for row in board.rows] == ["贵", "B"]
    assert [row.refused for row in board.refused] == ["bad symbol (411)"]
    assert board.rows[1].stale
    table.take(Fresh(None))
    assert not board.rows[1].stale
    table.take(Feed(False, 1))
    assert board.feed_up is False
    table.take(State("waiting", 2.0, 1006, "wss://h:1/: Connection refused"))
    assert board.reason == "Connection refused"
    assert board.again_at is not None
