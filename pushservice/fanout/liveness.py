"""Finds clients that are gone: silent ones by pings, stalled ones by what they take.

Must not know: sockets, Twisted, or how a ping is framed.

A client that flows is pinged once an interval; whatever comes from it in time shows that it lives.
A client that is behind is not pinged: whether it takes anything shows the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from pushservice.fanout.interfaces import Clock, DelayedCall
from pushservice.limits import Limits
from pushservice.protocol.frames import ping_frame

if TYPE_CHECKING:
    from pushservice.fanout.hub import Hub
    from pushservice.fanout.outbox import Outbox
    from pushservice.metrics import Counters

#: How often in a stall time-out the clients that are behind are looked at, and seconds at most.
_LOOKS: Final = 10
_LOOK_AT_LEAST_EVERY: Final = 1.0

_PING: Final = ping_frame(b"")
#: Stands for what a client had taken when nobody can say.
_UNKNOWN: Final = -1


class Liveness:
    """Aborts the clients of one hub that are silent or stalled."""

    def __init__(
        self,
        hub: Hub,
        clock: Clock,
        limits: Limits,
        counters: Counters,
        given_up: Callable[[Outbox, str], None],
    ) -> None:
        """`given_up` is told which client is about to be aborted, and why."""
        self._hub = hub
        self._clock = clock
        self._limits = limits
        self._counters = counters
        self._given_up = given_up
        self._next_group = 0
        self._calls: list[DelayedCall] = []

    def start(self) -> None:
        """Start the timers."""
        self._later(self._look_interval(), self._look_for_stalled)
        if self._limits.ping_interval:
            self._later(self._ping_step(), self._ping_next_group)

    def stop(self) -> None:
        """Cancel all timers."""
        for call in self._calls:
            call.cancel()
        self._calls.clear()

    # -- stalled ---------------------------------------------------------------------------------

    def _look_interval(self) -> float:
        return min(_LOOK_AT_LEAST_EVERY, self._limits.stall_timeout / _LOOKS)

    def _look_for_stalled(self) -> None:
        self._later(self._look_interval(), self._look_for_stalled)
        now, limit = self._clock.seconds(), self._limits.stall_timeout
        for outbox in list(self._hub.common.behind):
            if outbox.seconds_stalled(now) >= limit:
                self._counters.aborted_stalled += 1
                self._give_up(outbox, f"behind, and took nothing for {limit:g} s")

    # -- silent ----------------------------------------------------------------------------------

    def _ping_step(self) -> float:
        return self._limits.ping_interval / self._hub.groups

    def _ping_next_group(self) -> None:
        """Ping the clients of one group, each group once an interval."""
        self._later(self._ping_step(), self._ping_next_group)
        at = self._next_group
        self._next_group = (at + 1) % self._hub.groups
        waiting = False
        for outbox in self._hub.group(at):
            if not outbox.behind and outbox.unanswered is None:
                progress = outbox.outlet.progress()
                outbox.unanswered = _UNKNOWN if progress is None else progress.taken
                outbox.send(_PING)
            waiting = waiting or outbox.unanswered is not None
        if waiting:
            self._later(self._limits.ping_timeout, lambda: self._look_for_silent(at))

    def _look_for_silent(self, at: int) -> None:
        """Abort those that did not answer, nor take anything of what is on its way to them."""
        for outbox in self._hub.group(at):
            unanswered = outbox.unanswered
            if unanswered is None:
                continue
            progress = outbox.outlet.progress()
            if outbox.behind:
                outbox.unanswered = None
            elif progress is not None and progress.waiting and progress.taken != unanswered:
                # The ping may not have reached it yet: it is looked at again, after the next one.
                outbox.unanswered = progress.taken
            else:
                self._counters.aborted_silent += 1
                why = f"no answer to a ping for {self._limits.ping_timeout:g} s"
                self._give_up(outbox, why)

    # -- both ------------------------------------------------------------------------------------

    def _later(self, delay: float, call: Callable[[], None]) -> None:
        def due() -> None:
            self._calls.remove(delayed)
            call()

        delayed = self._clock.callLater(delay, due)
        self._calls.append(delayed)

    def _give_up(self, outbox: Outbox, why: str) -> None:
        self._given_up(outbox, why)
        outbox.outlet.abort()
