"""Signals: caught from early on, and delivered as calls in the reactor's turns.

Must not know: what any signal makes the daemon do.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, Final

#: Twisted's reactor sets handlers of its own for these when it begins to run.
_THE_REACTORS_TOO: Final = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Calls a function for each of some signals, in the reactor, once for each time it came.

    None of them has its default action, which is to end the process, from `install` on. What comes
    before the reactor runs is delivered as soon as it does.
    """

    def __init__(self, reactor: Any, calls: Mapping[int, Callable[[], None]]) -> None:
        self._reactor = reactor
        self._calls = calls
        self._delivers = False

    def install(self) -> None:
        """Catch them; to be called in the main thread (signal(2) by Python's rules)."""
        self._delivers = True
        for number in self._calls:
            signal.signal(number, self._came)
        # Over those of the reactor: with its own, a process that was told to end ends by the
        # signal, and not with exit status 0.
        self._reactor.callWhenRunning(self._catch_again)

    def ignore(self) -> None:
        """Deliver none any more; none does anything for as long as the process lives.

        Not even its default action: after the last service's end there is a pidfile to remove, and
        Python gives up its handlers before the process is gone.
        """
        self._delivers = False
        for number in self._calls:
            signal.signal(number, signal.SIG_IGN)

    def _catch_again(self) -> None:
        if self._delivers:
            for number in _THE_REACTORS_TOO:
                if number in self._calls:
                    signal.signal(number, self._came)

    def _came(self, number: int, frame: FrameType | None) -> None:
        # In the midst of anything: only what wakes the reactor up is safe.
        self._reactor.callFromThread(self._deliver, number)

    def _deliver(self, number: int) -> None:
        call = self._calls.get(number)
        if call is not None and self._delivers:
            call()
