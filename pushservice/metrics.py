"""Counters of what a process has done, and histograms of how long it took; null sinks.

Must not know: how they are shown, or who reads them. Both only grow, are plain numbers, and are
added to once a turn or once an event, never once per quote and client.

Own code: prometheus_client's counters take a lock for each addition, and can't be summed over
workers that start and end without files; it writes the text in monitoring/exposition.py.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final


@dataclass(slots=True)
class Counters:
    """Totals since the process started; every field is a count unless its name says bytes."""

    connections_accepted: int = 0
    connections_refused: int = 0
    connections_closed: int = 0
    handshakes: int = 0
    handshakes_refused: int = 0
    page_requests: int = 0
    commands: int = 0
    command_errors: int = 0
    quotes_in: int = 0
    payloads_not_json: int = 0
    symbols_missing: int = 0
    events_out: int = 0
    frames_out: int = 0
    bytes_out: int = 0
    deflated_events: int = 0
    deflated_bytes_in: int = 0
    deflated_bytes_out: int = 0
    merged: int = 0
    symbols_dropped: int = 0
    messages_refused: int = 0
    closed_flooding: int = 0
    closed_too_slow: int = 0
    aborted_stalled: int = 0
    aborted_silent: int = 0
    aborted_handshakes: int = 0
    registry_writes: int = 0
    registry_failures: int = 0
    snapshots_learnt: int = 0
    feed_connects: int = 0
    feed_losses: int = 0
    origins_refused: int = 0
    auth_failures: int = 0
    auth_too_late: int = 0
    shut_out: int = 0
    client_failures: int = 0
    demo_published: int = 0
    demo_failed: int = 0

    def snapshot(self) -> dict[str, int]:
        """All counters by name, as they stand now."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class NullCounters(Counters):
    """Ignores every addition: for embedders and benchmarks that count by themselves."""

    __slots__ = ()

    def __setattr__(self, name: str, value: int) -> None:
        if not hasattr(self, name):
            # The first write comes from the dataclass's own __init__ and must set the attribute.
            object.__setattr__(self, name, 0)


# -- histograms ------------------------------------------------------------------------------------


def steps(first: float, last: float) -> tuple[float, ...]:
    """All bounds of 1, 2 and 5 times a power of ten between `first` and `last`."""
    all_steps = (float(f"{digit}e{power}") for power in range(-9, 10) for digit in (1, 2, 5))
    return tuple(bound for bound in all_steps if first <= bound <= last)


class Histogram:
    """How often values were in which range: counts between fixed bounds, and the sum of all.

    Bucket `i` counts what is at most `bounds[i]` and more than the bound before; the last counts
    what is more than all bounds.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` ascend."""
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value`, which is at least 0, `times` times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def snapshot(self) -> dict[str, Any]:
        """Bounds, counts and sum as they stand now, as JSON."""
        return {"bounds": list(self.bounds), "counts": list(self.counts), "sum": self.sum}


#: Bounds in seconds for what is done within a turn, and for what travels between machines.
SHORT_TIMES: Final = steps(0.00002, 2)
LONG_TIMES: Final = steps(0.0005, 50)
#: Bounds for the quotes of a read, and for the events of a turn, which go to many clients.
FEW: Final = steps(1, 5000)
MANY: Final = steps(1, 500_000)


class Measures:
    """Histograms of times and amounts in a process since it started.

    `stopwatch` is a precise monotonic clock in seconds, with which all times are measured. Without
    one every time is 0.
    """

    __slots__ = (
        "feed_lag_seconds",
        "publish_to_write_seconds",
        "reactor_delay_seconds",
        "receive_to_write_seconds",
        "stopwatch",
        "turn_events",
        "turn_quotes",
        "turn_seconds",
    )

    def __init__(self, stopwatch: Callable[[], float] = lambda: 0.0) -> None:
        self.stopwatch = stopwatch
        #: from the begin of a read of the feed until its quotes were written to all clients that
        #: are not behind; counted once for each event that was written
        self.receive_to_write_seconds = Histogram(SHORT_TIMES)
        #: from when a quote says it was published until it was written, and until it was received;
        #: of one quote of each read
        self.publish_to_write_seconds = Histogram(LONG_TIMES)
        self.feed_lag_seconds = Histogram(LONG_TIMES)
        #: by how much the reactor's timed calls are late
        self.reactor_delay_seconds = Histogram(SHORT_TIMES)
        #: quotes that one read of the feed brought
        self.turn_quotes = Histogram(FEW)
        #: events that one turn sent, whatever began the turn
        self.turn_events = Histogram(MANY)
        #: for how long a turn occupied the reactor: a read of the feed, or the timer of a group of
        #: paced clients or of a delay
        self.turn_seconds = Histogram(SHORT_TIMES)

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """All histograms by name, as they stand now, as JSON."""
        return {
            name: getattr(self, name).snapshot() for name in self.__slots__ if name != "stopwatch"
        }
