"""Changes to who watches what that the registry in Redis does not have yet.

Must not know: Redis, connections, or what a write costs. The hub's clients say what is true and are
asked for it; only the difference to what is stored is kept here. One batch is in flight at a time:
taken, then confirmed or failed. Whichever batches fail, writing what is left makes the store right.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

from pushservice.fanout.interfaces import Clock


class HasSymbol(Protocol):
    """The part of a symbol's topic that is used here."""

    @property
    def symbol(self) -> str:
        """The symbol itself."""
        ...


class Watcher(Protocol):
    """A connected client; the hub's outboxes are watchers."""

    @property
    def conn(self) -> str:
        """Its connection id; no client before or after it has the same one."""
        ...

    @property
    def topics(self) -> Collection[HasSymbol]:
        """What it watches now."""
        ...


@dataclass(frozen=True, slots=True)
class Change:
    """What to write for one client: it now watches the symbols `added`, and no longer `removed`.

    A change that `replaces` lists in `added` all that the client watches; whatever else is stored
    for it is removed.
    """

    client: str
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    replaces: bool = False

    @property
    def size(self) -> int:
        """How much there is to write: one for each symbol, and one for a client without any."""
        return len(self.added) + len(self.removed) or 1


class _Difference(NamedTuple):
    """What is not stored yet of a client, and since when: symbols, with True if added."""

    since: float
    symbols: dict[str, bool]


class _Replacement(NamedTuple):
    """A client whose stored entries are unknown, and since when; no watcher if it has gone."""

    since: float
    watcher: Watcher | None


