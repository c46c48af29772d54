"""What a load of clients on a daemon came to: counts, rates, and how long quotes took.

Must not know: how clients connect, or what a clock says (times are passed in).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

#: the percentiles that are told
PERCENTILES: Final = (50, 90, 99)
# Each bucket of times is wider than the one before by this, so that a percentile is as exact.
_GROWTH: Final = 1.02
#: milliseconds of the first bucket's end
_FINEST: Final = 0.1
_LOG: Final = math.log(_GROWTH)


class Times:
    """Many times in milliseconds, in little memory; percentiles are exact to two percent."""

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self.count = 0
        self.least = math.inf
        self.most = -math.inf

    def add(self, milliseconds: float) -> None:
        """Take a time; below zero too, where clocks differ."""
        bucket = 0
        if milliseconds > _FINEST:
            bucket = 1 + int(math.log(milliseconds / _FINEST) / _LOG)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1
        self.least = min(self.least, milliseconds)
        self.most = max(self.most, milliseconds)

    def percentile(self, percent: float) -> float | None:
        """The time within which so many percent of them were; None where there are none."""
        if not self.count:
            return None
        rank = math.ceil(self.count * percent / 100)
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                end = _FINEST * _GROWTH**bucket
                return max(min(end, self.most), self.least)
        return self.most

    def told(self) -> dict[str, float | None]:
        """The percentiles and the most, in milliseconds."""
        found = {f"p{percent}": self.percentile(percent) for percent in PERCENTILES}
        found["max"] = self.most if self.count else None
        return {name: None if at is None else round(at, 2) for name, at in found.items()}


class Load:
    """All clients' counts. Quotes count while `measuring`, connections and faults always."""

    def __init__(self, clients: int) -> None:
        self.clients = clients
        self.measuring = False
        self.connected = 0
        self.most_connected = 0
        self.connecting = Times()
        self.latency = Times()
        self.quotes = 0
        self.snapshots = 0
        #: bytes of payloads
        self.size = 0
        self.merged = 0
        self.gaps = 0
        #: connections that were lost again
        self.lost = 0
        #: reasons, of refusals and failures, with how often each was told
        self.errors: dict[str, int] = {}
        self.seconds = 0.0
        #: seconds of CPU that the measuring process used meanwhile
        self.cpu = 0.0

    def opened(self, milliseconds: float | None) -> None:
        """A client is served, so long after it began to connect, if that was its first time."""
        self.connected += 1
        self.most_connected = max(self.most_connected, self.connected)
        if milliseconds is not None:
            self.connecting.add(milliseconds)

    def closed(self) -> None:
        """A client that was served is not any more."""
        self.connected -= 1
        self.lost += 1

    def quote(self, size: int, milliseconds: float, merged: int) -> None:
        """A quote with a payload of so many bytes, so long after the daemon had it."""
        self.quotes += 1
        self.size += size
        self.merged += merged
        self.latency.add(milliseconds)

    def error(self, reason: str) -> None:
        """Something was refused, or failed."""
        self.errors[reason] = self.errors.get(reason, 0) + 1

    def told(self) -> dict[str, Any]:
        """All of it, for programs. Times are in milliseconds, rates a second."""
        seconds = self.seconds or 1.0
        return {
            "clients": self.clients,
            "connected": self.most_connected,
            "seconds": round(self.seconds, 3),
            "quotes": self.quotes,
            "quotes_per_second": round(self.quotes / seconds, 1),
            "snapshots": self.snapshots,
            "payload_bytes": self.size,
            "payload_bytes_per_second": round(self.size / seconds),
            "merged": self.merged,
            "gaps": self.gaps,
            "lost": self.lost,
            "errors": self.errors,
            "connect_ms": self.connecting.told(),
            "latency_ms": self.latency.told(),
            "clock_differs": self.clock_differs,
            "own_cpu": round(self.cpu / seconds, 3),
        }

    @property
    def clock_differs(self) -> bool:
        """Whether the daemon's clock and this one can't be the same: a quote came before its time.

        The daemon's time of a quote is in whole milliseconds, cut off: half a millisecond is none.
        """
        return self.latency.count > 0 and self.latency.least < -0.5

    @property
    def is_busy(self) -> bool:
        """Whether the measuring process itself was too busy for its times to be the daemon's."""
        return self.seconds > 0 and self.cpu / self.seconds > 0.8

    def rows(self) -> Iterator[tuple[str, str]]:
        """The same in words, a name and a value each."""
        told = self.told()
        yield "clients", f"{self.most_connected:,} of {self.clients:,} connected"
        yield "connecting", _spread(told["connect_ms"])
        yield "measured", f"{self.seconds:.1f} s"
        yield "quotes", f"{self.quotes:,} ({told['quotes_per_second']:,.0f}/s)"
        megabytes = self.size / 1e6
        yield "payloads", f"{megabytes:,.1f} MB ({megabytes / (self.seconds or 1):,.2f} MB/s)"
        yield "latency", _spread(told["latency_ms"])
        yield "merged", f"{self.merged:,}"
        yield "gaps", f"{self.gaps:,}"
        yield "lost", f"{self.lost:,} connections"
        yield "errors", f"{sum(self.errors.values()):,}"
        yield "own CPU", f"{told['own_cpu'] * 100:.0f} % of a core"

    def notes(self) -> Iterator[str]:
        """What has to be known to read the numbers."""
        if self.most_connected and not self.quotes:
            yield "no quote came: quotepush feed publishes some"
        if self.clock_differs:
            yield (
                f"the daemon's clock is ahead of this one, by {-self.latency.least:.1f} ms or more:"
                " latencies are too small"
            )
        if self.is_busy:
            yield "this process was busy itself: the daemon may be faster than what it saw"
        for reason, count in sorted(self.errors.items(), key=lambda item: -item[1])[:5]:
            yield f"{reason} ({count:,} times)"


def _spread(told: dict[str, float | None]) -> str:
    return "  ".join(
        f"{name} {'—' if at is None else f'{at:,.1f} ms'}" for name, at in told.items()
    )
