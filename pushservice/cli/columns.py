"""The columns of the table of quotes: what each shows of a row, and which fit into a terminal.

Must not know: terminals, or where rows come from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from rich.cells import cell_len
from rich.text import Text

from pushservice.cli.board import Row
from pushservice.market.payload_fields import format_number, printable

UP: Final = "green"
DOWN: Final = "red"
#: cells between two columns
GAP: Final = 2
#: cells of a payload's text, where it has no price
_TEXT: Final = 24


class Column(NamedTuple):
    """A column; `cell` is given a row and the time."""

    title: str
    #: columns with a higher rank are left out first where there is no room
    rank: int
    cell: Callable[[Row, float], Text]
    right: bool = True


def _symbol(row: Row, _now: float) -> Text:
    return Text(printable(row.symbol), "bold")


def _price(row: Row, now: float) -> Text:
    ticker = row.ticker
    if ticker is None:
        return Text("—", "dim")
    if ticker.price is None:
        text = Text(printable(ticker.text), "italic")
        text.truncate(_TEXT, overflow="ellipsis")
        return text
    arrow = {1: " ▲", -1: " ▼"}.get(row.moved, "  ")
    style = {1: UP, -1: DOWN}.get(row.moved, "")
    if row.flashes(now):
        style = f"bold white on {style}"
    return Text(f"{format_number(ticker.price)}{arrow}", style)


def _signed(number: object, places: str) -> Text:
    text = f"{number:{places}}"
    style = "" if not text.strip("+-0.%") else UP if text.startswith("+") else DOWN
    return Text(text, style)


def _change(row: Row, _now: float) -> Text:
    change = row.change
    return Text() if change is None else _signed(change, "+,f")


def _percent(row: Row, _now: float) -> Text:
    percent = row.percent
    if percent is None:
        return Text()
    text = _signed(percent, "+,.2f")
    return text.append("%")


def _bid(row: Row, _now: float) -> Text:
    ticker = row.ticker
    return Text("" if ticker is None or ticker.bid is None else format_number(ticker.bid))


def _ask(row: Row, _now: float) -> Text:
    ticker = row.ticker
    return Text("" if ticker is None or ticker.ask is None else format_number(ticker.ask))


def _volume(row: Row, _now: float) -> Text:
    volume = None if row.ticker is None else row.ticker.volume
    if volume is None:
        return Text()
    return Text(f"{volume:,f}" if volume.adjusted() < _TEXT else format_number(volume))


def _rate(row: Row, _now: float) -> Text:
    return Text("" if row.rate is None else f"{row.rate:,.1f}")


def _milliseconds(number: float | None) -> Text:
    if number is None:
        return Text()
    return Text(f"{number:,.0f} ms" if abs(number) < 10_000 else f"{number / 1000:,.0f} s")


def _latency(row: Row, _now: float) -> Text:
    return _milliseconds(row.latency)


def _lag(row: Row, _now: float) -> Text:
    return _milliseconds(row.lag)


def _age(row: Row, now: float) -> Text:
    return Text("" if row.at is None else format_age(now - row.at))


def _name(row: Row, _now: float) -> Text:
    text = Text("" if row.ticker is None else printable(row.ticker.name or ""))
    text.truncate(_TEXT, overflow="ellipsis")
    return text


COLUMNS: Final = (
    Column("SYMBOL", 0, _symbol, right=False),
    Column("PRICE", 1, _price),
    Column("CHANGE", 6, _change),
    Column("%", 2, _percent),
    Column("BID", 4, _bid),
    Column("ASK", 4, _ask),
    Column("VOLUME", 7, _volume),
    Column("/S", 3, _rate),
    Column("LATENCY", 5, _latency),
    Column("LAG", 9, _lag),
    Column("AGE", 8, _age),
    Column("NAME", 10, _name, right=False),
)


def fitting_columns(cells: dict[Column, list[Text]], width: int) -> list[Column]:
    """The columns that fit into `width` cells, in their order; empty ones are left out."""
    chosen: list[Column] = []
    left = width
    for column in sorted(cells, key=lambda column: column.rank):
        if column.rank > 1 and not any(cells[column]):
            continue
        size = max(cell_len(column.title), *(text.cell_len for text in cells[column] or [Text()]))
        left -= size + (GAP if chosen else 0)
        if left < 0 and column.rank > 1:
            # No narrower column of a higher rank takes its place, and columns of the same rank are
            # shown together or not at all.
            chosen = [each for each in chosen if each.rank != column.rank]
            break
        chosen.append(column)
    return sorted(chosen, key=list(cells).index)


def format_age(seconds: float) -> str:
    """A duration in few letters, such as `1.5 s` or `3 min`."""
    seconds = max(seconds, 0.0)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
