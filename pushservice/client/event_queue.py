"""Events that wait for a slow reader: all of them up to a limit, then the newest of each symbol.

Must not know: who reads, or event loops.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TypeAlias

import msgspec

from pushservice.client.events import Event, Fresh, Gap, Quote, Refused, Stale

_Key: TypeAlias = tuple[object, ...] | type


class _Late:
    """What waits of one symbol: the newest quote, with a gap before or after it."""

    __slots__ = ("dropped", "gap_after", "gap_before", "quote")

    def __init__(self) -> None:
        self.gap_before: Gap | None = None
        self.quote: Quote | None = None
        self.dropped = 0
        self.gap_after: Gap | None = None

    def add_quote(self, quote: Quote) -> None:
        if self.quote is not None:
            # What was known of the older one goes into the newer one's count.
            self.dropped += self.quote.merged + (not self.quote.snapshot)
        self.quote = quote
        self.gap_before = self.gap_before or self.gap_after
        self.gap_after = None

    def add_gap(self, gap: Gap) -> None:
        if self.quote is None:
            self.gap_before = self.gap_before or gap
        else:
            self.gap_after = gap

    def events(self) -> Iterable[Event]:
        if self.gap_before is not None:
            yield self.gap_before
        if self.quote is not None:
            merged = self.quote.merged + self.dropped
            yield msgspec.structs.replace(self.quote, merged=merged)
        if self.gap_after is not None:
            yield self.gap_after


class EventQueue:
    """A queue that takes everything and stays bounded.

    Up to `room` events wait as they came. While more wait, quotes are merged: the newest of each
    symbol waits, its `merged` grown by what was left out, so that the sum of `merged` stays exact;
    a Gap is never left out; and of other events the newest of each kind waits, or of each kind and
    symbol. So there are never more than `room` and a few for each symbol.

    With `keep_all` nothing is merged: whoever fills it has to stop while `full`.
    """

    def __init__(self, room: int, *, keep_all: bool = False) -> None:
        self._room = room
        self._keep_all = keep_all
        self._queue: deque[Event] = deque()
        self._late: dict[_Key, _Late | Event] = {}

    def __len__(self) -> int:
        return len(self._queue) + len(self._late)

    @property
    def full(self) -> bool:
        """Whether all places are taken."""
        return len(self._queue) >= self._room

    def put(self, events: Iterable[Event]) -> None:
        """Take `events`, which come after all that wait."""
        for event in events:
            if self._keep_all or (not self._late and len(self._queue) < self._room):
                self._queue.append(event)
            else:
                self._put_late(event)

    def take(self) -> Event | None:
        """The next event; None where none waits."""
        if not self._queue:
            if not self._late:
                return None
            late, self._late = self._late, {}
            for waiting in late.values():
                if isinstance(waiting, _Late):
                    self._queue.extend(waiting.events())
                else:
                    self._queue.append(waiting)
        return self._queue.popleft()

    def forget(self, symbols: set[str]) -> None:
        """Drop what waits of `symbols`."""
        for symbol in symbols:
            self._late.pop((Quote, symbol), None)
        self._queue = deque(
            event
            for event in self._queue
            if not (isinstance(event, Quote | Gap) and event.symbol in symbols)
        )

    def clear(self) -> None:
        """Drop all that waits."""
        self._queue.clear()
        self._late.clear()

    def _put_late(self, event: Event) -> None:
        if isinstance(event, Quote | Gap):
            waiting = self._late.setdefault((Quote, event.symbol), _Late())
            assert isinstance(waiting, _Late)
            if isinstance(event, Quote):
                waiting.add_quote(event)
            else:
                waiting.add_gap(event)
        elif isinstance(event, Stale) and event.symbols is not None:
            for symbol in event.symbols:
                self._put_newest((Stale, symbol), Stale((symbol,), event.reason))
        elif isinstance(event, Fresh) and event.symbols is not None:
            for symbol in event.symbols:
                self._put_newest((Stale, symbol), Fresh((symbol,)))
        elif isinstance(event, Stale | Fresh):
            self._put_newest((Stale, None), event)
        elif isinstance(event, Refused):
            self._put_newest((Refused, event.symbol, event.code), event)
        else:
            self._put_newest(type(event), event)

    def _put_newest(self, key: _Key, event: Event) -> None:
        # Moved to the end, so that the last event read is the last that happened.
        self._late.pop(key, None)
        self._late[key] = event
