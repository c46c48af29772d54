"""A simulated market of 200 instruments, so that the daemon can be tried without a real feed.

Every tick is one trade of one instrument, as the payload a real feed would publish. Must not know:
where payloads go, what a wall clock says (time is passed in), I/O or Twisted. Own code: simulation
libraries bring numpy and none makes payloads; this is a random walk in integer ticks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from math import floor, sqrt
from random import Random

import msgspec

from pushservice.market.instruments import SYMBOLS, Listing

#: A price stays within ``open * (1 - 1/PRICE_LIMIT)`` and ``open * (1 + 1/PRICE_LIMIT)``, like
#: under the daily limit many exchanges have; mean reversion keeps it away from either end.
PRICE_LIMIT = 10

#: Every instrument trades at least once in any ``TURN_EVERY * len(listings)`` ticks in a row.
TURN_EVERY = 4

# Mean size of one move as a share of the price, and the share of the distance to the opening
# price taken back each time. Together: a standard deviation of about 2 % in the long run, and up
# to 4 % where one tick is more than a usual move.
_MOVE = 0.0006
_PULL = 0.00045

# Variance of the next move, in units of _MOVE squared: large moves are followed by large ones.
# The three add up to 1, so the variance returns to 1; the cap bounds a single burst.
_CALM, _SURPRISE, _MEMORY = 0.02, 0.10, 0.88
_VARIANCE_CAP = 25.0

# Mean width of the book beyond the one tick it always has, as a share of the price.
_SPREAD = 0.00003

# Trade sizes are exponential, this many lots in the mean.
_LOTS = 5.0

# The n-th listing, from 0, is drawn in proportion to 1 / (n + this): the larger, the more even.
_HEAD_START = 10


class _Instrument:
    """One listing's trading so far; all prices are integers counted in ticks, so none drifts."""

    __slots__ = (
        "_decimal_format",
        "_head",
        "_high",
        "_last",
        "_limit_down",
        "_limit_up",
        "_lot",
        "_low",
        "_open",
        "_range_text",
        "_unit",
        "_variance",
        "_volume",
        "symbol",
    )

    def __init__(self, listing: Listing) -> None:
        self.symbol = listing.symbol
        self._lot = listing.lot
        self._unit: int = 10**listing.decimals
        self._decimal_format = b"%%d.%%0%dd" % listing.decimals if listing.decimals else b""
        self._open = self._last = self._high = self._low = listing.price_ticks
        self._limit_down = self._open - self._open // PRICE_LIMIT
        self._limit_up = self._open + self._open // PRICE_LIMIT
        self._variance = 1.0
        self._volume = 0
        encode = msgspec.json.encode
        self._head = b'{"symbol":%b,"name":%b,"last":' % (
            encode(listing.symbol),
            encode(listing.name),
        )
        self._range_text = self._format_range()

    def trade(self, random: Random) -> None:
        """Move the price by at most a burst's worth and add at least one lot to the volume."""
        shock = random.gauss(0.0, 1.0) * sqrt(self._variance)
        self._variance = min(
            _CALM + _SURPRISE * shock * shock + _MEMORY * self._variance, _VARIANCE_CAP
        )
        last = self._last
        move = last * _MOVE * shock - (last - self._open) * _PULL
        # Rounding at random, up as often as the fraction says, is right in the mean: rounding to
        # the nearest would lose the small pull of prices whose moves are about one tick.
        last += floor(move + random.random())
        last = self._last = min(max(last, self._limit_down), self._limit_up)
        self._volume += self._lot * (1 + int(random.expovariate(1.0 / _LOTS)))
        if last > self._high:
            self._high = last
            self._range_text = self._format_range()
        elif last < self._low:
            self._low = last
            self._range_text = self._format_range()

    def quote(self, random: Random, now_ms: int) -> bytes:
        """The payload after the last trade, with a new book around its price."""
        last = self._last
        width = 1 + int(random.expovariate(1.0 / _SPREAD) * last)
        bid = last - int(random.random() * (width + 1))
        return b'%b%b,"bid":%b,"ask":%b,"volume":%d%b%d}' % (
            self._head,
            self._format_price(last),
            self._format_price(bid),
            self._format_price(bid + width),
            self._volume,
            self._range_text,
            now_ms,
        )

    def _format_price(self, ticks: int) -> bytes:
        if self._decimal_format:
            return self._decimal_format % divmod(ticks, self._unit)
        return b"%d" % ticks

    def _format_range(self) -> bytes:
        # Kept between trades, because the range seldom changes.
        return b',"open":%b,"high":%b,"low":%b,"ts":' % (
            self._format_price(self._open),
            self._format_price(self._high),
            self._format_price(self._low),
        )


class Market:
    """All instruments and who trades next; the same seed gives the same sequence of ticks.

    ``seed``: any integer, or None for a different sequence each time. ``listings``: at least one,
    symbols unique, busiest first.

    The first ``len(listings)`` ticks go once through all, in shuffled order. After that, each tick
    whose number is a multiple of ``TURN_EVERY`` goes to the next in that same order, over and over,
    so that any ``TURN_EVERY * len(listings)`` ticks in a row, from whichever tick on, have every
    symbol. The other ticks are drawn at random, the nearer the front of ``listings`` the likelier.
    """

    __slots__ = ("_instruments", "_random", "_shares", "_ticks", "_turn", "_turns")

    def __init__(self, seed: int | None = None, listings: Sequence[Listing] = SYMBOLS) -> None:
        if not listings:
            raise ValueError("a market needs at least one listing")
        if len({listing.symbol for listing in listings}) < len(listings):
            raise ValueError("a symbol is listed twice")
        self._random = Random(seed)  # noqa: S311 - a simulation, guards nothing
        self._instruments = [_Instrument(listing) for listing in listings]
        # Running totals of the weights: a random point below the last falls to one instrument.
        self._shares = list(accumulate(1.0 / (n + _HEAD_START) for n in range(len(listings))))
        self._turns = self._random.sample(self._instruments, len(self._instruments))
        self._turn = 0
        self._ticks = 0

    def tick(self, now_ms: int) -> tuple[str, bytes]:
        """Trade one instrument once and return its symbol and its quote.

        ``now_ms``: Unix time in milliseconds, copied to ``ts``. The quote is one compact JSON
        object in UTF-8 with ``symbol``, ``name``, ``last``, ``bid``, ``ask``, ``volume`` (shares or
        base units since the market started, growing with every tick), ``open``, ``high``, ``low``
        and ``ts``. Prices always have the listing's decimals; ``0 < bid < ask`` and
        ``bid <= last <= ask`` and ``low <= last <= high``.
        """
        instrument = self._choose()
        instrument.trade(self._random)
        return instrument.symbol, instrument.quote(self._random, now_ms)

    def _choose(self) -> _Instrument:
        instruments = self._instruments
        tick = self._ticks
        self._ticks = tick + 1
        if tick < len(instruments) or tick % TURN_EVERY == 0:
            chosen = self._turns[self._turn]
            self._turn = (self._turn + 1) % len(instruments)
            return chosen
        # bisect's upper end guards against a product rounded up to the whole total.
        point = self._random.random() * self._shares[-1]
        return instruments[bisect_right(self._shares, point, 0, len(instruments) - 1)]
