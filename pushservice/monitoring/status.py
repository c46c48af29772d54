"""The status of one process: what it serves and uses, counted and measured, as JSON.

Must not know: other processes, or who asks. It reads what the others keep, and changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pushservice.metrics import Counters, Measures
from pushservice.monitoring.client_queries import ClientQueries
from pushservice.monitoring.process_stats import ProcessStats
from pushservice.monitoring.reactor_delay import ReactorDelay

if TYPE_CHECKING:
    from pushservice.fanout.delayed import Tiers
    from pushservice.fanout.hub import Hub
    from pushservice.server.connections import Connections


class ProcessStatus:
    """What is known of one hub, its clients and its process."""

    def __init__(
        self,
        reactor: Any,
        hub: Hub,
        connections: Connections,
        counters: Counters,
        measures: Measures,
        tiers: Tiers | None,
        worker: int,
    ) -> None:
        """`worker` is the number of this process among those of the daemon."""
        self._hub = hub
        self._connections = connections
        self._counters = counters
        self._measures = measures
        self._tiers = tiers
        self._process_stats = ProcessStats()
        self._reactor_delay = ReactorDelay(reactor, measures.reactor_delay_seconds)
        late = () if tiers is None else tiers.hubs
        self.client_queries = ClientQueries(reactor, hub, connections.about, late, worker)

    def start(self) -> None:
        """Begin to measure."""
        self._process_stats.start()
        self._reactor_delay.start()

    def stop(self) -> None:
        """Measure no more. May be called twice."""
        self._process_stats.stop()
        self._reactor_delay.stop()

    def status(self) -> dict[str, Any]:
        """Clients, symbols, counters, measures, and what the process uses.

        `as_of` is when that was, in milliseconds since the epoch; rates need it.
        """
        hub, tiers = self._hub, self._tiers
        age = hub.last_message_t
        clients, behind = hub.count_outboxes(), len(hub.common.behind)
        return {
            "epoch": hub.epoch,
            "as_of": hub.now(),
            "age": None if age is None else max(0, hub.now() - age),
            "clients": clients,
            "flowing": clients - behind,
            "behind": behind,
            "connections": self._connections.limiter.connections,
            "subscriptions": hub.common.subscriptions,
            "symbols": hub.count_topics(),
            "delays": [] if tiers is None else tiers.delays,
            "tape": None if tiers is None else tiers.tape(),
            "counters": self._counters.snapshot(),
            "measures": self._measures.snapshot(),
            "process": self._process_stats.snapshot(),
        }
