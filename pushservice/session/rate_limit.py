"""How much one client may send: frames and bytes, on average over some seconds.

Must not know: connections, commands, or what happens to a client that sends more.

Own code: two token buckets in one object per client; rate limiting libraries have storages, locks
and clocks of their own.
"""

from __future__ import annotations

from pushservice.limits import BURST_SECONDS, Limits


class RateLimit:
    """Two token buckets, of frames and of bytes, refilled as time goes.

    A bucket may be overdrawn by one second's worth; what is sent while it is, is refused. A client
    that goes on is exhausted. A rate of 0 is no limit.
    """

    __slots__ = ("_at", "_bytes", "_frames", "_limits")

    def __init__(self, limits: Limits, now: float) -> None:
        """Full buckets; `now` is in seconds, as in `arrived`."""
        self._limits = limits
        self._at = now
        self._frames = float(limits.message_rate * BURST_SECONDS)
        self._bytes = _most_bytes(limits)

    def arrived(self, size: int, now: float) -> None:
        """`size` bytes came at `now`."""
        limits = self._limits
        elapsed, self._at = max(0.0, now - self._at), now
        if limits.message_rate:
            most = limits.message_rate * BURST_SECONDS
            self._frames = min(most, self._frames + elapsed * limits.message_rate)
        if limits.byte_rate:
            refilled = self._bytes + elapsed * limits.byte_rate
            self._bytes = min(_most_bytes(limits), refilled) - size

    def frame(self) -> None:
        """One of the frames that arrived, of whatever kind."""
        self.spend(1)

    def spend(self, frames: float) -> None:
        """Something came that is as much work as so many frames."""
        if self._limits.message_rate:
            self._frames -= frames

    @property
    def overdrawn(self) -> bool:
        """Whether more was sent than is allowed: what comes now is refused."""
        return self._frames < 0 or self._bytes < 0

    @property
    def exhausted(self) -> bool:
        """Whether so much more was sent than is allowed that the client is to be closed."""
        limits = self._limits
        return self._frames < -limits.message_rate or self._bytes < -max(
            limits.byte_rate, limits.message
        )


def _most_bytes(limits: Limits) -> float:
    # At least two messages of the size that is allowed.
    return float(max(limits.byte_rate * BURST_SECONDS, 2 * limits.message))
