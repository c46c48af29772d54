"""What a feed listens to: the patterns of all quotes, or the channels of watched symbols alone.

Must not know: how connections come and go, or clients. A connection is something with `subscribe`,
`unsubscribe` and `psubscribe` that answer with Deferreds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from twisted.internet import defer

from pushservice.fanout.interfaces import Clock, DelayedCall
from pushservice.fanout.topic import Topic
from pushservice.feed.symbol_reader import (
    IGNORED,
    MAX_REMEMBERED,
    Ignored,
    SymbolReader,
    glob_regex,
    single_star,
)

#: Seconds after its last watcher went that a channel is still listened to.
DROP_AFTER: Final = 1.0


class Listening(Protocol):
    """How a connection is told what to send, and what a message is about."""

    def begin(self, connection: Any) -> defer.Deferred[Any]:
        """Subscribe on a new connection; fires when all is confirmed."""
        ...

    def symbol(self, pattern: bytes | None, channel: bytes, payload: bytes) -> str | Ignored | None:
        """What `SymbolReader.read` says; `pattern` is None for a message of a channel."""
        ...


class Everything:
    """Listens to all that the patterns match, whether or not anybody watches it."""

    def __init__(self, patterns: Sequence[str], symbols: SymbolReader) -> None:
        self._patterns = [pattern.encode() for pattern in dict.fromkeys(patterns)]
        self._symbols = symbols

    @defer.inlineCallbacks
    def begin(self, connection: Any) -> Any:
        # One pattern a command: txredisapi pairs one reply with one command.
        for pattern in self._patterns:
            yield connection.psubscribe([pattern])

    def symbol(self, pattern: bytes | None, channel: bytes, payload: bytes) -> str | Ignored | None:
        return None if pattern is None else self._symbols.read(pattern, channel, payload)


class Verbatim:
    """Listens to all that the patterns match; what it gives for the symbol is the channel itself.

    A channel that several patterns match is listened to once. One that is no UTF-8 has no name.
    Raises ValueError for a pattern that Redis would take for something that nobody means.
    """

    def __init__(self, patterns: Sequence[str], ignored: Sequence[str] = ()) -> None:
        """`ignored` are channels whose messages are no quotes, whatever matches them."""
        patterns = list(dict.fromkeys(patterns))
        self._patterns = [pattern.encode() for pattern in patterns]
        self._globs = [glob_regex(pattern) for pattern in patterns]
        self._ignored = frozenset(channel.encode() for channel in ignored)
        self._known: dict[tuple[bytes, bytes], str | Ignored | None] = {}

    @defer.inlineCallbacks
    def begin(self, connection: Any) -> Any:
        for pattern in self._patterns:
            yield connection.psubscribe([pattern])

    def symbol(self, pattern: bytes | None, channel: bytes, payload: bytes) -> str | Ignored | None:
        if pattern is None:
            return None
        key = (pattern, channel)
        if key not in self._known:
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            self._known[key] = self._read(pattern, channel)
        return self._known[key]

    def _read(self, pattern: bytes, channel: bytes) -> str | Ignored | None:
        earlier = self._globs[: self._patterns.index(pattern)]
        if channel in self._ignored or any(glob.fullmatch(channel) for glob in earlier):
            return IGNORED
        try:
            return channel.decode()
        except UnicodeDecodeError:
            return None


class Demand:
    """Listens to the channels of the symbols that somebody watches, on every connection there is.

    Each pattern has one `*`, in whose place the symbol stands. It is told of interest as the hub
    has it, and forgets a symbol DROP_AFTER seconds after its last watcher went: clients that
    reconnect find it as it was.
    """

    def __init__(
        self,
        clock: Clock,
        patterns: Sequence[str],
        connections: Callable[[], Iterable[Any]],
        dropped: Callable[[str], None],
        ignored: Sequence[str] = (),
    ) -> None:
        """`connections` gives those that are up; `dropped` is told what is not listened to now.

        `ignored` are channels that are never listened to, whatever symbol would have them.

        Raises ValueError for a pattern that has not exactly one wildcard, a `*`.
        """
        self._clock = clock
        self._parts = [_parts(pattern) for pattern in dict.fromkeys(patterns)]
        self._connections = connections
        self._dropped = dropped
        self._ignored = frozenset(channel.encode() for channel in ignored)
        self._symbol_of: dict[bytes, str] = {}
        self._symbols: dict[str, None] = {}
        self._leaving: dict[str, DelayedCall] = {}

    # -- a connection ----------------------------------------------------------------------------

    @defer.inlineCallbacks
    def begin(self, connection: Any) -> Any:
        # Until it is up nobody else tells it what comes and goes: so until nothing does.
        has: set[bytes] = set()
        while has != self._symbol_of.keys():
            wants = set(self._symbol_of)
            # One channel a command, all on their way before the first is confirmed.
            asked = [connection.subscribe([channel]) for channel in wants - has]
            asked += [connection.unsubscribe([channel]) for channel in has - wants]
            has = wants
            try:
                yield defer.gatherResults(asked, consumeErrors=True)
            except defer.FirstError as first:
                # What Redis said, and not that it was the first to be said.
                first.subFailure.raiseException()

    def symbol(self, pattern: bytes | None, channel: bytes, payload: bytes) -> str | Ignored | None:
        # A message may still come for a channel that was just dropped.
        return self._symbol_of.get(channel, _DROPPED)

    # -- Interest --------------------------------------------------------------------------------

    def watched(self, client: str, symbol: str, first: bool) -> None:
        """The first watcher of a symbol has it listened to."""
        if not first:
            return
        leaving = self._leaving.pop(symbol, None)
        if leaving is not None:
            leaving.cancel()
        elif symbol not in self._symbols:
            self._symbols[symbol] = None
            for channel in self._channels(symbol):
                # Where two patterns make one channel of different symbols, the first has it.
                self._symbol_of.setdefault(channel, symbol)
                self._each("subscribe", channel)

    def unwatched(self, client: str, symbol: str, last: bool) -> None:
        """A while after its last watcher went, a symbol is not listened to any more."""
        if last and symbol in self._symbols and symbol not in self._leaving:
            self._leaving[symbol] = self._clock.callLater(DROP_AFTER, lambda: self._drop(symbol))

    def quoted(self, topics: Mapping[Topic, object]) -> None:
        """Nothing follows from it."""

    def stop(self) -> None:
        """Leave nothing with the clock."""
        for leaving in self._leaving.values():
            leaving.cancel()
        self._leaving.clear()

    # -- within ----------------------------------------------------------------------------------

    def _drop(self, symbol: str) -> None:
        del self._leaving[symbol]
        del self._symbols[symbol]
        for channel in self._channels(symbol):
            if self._symbol_of.get(channel) == symbol:
                del self._symbol_of[channel]
                self._each("unsubscribe", channel)
        self._dropped(symbol)

    def _channels(self, symbol: str) -> list[bytes]:
        channels = [(before + symbol + after).encode() for before, after in self._parts]
        return [channel for channel in channels if channel not in self._ignored]

    def _each(self, command: str, channel: bytes) -> None:
        for connection in self._connections():
            # A connection that is lost meanwhile is replaced by one that begins with all there is.
            getattr(connection, command)([channel]).addErrback(lambda _lost: None)


def _parts(pattern: str) -> tuple[str, str]:
    parts = single_star(pattern)
    if parts is None:
        raise ValueError(f"{pattern!r} has not one * and no other wildcard")
    return parts


_DROPPED: Final = Ignored()
