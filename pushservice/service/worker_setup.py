"""What a worker is given by its manager: its number, sockets, certificates and client counts.

Must not know: how it is sent to the worker, or what the worker does with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pushservice.server.client_counts import ENTRIES_PER_SLOT, ClientCounts
from pushservice.server.ports import Listening
from pushservice.tls.material import Material


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What one worker process of a daemon is given."""

    #: from 1; shown to people
    number: int
    #: its index in the client counts
    entry: int
    counts: ClientCounts
    materials: Sequence[Material] = ()
    sockets: Sequence[Listening] = field(default_factory=tuple)
    #: where the daemon's private Redis listens, if it has one
    redis_socket: str | None = None

    @property
    def registry_suffix(self) -> str:
        """Ends its node name in the registry, unlike that of any other process at the same time."""
        return f"-{self.number}{'abcd'[self.entry % ENTRIES_PER_SLOT]}"
