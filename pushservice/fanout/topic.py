"""Symbols as the fan-out knows them: the number and the last value of each, and how many there are.

Must not know: who watches a symbol, who publishes, or when anything is sent.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeAlias

from pushservice.protocol.codecs import Codec, Quote
from pushservice.protocol.symbols import symbol_text

#: The clients of one codec that watch a symbol, as the append of each one's list of pieces.
Offers: TypeAlias = tuple[Callable[[bytes], None], ...]
#: Those of each codec, with what makes their piece.
Audience: TypeAlias = tuple[tuple[Codec, Quote, Offers], ...]


class Topic:
    """One symbol: its number, its last value, and what a quote of it has to call.

    `n` counts updates; `t` is the last one's receive time in milliseconds since the epoch;
    `payload` is as published, None before the first.
    """

    __slots__ = (
        "asleep",
        "audience",
        "marking",
        "n",
        "newest",
        "payload",
        "raw_watchers",
        "stale",
        "symbol",
        "symbol_text",
        "t",
        "watcher_count",
    )

    def __init__(self, symbol: str, n: int = 0) -> None:
        """`n` is one less than the number that the first update gets."""
        self.symbol = symbol
        self.symbol_text = symbol_text(symbol)
        self.n = n
        self.t = 0
        self.payload: bytes | None = None
        #: whether its watchers were told that it has gone quiet for long
        self.stale = False
        #: whether nobody takes its updates at once, within a turn; None where nobody looked yet
        self.asleep: bool | None = None
        #: the newest update as a piece of each codec in the audience
        self.newest: dict[Codec, bytes] = {}
        #: how many clients watch it, in whatever mode, and how many of them want it raw
        self.watcher_count = 0
        self.raw_watchers = 0
        # Both are immutable and kept by its Watchers: a publish costs one C call per client and no
        # look-up. The audience is None after interest changed, until the next publish.
        self.marking: tuple[Callable[[Topic, int], int], ...] = ()
        self.audience: Audience | None = ()

    @property
    def watched(self) -> bool:
        """Whether any client watches it, in whatever mode."""
        return self.watcher_count > 0

    def update(self, codec: Codec, clients: int = 1) -> bytes:
        """The newest update as a piece that so many of `codec` share; there must have been one."""
        piece = self.newest.get(codec)
        if piece is None:
            assert self.payload is not None, "only what was quoted is sent"
            body = codec.body(self.payload)
            piece = codec.quoting(clients)(self.symbol_text, self.n, self.t, body)
        return piece

    def snapshot(self, codec: Codec) -> bytes:
        """The last known value as a piece for `codec`; there must be one."""
        assert self.payload is not None, "only what was quoted is sent"
        return codec.snapshot(self.symbol_text, self.n, self.t, codec.body(self.payload))


class Topics:
    """Every symbol that is known: watched, or quoted and not forgotten since; at most so many.

    The last values of symbols that nobody watches make room for others, the oldest first.
    """

    __slots__ = ("_first_n", "_most", "_unwatched", "by_symbol")

    def __init__(self, most: int) -> None:
        self.by_symbol: dict[str, Topic] = {}
        self._most = most
        # Quoted and watched by nobody; the one whose last value is oldest comes first.
        self._unwatched: OrderedDict[Topic, None] = OrderedDict()
        # No symbol may begin below a number it had before it was forgotten.
        self._first_n = 0

    def new(self, symbol: str) -> Topic | None:
        """A topic for a symbol that is not known; None where all that may be are watched.

        The caller has it watched, keeps its first value, or forgets it.
        """
        if len(self.by_symbol) >= self._most:
            if not self._unwatched:
                return None
            self.forget(next(iter(self._unwatched)))
        topic = self.by_symbol[symbol] = Topic(symbol, self._first_n)
        return topic

    def watched(self, topic: Topic) -> None:
        """Somebody watches `topic`."""
        self._unwatched.pop(topic, None)

    def unwatched(self, topic: Topic) -> None:
        """Nobody watches `topic`, which has just been quoted, or watched until now."""
        topic.newest.clear()
        topic.stale = False
        if topic.payload is None:
            del self.by_symbol[topic.symbol]
        else:
            self._unwatched[topic] = None
            self._unwatched.move_to_end(topic)

    @property
    def full(self) -> bool:
        """Whether another symbol would take the place of one that is known."""
        return len(self.by_symbol) >= self._most

    def inherited(self, topic: Topic) -> None:
        """Nobody watches `topic`, whose value is older than all others."""
        self._unwatched[topic] = None
        self._unwatched.move_to_end(topic, last=False)

    def forget(self, topic: Topic) -> None:
        """Nothing is to be known any more of `topic`, which nobody watches."""
        del self.by_symbol[topic.symbol]
        self._unwatched.pop(topic, None)
        self._first_n = max(self._first_n, topic.n)
