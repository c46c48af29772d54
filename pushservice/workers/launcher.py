"""Starts worker processes: with what options, descriptors, core and environment.

Must not know: when a worker is started, or what becomes of it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any, Final

from pushservice.monitoring import systemd
from pushservice.server.client_counts import ENTRIES_PER_SLOT, ClientCounts
from pushservice.tls.material import Material
from pushservice.workers import worker_link
from pushservice.workers.plan import Plan
from pushservice.workers.resources import Resources
from pushservice.workers.slots import Slot, Slots
from pushservice.workers.worker_process import WorkerProcess

#: By what part of its age a worker is replaced sooner or later.
AGE_JITTER: Final = 0.1


class Launcher:
    """Starts processes that run `plan` with the certificates of `materials`.

    Both may be set anew; processes that run are not affected.
    """

    def __init__(
        self,
        reactor: Any,
        slots: Slots,
        resources: Resources,
        plan: Plan,
        materials: tuple[Material, ...],
    ) -> None:
        self.plan = plan
        self.materials = materials
        self._reactor = reactor
        self._slots = slots
        self._resources = resources
        # Shared by all processes: the client counts, and a file for the values that they hand over.
        self._counts = ClientCounts()
        self._values = os.memfd_create("quotepush-values")

    def spawn(self, slot: Slot, ended: Callable[[WorkerProcess], None]) -> WorkerProcess:
        """Start a process for `slot`; `ended` is called once it is gone."""
        config = self.plan.config
        taken = {other.entry for other in self._slots.processes()}
        entry = next(entry for entry in entries_of(slot.number) if entry not in taken)
        worker = WorkerProcess(self._reactor, slot.number, entry, ended)
        worker.drain_timeout = config.drain_timeout
        if config.max_worker_age is not None:
            jitter = random.uniform(1 - AGE_JITTER, 1 + AGE_JITTER)  # noqa: S311 - spreads load
            worker.old_at = self._reactor.seconds() + config.max_worker_age * jitter
        sockets = list(self._resources.sockets.items())
        redis_socket = None if config.redis else self._resources.development.addresses()[0].path
        cores = sorted(os.sched_getaffinity(0))
        assert self._counts.descriptor is not None, "this process made it"
        descriptors = {
            worker_link.COUNTS: self._counts.descriptor,
            worker_link.VALUES: self._values,
        }
        descriptors |= {
            worker_link.SOCKETS + at: port.fileno() for at, (_, port) in enumerate(sockets)
        }
        worker.start(
            {
                "number": worker.number,
                "entry": worker.entry,
                "core": cores[(slot.number - 1) % len(cores)] if config.affinity else None,
                "log_level": config.log_level,
                "materials": [material.as_texts() for material in self.materials],
                "sockets": [(text, port.socket.family) for text, port in sockets],
                "redis_socket": redis_socket,
                "options": self.plan.texts,
            },
            descriptors,
            _environment(),
        )
        return worker

    def forget_clients(self, worker: WorkerProcess) -> None:
        """`worker` has ended: its entry counts no clients. Raises ValueError after `close`."""
        self._counts.write(worker.entry, None)

    def close(self) -> None:
        """Close what all processes share."""
        self._counts.close()
        os.close(self._values)


def entries_of(number: int) -> range:
    """The entries of one slot in the client counts.

    There are several, as a process may drain while others are started there, fail and are started
    again.
    """
    first = ENTRIES_PER_SLOT * (number - 1)
    return range(first, first + ENTRIES_PER_SLOT)


def _environment() -> dict[str, str]:
    """The environment of a worker: that of this process, without what is for this process alone."""
    own = {*systemd.VARIABLES, "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in own and (not name.startswith("QUOTEPUSH_") or name == "QUOTEPUSH_OUTLET")
    }
