"""Shows a board as a table that fills the terminal.

Must not know: connections, keys, or events. It is given a board whenever it is to be shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pushservice.cli.board import Board, Row
from pushservice.cli.columns import COLUMNS, DOWN, GAP, UP, fitting_columns, format_age
from pushservice.market.payload_fields import printable

_STATES: Final = {
    "open": "green",
    "connecting": "yellow",
    "authenticating": "yellow",
    "waiting": "yellow",
    "closed": "red",
}
#: refused symbols that are listed
_MAX_REFUSED: Final = 3


def picture(
    board: Board, title: str, now: float, width: int, height: int, *, first: int = 0
) -> RenderableType:
    """The board in `width` cells and `height` lines.

    `first` rows are scrolled away, or as many as there are to scroll.
    """
    about = _about_connection(board, now)
    # The connection's state matters more than the URL.
    if len(title) + 3 + about[0].cell_len <= width:
        about.insert(0, Text(title, "bold"))
    head = [_fitted(about, width)]
    head.append(_fitted(_about_quotes(board, now), width))
    refused = board.refused[:_MAX_REFUSED]
    foot = [_line(_verify_error(row), width) for row in refused]
    if len(board.refused) > len(refused):
        more = f"and {len(board.refused) - len(refused)} more are refused"
        foot.append(_line(Text(more, "red"), width))
    rows = board.rows
    # Two lines of head, an empty one, the titles, and the last line.
    room = max(height - len(head) - len(foot) - 3, 1)
    first = max(min(first, len(rows) - room), 0)
    visible = rows[first : first + room]
    foot.append(_fitted(_about_keys(first, len(visible), len(rows)), width))
    return Group(*head, Text(), _table(visible, now, width), *foot)


def _table(rows: Sequence[Row], now: float, width: int) -> Table:
    cells = {column: [column.cell(row, now) for row in rows] for column in COLUMNS}
    chosen = fitting_columns(cells, width)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
    for column in chosen:
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=True,
            overflow="ellipsis",
        )
    for at, row in enumerate(rows):
        style = "dim" if row.is_quiet(now) else ""
        table.add_row(*(cells[column][at] for column in chosen), style=style)
    return table


# -- lines -----------------------------------------------------------------------------------------


def _about_connection(board: Board, now: float) -> list[Text]:
    style = _STATES.get(board.state, "")
    said = board.state
    if board.again_at is not None:
        said = f"{said} {max(board.again_at - now, 0.0):.0f} s"
    parts = [Text(f"● {said}", style)]
    if board.reason and board.state != "open":
        parts.append(Text(printable(board.reason), style))
        return parts
    if board.feed_up is not None:
        parts.append(Text("feed up", UP) if board.feed_up else Text("feed down", f"bold {DOWN}"))
    if board.heard_at is not None:
        parts.append(Text(f"heard {format_age(now - board.heard_at)} ago", "dim"))
    return parts


def _about_quotes(board: Board, now: float) -> list[Text]:
    rows = board.rows
    quiet = sum(row.is_quiet(now) for row in rows)
    return [
        Text(f"{len(rows)} symbol{'s' if len(rows) != 1 else ''}"),
        Text("" if board.rate is None else f"{board.rate:,.1f} quotes/s"),
        Text(f"{board.gaps:,} gap{'s' if board.gaps != 1 else ''}", "yellow" if board.gaps else ""),
        Text(f"{board.merged:,} merged"),
        Text(f"{quiet} quiet" if quiet else "", "dim"),
    ]


def _about_keys(first: int, visible: int, rows: int) -> list[Text]:
    parts = [Text("q quits", "dim")]
    if visible < rows:
        parts.append(Text(f"{first + 1}–{first + visible} of {rows}, ↑ ↓ scroll", "dim"))
    return parts


def _verify_error(row: Row) -> Text:
    return Text.assemble(
        ("✗ ", "red"), (printable(row.symbol), "bold red"), f"  {printable(row.refused or '')}"
    )


def _fitted(parts: Sequence[Text], width: int) -> Text:
    """As many parts as fit into one line; the last of them may be cut."""
    line = Text()
    for part in filter(None, parts):
        if line and line.cell_len + 3 + min(part.cell_len, 8) > width:
            break
        line = Text.assemble(line, *(["   "] if line else []), part)
    return _line(line, width)


def _line(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis")
    text.no_wrap = True
    return text


# -- a terminal ------------------------------------------------------------------------------------


class Screen:
    """The alternate screen of a terminal while entered; then the terminal is as before."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._live = Live(console=self._console, screen=True, auto_refresh=False)
        #: rows that are scrolled away
        self.first = 0

    @property
    def usable(self) -> bool:
        """Whether the terminal can show a table."""
        return self._console.is_terminal and not self._console.is_dumb_terminal

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def show(self, board: Board, title: str, now: float) -> None:
        """Show the board, in the terminal's current size."""
        width, height = self._console.size
        shown_now = picture(board, title, now, width, height, first=self.first)
        self._live.update(shown_now, refresh=True)

    def scroll(self, rows: int, board: Board) -> None:
        """Move by so many rows, and not beyond the last."""
        self.first = max(min(self.first + rows, len(board.rows) - 1), 0)

    @property
    def page(self) -> int:
        """The number of rows to scroll by for a page."""
        return max(self._console.size.height - 6, 1)
