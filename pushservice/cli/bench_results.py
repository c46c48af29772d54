"""The results of a load test: counts, rates, and histograms of latency and connect time.

Must not know: how clients connect, or what a clock says (times are passed in). Own code:
HdrHistogram takes whole numbers only, and latencies are below zero where clocks differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

#: the percentiles that are reported
PERCENTILES: Final = (50, 90, 99)
# The ratio of a bucket's end to that of the one before, which bounds the error of a percentile.
_GROWTH: Final = 1.02
#: end of the first bucket, in milliseconds
_FIRST_BUCKET_MS: Final = 0.1
_LOG_GROWTH: Final = math.log(_GROWTH)


class Histogram:
    """Many times in milliseconds, in little memory; percentiles are exact to two percent."""

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self.count = 0
        self.least = math.inf
        self.most = -math.inf

    def add(self, milliseconds: float) -> None:
        """Count a time, which is below zero where clocks differ."""
        bucket = 0
        if milliseconds > _FIRST_BUCKET_MS:
            bucket = 1 + int(math.log(milliseconds / _FIRST_BUCKET_MS) / _LOG_GROWTH)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1
        self.least = min(self.least, milliseconds)
        self.most = max(self.most, milliseconds)

    def percentile(self, percent: float) -> float | None:
        """The time that `percent` of all times do not exceed; None where there are none."""
        if not self.count:
            return None
        rank = math.ceil(self.count * percent / 100)
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                end = _FIRST_BUCKET_MS * _GROWTH**bucket
                return max(min(end, self.most), self.least)
        return self.most

    def as_dict(self) -> dict[str, float | None]:
        """The percentiles and the maximum, in milliseconds."""
        found = {f"p{percent}": self.percentile(percent) for percent in PERCENTILES}
        found["max"] = self.most if self.count else None
        return {name: None if at is None else round(at, 2) for name, at in found.items()}


class Results:
    """Counts of all clients. Quotes count while `measuring`, connections and errors always."""

    def __init__(self, clients: int) -> None:
        self.clients = clients
        self.measuring = False
        self.connected = 0
        self.most_connected = 0
        self.connecting = Histogram()
        self.latency = Histogram()
        self.quotes = 0
        self.snapshots = 0
        #: bytes of payloads
        self.size = 0
        self.merged = 0
        self.gaps = 0
        #: connections lost after they were open
        self.lost = 0
        #: reasons of refusals and failures, with the number of each
        self.errors: dict[str, int] = {}
        self.seconds = 0.0
        #: CPU seconds that this process used while measuring
        self.cpu = 0.0

    def opened(self, milliseconds: float | None) -> None:
        """A client is open; `milliseconds` is its connect time, None where it was open before."""
        self.connected += 1
        self.most_connected = max(self.most_connected, self.connected)
        if milliseconds is not None:
            self.connecting.add(milliseconds)

    def closed(self) -> None:
        """An open client lost its connection."""
        self.connected -= 1
        self.lost += 1

    def quote(self, size: int, milliseconds: float, merged: int) -> None:
        """A quote came: `size` bytes of payload, `milliseconds` after the daemon received it."""
        self.quotes += 1
        self.size += size
        self.merged += merged
        self.latency.add(milliseconds)

    def error(self, reason: str) -> None:
        """A request was refused, or a connection failed."""
        self.errors[reason] = self.errors.get(reason, 0) + 1

    def as_dict(self) -> dict[str, Any]:
        """All results, for programs. Times are in milliseconds, rates per second."""
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
            "connect_ms": self.connecting.as_dict(),
            "latency_ms": self.latency.as_dict(),
            "clock_differs": self.clock_differs,
            "own_cpu": round(self.cpu / seconds, 3),
        }

    @property
    def clock_differs(self) -> bool:
        """Whether the daemon's clock is ahead of this one: a quote came before its receive time.

        Receive times are cut to whole milliseconds, so that half a millisecond proves nothing.
        """
        return self.latency.count > 0 and self.latency.least < -0.5

    @property
    def is_busy(self) -> bool:
        """Whether this process was so busy that it may have limited the result itself."""
        return self.seconds > 0 and self.cpu / self.seconds > 0.8

    def rows(self) -> Iterator[tuple[str, str]]:
        """The results for people, each a name and a value."""
        told = self.as_dict()
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
        """Remarks without which the numbers mislead."""
        if self.most_connected and not self.quotes:
            yield "no quote came: quotepush feed publishes some"
        if self.clock_differs:
            yield (
                f"the daemon's clock is ahead of this one, by {-self.latency.least:.1f} ms or more:"
                " latencies are too small"
            )
        if self.is_busy:
            yield "this process used most of a core: the daemon may be faster than measured"
        for reason, count in sorted(self.errors.items(), key=lambda item: -item[1])[:5]:
            yield f"{reason} ({count:,} times)"


def _spread(told: dict[str, float | None]) -> str:
    return "  ".join(
        f"{name} {'—' if at is None else f'{at:,.1f} ms'}" for name, at in told.items()
    )
