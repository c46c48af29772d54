"""The process of twistd: signals, the admin port and systemd, around what serves clients.

Must not know: whether that is this process or workers, or what options there are.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

import setproctitle
from twisted.application.service import Service
from twisted.internet import defer
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from pushservice.monitoring import logs
from pushservice.monitoring.admin import open_admin
from pushservice.monitoring.systemd import Systemd
from pushservice.server.client_reports import Report
from pushservice.server.ports import CannotListen
from pushservice.service.startup import CannotStart
from pushservice.workers.plan import Plan
from pushservice.workers.signals import Signals

#: Seconds between two looks at what systemd is told.
_TELL_EVERY: Final = 1.0
#: Options that a reload can't change, and their fields in a Config.
_NEEDS_RESTART: Final = {
    "admin": "admin",
    "log-format": "log_format",
    "log-level": "log_level",
    "log-max-size": "log_max_size",
    "log-keep": "log_keep",
}


class Backend(Protocol):
    """What serves clients: this process itself, or workers and their manager."""

    def privilegedStartService(self) -> None: ...
    def startService(self) -> None: ...
    def stopService(self) -> defer.Deferred[None]: ...
    def abort(self) -> None: ...
    @property
    def serves(self) -> bool: ...
    def faults(self) -> list[str]: ...
    def status(self) -> dict[str, Any]: ...
    def figures(self) -> dict[str, Any]: ...
    async def clients(self, most: int) -> Report: ...
    async def symbols(self, most: int) -> Report: ...
    async def reload(self, plan: Plan) -> bool: ...


class Process(Service):
    """What twistd runs.

    SIGTERM and SIGINT end it in order, a second one at once; SIGHUP loads the configuration again;
    SIGUSR1 rotates the log; SIGUSR2 logs the status.
    """

    log = Logger()

    def __init__(
        self, reactor: Any, plan: Plan, backend: Backend, title: str, load: Callable[[], Plan]
    ) -> None:
        """`load` reads the configuration anew, raising ValueError with all that is wrong in it.

        Signals are caught from here on: twistd writes its pidfile before it starts what it runs.
        """
        self._reactor = reactor
        self._config = plan.config
        self._warnings = plan.warnings
        self._backend = backend
        self._title = title
        self._load = load
        self._leaving = False
        self._aborting = False
        self._reloading = False
        self._again = False
        self._admin: IListeningPort | None = None
        self._systemd = Systemd(os.environ)
        self._ready = False
        self._told = ""
        self._tellings = LoopingCall(self._tell_systemd)
        self._tellings.clock = reactor
        self._watchdog = LoopingCall(self._systemd.watchdog)
        self._watchdog.clock = reactor
        self._signals = Signals(
            reactor,
            {
                signal.SIGTERM: self.leave,
                signal.SIGINT: self.leave,
                signal.SIGHUP: self.reload,
                signal.SIGUSR1: self.rotate_log,
                signal.SIGUSR2: self.log_status,
            },
        )
        self._signals.install()

    # -- start and stop --------------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        """Listen, while the process may still have the rights to."""
        super().privilegedStartService()  # type: ignore[no-untyped-call]  # the library's, unannotated
        self._backend.privilegedStartService()
        if self._config.admin is not None:
            try:
                self._admin = open_admin(self._reactor, self._config.admin, self)
            except CannotListen as error:
                raise CannotStart(f"quotepush: {error}") from None

    def startService(self) -> None:
        """Serve."""
        super().startService()  # type: ignore[no-untyped-call]  # the library's, unannotated
        setproctitle.setproctitle(self._title)
        self._warn(self._warnings)
        self._backend.startService()
        self._tellings.start(_TELL_EVERY, now=False)
        if self._systemd.watchdog_interval is not None:
            self._watchdog.start(self._systemd.watchdog_interval)

    def stopService(self) -> defer.Deferred[None]:
        """End in order; fires when all is done."""
        super().stopService()  # type: ignore[no-untyped-call]  # the library's, unannotated
        self._leaving = True
        self._systemd.stopping()
        return defer.Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._tellings.running:
            self._tellings.stop()
        stopped = self._backend.stopService()
        if self._aborting:
            # The second signal came before the stop began.
            self._backend.abort()
        await stopped
        if self._watchdog.running:
            self._watchdog.stop()
        if self._admin is not None:
            await defer.maybeDeferred(self._admin.stopListening)
        self._signals.ignore()

    # -- what signals bring ----------------------------------------------------------------------

    def leave(self) -> None:
        """End: in order, with load balancers told first; at once where that has begun."""
        if self._leaving:
            self.log.warn("told to end again: clients that are left are dropped")
            self._aborting = True
            self._backend.abort()
            self._stop_reactor()
            return
        self._leaving = True
        delay = self._config.drain_delay
        self.log.info("told to end{when}", when=f": in {delay:g} s" if delay else "")
        self._reactor.callLater(delay, self._stop_reactor)

    def _stop_reactor(self) -> None:
        # Told again, or by somebody else.
        with suppress(ReactorNotRunning):
            self._reactor.stop()

    def reload(self) -> None:
        """Run the configuration and the certificates that are there now, if they can be used."""
        if self._leaving:
            return
        if self._reloading:
            self._again = True
            self.log.info(
                "told to load the configuration again: after the reload that is under way"
            )
            return
        self._reloading = True
        self._systemd.reloading()
        self.log.info("loading the configuration again")
        defer.Deferred.fromCoroutine(self._reload()).addErrback(
            lambda failure: self.log.failure("the reload failed", failure)
        ).addCallback(self._reloaded)

    async def _reload(self) -> None:
        try:
            plan = self._load()
            done = await self._backend.reload(plan)
        except (ValueError, CannotListen) as error:
            for line in str(error).splitlines():
                self.log.error("the configuration stays as it was: {reason}", reason=line)
            return
        if done:
            for option, field in _NEEDS_RESTART.items():
                if getattr(plan.config, field) != getattr(self._config, field):
                    self.log.warn("--{option} holds from the next start on", option=option)
            self._config = plan.config
            self._warn(plan.warnings)
            self.log.info("the configuration is loaded")

    def _warn(self, warnings: Sequence[str]) -> None:
        for warning in warnings:
            self.log.warn("{warning}", warning=warning)

    def _reloaded(self, _result: object) -> None:
        self._reloading = False
        if self._leaving:
            return
        if self._ready:
            # One that was told to reload while it starts is ready once it serves.
            self._systemd.ready()
        if self._again:
            self._again = False
            self.reload()

    def rotate_log(self) -> None:
        """Rotate the log, or reopen it if it was moved."""
        logs.rotate()

    def log_status(self) -> None:
        """Log the status, a line for each process."""
        status = self.status()
        workers = status.pop("workers", [])
        # MessageDecoder are for people: histograms are left out, and sums of what follows.
        status.pop("totals", None)
        for each in (status, *workers):
            each.pop("measures", None)
        self.log.info("status: {status}", status=status)
        for worker in workers:
            # One that is this process has been told of.
            if worker["number"]:
                self.log.info(
                    "status of worker {number}: {status}", number=worker["number"], status=worker
                )

    # -- what others ask -------------------------------------------------------------------------

    def faults(self) -> list[str]:
        """Why clients should be sent elsewhere; nothing where all is well."""
        return ["draining"] if self._leaving else self._backend.faults()

    def status(self) -> dict[str, Any]:
        """The status, as JSON."""
        return self._backend.status()

    def figures(self) -> dict[str, Any]:
        """What metrics are made of."""
        return self._backend.figures() | {"ready": int(not self.faults())}

    async def clients(self, most: int) -> Report:
        """The slowest clients, as JSON."""
        return await self._backend.clients(most)

    async def symbols(self, most: int) -> Report:
        """The busiest symbols, as JSON."""
        return await self._backend.symbols(most)

    def _tell_systemd(self) -> None:
        # Ready to take clients: a feed that is down they are told of.
        if not self._ready and self._backend.serves:
            self._ready = self._systemd.ready()
        now = "; ".join(self.faults()) or "all is well"
        if now != self._told and self._systemd.status(now):
            self._told = now
