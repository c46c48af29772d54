"""Several sources of quotes combined into one feed, which is up while all of them are up.

Must not know: clients, or what is done with quotes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pushservice.feed.redis_pubsub import RedisFeed


class CombinedFeed:
    """Several Redis servers, each of which may bring any symbol.

    While one of them is down nobody knows which symbols miss updates, so the whole feed is down.
    """

    def __init__(self, changed: Callable[[bool], None]) -> None:
        """`changed` is called with True when all are up, with False when one is lost or fails."""
        self._changed = changed
        self._sources: list[RedisFeed] = []

    def add(self, source: RedisFeed) -> None:
        """Add a source, before any is started."""
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
        """A source came up, was lost, or could not be connected to."""
        if not up:
            self._changed(False)
        elif self.up:
            self._changed(True)

    @property
    def up(self) -> bool:
        """Whether all are up."""
        return all(source.up for source in self._sources)

    def connections(self) -> Sequence[Any]:
        """The connections in subscribe mode that are up."""
        return [source.connection for source in self._sources if source.connection is not None]
