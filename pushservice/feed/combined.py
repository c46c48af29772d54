"""All sources of quotes as one feed: up while each of them is.

Must not know: clients, or what is made of quotes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pushservice.feed.redis_pubsub import RedisFeed


class Feeds:
    """Several Redis servers, each of which may bring any symbol.

    While one of them is down nobody knows which symbols miss updates, so the whole feed is down.
    """

    def __init__(self, changed: Callable[[bool], None]) -> None:
        """`changed` is told True when all are up, and False when one is lost or can't be had."""
        self._changed = changed
        self._sources: list[RedisFeed] = []

    def add(self, source: RedisFeed) -> None:
        """One more, before any is started."""
        self._sources.append(source)

    def start(self) -> None:
        """Begin to connect to each; returns at once."""
        for source in self._sources:
            source.start()

    async def stop(self) -> None:
        """Disconnect from each for good."""
        for source in self._sources:
            await source.stop()

    def source_changed(self, _source: RedisFeed, up: bool) -> None:
        """One came up, or was lost or refused."""
        if not up:
            self._changed(False)
        elif self.up:
            self._changed(True)

    @property
    def up(self) -> bool:
        """Whether each is up."""
        return all(source.up for source in self._sources)

    def connections(self) -> Sequence[Any]:
        """The connections in subscribe mode that are up."""
        return [source.connection for source in self._sources if source.connection is not None]
