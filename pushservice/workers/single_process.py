"""A daemon that is one process, without workers and without a manager that restarts it.

Must not know: signals, the admin port, or how clients are served.
"""

from __future__ import annotations

import os
from dataclasses import fields, replace
from typing import Any

from twisted.internet import defer
from twisted.logger import Logger

from pushservice import __version__
from pushservice.config.config import Config
from pushservice.server.client_reports import Report
from pushservice.service.daemon import Daemon
from pushservice.service.startup import materials
from pushservice.workers.certificate_watch import CertificateWatch
from pushservice.workers.plan import Plan
from pushservice.workers.totals import combined, figures, slot_figures


class SingleProcess:
    """Serves in this process; certificates are all that can be changed while it runs."""

    log = Logger()

    def __init__(self, reactor: Any, plan: Plan) -> None:
        """Raises CannotStart as Daemon does."""
        self._config = plan.config
        self._daemon = Daemon(reactor, plan.config)
        self._reactor = reactor
        self._began: float = reactor.seconds()
        self._certificate_watch = CertificateWatch(reactor, self._renew_certificates)

    def privilegedStartService(self) -> None:
        """Listen."""
        self._daemon.privilegedStartService()

    def startService(self) -> None:
        """Serve."""
        self._daemon.startService()
        self._watch()

    def _watch(self) -> None:
        self._certificate_watch.start(self._daemon.certificates, self._config)

    def stopService(self) -> defer.Deferred[None]:
        """Leave."""
        self._certificate_watch.stop()
        return self._daemon.stopService()

    def abort(self) -> None:
        """Whoever is still there while stopping is dropped now."""
        self._daemon.abort()

    async def reload(self, plan: Plan) -> bool:
        """Use the certificates that are there now, and say what of the rest needs a new start."""
        config = plan.config
        if config.plain == self._config.plain:
            # Whether clients show certificates is more than a change of files.
            used = replace(self._config, cert=config.cert, key=config.key, certs=config.certs)
            self._use(self._daemon.replace_certificates(materials(used)))
            self._config = used
            self._watch()
        changed = changed_fields(self._config, config)
        if changed:
            self.log.warn(
                "without workers only certificates are loaded anew: start again for {changed}",
                changed=", ".join(sorted(changed)),
            )
        return True

    def _renew_certificates(self) -> None:
        try:
            self._use(self._daemon.replace_certificates(materials(self._config)))
        except ValueError as error:
            self.log.error("the certificates stay as they are: {reason}", reason=str(error))

    def _use(self, changed: bool) -> None:
        if changed:
            self.log.info("new certificates for new connections")

    @property
    def serves(self) -> bool:
        """Whether clients are served."""
        return True

    def faults(self) -> list[str]:
        """Why clients should be sent elsewhere; nothing where all is well."""
        return [] if self._daemon.feed_up else ["the feed is down"]

    def status(self) -> dict[str, Any]:
        """How it stands, as JSON."""
        certificates = self._daemon.certificates
        of_process = self._daemon.status()
        seconds = round(self._reactor.seconds() - self._began, 1)
        worker = {
            "number": 0,
            "pid": os.getpid(),
            "state": "draining" if of_process["draining"] else "serving",
            "seconds": seconds,
            "restarts": 0,
        }
        return {
            "pid": os.getpid(),
            "version": __version__,
            "uptime": seconds,
            "certificates": certificates.status() if certificates else [],
            **of_process,
            "workers": [worker | of_process],
            "totals": combined([of_process]),
        }

    def figures(self) -> dict[str, Any]:
        """What metrics are made of, see totals.figures."""
        status = self.status()
        return figures(status, [slot_figures(0, 0, status["workers"])])

    async def clients(self, most: int) -> Report:
        """The slowest clients."""
        return await self._daemon.client_queries.clients(most) | {"missing": []}

    async def symbols(self, most: int) -> Report:
        """The busiest symbols."""
        return await self._daemon.client_queries.symbols(most) | {"missing": []}


def changed_fields(old: Config, new: Config) -> set[str]:
    """The names of what differs."""
    names = (field.name for field in fields(Config))
    return {name for name in names if getattr(old, name) != getattr(new, name)}
