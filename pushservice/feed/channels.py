"""Which channels a feed subscribes to: all that match a pattern, or those of watched symbols only.

Must not know: how connections come and go, or clients. A connection is any object with the methods
`subscribe`, `unsubscribe` and `psubscribe`, which return Deferreds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from twisted.internet import defer

from pushservice.fanout.interfaces import Clock, DelayedCall
from pushservice.fanout.topic import Topic
from pushservice.feed.symbol_reader import (
    IGNORED,
    MAX_CACHED,
    Ignored,
    SymbolReader,
    glob_regex,
    single_star,
)

#: Seconds for which a channel stays subscribed after its last watcher left.
UNSUBSCRIBE_AFTER: Final = 1.0


class ChannelSelection(Protocol):
    """Subscribes connections to channels, and tells the symbol of each message."""

    def begin(self, connection: Any) -> defer.Deferred[Any]:
        """Subscribe on a new connection; fires once everything is confirmed."""
        ...

    def symbol(self, pattern: bytes | None, channel: bytes, payload: bytes) -> str | Ignored | None:
        """What `SymbolReader.read` returns; `pattern` is None for a message of a channel."""
        ...


class AllPatterns:
    """Subscribes to the patterns, whether or not anybody watches the symbols."""

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


class ChannelNames:
    """Subscribes to the patterns; the symbol of a message is the name of its channel.

    A message that several patterns match counts once. A channel whose name is not UTF-8 has no
    symbol. Raises ValueError for a pattern with a `[` and no `]`.
    """

    def __init__(self, patterns: Sequence[str], ignored: Sequence[str] = ()) -> None:
        """`ignored` are channels whose messages are no quotes, whichever patterns match them."""
        patterns = list(dict.fromkeys(patterns))
        self._patterns = [pattern.encode() for pattern in patterns]
        self._globs = [glob_regex(pattern) for pattern in patterns]
        self._ignored = frozenset(channel.encode() for channel in ignored)
        self._cache: dict[tuple[bytes, bytes], str | Ignored | None] = {}

    @defer.inlineCallbacks
    def begin(self, connection: Any) -> Any:
        for pattern in self._patterns:
            yield connection.psubscribe([pattern])

    def symbol(self, pattern: bytes | None, channel: bytes, payload: bytes) -> str | Ignored | None:
        if pattern is None:
            return None
        key = (pattern, channel)
        if key not in self._cache:
            if len(self._cache) >= MAX_CACHED:
                self._cache.clear()
            self._cache[key] = self._read(pattern, channel)
        return self._cache[key]

    def _read(self, pattern: bytes, channel: bytes) -> str | Ignored | None:
        earlier = self._globs[: self._patterns.index(pattern)]
        if channel in self._ignored or any(glob.fullmatch(channel) for glob in earlier):
            return IGNORED
        try:
            return channel.decode()
        except UnicodeDecodeError:
            return None


class OnDemand:
    """Subscribes to the channels of watched symbols, on every connection.

    The symbol replaces the one `*` of each pattern. The hub reports what is watched. A symbol stays
    subscribed for UNSUBSCRIBE_AFTER seconds after its last watcher left, so that nothing is missed
    by a client that reconnects.
    """

    def __init__(
        self,
        clock: Clock,
        patterns: Sequence[str],
        connections: Callable[[], Iterable[Any]],
        dropped: Callable[[str], None],
        ignored: Sequence[str] = (),
    ) -> None:
        """`connections` gives those that are up; `dropped` is called with each unsubscribed symbol.

        `ignored` are channels that are never subscribed, whatever symbol they belong to.

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
        # `_each` reaches only connections that are up: so repeat this until nothing has changed.
        subscribed: set[bytes] = set()
        while subscribed != self._symbol_of.keys():
            wanted = set(self._symbol_of)
            # One channel a command; all are sent before the first is confirmed.
            sent = [connection.subscribe([channel]) for channel in wanted - subscribed]
            sent += [connection.unsubscribe([channel]) for channel in subscribed - wanted]
            subscribed = wanted
            try:
                yield defer.gatherResults(sent, consumeErrors=True)
            except defer.FirstError as first:
                # The error of Redis, without the FirstError around it.
                first.subFailure.raiseException()

    def symbol(self, pattern: bytes | None, channel: bytes, payload: bytes) -> str | Ignored | None:
        # A message may still come for a channel that was just unsubscribed.
        return self._symbol_of.get(channel, _UNSUBSCRIBED)

    # -- Interest --------------------------------------------------------------------------------

    def watched(self, client: str, symbol: str, first: bool) -> None:
        """Subscribe to a symbol with its first watcher."""
        if not first:
            return
        leaving = self._leaving.pop(symbol, None)
        if leaving is not None:
            leaving.cancel()
        elif symbol not in self._symbols:
            self._symbols[symbol] = None
            for channel in self._channels(symbol):
                # Two patterns may give one channel to different symbols: the first symbol keeps it.
                self._symbol_of.setdefault(channel, symbol)
                self._each("subscribe", channel)

    def unwatched(self, client: str, symbol: str, last: bool) -> None:
        """Unsubscribe from a symbol a while after its last watcher left."""
        if last and symbol in self._symbols and symbol not in self._leaving:
            self._leaving[symbol] = self._clock.callLater(
                UNSUBSCRIBE_AFTER, lambda: self._drop(symbol)
            )

    def quoted(self, topics: Mapping[Topic, object]) -> None:
        """Quotes change nothing here."""

    def stop(self) -> None:
        """Cancel all timers."""
        for leaving in self._leaving.values():
            leaving.cancel()
        self._leaving.clear()

    # -- internals -------------------------------------------------------------------------------

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
            # A connection that is lost is replaced by one that subscribes to everything in `begin`.
            getattr(connection, command)([channel]).addErrback(lambda _lost: None)


def _parts(pattern: str) -> tuple[str, str]:
    parts = single_star(pattern)
    if parts is None:
        raise ValueError(f"{pattern!r} needs exactly one * and no other wildcard")
    return parts


_UNSUBSCRIBED: Final = Ignored()
