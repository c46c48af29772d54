"""Whether quotes are current: the state of the link, of the feed, and of quiet symbols.

Must not know: links, quotes, or who reads the events.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pushservice.client import frames
from pushservice.client.events import Event, Feed, Fresh, Stale


class Freshness:
    """Tells Feed, Stale and Fresh as they change, each change once."""

    def __init__(self, tell: Callable[[Event], None]) -> None:
        self._tell = tell
        #: whether the feed is up; None while that is not known
        self.feed_up: bool | None = None
        self._fresh: bool | None = None

    def set_feed(self, state: str, t: int) -> None:
        """The server says that its feed is "up" or "down"."""
        up = state == "up"
        if up is not self.feed_up:
            self.feed_up = up
            self._tell(Feed(up, t))
            self._set_fresh(fresh=up, reason="feed")

    def set_quiet(self, event: frames.StaleEvent | frames.FreshEvent) -> None:
        """The server says that symbols, or all of the feed, have gone quiet or are back."""
        quiet = isinstance(event, frames.StaleEvent)
        # That the feed is down was reported already.
        if event.all and self.feed_up is not False:
            self._set_fresh(fresh=not quiet, reason="quiet")
        if event.symbols:
            symbols = event.symbols
            self._tell(Stale(symbols, "quiet") if quiet else Fresh(symbols))

    def link_lost(self) -> None:
        """Nothing is current until the next link says so."""
        self.feed_up = None
        self._set_fresh(fresh=False, reason="link")

    def _set_fresh(self, *, fresh: bool, reason: Any) -> None:
        if fresh is not self._fresh:
            self._fresh = fresh
            self._tell(Fresh(None) if fresh else Stale(None, reason))
