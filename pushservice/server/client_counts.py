"""How many clients each worker has: a page of memory that all processes of a daemon share.

Must not know: what follows from the numbers. Reading and writing cost no system call, and no
process waits for another.
"""

from __future__ import annotations

import mmap
import os
from typing import Final

#: Entries for each worker and those that replace it, and for the greatest number of workers.
ENTRIES_PER_SLOT: Final = 4
ENTRIES: Final = 256 * ENTRIES_PER_SLOT
_WIDTH: Final = 4


class ClientCounts:
    """Counts of clients by entry; an entry whose worker takes no clients has none.

    One process makes it; others open it by its file descriptor. Each worker writes its own entry.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        """A new one, or the one behind `descriptor`, which stays the caller's."""
        if descriptor is None:
            #: to hand to other processes; None in those
            self.descriptor: int | None = os.memfd_create("quotepush-client-counts")
            os.ftruncate(self.descriptor, ENTRIES * _WIDTH)
            descriptor = self.descriptor
        else:
            self.descriptor = None
        self._memory = mmap.mmap(descriptor, ENTRIES * _WIDTH)
        # One more than the clients; zero where nobody serves.
        self._entries = memoryview(self._memory).cast("I")

    def write(self, entry: int, clients: int | None) -> None:
        """The worker on `entry` has so many clients; None once it takes no more."""
        self._entries[entry] = 0 if clients is None else clients + 1

    def serving(self) -> list[int]:
        """The clients of each worker that serves."""
        return [count - 1 for count in self._entries.tolist() if count]

    def total(self) -> int:
        """The clients of all workers that serve."""
        return sum(self.serving())

    def close(self) -> None:
        """Nothing is counted any more in this process."""
        self._entries.release()
        self._memory.close()
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
