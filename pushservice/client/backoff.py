"""How long to wait before the next connection.

Must not know: why the last one ended, clocks, or who waits.
"""

from __future__ import annotations

from collections.abc import Callable

from pushservice.client.options import Options


class Backoff:
    """Delays with full jitter, doubled with each attempt, which spread clients of a daemon."""

    def __init__(self, options: Options, random: Callable[[], float]) -> None:
        self._options = options
        self._random = random
        self._attempt = 0
        #: seconds that the server asked for, by a bye or by Retry-After
        self.asked: float | None = None

    def next(self) -> float:
        """Seconds until the next attempt; jitter comes on top of what the server asked for."""
        attempt, self._attempt = self._attempt, self._attempt + 1
        if self.asked is not None:
            return self.asked + self._random() * self._options.backoff
        return self.delay(attempt)

    def delay(self, attempt: int) -> float:
        """Seconds before an attempt, by its number from 0 on."""
        options = self._options
        # Past 2^32 the bound is reached whatever it is, and numbers stay small.
        return self._random() * min(options.backoff_max, options.backoff * 2.0 ** min(attempt, 32))

    def reset(self) -> None:
        """A connection held long enough: begin with short delays again."""
        self._attempt = 0
