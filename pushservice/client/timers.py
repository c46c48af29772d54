"""Named timers of a conversation, which the adapter wakes at the earliest deadline.

Must not know: clocks (times are passed in), event loops, or what is due.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

_Act: TypeAlias = Callable[[], None]


class Timers:
    """At most one timer of each name; times are seconds of a clock that only goes forward."""

    def __init__(self) -> None:
        #: the time that the adapter passed in last
        self.now = 0.0
        #: the earliest time at which `run_due` has something to do; None for never
        self.deadline: float | None = None
        self._timers: dict[str, tuple[float, _Act]] = {}

    def set(self, name: str, seconds: float, act: _Act) -> None:
        """Call `act` once, so many seconds from now, in place of an earlier timer of this name."""
        self._timers[name] = (self.now + seconds, act)
        self._set_deadline()

    def cancel(self, *names: str) -> None:
        """Forget the timers of these names, where there are any."""
        for name in names:
            self._timers.pop(name, None)
        self._set_deadline()

    def left(self, name: str) -> float | None:
        """Seconds until the timer of this name is due; None where there is none."""
        known = self._timers.get(name)
        return None if known is None else known[0] - self.now

    def run_due(self) -> None:
        """Call what is due, the earliest first, what that makes due now included."""
        while self.deadline is not None and self.deadline <= self.now:
            name = min(self._timers, key=lambda name: self._timers[name][0])
            _, act = self._timers[name]
            self.cancel(name)
            act()

    def _set_deadline(self) -> None:
        self.deadline = min((time for time, _ in self._timers.values()), default=None)
