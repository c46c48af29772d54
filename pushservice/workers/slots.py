"""The slots of workers: which process is in each, which is about to take over, which drain.

Must not know: how processes are started, told or ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from twisted.internet.interfaces import IDelayedCall

from pushservice.workers.worker_process import WorkerProcess

#: Seconds before the next start at a slot from which on it is a crash loop.
CRASH_LOOP: Final = 4.0


class Slot:
    """The slot of one worker number; one process after the other runs in it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.current: WorkerProcess | None = None
        #: about to take over
        self.next: WorkerProcess | None = None
        #: seconds until the next start, should the process end now
        self.delay = 0.0
        self.restart: IDelayedCall | None = None
        self.restarts = 0

    @property
    def crash_loop(self) -> bool:
        """Whether its processes keep ending."""
        return self.delay >= CRASH_LOOP

    def processes(self) -> list[WorkerProcess]:
        """The processes in it, and the one that is about to take over."""
        return [worker for worker in (self.current, self.next) if worker is not None]


class Slots:
    """All slots of one daemon by number, and the processes that are in none any more."""

    def __init__(self) -> None:
        self.by_number: dict[int, Slot] = {}
        #: processes that are in no slot any more and have not ended yet
        self.leaving: set[WorkerProcess] = set()

    def processes(self) -> Iterator[WorkerProcess]:
        """Every process that has not ended."""
        for slot in self.by_number.values():
            yield from slot.processes()
        yield from self.leaving

    def restarts(self, number: int) -> int:
        """How often the process of a slot was replaced because it had ended."""
        slot = self.by_number.get(number)
        return 0 if slot is None else slot.restarts
