"""Detects a dead link by missing heartbeats.

Must not know: links, messages, or clocks beyond the timers' time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pushservice.client.timers import Timers

#: Heartbeats missed before a link counts as dead.
WATCH_FACTOR: Final = 3
#: Seconds in which a link that counts as dead may still prove that only this program was late.
GRACE: Final = 1.0


class Watchdog:
    """Checks from time to time whether messages came, without a timer for each message."""

    def __init__(self, timers: Timers, dead: Callable[[], None]) -> None:
        """`dead` is called once a link is silent for too long."""
        self._timers = timers
        self._dead = dead
        #: false while the adapter does not read: silence is no sign of a dead link then
        self.listening = True
        self._heard_at = 0.0
        self._suspected = False

    def begin(self, interval: float) -> None:
        """Watch a new link with a heartbeat in each `interval` of seconds; 0 for none."""
        self._suspected = False
        if interval > 0:
            limit = WATCH_FACTOR * interval
            self._look_in(limit, limit)

    def heard(self) -> None:
        """The link lives."""
        self._heard_at = self._timers.now

    def _look_in(self, wait: float, limit: float) -> None:
        self._timers.set("link", wait, lambda: self._look(limit))

    def _look(self, limit: float) -> None:
        left = limit - (self._timers.now - self._heard_at)
        if left > 0 or not self.listening:
            self._suspected = False
            self._look_in(max(left, GRACE), limit)
        elif not self._suspected:
            # It may be this program that was held up, with messages unread: one more look.
            self._suspected = True
            self._look_in(GRACE, limit)
        else:
            self._dead()
