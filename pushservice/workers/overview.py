"""Status, metrics and reports of a daemon with workers: those of all its processes, merged.

Must not know: how processes are started, replaced or ended, or who asks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Final

from twisted.internet import defer

from pushservice import __version__
from pushservice.metrics import Counters
from pushservice.monitoring.process_stats import ProcessStats
from pushservice.server.client_reports import Report, merged_clients, merged_symbols
from pushservice.workers.slots import Slots
from pushservice.workers.totals import PastTotals, added, combined, figures, slot_figures
from pushservice.workers.worker_process import WorkerProcess

#: Seconds that a worker has for a report.
REPORT_TIMEOUT: Final = 2.0
#: Seconds of silence after which a worker does not count as serving; it reports every second.
SILENT_AFTER: Final = 5.0

#: What each worker is asked, beyond its kind.
_Requests = dict[WorkerProcess, dict[str, Any]]


class Overview:
    """The state of all workers, and of the process of their manager."""

    def __init__(self, reactor: Any, slots: Slots, counters: Counters) -> None:
        """`counters` are of what this process does itself."""
        self._reactor = reactor
        self._slots = slots
        self._counters = counters
        self._past = PastTotals()
        self._process_stats = ProcessStats()
        self._began = reactor.seconds()

    def start(self) -> None:
        """Begin to count what this process uses."""
        self._process_stats.start()

    def stop(self) -> None:
        """Count that no more."""
        self._process_stats.stop()

    def ended(self, worker: WorkerProcess) -> None:
        """A process is gone: keep what it had counted in the totals."""
        self._past.ended(worker.number, worker.status)

    # -- whether all is well -----------------------------------------------------------------------

    @property
    def serves(self) -> bool:
        """Whether clients are served."""
        return any(self._serving())

    @property
    def _feed_up(self) -> bool:
        """Whether quotes come in where clients are served."""
        return any(worker.feed_up for worker in self._serving())

    def _serving(self) -> Iterator[WorkerProcess]:
        now = self._reactor.seconds()
        for worker in self._slots.processes():
            if worker.state == "serving" and now - worker.last_message_at <= SILENT_AFTER:
                yield worker

    def faults(self) -> list[str]:
        """Why clients should be sent elsewhere; nothing where all is well."""
        faults = [
            f"worker {slot.number} keeps ending"
            for slot in self._slots.by_number.values()
            if slot.crash_loop
        ]
        if not self.serves:
            faults.append("no worker serves")
        elif not self._feed_up:
            faults.append("the feed is down")
        return faults

    # -- how it stands -----------------------------------------------------------------------------

    def status(self, certificates: list[dict[str, Any]]) -> dict[str, Any]:
        """The status of the daemon, as JSON; of each worker the last that it sent."""
        now = self._reactor.seconds()
        return {
            "pid": os.getpid(),
            "version": __version__,
            "uptime": round(now - self._began, 1),
            "process": self._process_stats.snapshot(),
            "certificates": certificates,
            "workers": [
                {
                    "number": worker.number,
                    "pid": worker.pid,
                    "state": worker.state,
                    "seconds": round(now - worker.started_at, 1),
                    "restarts": self._slots.restarts(worker.number),
                    "silent": round(max(0.0, now - worker.last_message_at), 1),
                }
                | worker.status
                for worker in self._slots.processes()
            ],
            "totals": self._totals(),
        }

    def _totals(self) -> dict[str, Any]:
        past = added(self._past.all(), {"counters": self._counters.snapshot()})
        totals = combined((worker.status for worker in self._slots.processes()), past)
        # A worker that drains may still get quotes, but new clients are not served by it.
        totals["feed"] = "up" if self._feed_up else "down"
        return totals

    def figures(self, status: dict[str, Any]) -> dict[str, Any]:
        """What metrics are made of when that is the status, see totals.figures."""
        numbers = {*self._slots.by_number, *(each["number"] for each in status["workers"])}
        slots = [
            slot_figures(
                number,
                self._slots.restarts(number),
                [each for each in status["workers"] if each["number"] == number],
                self._past.of(number),
            )
            for number in sorted(numbers)
        ]
        return figures(status, slots, status["process"])

    # -- single clients and symbols ----------------------------------------------------------------

    async def clients(self, most: int) -> Report:
        """The slowest clients of all workers; `missing` has those that did not answer in time."""
        asked = {worker: {"most": most} for worker in self._answering()}
        reports, missing = await self._ask("clients", asked)
        return merged_clients(reports.values(), most) | {"missing": missing}

    async def symbols(self, most: int) -> Report:
        """The busiest symbols of all workers; `missing` has those that did not answer in time."""
        asked: _Requests = {worker: {"most": most} for worker in self._answering()}
        reports, missing = await self._ask("symbols", asked)
        report = merged_symbols(reports.values(), most)
        # A symbol that is among the busiest of one worker may have watchers at others.
        names = {row["symbol"] for row in report["symbols"]}
        asked = {}
        for worker, its in reports.items():
            unsaid = names - {row["symbol"] for row in its["symbols"]}
            if unsaid:
                asked[worker] = {"symbols": sorted(unsaid)}
        more, silent = await self._ask("named", asked)
        report = merged_symbols([*reports.values(), *more.values()], most)
        return report | {"missing": sorted({*missing, *silent})}

    def _answering(self) -> list[WorkerProcess]:
        return [
            worker for worker in self._slots.processes() if worker.state in ("serving", "draining")
        ]

    async def _ask(
        self, what: str, asked: _Requests
    ) -> tuple[dict[WorkerProcess, Report], list[int]]:
        """The reports of those who are `asked`; and the numbers of who did not answer in time."""
        answers = [
            worker.ask(what, **more).addTimeout(REPORT_TIMEOUT, self._reactor)
            for worker, more in asked.items()
        ]
        outcomes = await defer.DeferredList(answers, consumeErrors=True)
        reports = {
            worker: report
            for worker, (answered, report) in zip(asked, outcomes, strict=True)
            if answered
        }
        return reports, sorted({worker.number for worker in asked if worker not in reports})
