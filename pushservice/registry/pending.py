"""Who watches what as far as a mirror of it, somewhere else, is still to be told.

Must not know: Redis, connections, or what a write costs. What is true is the clients' own matter
and is read from them; here is kept only what the mirror does not say yet. One batch is under way at
a time: taken, then confirmed or failed. However batches fail, what is left to write makes it right.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

from pushservice.fanout.interfaces import Clock


class Named(Protocol):
    """A symbol's topic, as far as it matters here."""

    @property
    def symbol(self) -> str:
        """Its name."""
        ...


class Watcher(Protocol):
    """A connected client; the hub's outboxes are such."""

    @property
    def conn(self) -> str:
        """Its name, which no other has before or after it."""
        ...

    @property
    def topics(self) -> Collection[Named]:
        """What it watches now."""
        ...


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be written of one client.

    It watches the symbols `more` from now on, and `less` no more. A `whole` change says all that it
    watches, in `more`: whatever else the mirror has of it goes.
    """

    client: str
    more: tuple[str, ...] = ()
    less: tuple[str, ...] = ()
    whole: bool = False

    @property
    def size(self) -> int:
        """How much there is to write, one for each symbol; a little for a client without any."""
        return len(self.more) + len(self.less) or 1


class _Pending(NamedTuple):
    """Since when something is to be written of a client, and each symbol: more, or less."""

    since: float
    symbols: dict[str, bool]


class _Whole(NamedTuple):
    """A client of which nobody knows what is written, and since when; None where it has gone."""

    since: float
    watcher: Watcher | None


class Mirror:
    """Keeps what is to be written; nothing of a client of which all is.

    Its memory is bounded by what is true and what is written, and so by the clients connected now
    and those of the last batch that succeeded, however long nothing can be written and whatever
    comes and goes meanwhile. While it is `lost` it keeps nothing at all.
    """

    def __init__(self, clock: Clock, watchers: Callable[[], Iterable[Watcher]]) -> None:
        """`watchers` gives every connected client; it is asked when writing failed or is in doubt.

        Nothing is written, and nothing kept, until the first `doubt`.
        """
        self._clock = clock
        self._watchers = watchers
        #: whether nothing can be written, and so all is to be when something can
        self.lost = True
        #: whether clients that have gone may be written whose names are not kept; see `present`
        self.strays = False
        # When the first change came that was not kept.
        self._lost_since: float | None = None
        # By client and oldest first, the difference to what is written. It is exact: what is more
        # is not written, what is less is. So a change and its opposite leave nothing.
        self._pending: dict[str, _Pending] = {}
        # Clients to be written whole; what changes of them meanwhile is read from them then.
        self._whole: dict[str, _Whole] = {}
        self._under_way: list[tuple[float, Change]] = []

    # -- what happens to clients -----------------------------------------------------------------

    def watch(self, client: str, symbol: str) -> None:
        """`client`, which did not, watches `symbol` from now on."""
        self._note(client, symbol, more=True)

    def unwatch(self, client: str, symbol: str) -> None:
        """`client`, which did, watches `symbol` no more."""
        self._note(client, symbol, more=False)

    def _note(self, client: str, symbol: str, *, more: bool) -> None:
        pending = self._pending.get(client)
        if pending is None:
            if self.lost:
                if self._lost_since is None:
                    self._lost_since = self._clock.seconds()
            elif client not in self._whole:
                self._pending[client] = _Pending(self._clock.seconds(), {symbol: more})
            return
        if pending.symbols.pop(symbol, None) is None:
            pending.symbols[symbol] = more
        elif not pending.symbols:
            del self._pending[client]

    # -- what happens to the mirror --------------------------------------------------------------

    def lose(self) -> None:
        """Nothing can be written any more until `doubt`; a batch under way is of no account."""
        if not self.lost:
            oldest = self._oldest()
            self.lost = True
            self._lost_since = oldest
            self._pending.clear()
            self._whole.clear()
            self._under_way.clear()

    def doubt(self) -> None:
        """It may say anything, and can be written: all that is true is to be, once more."""
        now = self._clock.seconds()
        since = self._oldest()
        self._pending.clear()
        self._whole = {
            watcher.conn: _Whole(now if since is None else since, watcher)
            for watcher in self._watchers()
            if watcher.topics
        }
        self.lost = False
        self._lost_since = None
        self.strays = True

    def present(self, written: Iterable[str]) -> None:
        """The mirror has something of the clients `written`: those that have gone are taken out.

        `strays` is false from now on.
        """
        self.strays = False
        if self.lost:
            return
        now = self._clock.seconds()
        connected = {watcher.conn: watcher for watcher in self._watchers()}
        for client in written:
            watcher = connected.get(client)
            settled = watcher is not None and watcher.topics and client not in self._pending
            if client not in self._whole and not settled:
                # What is pending may rest on what the mirror was believed to say.
                self._pending.pop(client, None)
                self._whole[client] = _Whole(now, watcher)

    # -- what is to be written -------------------------------------------------------------------

    def take(self, size: int) -> list[Change]:
        """The next changes, of about so many symbols in all; empty when all is written.

        A whole change is never cut, however large. While there may be strays, see to them first.
        """
        assert not self._under_way, "one batch at a time"
        assert not self.strays, "what is pending may rest on what is not so"
        for client in list(islice(self._pending, max(0, size))):
            if size <= 0:
                break
            since, change = self._part(client, size)
            self._under_way.append((since, change))
            size -= change.size
        for client in list(islice(self._whole, max(0, size))):
            if size <= 0:
                break
            since, watcher = self._whole.pop(client)
            symbols = () if watcher is None else tuple(topic.symbol for topic in watcher.topics)
            change = Change(client, symbols, whole=True)
            self._under_way.append((since, change))
            size -= change.size
        return [change for _, change in self._under_way]

    def _part(self, client: str, size: int) -> tuple[float, Change]:
        """Take up to `size` of the symbols that are pending for `client`."""
        since, symbols = self._pending[client]
        if len(symbols) <= size:
            del self._pending[client]
            taken = symbols
        else:
            taken = dict(islice(symbols.items(), size))
            for symbol in taken:
                del symbols[symbol]
        more = tuple(symbol for symbol, added in taken.items() if added)
        less = tuple(symbol for symbol, added in taken.items() if not added)
        return since, Change(client, more, less)

    def confirm(self) -> None:
        """The batch under way is written."""
        self._under_way.clear()

    def fail(self) -> None:
        """Nobody knows which of the batch under way is written."""
        if not self._under_way:
            return
        connected = {watcher.conn: watcher for watcher in self._watchers()}
        in_doubt = {client: whole.since for client, whole in self._whole.items()}
        in_doubt |= {change.client: since for since, change in self._under_way}
        self._under_way.clear()
        self._whole.clear()
        for client, since in in_doubt.items():
            self._pending.pop(client, None)
            if client in connected:
                self._whole[client] = _Whole(since, connected[client])
            else:
                # Its name is not kept: there would be ever more of them.
                self.strays = True

    # -- how it stands ---------------------------------------------------------------------------

    @property
    def all_taken(self) -> bool:
        """Whether nothing waits; what is under way may still fail."""
        return not (self._pending or self._whole or self.lost or self.strays)

    def lag(self) -> float:
        """Seconds since the oldest change that is not written, as far as is known; 0 if all is."""
        oldest = self._oldest()
        return 0.0 if oldest is None else max(0.0, self._clock.seconds() - oldest)

    def _oldest(self) -> float | None:
        times = [pending.since for pending in islice(self._pending.values(), 1)]
        times += [whole.since for whole in self._whole.values()]
        times += [since for since, _ in self._under_way]
        if self._lost_since is not None:
            times.append(self._lost_since)
        return min(times, default=None)
