"""Balances new connections among workers that accept from one socket; counts clients of all.

Must not know: what connections are for.

The kernel wakes every worker for a new connection, and the first to run accepts it: often the same
one. So a worker with more than its share stops accepting for a moment, in which the others accept
what waits; if none does, it accepts that itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from pushservice.server.ports import Ports

if TYPE_CHECKING:
    from pushservice.server.client_counts import ClientCounts

#: Seconds for which a worker with more than its share accepts nothing.
PAUSE: Final = 0.02
#: Connections beyond the mean, and the part of the mean beyond it, that are no more than a share.
SLACK: Final = 4
PART: Final = 0.05


class Balance:
    """One worker's part in the balance."""

    def __init__(self, clock: IReactorTime, counts: ClientCounts, entry: int, ports: Ports) -> None:
        self._clock = clock
        self._counts = counts
        self._entry = entry
        self._ports = ports
        self._mine = 0
        self._serving = False
        self._pause: IDelayedCall | None = None

    def serve(self) -> None:
        """This worker accepts connections from now on."""
        self._serving = True
        self._counts.write(self._entry, self._mine)

    def changed(self, connections: int) -> None:
        """This worker has so many connections now."""
        self._mine = connections
        if self._serving:
            self._counts.write(self._entry, connections)
            if self._pause is None and self._over():
                self._ports.hold("balance")
                self._pause = self._clock.callLater(PAUSE, self._resume)

    def others(self) -> int:
        """The connections of all other workers."""
        return self._counts.total() - (self._mine if self._serving else 0)

    def leave(self) -> None:
        """This worker accepts no more."""
        self._serving = False
        self._counts.write(self._entry, None)
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
            self._ports.release("balance")

    def _over(self) -> bool:
        serving = self._counts.serving()
        mean = sum(serving) / len(serving)
        return self._mine > mean * (1 + PART) + SLACK

    def _resume(self) -> None:
        self._pause = None
        # Connections that still wait are accepted, which checks the share again.
        self._ports.release("balance")
