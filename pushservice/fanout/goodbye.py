"""Sends all clients away, spread over some time, and those that come later as they come.

Must not know: sockets, processes, or what follows once all are gone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from pushservice.fanout.announcements import Announcements
from pushservice.fanout.interfaces import Clock, DelayedCall
from pushservice.protocol.close_codes import CloseCode

if TYPE_CHECKING:
    from pushservice.fanout.hub import Hub

#: Seconds between two steps.
STEP: Final = 0.05
#: Clients a second that are sent away at least: so few may reconnect at once.
LEAST_RATE: Final = 100


class Goodbye:
    """Sends the clients of one hub away, evenly."""

    def __init__(
        self,
        clock: Clock,
        hub: Hub,
        announcements: Announcements,
        code: CloseCode,
        seconds: float,
        retry_ms: Callable[[], int],
    ) -> None:
        """All are told within `seconds`, sooner where they are few; 0 for all at once.

        `code` is what each is closed with, and `retry_ms` is asked for each when it may come back.
        """
        self._clock = clock
        self._hub = hub
        self._announcements = announcements
        self._code = code
        self._seconds = min(seconds, hub.count_outboxes() / LEAST_RATE)
        self._retry_ms = retry_ms
        self._ends_at = clock.seconds()
        self._call: DelayedCall | None = None

    def start(self) -> None:
        """Begin, and go on with whoever comes until `stop`."""
        self._ends_at = self._clock.seconds() + self._seconds
        self._step()

    def stop(self) -> None:
        """Send nobody away any more. May be called twice."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    @property
    def over(self) -> bool:
        """Whether all who were there have been told; who comes from now on is told at once."""
        return self._clock.seconds() >= self._ends_at

    def hurry(self) -> None:
        """Tell all that are left now."""
        self._ends_at = self._clock.seconds()
        self.stop()
        self._step()

    def _step(self) -> None:
        left = self._ends_at - self._clock.seconds()
        there = self._hub.count_outboxes()
        count = there if left <= 0 else -(-there * STEP // max(left, STEP))
        self._announcements.dismiss(self._code, self._retry_ms, int(count))
        self._call = self._clock.callLater(STEP, self._step)
