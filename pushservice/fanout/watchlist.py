"""What one client watches, each symbol in one of the modes.

Must not know: what is sent to the client, whether it is behind, or what it says.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from pushservice.fanout.paced import Paced
from pushservice.fanout.topic import Topic


class _Raw:
    """The mode of subscriptions that want every update."""


RAW: Final = _Raw()

#: How a client watches a symbol: None for every update, merged while it is behind; RAW for every
#: update, never merged; Paced for one update an interval.
Mode: TypeAlias = Paced | _Raw | None


def raw_and_interval(mode: Mode) -> tuple[bool, int]:
    """Whether `mode` is raw, and its interval in milliseconds, or 0."""
    if isinstance(mode, Paced):
        return False, mode.interval_ms
    return mode is RAW, 0


class _Special:
    """A client's subscriptions that are raw or paced; made for clients that have any."""

    __slots__ = ("apart", "paced", "raw")

    def __init__(self) -> None:
        self.raw: set[Topic] = set()
        self.paced: dict[int, Paced] = {}
        #: all topics that are raw or paced
        self.apart: set[Topic] = set()


class Watchlist:
    """What one client watches; kept by the hub."""

    __slots__ = ("special", "topics")

    def __init__(self) -> None:
        self.topics: dict[Topic, Mode] = {}
        self.special: _Special | None = None

    def watch(self, topic: Topic, mode: Mode) -> None:
        """The client watches `topic` from now on."""
        self.topics[topic] = mode
        if mode is not None:
            special = self.special = self.special or _Special()
            special.apart.add(topic)
            if isinstance(mode, Paced):
                special.paced[mode.interval_ms] = mode
            else:
                special.raw.add(topic)

    def unwatch(self, topic: Topic) -> None:
        """The client no longer watches `topic`, but has yet to get what is pending of it."""
        mode = self.topics.pop(topic, None)
        special = self.special
        if special is not None and mode is not None:
            special.apart.discard(topic)
            special.raw.discard(topic)
            if isinstance(mode, Paced) and not mode.topics:
                del special.paced[mode.interval_ms]
            if not special.apart:
                self.special = None

    def paced(self, interval_ms: int) -> Paced | None:
        """The client's subscriptions of one interval, if it has any."""
        return None if self.special is None else self.special.paced.get(interval_ms)

    def last(self, topic: Topic) -> int:
        """The `n` of `topic` that the client has or is about to get, while not behind with it."""
        mode = self.topics[topic]
        return mode.last(topic) if isinstance(mode, Paced) else topic.n
