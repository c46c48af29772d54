"""The table fits the terminal, and shows prices as they were sent."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from pushservice.cli.board import QUIET_AFTER, Board
from pushservice.cli.columns import format_age
from pushservice.cli.screen import Screen, picture

NOW = 1_763_800_000.0
FULL = b'{"name":"\xe8\x8c\x85","last":%b,"bid":1.10,"ask":1.20,"volume":1200,"open":1.00,"ts":%d}'


def board_of(*symbols: str, last: bytes = b"1.50") -> Board:
    board = Board(symbols)
    board.connection("open", "", None)
    board.heartbeat(NOW, up=True)
    board.measure(NOW - 1)
    for symbol in symbols:
        payload = FULL % (last, int(NOW * 1000) - 7)
        t = int(NOW * 1000) - 2
        board.quote(symbol, payload, t, NOW, merged=0, snapshot=False)
    board.measure(NOW)
    return board


def drawn(board: Board, width: int, height: int = 24, *, now: float = NOW, **options) -> list[str]:
    """The lines that appear on a terminal of that size."""
    console = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, no_color=True
    )
    with console.capture() as capture:
        console.print(picture(board, "wss://localhost:8008", now, width, height, **options))
    return [Text.from_ansi(line).plain for line in capture.get().splitlines()]


def titles(lines: list[str]) -> list[str]:
    return next(line for line in lines if line.startswith("SYMBOL")).split()


def test_a_wide_terminal_has_every_column():
    lines = drawn(board_of("AAPL"), 130)
    assert titles(lines) == [
        *("SYMBOL", "PRICE", "CHANGE", "%", "BID", "ASK", "VOLUME", "/S", "LATENCY", "LAG"),
        *("AGE", "NAME"),
    ]
    [row] = [line.split() for line in lines if line.startswith("AAPL")]
    assert row == [
        *("AAPL", "1.50", "+0.50", "+50.00%", "1.10", "1.20", "1,200", "1.0", "2", "ms", "7", "ms"),
        *("0.0", "s", "茅"),
    ]


@pytest.mark.parametrize("width", [8, 12, 20, 25, 40, 60, 80, 100, 130, 200])
@pytest.mark.parametrize("height", [1, 5, 8, 24, 60])
def test_it_is_never_larger_than_the_terminal(width, height):
    board = board_of(*(f"SYM{n}" for n in range(30)), last=b"12345.6789")
    for n in range(5):
        board.refuse(f"NO{n}", "not entitled to this symbol, whatever anybody says (409)")
    lines = drawn(board, width, height)
    assert max(map(len, lines)) <= width
    assert len(lines) <= max(height, 11)


def test_what_matters_less_goes_first_where_it_is_narrow():
    board = board_of("AAPL", "600519.SH")
    assert titles(drawn(board, 40)) == ["SYMBOL", "PRICE", "%", "/S"]
    assert titles(drawn(board, 80)) == [
        *("SYMBOL", "PRICE", "CHANGE", "%", "BID", "ASK", "VOLUME", "/S", "LATENCY", "AGE"),
    ]


def test_empty_columns_are_left_out():
    board = Board(["AAPL"])
    board.quote("AAPL", b"10.50", int(NOW * 1000), NOW, merged=0, snapshot=False)
    assert titles(drawn(board, 130)) == ["SYMBOL", "PRICE", "LATENCY", "AGE"]


@pytest.mark.parametrize("last", [b"10.50", b"0.80850", b"1689", b"91250.10"])
def test_prices_have_the_digits_they_were_sent_with(last):
    assert f" {last.decode()} " in "\n".join(drawn(board_of("AAPL", last=last), 80))


def test_a_move_is_an_arrow_and_a_colour():
    board = board_of("AAPL")
    board.quote("AAPL", FULL % (b"1.40", 0), 0, NOW, merged=0, snapshot=False)
    assert any("1.40 ▼" in line for line in drawn(board, 80))
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True)
    for now, colour in ((NOW, "41m"), (NOW + 3, "31m")):
        with console.capture() as capture:
            console.print(picture(board, "x", now, 80, 24))
        [line] = [line for line in capture.get().splitlines() if "1.40" in line]
        assert colour in line.split("1.40")[0]


def test_quiet_symbols_are_dim_and_counted():
    board = board_of("AAPL", "MSFT")
    later = NOW + QUIET_AFTER + 1
    board.quote("MSFT", b"2", int(later * 1000), later, merged=0, snapshot=False)
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True)
    with console.capture() as capture:
        console.print(picture(board, "x", later, 80, 24))
    rows = {
        line[:30]: line for line in capture.get().splitlines() if "AAPL" in line or "MSFT" in line
    }
    dim = ["\x1b[2" in line or "\x1b[1;2m" in line for line in rows.values()]
    assert dim == [True, False]
    assert "1 quiet" in "\n".join(drawn(board, 80, now=later))


def test_a_payload_without_a_price_is_shown_as_text_that_cannot_speak_to_the_terminal():
    board = Board(["AAPL"])
    board.quote("AAPL", b'"closed\\u001b[31m"', 0, NOW, merged=0, snapshot=False)
    assert "closed\ufffd[31m" in "\n".join(drawn(board, 80))


def test_refused_symbols_stand_below_with_the_reason():
    board = board_of("AAPL")
    for n in range(5):
        board.refuse(f"NO{n}", "not entitled to this symbol (409)")
    text = "\n".join(drawn(board, 80))
    assert "✗ NO2  not entitled to this symbol (409)" in text
    assert "NO3" not in text
    assert "and 2 more are refused" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: None, ["● open", "feed up", "heard 0.0 s ago"]),
        (lambda b: b.feed(up=False), ["● open", "feed down"]),
        (
            lambda b: b.connection("waiting", "Connection refused", NOW + 3),
            ["● waiting 3 s", "refused"],
        ),
        (lambda b: b.connection("closed", "", None), ["● closed"]),
        (lambda b: b.gap("AAPL"), ["1 gap "]),
        (lambda b: setattr(b, "merged", 1234), ["1,234 merged"]),
    ],
)
def test_the_head_says_how_it_stands(change, words):
    board = board_of("AAPL")
    change(board)
    head = "\n".join(f"{line} " for line in drawn(board, 90)[:2])
    for each in ("wss://localhost:8008", "1 symbol ", "1.0 quotes/s", *words):
        assert each in head


def test_where_there_is_little_room_the_state_goes_before_the_address():
    assert drawn(board_of("AAPL"), 20)[0].startswith("● open")


def test_rows_that_have_no_room_are_scrolled_to():
    board = board_of(*(f"SYM{n}" for n in range(30)))
    lines = drawn(board, 80, 15)
    assert "1–10 of 30" in lines[-1]
    assert lines[4].startswith("SYM0 ")
    lines = drawn(board, 80, 15, first=5)
    assert lines[4].startswith("SYM5 ")
    assert "6–15 of 30" in lines[-1]
    assert "21–30 of 30" in drawn(board, 80, 15, first=1000)[-1]
    assert "scroll" not in drawn(board, 80, 60)[-1]


def test_a_screen_scrolls_within_its_rows():
    screen, board = Screen(Console(file=io.StringIO(), height=20)), board_of("A", "B", "C")
    for steps, first in ((-5, 0), (1, 1), (50, 2), (-1, 1)):
        screen.scroll(steps, board)
        assert screen.first == first
    assert screen.page == 14


def test_what_is_no_terminal_cannot_be_used():
    assert not Screen(Console(file=io.StringIO())).usable
    assert Screen(Console(file=io.StringIO(), force_terminal=True)).usable


def test_the_other_screen_is_left_as_it_was_found():
    out = io.StringIO()
    with Screen(Console(file=out, force_terminal=True, width=80, height=24)) as screen:
        screen.show(board_of("AAPL"), "x", NOW)
    text = out.getvalue()
    assert text.index("\x1b[?1049h") < text.index("AAPL") < text.index("\x1b[?1049l")
    assert text.rindex("\x1b[?25h") > text.index("\x1b[?25l"), "the cursor is back"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0.0 s"), (9.94, "9.9 s"), (10, "10 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h")],
)
def test_lengths_of_time_are_short(seconds, text):
    assert format_age(seconds) == text
