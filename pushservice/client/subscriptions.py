"""Which symbols the program wants, which the server serves, and the last number of each.

Must not know: connections, tokens, clocks, or how messages travel. The conversation tells what was
answered, and sends what is asked for here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from pushservice.client.actions import Done
from pushservice.client.events import Event, Gap, Quote, QuoteError, Refused
from pushservice.client.frames import (
    DEFAULT_MESSAGE_LIMIT,
    ErrorEvent,
    QuoteEvent,
    SnapshotEvent,
    SubscribedEvent,
    SymbolError,
    UnsubscribedEvent,
)
from pushservice.client.options import Options
from pushservice.client.requests import Answered
from pushservice.protocol.close_codes import ErrorCode
from pushservice.protocol.symbols import symbol_fault

WIDEST_ID: Final = 2**53 - 1
#: seconds after which what was refused for coming too fast is asked again, and as much by chance
_PATIENCE: Final = 1.0

_BAD: Final = int(ErrorCode.BAD_SYMBOL)
_encode = msgspec.json.encode


class _Symbol:
    """One symbol: whether it is wanted, and how far it was counted."""

    __slots__ = ("asked", "calls", "link", "n", "name", "wanted")

    def __init__(self, name: str) -> None:
        self.name = name
        self.wanted = True
        #: the number of its last quote in the count that goes on; None where none goes on
        self.n: int | None = None
        #: the link on which it was served last; 0 for none so far
        self.link = 0
        #: the request that asked for it last
        self.asked = 0
        self.calls: list[_Call] = []


class _Call:
    """A call of subscribe or unsubscribe, which ends with the last of its symbols."""

    __slots__ = ("done", "errors", "left", "size")

    def __init__(self, symbols: Iterable[str], done: Done) -> None:
        self.left = set(symbols)
        self.size = len(self.left)
        self.done = done
        self.errors: dict[str, QuoteError] = {}


class Subscriptions:
    """Keeps what the server serves equal to what is wanted, and counts what comes.

    `ask` sends a request and hears its answer; `tell` takes events; `settle` ends a call; `soon`
    asks for a `flush` once the callers are through; `again` for a `retry` after so many seconds.
    """

    def __init__(
        self,
        options: Options,
        *,
        random: Callable[[], float],
        ask: Callable[[Mapping[str, object], Answered], int],
        tell: Callable[[Event], None],
        settle: Callable[[Done, Any], None],
        soon: Callable[[], None],
        again: Callable[[float], None],
    ) -> None:
        self._random = random
        self._ask = ask
        self._tell = tell
        self._settle = settle
        self._soon = soon
        self._again = again
        self._fields: dict[str, object] = {}
        if options.mode != "auto":
            self._fields["mode"] = options.mode
        if options.interval:
            self._fields["interval"] = round(options.interval * 1000)
        if not options.snapshot:
            self._fields["snapshot"] = False
        self._symbols: dict[str, _Symbol] = {}
        self._told: set[str] = set()
        self._dirty: dict[str, None] = {}
        self._later: dict[str, None] = {}
        self._leaving: dict[str, list[_Call]] = {}
        self._link = 0
        self._epoch = ""
        self._limit = DEFAULT_MESSAGE_LIMIT
        self._open = False

    # -- what callers want ---------------------------------------------------------------------

    @property
    def wanted(self) -> list[str]:
        """The symbols that are subscribed or are to be, in the order of their first call."""
        return [symbol.name for symbol in self._symbols.values() if symbol.wanted]

    def wants(self, name: str) -> bool:
        """Whether a symbol is one of `wanted`."""
        symbol = self._symbols.get(name)
        return symbol is not None and symbol.wanted

    def subscribe(self, symbols: Sequence[str], done: Done) -> None:
        """Want `symbols` from now on.

        `done` hears once each of them was answered for: the errors of those that were refused, by
        symbol, or a QuoteError where all were.
        """
        call = _Call(dict.fromkeys(symbols), done)
        for name in dict.fromkeys(symbols):
            fault = symbol_fault(name)
            if fault is not None:
                self._refuse_unsent(name, fault, call)
                continue
            symbol = self._symbols.get(name)
            if symbol is None:
                symbol = self._symbols[name] = _Symbol(name)
            symbol.wanted = True
            if name in self._told and symbol.link == self._link:
                call.left.discard(name)
            else:
                symbol.calls.append(call)
            self._dirty[name] = None
        self._end_if_done(call)
        self._soon()

    def unsubscribe(self, symbols: Sequence[str] | None, done: Done) -> None:
        """Want `symbols`, or None for all, no more; `done` hears None when none of them comes."""
        names = list(self._symbols) if symbols is None else list(dict.fromkeys(symbols))
        call = _Call((name for name in names if name in self._told), done)
        for name in names:
            symbol = self._symbols.get(name)
            if symbol is None:
                continue
            symbol.wanted = False
            self._fail(symbol, QuoteError(0, f"{name} was unsubscribed meanwhile"))
            self._dirty[name] = None
            if name in call.left:
                self._leaving.setdefault(name, []).append(call)
        self._end_if_done(call)
        self._soon()

    # -- links come and go ---------------------------------------------------------------------

    def welcomed(self, epoch: str, limit: int) -> None:
        """A new link: nothing is served on it so far, and no count goes on."""
        self._link += 1
        self._epoch = epoch
        self._limit = limit
        for symbol in self._symbols.values():
            symbol.n = None

    def serve(self) -> None:
        """The server takes requests from now on: ask for what it does not serve yet."""
        self._open = True
        self._later.clear()
        self._dirty.update(dict.fromkeys(self._symbols))
        self.flush()

    def retry(self) -> None:
        """Ask again for what was refused for the time being."""
        self._dirty.update(self._later)
        self._later.clear()
        self.flush()

    def lost(self) -> None:
        """The link is gone, and with it all that was asked for."""
        self._open = False
        self._told.clear()
        leaving, self._leaving = self._leaving, {}
        for name, calls in leaving.items():
            self._left(name, calls)

    def ended(self, error: QuoteError) -> None:
        """No link will come by itself: calls that wait for one end with `error`."""
        waiting: dict[_Call, None] = {}
        for symbol in self._symbols.values():
            waiting.update(dict.fromkeys(symbol.calls))
            symbol.calls = []
        for call in waiting:
            self._settle(call.done, error)

    # -- what is asked -------------------------------------------------------------------------

    def flush(self) -> None:
        """Ask for what changed since the last time."""
        if not self._open:
            return  # `serve` asks for everything
        add: list[str] = []
        drop: list[str] = []
        for name in self._dirty:
            symbol = self._symbols.get(name)
            wanted = symbol is not None and symbol.wanted
            if symbol is not None and not wanted:
                del self._symbols[name]
            if wanted != (name in self._told):
                (add if wanted else drop).append(name)
            elif wanted:  # again before the server heard otherwise
                self._left(name, self._leaving.pop(name, ()))
        self._dirty.clear()
        # First what ends: it makes room under the limit of symbols.
        for batch in self._batches("unsubscribe", {}, drop):
            self._ask_to_end(batch)
        for batch in self._batches("subscribe", self._fields, add):
            self._ask_for(batch)

    def _batches(
        self, op: str, fields: Mapping[str, object], names: Iterable[str]
    ) -> Iterator[list[str]]:
        """`names` in lists that fit into one message each; what never fits is refused."""
        envelope = {"op": op, "id": WIDEST_ID, "symbols": [], **fields}
        room = self._limit - len(_encode(envelope))
        batch: list[str] = []
        size = 0
        for name in names:
            needed = len(_encode(name)) + 1  # and its comma
            if needed > room:  # the server would close the connection over it
                self._refused(name, SymbolError(_BAD, "bad symbol: too long"))
                continue
            if size + needed > room:
                yield batch
                batch, size = [], 0
            batch.append(name)
            size += needed
        if batch:
            yield batch

    def _ask_for(self, batch: list[str]) -> None:
        self._told.update(batch)
        message = {"op": "subscribe", "symbols": batch, **self._fields}
        number = 0

        def answered(event: Any) -> None:
            self._subscribed(number, batch, event)

        number = self._ask(message, answered)
        for name in batch:
            self._symbols[name].asked = number

    def _ask_to_end(self, batch: list[str]) -> None:
        self._told.difference_update(batch)
        message = {"op": "unsubscribe", "symbols": batch}
        self._ask(message, lambda event: self._unsubscribed(batch, event))

    # -- what is answered ----------------------------------------------------------------------

    def _subscribed(self, number: int, batch: list[str], event: Any) -> None:
        if isinstance(event, ErrorEvent):
            error = SymbolError(event.code, event.msg, _retry_of(event))
            errors: Mapping[str, SymbolError] = dict.fromkeys(batch, error)
        elif isinstance(event, SubscribedEvent):
            errors = event.errors
        else:
            return  # the link was lost: the next one is asked again
        for name in batch:
            symbol = self._symbols.get(name)
            if symbol is None or symbol.asked != number:
                continue  # it was unsubscribed meanwhile, or asked for anew
            error_of = errors.get(name)
            if error_of is not None:
                self._refused(name, error_of)
            else:
                self._served(symbol)

    def _served(self, symbol: _Symbol) -> None:
        missed = symbol.link != 0
        symbol.n = None
        symbol.link = self._link
        if missed:
            # What was published while it was not served never comes.
            self._tell(Gap(symbol.name, "link"))
        calls, symbol.calls = symbol.calls, []
        for call in calls:
            call.left.discard(symbol.name)
            self._end_if_done(call)

    def _unsubscribed(self, batch: list[str], event: Any) -> None:
        if isinstance(event, ErrorEvent):
            self._told.update(batch)
            retry = _retry_of(event)
            if retry is not None:
                self._later.update(dict.fromkeys(batch))
                self._again(retry / 1000 + self._random())
                return
        for name in batch:
            self._left(name, self._leaving.pop(name, ()))

    def withdrawn(self, event: UnsubscribedEvent) -> None:
        """The server serves some symbols no more, though they are wanted."""
        for name, error in event.errors.items():
            self._refused(name, error)

    def _left(self, name: str, calls: Iterable[_Call]) -> None:
        for call in calls:
            call.left.discard(name)
            self._end_if_done(call)

    def _refused(self, name: str, error: SymbolError) -> None:
        self._told.discard(name)
        retry = None if error.retry is None else error.retry / 1000 + self._random()
        self._tell(Refused(name, error.code, error.msg, retry))
        symbol = self._symbols.get(name)
        if symbol is None or not symbol.wanted:
            return
        if retry is not None:
            self._later[name] = None
            self._again(retry)
            return
        self._fail(symbol, QuoteError(error.code, error.msg))

    def _refuse_unsent(self, name: str, fault: str, call: _Call) -> None:
        self._tell(Refused(name, _BAD, fault))
        call.left.discard(name)
        call.errors[name] = QuoteError(_BAD, fault)

    def _fail(self, symbol: _Symbol, error: QuoteError) -> None:
        calls, symbol.calls = symbol.calls, []
        for call in calls:
            call.left.discard(symbol.name)
            call.errors[symbol.name] = error
            self._end_if_done(call)

    def _end_if_done(self, call: _Call) -> None:
        if call.left:
            return
        if call.size and len(call.errors) == call.size:
            name, first = next(iter(call.errors.items()))
            more = f", and {call.size - 1} more" if call.size > 1 else ""
            text = f"{name}{more}: {first.message}"
            self._settle(call.done, QuoteError(first.code, text, first.retry))
        else:
            self._settle(call.done, call.errors)

    def missed(self, name: str) -> None:
        """Updates of a symbol were lost before they reached the daemon."""
        symbol = self._symbols.get(name)
        if symbol is not None and symbol.wanted:
            self._tell(Gap(symbol.name, "feed"))

    # -- what comes ----------------------------------------------------------------------------

    def quoted(self, event: QuoteEvent | SnapshotEvent) -> None:
        """Count an update or a snapshot, and report it if its symbol is still wanted."""
        symbol = self._symbols.get(event.s)
        if symbol is None or not symbol.wanted or symbol.link != self._link:
            return  # it was on its way when it was unsubscribed
        snapshot = type(event) is SnapshotEvent
        last = symbol.n
        symbol.n = n = event.n
        # A snapshot may have the number 0: of a value that no update brought.
        merged = n - last - 1 if last is not None and not snapshot and n > last else 0
        # The payload is copied: as a view it would keep the whole message in memory.
        self._tell(Quote(symbol.name, n, event.t, bytes(event.d), snapshot, merged, self._epoch))


def _retry_of(event: ErrorEvent) -> float | None:
    """The milliseconds after which a refused request is made again; None for never."""
    if event.retry is None and event.code == ErrorCode.TOO_MANY_MESSAGES:
        return 1000 * _PATIENCE
    return event.retry


def check_symbols(symbols: Sequence[object]) -> None:
    """Raise TypeError where one is no text, as with a list in place of arguments."""
    for symbol in symbols:
        if not isinstance(symbol, str):
            raise TypeError(
                f'symbols are texts, one an argument: subscribe("AAPL", "MSFT"), not {symbol!r:.40}'
            )