class PendingChanges:
    """Keeps the changes that are still to be written, and nothing of a client that is up to date.

    Memory is bounded by the clients connected now and those of the last batch that succeeded,
    however long nothing can be written and whatever connects and disconnects meanwhile. While
    `offline` nothing at all is kept.
    """

    def __init__(self, clock: Clock, watchers: Callable[[], Iterable[Watcher]]) -> None:
        """`watchers` gives every connected client; it is asked after a failed write and to resync.

        Nothing is written or kept until the first `resync`.
        """
        self._clock = clock
        self._watchers = watchers
        #: whether nothing can be written now; everything will be, by the next `resync`
        self.offline = True
        #: whether clients that have gone may still be stored, so that `reconcile` is due: their
        #: names are not kept here
        self.needs_reconcile = False
        # When the first change came that was not kept because of being offline.
        self._offline_since: float | None = None
        # By client and oldest first, the exact difference to what is stored: an added symbol is not
        # stored, a removed one is. So a change and its opposite leave nothing.
        self._differences: dict[str, _Difference] = {}
        # Clients to be written in full; what they watch is read from them at that time.
        self._replacements: dict[str, _Replacement] = {}
        self._in_flight: list[tuple[float, Change]] = []

    # -- what clients do -------------------------------------------------------------------------

    def watch(self, client: str, symbol: str) -> None:
        """`client`, which did not watch `symbol`, does now."""
        self._add(client, symbol, added=True)

    def unwatch(self, client: str, symbol: str) -> None:
        """`client`, which watched `symbol`, no longer does."""
        self._add(client, symbol, added=False)

    def _add(self, client: str, symbol: str, *, added: bool) -> None:
        difference = self._differences.get(client)
        if difference is None:
            if self.offline:
                if self._offline_since is None:
                    self._offline_since = self._clock.seconds()
            elif client not in self._replacements:
                self._differences[client] = _Difference(self._clock.seconds(), {symbol: added})
            return
        if difference.symbols.pop(symbol, None) is None:
            difference.symbols[symbol] = added
        elif not difference.symbols:
            del self._differences[client]

    # -- what happens to the store ---------------------------------------------------------------

    def go_offline(self) -> None:
        """Nothing can be written until `resync`; the batch in flight no longer counts."""
        if not self.offline:
            oldest = self._oldest()
            self.offline = True
            self._offline_since = oldest
            self._differences.clear()
            self._replacements.clear()
            self._in_flight.clear()

    def resync(self) -> None:
        """The store can be written and may hold anything: write everything again."""
        now = self._clock.seconds()
        since = self._oldest()
        self._differences.clear()
        self._replacements = {
            watcher.conn: _Replacement(now if since is None else since, watcher)
            for watcher in self._watchers()
            if watcher.topics
        }
        self.offline = False
        self._offline_since = None
        self.needs_reconcile = True

    def reconcile(self, stored: Iterable[str]) -> None:
        """The store has entries of the clients `stored`: remove those of clients that have gone.

        `needs_reconcile` is false from now on.
        """
        self.needs_reconcile = False
        if self.offline:
            return
        now = self._clock.seconds()
        connected = {watcher.conn: watcher for watcher in self._watchers()}
        for client in stored:
            watcher = connected.get(client)
            up_to_date = watcher is not None and watcher.topics and client not in self._differences
            if client not in self._replacements and not up_to_date:
                # The difference may be to what the store was wrongly believed to hold.
                self._differences.pop(client, None)
                self._replacements[client] = _Replacement(now, watcher)

    # -- batches ---------------------------------------------------------------------------------

    def take(self, size: int) -> list[Change]:
        """The next batch, of about `size` symbols in all; empty when everything is written.

        A change that replaces is never divided, however large. While `needs_reconcile`, call
        `reconcile` first.
        """
        assert not self._in_flight, "one batch at a time"
        assert not self.needs_reconcile, "a difference may be to what the store does not hold"
        for client in list(islice(self._differences, max(0, size))):
            if size <= 0:
                break
            since, change = self._take_difference(client, size)
            self._in_flight.append((since, change))
            size -= change.size
        for client in list(islice(self._replacements, max(0, size))):
            if size <= 0:
                break
            since, watcher = self._replacements.pop(client)
            symbols = () if watcher is None else tuple(topic.symbol for topic in watcher.topics)
            change = Change(client, symbols, replaces=True)
            self._in_flight.append((since, change))
            size -= change.size
        return [change for _, change in self._in_flight]

    def _take_difference(self, client: str, size: int) -> tuple[float, Change]:
        """Take up to `size` symbols of the difference of `client`."""
        since, symbols = self._differences[client]
        if len(symbols) <= size:
            del self._differences[client]
            taken = symbols
        else:
            taken = dict(islice(symbols.items(), size))
            for symbol in taken:
                del symbols[symbol]
        added = tuple(symbol for symbol, is_added in taken.items() if is_added)
        removed = tuple(symbol for symbol, is_added in taken.items() if not is_added)
        return since, Change(client, added, removed)

    def confirm(self) -> None:
        """The batch in flight is written."""
        self._in_flight.clear()

    def fail(self) -> None:
        """The batch in flight failed: any part of it may have been written."""
        if not self._in_flight:
            return
        connected = {watcher.conn: watcher for watcher in self._watchers()}
        unknown = {client: entry.since for client, entry in self._replacements.items()}
        unknown |= {change.client: since for since, change in self._in_flight}
        self._in_flight.clear()
        self._replacements.clear()
        for client, since in unknown.items():
            self._differences.pop(client, None)
            if client in connected:
                self._replacements[client] = _Replacement(since, connected[client])
            else:
                # Its name is not kept: with every failure there would be more of them.
                self.needs_reconcile = True

    # -- status ----------------------------------------------------------------------------------

    @property
    def all_taken(self) -> bool:
        """Whether nothing waits to be taken; the batch in flight may still fail."""
        return not (self._differences or self._replacements or self.offline or self.needs_reconcile)

    def lag(self) -> float:
        """Seconds since the oldest change that may not be written yet; 0 if there is none."""
        oldest = self._oldest()
        return 0.0 if oldest is None else max(0.0, self._clock.seconds() - oldest)

    def _oldest(self) -> float | None:
        times = [difference.since for difference in islice(self._differences.values(), 1)]
        times += [entry.since for entry in self._replacements.values()]
        times += [since for since, _ in self._in_flight]
        if self._offline_since is not None:
            times.append(self._offline_since)
        return min(times, default=None)
