"""The rows of the table follow what happens."""

from __future__ import annotations

from decimal import Decimal

import pytest

from pushservice.cli.board import FLASH, QUIET_AFTER, Board

NOW = 1_763_800_000.0
T = 1_763_800_000_000


@pytest.fixture
def board():
    return Board(["AAPL", "MSFT"])


def quote(board, payload: bytes, now: float = NOW, **other):
    given = {"symbol": "AAPL", "t": int(now * 1000) - 5, "merged": 0, "snapshot": False} | other
    board.quote(payload=payload, now=now, **given)
    return board.rows[0]


def test_rows_are_there_in_order_before_anything_came(board):
    assert [row.symbol for row in board.rows] == ["AAPL", "MSFT"]
    assert all(row.ticker is None and row.change is None for row in board.rows)


def test_a_price_moves_against_the_one_before(board):
    moves = [quote(board, b'{"last":%d}' % last).moved for last in (10, 11, 11, 10, 10)]
    assert moves == [0, 1, 1, -1, -1]


def test_a_move_stands_out_for_a_moment(board):
    quote(board, b"1", NOW)
    row = quote(board, b"2", NOW + 1)
    assert row.flashes(NOW + 1)
    assert row.flashes(NOW + 1 + FLASH * 0.9)
    assert not row.flashes(NOW + 1 + FLASH * 1.1)
    quote(board, b"2", NOW + 5)
    assert not row.flashes(NOW + 5)


def test_the_change_is_that_since_the_open(board):
    row = quote(board, b'{"last":11.00,"open":10.00}')
    assert (row.change, row.percent) == (Decimal("1.00"), Decimal(10))
    assert quote(board, b'{"last":11.00,"open":0}').percent is None
    assert quote(board, b'{"last":11.00}').change is None


def test_latency_is_from_the_daemon_and_lag_from_the_publisher(board):
    row = quote(board, b'{"last":1,"ts":%d}' % (T - 9))
    assert (row.latency, row.lag) == (5, 9)
    assert quote(board, b"1").lag is None


def test_a_snapshot_is_shown_with_its_age_and_counts_for_nothing(board):
    row = quote(board, b"10.50", t=T - 60_000, snapshot=True)
    assert row.ticker.price == Decimal("10.50")
    assert row.is_quiet(NOW)
    assert (row.count, row.latency) == (0, None)


def test_merged_and_gaps_are_added_up(board):
    quote(board, b"1", merged=3)
    row = quote(board, b"2", merged=2)
    board.gap("AAPL")
    board.gap("MSFT")
    assert (row.merged, row.gaps, board.merged, board.gaps) == (5, 1, 5, 2)


def test_what_got_no_quote_for_a_while_is_quiet(board):
    row = quote(board, b"1")
    assert not row.is_quiet(NOW + QUIET_AFTER)
    assert row.is_quiet(NOW + QUIET_AFTER + 0.1)
    assert not board.rows[1].is_quiet(NOW + 100), "of which nothing is known yet"


def test_stale_and_fresh_reach_the_symbols_they_name_or_all(board):
    board.set_stale(None, stale=True)
    assert [row.stale for row in board.rows] == [True, True]
    board.set_stale(["MSFT"], stale=False)
    assert [row.stale for row in board.rows] == [True, False]
    assert not quote(board, b"1").stale, "a quote makes it fresh"


def test_refused_symbols_are_apart_until_a_quote_of_them_comes(board):
    board.refuse("AAPL", "not entitled")
    assert [row.symbol for row in board.rows] == ["MSFT"]
    assert [(row.symbol, row.refused) for row in board.refused] == [("AAPL", "not entitled")]
    quote(board, b"1")
    assert board.refused == []


def test_rates_are_quotes_a_second_since_the_last_measure(board):
    board.measure(NOW)
    assert board.rate is None
    for _ in range(6):
        quote(board, b"1")
    board.measure(NOW + 2)
    assert (board.rows[0].rate, board.rows[1].rate, board.rate) == (3, 0, 3)
    board.measure(NOW + 3)
    assert (board.rows[0].rate, board.rate) == (0, 0)
    board.measure(NOW - 50)
    board.measure(NOW - 49)
    assert board.rate == 0, "after the clock was set back"


def test_the_board_has_the_state_of_the_connection(board):
    board.connection("waiting", "refused", NOW + 2)
    board.heartbeat(NOW, up=True)
    assert (board.state, board.reason, board.again_at) == ("waiting", "refused", NOW + 2)
    assert (board.feed_up, board.heard_at) == (True, NOW)
    board.feed(up=False)
    assert board.feed_up is False


def test_a_price_field_can_be_named():
    board = Board(["AAPL"], "mid")
    assert quote(board, b'{"last":1,"mid":2}').ticker.price == 2


def test_an_unexpected_symbol_gets_a_row(board):
    quote(board, b"1", symbol="NEW")
    assert [row.symbol for row in board.rows] == ["AAPL", "MSFT", "NEW"]
