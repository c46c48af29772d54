"""Measures how late the reactor makes calls: so long a client's message or a timer waits.

Must not know: Twisted beyond a clock, or what delays the reactor.
"""

from __future__ import annotations

from typing import Final

from pushservice.fanout.interfaces import Clock, DelayedCall
from pushservice.metrics import Histogram

#: Seconds between two looks.
CHECK_INTERVAL: Final = 0.1


class ReactorDelay:
    """Schedules a call again and again, and measures by how much each is late."""

    def __init__(self, clock: Clock, late: Histogram) -> None:
        """`late` is told, in seconds; a clock that is set on or back is taken for what it says."""
        self._clock = clock
        self._late = late
        self._due = 0.0
        self._call: DelayedCall | None = None

    def start(self) -> None:
        """Begin to look."""
        self._due = self._clock.seconds() + CHECK_INTERVAL
        self._call = self._clock.callLater(CHECK_INTERVAL, self._check)

    def stop(self) -> None:
        """Look no more. May be called twice."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _check(self) -> None:
        late = self._clock.seconds() - self._due
        self._late.observe(max(0.0, late))
        self.start()
