"""Pacing: subscriptions that want at most one update per symbol and interval.

Must not know: sockets, Twisted, commands, or how a symbol's updates become bytes.

Clients with the same interval share one timer. They are dealt to a few groups, served in turns over
the interval, so that no turn of the timer writes to all of them. A quote marks its symbol once for
each group that watches it, whatever the number of clients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pushservice.fanout.interfaces import Clock, DelayedCall
from pushservice.fanout.outbox import Outbox
from pushservice.fanout.paced import Changes, Paced
from pushservice.fanout.topic import Topic

#: Groups that an interval is dealt to, at most, and the least milliseconds between two of them.
_MOST_GROUPS: Final = 8
_LEAST_STEP_MS: Final = 20
#: Different intervals that are kept exactly at a time; timers cost, and clients choose intervals.
EXACT_INTERVALS: Final = 64
#: What intervals beyond those are rounded up to, in milliseconds.
COARSE_INTERVALS: Final = (
    *(10, 20, 50, 100, 200, 250, 500),
    *(1000, 2000, 5000, 10_000, 20_000, 30_000, 60_000),
)


class Group:
    """Clients of one interval that are served at the same moment."""

    __slots__ = ("changes", "members", "pace")

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        #: which of its symbols were quoted since it was last served
        self.changes = Changes()
        self.members: dict[Paced, Outbox] = {}


class Pace:
    """One interval: its timer and its groups."""

    __slots__ = (
        "_began",
        "_call",
        "_clock",
        "_ended",
        "_next",
        "_serve",
        "_step",
        "groups",
        "interval_ms",
    )

    def __init__(
        self,
        interval_ms: int,
        clock: Clock,
        serve: Callable[[Group], None],
        ended: Callable[[], None],
    ) -> None:
        """`serve` is called for one group at a time, `ended` once no client is left."""
        self.interval_ms = interval_ms
        count = max(1, min(_MOST_GROUPS, interval_ms // _LEAST_STEP_MS))
        self.groups = [Group(self) for _ in range(count)]
        self._serve = serve
        self._ended = ended
        self._clock = clock
        self._step = interval_ms / 1000 / count
        self._began = clock.seconds()
        # Steps since the beginning: the grid that keeps lateness from adding up.
        self._next = 1
        self._call: DelayedCall | None = clock.callLater(self._step, self._tick)

    def least_group(self) -> Group:
        """The group with the fewest clients."""
        return min(self.groups, key=lambda group: len(group.members))

    def member_left(self) -> None:
        """A client has no symbol of this interval any more."""
        if self._call is not None and not any(group.members for group in self.groups):
            self._call.cancel()
            self._call = None
            self._ended()

    def _tick(self) -> None:
        """Serve the group whose turn it is, and those whose turn the process was too late for."""
        now = self._clock.seconds()
        due = int((now - self._began) / self._step + 1e-6)
        first, self._next = self._next, max(self._next, due) + 1
        wait = max(0.0, self._began + self._next * self._step - now)
        self._call = self._clock.callLater(wait, self._tick)
        count = len(self.groups)
        for turn in range(max(first, self._next - count), self._next):
            self._serve(self.groups[turn % count])


class Pacing:
    """All intervals that clients of one hub have asked for."""

    __slots__ = ("_clock", "_groups", "_paces", "_serve")

    def __init__(self, clock: Clock, serve: Callable[[Group], None]) -> None:
        self._clock = clock
        self._serve = serve
        self._paces: dict[int, Pace] = {}
        # The group that each client's subscriptions of an interval are served with.
        self._groups: dict[Paced, Group] = {}

    def interval(self, asked_ms: int) -> int:
        """The interval that `asked_ms` is served with: itself, or rounded up where there are many.

        There are at most EXACT_INTERVALS and the coarse ones at a time, so that nobody can make the
        process spend its time on timers.
        """
        if asked_ms in self._paces or len(self._paces) < EXACT_INTERVALS:
            return asked_ms
        return next(coarse for coarse in COARSE_INTERVALS if coarse >= asked_ms)

    def new(self, interval_ms: int) -> Paced:
        """An interval, as `interval` gave it, for a client whose first topic is about to join."""
        pace = self._paces.get(interval_ms)
        if pace is None:
            pace = self._paces[interval_ms] = Pace(
                interval_ms, self._clock, self._serve, lambda: self._forget(interval_ms)
            )
        group = pace.least_group()
        paced = Paced(interval_ms, group.changes)
        self._groups[paced] = group
        return paced

    def join(self, paced: Paced, outbox: Outbox, topic: Topic, last: int) -> Group:
        """Add `topic`, of which the client has `last`, to `paced`; returns the group it is in."""
        group = self._groups[paced]
        paced.add(topic, last)
        group.members[paced] = outbox
        return group

    def part(self, paced: Paced, topic: Topic) -> Group:
        """Take `topic` out of `paced`; returns the group that it was in."""
        group = self._groups[paced]
        paced.remove(topic)
        if not paced.topics:
            del self._groups[paced], group.members[paced]
            group.pace.member_left()
        return group

    def count(self) -> int:
        """How many intervals, and so timers, there are."""
        return len(self._paces)

    def _forget(self, interval_ms: int) -> None:
        del self._paces[interval_ms]
