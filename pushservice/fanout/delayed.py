"""Delayed quotes: a hub for each delay, fed from the tape once its quotes are old enough.

Must not know: Twisted, Redis, sockets, what clients say, or who is entitled to what.

A tier is a hub of its own: numbers, snapshots, merging, pacing and raw subscriptions work as in
real time, on the quotes played so far. A quote is played once `at + delay <= now` on the clock that
is given, in its full precision; nothing else reaches a tier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from pushservice.fanout.announcements import Announcements
from pushservice.fanout.interfaces import Clock, DelayedCall, Interest
from pushservice.fanout.shared_frames import SharedFrames
from pushservice.fanout.tape import GAP, LOST, UNSUBSCRIBED, Tape
from pushservice.fanout.watchlist import Mode, raw_and_interval
from pushservice.protocol import events

if TYPE_CHECKING:
    from pushservice.fanout.hub import Hub
    from pushservice.fanout.outbox import Outbox
    from pushservice.fanout.topic import Topic

#: Seconds between two turns of a tier, at least: fifty a second, however many quotes there are.
TURN_EVERY: Final = 0.02
#: Quotes that one turn plays at most, so that clients' messages are served between.
TURN_QUOTES: Final = 2000


class CombinedInterest:
    """Tells one Interest what the clients of the real-time hub and of all tiers watch.

    `first` is true for the first watcher of a symbol on any hub, and again for the first in real
    time: only for real-time clients are values looked up and written. `last` is true for the last
    watcher on all hubs. `quoted` is told only of what clients watch in real time.
    """

    def __init__(self, interest: Interest) -> None:
        self._interest = interest
        # By how many tiers each symbol is watched.
        self._tiers: dict[str, int] = {}

    def watched(self, client: str, symbol: str, first: bool) -> None:
        """See Interest; for the real-time hub."""
        if first:
            self._tiers[symbol] = self._tiers.get(symbol, 0) + 1
        self._interest.watched(client, symbol, first)

    def watched_late(self, client: str, symbol: str, first: bool) -> None:
        """See Interest; for a tier."""
        elsewhere = self._tiers.get(symbol, 0)
        if first:
            self._tiers[symbol] = elsewhere + 1
        self._interest.watched(client, symbol, first and not elsewhere)

    def unwatched(self, client: str, symbol: str, last: bool) -> None:
        """See Interest; for any hub."""
        if last:
            self._tiers[symbol] -= 1
            last = not self._tiers[symbol]
            if last:
                del self._tiers[symbol]
        self._interest.unwatched(client, symbol, last)

    def quoted(self, topics: Mapping[Topic, object]) -> None:
        """See Interest; for the real-time hub."""
        self._interest.quoted(topics)


class _TierInterest:
    """The Interest of a tier."""

    __slots__ = ("unwatched", "watched")

    def __init__(self, together: CombinedInterest) -> None:
        self.watched = together.watched_late
        self.unwatched = together.unwatched

    def quoted(self, topics: Mapping[Topic, object]) -> None:
        """Nothing: old quotes are of no use to others."""


class _Tier:
    """One delay: its hub, its place on the tape, and the timer that plays what is due."""

    def __init__(
        self,
        clock: Clock,
        hub: Hub,
        tape: Tape,
        delay: float,
        end_of_turn: Callable[[SharedFrames], None],
    ) -> None:
        self.hub = hub
        self.announcements = Announcements(hub, end_of_turn, late_ms=delay * 1000)
        self._clock = clock
        self._reader = tape.reader(delay)
        self._call: DelayedCall | None = None
        # No turn begins before this, see TURN_EVERY.
        self._next_turn_at = 0.0
        self._stopped = False

    def wake(self) -> None:
        """Schedule a turn for when the next entry of the tape is due, if none is scheduled."""
        if self._call is not None or self._stopped:
            return
        at = self._reader.next_at()
        if at is not None:
            due = max(at + self._reader.delay, self._next_turn_at)
            wait = max(0.0, due - self._clock.seconds())
            self._call = self._clock.callLater(wait, self._play)

    def stop(self) -> None:
        """Play no more."""
        self._stopped = True
        self._reader.close()
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _play(self) -> None:
        """One turn: publish what is due by now."""
        self._call = None
        now = self._clock.seconds()
        stopwatch = self.hub.measures.stopwatch
        began = stopwatch()
        self._next_turn_at = now + TURN_EVERY
        try:
            entries = self._reader.take(now, TURN_QUOTES)
            if len(entries) >= TURN_QUOTES:
                # There may be more that is due.
                self._next_turn_at = now
            hub = self.hub
            publish = hub.publish
            received: float | None = None
            missed: float | None = None
            for at, symbol, payload in entries:
                if payload == GAP and not symbol:
                    # In its place among the quotes, and once for several with none between.
                    hub.flush()
                    received, missed = None, at
                    continue
                if missed is not None:
                    self._miss(missed)
                    missed = None
                if not symbol:
                    hub.flush()
                    received = None
                    self._mark(at, payload)
                    continue
                if at != received:
                    received = at
                    hub.receive_at(milliseconds(at))
                publish(symbol, payload)
            hub.flush()
            if missed is not None:
                self._miss(missed)
        finally:
            self.hub.measures.turn_seconds.observe(stopwatch() - began)
            self.wake()

    def _miss(self, at: float) -> None:
        self.announcements.feed_was(True, milliseconds(at))

    def _mark(self, at: float, mark: bytes) -> None:
        if mark == LOST:
            self.announcements.feed_was(False, milliseconds(at))
        elif mark.startswith(UNSUBSCRIBED):
            symbol = mark[len(UNSUBSCRIBED) :].decode()
            topic = self.hub.topic(symbol)
            if topic is not None and topic.watched:
                self.announcements.gap_of(topic)
            else:
                self.hub.values.forget(symbol)


class Tiers:
    """The delays that are offered, each with a hub of its own.

    It implements interfaces.Publish: it records what the feed delivers on the tape, and passes it
    on to the real-time hub.
    """

    def __init__(
        self,
        clock: Clock,
        hub: Hub,
        tape: Tape,
        delays: Iterable[float],
        together: CombinedInterest,
        end_of_turn: Callable[[SharedFrames], None],
    ) -> None:
        """`hub` is the real-time one, whose `interest` is `together`; `delays` are in seconds.

        `end_of_turn` is what the hub was given. Raises ValueError for a delay that is not positive.
        """
        self._clock = clock
        self._hub = hub
        self._publish = hub.publish
        self._tape = tape
        self._record = tape.record
        self._tiers: dict[float, _Tier] = {}
        for delay in sorted(set(delays)):
            if not 0 < delay < math.inf:
                raise ValueError(f"a delay of {delay:g} s can't be; more than 0 is right")
            late = hub.tier(_TierInterest(together))
            self._tiers[delay] = _Tier(clock, late, tape, delay, end_of_turn)
        # When the turn that is being published was received; None between turns.
        self._at: float | None = None
        self._feed_up: bool | None = None

    # -- what the feed brings --------------------------------------------------------------------

    def publish(self, symbol: str, payload: bytes) -> None:
        """See Publish: record the quote and pass it on to the real-time hub."""
        at = self._at
        if at is None:
            at = self._at = self._clock.seconds()
            # The same `t` that it will have on each tier.
            self._hub.receive_at(milliseconds(at))
        self._record(symbol, payload, at)
        self._publish(symbol, payload)

    def flush(self) -> None:
        """See Publish."""
        if self._at is not None:
            self._at = None
            self._wake()
        self._hub.flush()

    def feed_changed(self, up: bool) -> None:
        """The feed was lost, or is back; each tier learns of it after its delay."""
        if up is self._feed_up:
            return
        known, self._feed_up = self._feed_up, up
        at = self._clock.seconds()
        if up:
            self._tape.mark_gap(at)
        elif known:
            self._tape.mark_lost(at)
        self._wake()

    def forget_value(self, symbol: str) -> None:
        """The feed no longer listens to `symbol`; each tier learns of it after its delay."""
        self._tape.mark_unsubscribed(symbol, self._clock.seconds())
        self._wake()

    # -- tiers -----------------------------------------------------------------------------------

    def tier_for(self, delay: float) -> Hub | None:
        """The hub for a client that may see quotes `delay` seconds old; None where there is none.

        It is the hub of the shortest delay of at least that many seconds, and for 0 the real-time
        hub. Raises ValueError for a negative delay.
        """
        if not delay >= 0:
            raise ValueError(f"{delay} is no delay: 0 seconds or more are right")
        if delay == 0:
            return self._hub
        # The shortest delay comes first.
        return next((tier.hub for each, tier in self._tiers.items() if each >= delay), None)

    @property
    def delays(self) -> list[float]:
        """Every delay in seconds, the shortest first."""
        return list(self._tiers)

    def tape(self) -> dict[str, int]:
        """Bytes that the tape uses now, and that it has dropped, as JSON."""
        return {"used": self._tape.used_bytes, "dropped": self._tape.dropped_bytes}

    @property
    def hubs(self) -> list[Hub]:
        """The hub of each delay, in their order; not the real-time one."""
        return [tier.hub for tier in self._tiers.values()]

    def look_for_stale(self, symbol_ms: float) -> None:
        """Tell the watchers of symbols of which no quote was played for longer than `symbol_ms`.

        What counts is the moment of the tape that a tier plays: while the feed was lost then,
        nothing is stale, and once it is back each symbol has the whole time again.
        """
        for tier in self._tiers.values():
            tier.announcements.look_for_stale(symbol_ms, None)

    def stop(self) -> None:
        """Play no more and cancel all timers. Quotes then go to the real-time hub alone."""
        for tier in self._tiers.values():
            tier.stop()

    def _wake(self) -> None:
        for tier in self._tiers.values():
            tier.wake()


def move(outbox: Outbox, old: Hub, new: Hub) -> bool:
    """Move a client from `old` to `new`, a hub with a shorter delay; returns whether it could.

    Each symbol keeps its mode and interval. The client gets a gap of each symbol, then the
    snapshots, into which pending updates are merged. Returns False and changes nothing where the
    client is behind, `new` has no room, or a number would fall: close the client then, so that it
    reconnects. Never move to a longer delay: what is on its way can't be taken back.
    """
    watched = list(outbox.topics.items())
    if outbox.behind or not _can_move([topic for topic, _ in watched], new):
        return False
    # All leave first: what a client watches at one interval belongs to one hub.
    ended: list[tuple[Topic, Mode, int, bool]] = []
    for topic, mode in watched:
        updates, was_stale = outbox.updates, topic.stale
        old.unsubscribe(outbox, topic)
        # The `n` that the client has: that by which it has ended.
        ended.append((topic, mode, outbox.updates - updates, was_stale))
    moved: dict[Topic, int | None] = {}
    stale: list[Topic] = []
    fresh: list[Topic] = []
    for topic, mode, had, was_stale in ended:
        raw, interval_ms = raw_and_interval(mode)
        found = new.subscribe(outbox, topic.symbol, raw=raw, interval_ms=interval_ms)
        moved[found] = None if topic.payload is None else had
        if found.stale is not was_stale:
            (stale if found.stale else fresh).append(found)
    codec = outbox.codec
    if moved and codec.converses:
        gaps = [codec.event(events.gap(topic.symbol_text)) for topic in moved]
        outbox.send(codec.frames(gaps))
    for topic, last in moved.items():
        if last is not None and topic.n > last:
            # The jump that the client sees goes on from what it had.
            new.count_merged(outbox, topic.n - last - 1)
            outbox.updates += topic.n - last
    outbox.send_snapshots([(topic, last is None) for topic, last in moved.items()])
    new.values.wait_for(outbox, moved)
    outbox.tell_quiet(stale, stale=True)
    outbox.tell_quiet(fresh, stale=False)
    return True


def _can_move(topics: list[Topic], new: Hub) -> bool:
    """Whether `new` has room for all, and no number of what was quoted would fall."""
    unknown = 0
    for topic in topics:
        found = new.topic(topic.symbol)
        if found is None:
            unknown += 1
        if topic.payload is not None and (found is None or found.n < topic.n):
            return False
    return unknown <= new.room()


def milliseconds(seconds: float) -> int:
    """A moment as clients are told it."""
    return int(seconds * 1000)
