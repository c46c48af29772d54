"""The quote board: for each symbol its last quote, its change, its rate and its latency.

Must not know: terminals, connections, or what a clock says (times are passed in, in seconds since
the epoch). Own code: a few counters per symbol, for which no data frame is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Final

from pushservice.market.payload_fields import Ticker, read_ticker

#: Seconds without a quote after which a symbol counts as quiet.
QUIET_AFTER: Final = 10.0
#: Seconds for which a changed price is highlighted.
FLASH: Final = 0.7


class Row:
    """One symbol.

    `ticker` is None before its first quote. `moved` is 1, -1 or 0 as its last change went, at
    `moved_at`. `rate` is quotes a second. `latency` is milliseconds from the daemon to here, `lag`
    from the publisher's own time to here, None where not known; both hold a difference of clocks.
    """

    __slots__ = (
        "_counted",
        "at",
        "count",
        "gaps",
        "lag",
        "latency",
        "merged",
        "moved",
        "moved_at",
        "rate",
        "refused",
        "stale",
        "symbol",
        "ticker",
    )

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self.ticker: Ticker | None = None
        self.at: float | None = None
        self.moved = 0
        self.moved_at = 0.0
        self.count = 0
        self.rate: float | None = None
        self.latency: float | None = None
        self.lag: float | None = None
        self.merged = 0
        self.gaps = 0
        self.stale = False
        self.refused: str | None = None
        self._counted = 0

    @property
    def change(self) -> Decimal | None:
        """The price's distance from the opening price."""
        ticker = self.ticker
        if ticker is None or ticker.price is None or ticker.open is None:
            return None
        return ticker.price - ticker.open

    @property
    def percent(self) -> Decimal | None:
        """The change in percent of the opening price."""
        change = self.change
        if change is None or self.ticker is None or not self.ticker.open:
            return None
        return change / self.ticker.open * 100

    def is_quiet(self, now: float) -> bool:
        """Whether it is stale, or no quote came for QUIET_AFTER seconds."""
        return self.stale or (self.at is not None and now - self.at > QUIET_AFTER)

    def flashes(self, now: float) -> bool:
        """Whether its price changed less than FLASH seconds ago."""
        return self.moved != 0 and now - self.moved_at < FLASH

    def measure(self, seconds: float) -> None:
        """Measure the rate; `seconds` have passed since the last call."""
        self.rate = (self.count - self._counted) / seconds
        self._counted = self.count


class Board:
    """All rows, in the order in which symbols were requested, and the connection's state."""

    def __init__(self, symbols: Iterable[str], price_field: str | None = None) -> None:
        self._price_field = price_field
        self._rows = {symbol: Row(symbol) for symbol in symbols}
        self._measured_at: float | None = None
        #: the client's name for the connection's state, and its reason if known
        self.state = "connecting"
        self.reason = ""
        #: seconds since the epoch when it reconnects; None where not known
        self.again_at: float | None = None
        #: None until it is known
        self.feed_up: bool | None = None
        self.heard_at: float | None = None
        #: totals of merged quotes and of gaps
        self.merged = 0
        self.gaps = 0
        self.count = 0
        #: total quotes a second
        self.rate: float | None = None
        self._counted = 0

    @property
    def rows(self) -> list[Row]:
        """The rows of symbols that are not refused."""
        return [row for row in self._rows.values() if row.refused is None]

    @property
    def refused(self) -> list[Row]:
        """The rows of symbols that are refused."""
        return [row for row in self._rows.values() if row.refused is not None]

    # -- events ------------------------------------------------------------------------------------

    def quote(
        self, symbol: str, payload: bytes, t: int, now: float, *, merged: int, snapshot: bool
    ) -> None:
        """A quote came; `t` is the daemon's time in milliseconds since the epoch."""
        row = self._row(symbol)
        ticker = read_ticker(payload, self._price_field)
        before = row.ticker.price if row.ticker is not None else None
        row.ticker, row.at, row.refused = ticker, now, None
        row.merged += merged
        self.merged += merged
        if ticker.price is not None and before is not None and ticker.price != before:
            row.moved = 1 if ticker.price > before else -1
            row.moved_at = now
        if snapshot:
            # It may be old: it counts neither for the rate nor for the latency.
            row.at = t / 1000
            return
        row.stale = False
        row.count += 1
        self.count += 1
        self.heard_at = now
        row.latency = now * 1000 - t
        row.lag = None if ticker.ts is None else now * 1000 - ticker.ts

    def gap(self, symbol: str) -> None:
        """Quotes of a symbol may be missing."""
        self._row(symbol).gaps += 1
        self.gaps += 1

    def refuse(self, symbol: str, why: str) -> None:
        """The daemon refused a symbol."""
        self._row(symbol).refused = why

    def set_stale(self, symbols: Iterable[str] | None, *, stale: bool) -> None:
        """Symbols (None: all) became stale, or current again."""
        for row in self._rows.values() if symbols is None else map(self._row, symbols):
            row.stale = stale

    def connection(self, state: str, reason: str, again_at: float | None) -> None:
        """The connection's state changed."""
        self.state, self.reason, self.again_at = state, reason, again_at

    def feed(self, *, up: bool) -> None:
        """The daemon's feed is up or down."""
        self.feed_up = up

    def heartbeat(self, now: float, *, up: bool) -> None:
        """A heartbeat came, with the state of the feed."""
        self.heard_at, self.feed_up = now, up

    def measure(self, now: float) -> None:
        """Measure the rates; to be called about once a second."""
        if self._measured_at is not None and now > self._measured_at:
            seconds = now - self._measured_at
            for row in self._rows.values():
                row.measure(seconds)
            self.rate = (self.count - self._counted) / seconds
            self._counted = self.count
        self._measured_at = now

    def _row(self, symbol: str) -> Row:
        row = self._rows.get(symbol)
        if row is None:
            row = self._rows[symbol] = Row(symbol)
        return row
