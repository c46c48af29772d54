"""The manager: opens the sockets, keeps workers serving on them, reloads, and stops.

Must not know: clients, quotes, options' names, how a worker does what it is told, or what operators
are shown of it. It is idle while quotes flow.
"""

from __future__ import annotations

from typing import Any, Final

from twisted.application.service import Service
from twisted.internet import defer
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from pushservice.config.config import Config
from pushservice.metrics import Counters
from pushservice.protocol.close_codes import CloseCode
from pushservice.server.client_reports import Report
from pushservice.server.ports import CannotListen
from pushservice.server.socket_info import bound_send_buffer
from pushservice.service.listeners import log_served
from pushservice.service.startup import CannotStart, check, materials, outlets_here
from pushservice.tls.certificates import Certificates
from pushservice.tls.material import Material
from pushservice.workers.certificate_watch import CertificateWatch
from pushservice.workers.launcher import Launcher
from pushservice.workers.overview import Overview
from pushservice.workers.plan import Plan, worker_count
from pushservice.workers.resources import Resources
from pushservice.workers.slots import Slot, Slots
from pushservice.workers.supervisor import Supervisor
from pushservice.workers.worker_process import WorkerProcess

#: Seconds between two checks of all workers, and of silence after which one counts as stuck.
CHECK_INTERVAL: Final = 1.0
STUCK_AFTER: Final = 30.0
#: Seconds until a worker is replaced for its age again after that has failed.
AGE_RETRY_DELAY: Final = 60.0


class Manager(Service):
    """Manages the worker processes of one daemon, from the process that is their parent."""

    log = Logger()

    def __init__(self, reactor: Any, plan: Plan) -> None:
        """Raises CannotStart for what can't be used; listens and starts workers when started."""
        self._reactor = reactor
        self._certificates: Certificates | None = None
        try:
            # What no worker could do is found out here once, not by each worker again and again.
            outlets_here(reactor)
            self._certificates = check(plan.config)
        except ValueError as error:
            raise CannotStart(f"quotepush: {error}") from None
        # Of what this process does itself.
        self._counters = Counters()
        self._slots = Slots()
        self._resources = Resources(reactor, plan.config, self._counters)
        self._overview = Overview(reactor, self._slots, self._counters)
        self._launcher = Launcher(
            reactor, self._slots, self._resources, plan, _materials_of(self._certificates)
        )
        self._supervisor = Supervisor(reactor, self._slots, self._launcher, self._overview.ended)
        # One reload or replacement of workers that serve at a time.
        self._replacement_lock = defer.DeferredLock()
        self._certificate_watch = CertificateWatch(reactor, self._renew_certificates)
        self._checked_at = 0.0
        self._checks = LoopingCall(self._check)
        self._checks.clock = reactor

    @property
    def _config(self) -> Config:
        """The configuration that new workers get."""
        return self._launcher.plan.config

    # -- start -----------------------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        """Open the sockets, while the process may still have the rights to."""
        super().privilegedStartService()  # type: ignore[no-untyped-call]  # the library's, unannotated
        try:
            self._resources.open(self._config)
        except CannotListen as error:
            raise CannotStart(f"quotepush: {error}") from None

    def startService(self) -> None:
        """Start the workers, as soon as the reactor runs."""
        super().startService()  # type: ignore[no-untyped-call]  # the library's, unannotated
        self._overview.start()
        self._watch_certificates()
        self._checked_at = self._reactor.seconds()
        self._checks.start(CHECK_INTERVAL, now=False)
        self._reactor.callWhenRunning(self._begin)

    def _begin(self) -> None:
        if self.running:
            defer.Deferred.fromCoroutine(self._start()).addErrback(
                lambda failure: self.log.failure("starting workers failed", failure)
            )

    async def _start(self) -> None:
        # Workers know the path of its socket before it listens, and try until it does.
        starting = defer.Deferred.fromCoroutine(self._resources.development.start())
        for number in self._wanted_numbers():
            self._slots.by_number[number] = Slot(number)
        await defer.gatherResults(
            [self._supervisor.fill(slot) for slot in self._slots.by_number.values()]
        )
        if not self._supervisor.stopping:
            for port in self._resources.sockets.values():
                log_served(port, not self._config.plain, self._config.page)
        await starting

    # -- reload ----------------------------------------------------------------------------------

    async def reload(self, plan: Plan) -> bool:
        """Run `plan` from now on: a new worker serves before the old one drains.

        Raises ValueError or CannotListen if `plan` can't be run; then everything stays as it was.
        Returns whether all workers were replaced; the first that fails to serve ends the reload.
        """
        await self._replacement_lock.acquire()
        try:
            return not self._supervisor.stopping and await self._reload(plan)
        finally:
            self._replacement_lock.release()

    async def _reload(self, plan: Plan) -> bool:
        config = plan.config
        if not config.workers:
            raise ValueError("--workers 0 needs a new start: this process serves no clients")
        certificates = check(config)
        prepared = await self._resources.prepare(config)
        launcher = self._launcher
        plan_before, materials_before = launcher.plan, launcher.materials
        launcher.plan, launcher.materials = plan, _materials_of(certificates)
        resources_before = self._resources.use(prepared)
        for number in self._wanted_numbers():
            self._slots.by_number.setdefault(number, Slot(number))
        first, *others = self._wanted_slots()
        first.delay = 0.0
        if self._supervisor.stopping or not await self._supervisor.replace(first):
            # No worker uses any of it.
            launcher.plan, launcher.materials = plan_before, materials_before
            self._resources.use(resources_before)
            await self._drop_slots()
            await self._resources.release(prepared)
            return False
        self._resources.supersede(resources_before)
        self._certificates = certificates
        if not self._supervisor.stopping:
            self._watch_certificates()
            for port in prepared.sockets.values():
                bound_send_buffer(port.socket, config.limits.send_buffer)
        for slot in others:
            slot.delay = 0.0
            if self._supervisor.stopping or not await self._supervisor.replace(slot):
                self._supervisor.fill_empty()
                return False
        await self._drop_slots()
        await self._resources.release_superseded()
        return True

    def _wanted_slots(self) -> list[Slot]:
        return [self._slots.by_number[number] for number in self._wanted_numbers()]

    def _wanted_numbers(self) -> range:
        return range(1, worker_count(self._config) + 1)

    async def _drop_slots(self) -> None:
        """Drain the workers of slots that are not wanted any more, one at a time."""
        for number in sorted(self._slots.by_number.keys() - self._wanted_numbers()):
            slot = self._slots.by_number.pop(number)
            if slot.restart is not None:
                slot.restart.cancel()
            for worker in slot.processes():
                await self._supervisor.drain(worker, CloseCode.RESTARTING)

    # -- certificates ----------------------------------------------------------------------------

    def _watch_certificates(self) -> None:
        self._certificate_watch.start(self._certificates, self._config)

    def _renew_certificates(self) -> None:
        """Give new connections the certificates that are in the files now, if they can be used."""
        assert self._certificates is not None, "they are watched only then"
        try:
            found = materials(self._config)
            changed = self._certificates.replace(found)
        except ValueError as error:
            self.log.error("the certificates stay as they are: {reason}", reason=str(error))
            return
        self._launcher.materials = found
        if changed:
            self.log.info("new certificates for new connections")
            texts = [material.as_texts() for material in found]
            for worker in self._slots.processes():
                worker.tell("certificates", materials=texts)
            self._certificate_watch.check_expiry()

    # -- while they run --------------------------------------------------------------------------

    def _check(self) -> None:
        """Kill workers that are stuck; replace those that are old."""
        try:
            now = self._reactor.seconds()
            late = now - self._checked_at - CHECK_INTERVAL
            self._checked_at = now
            if late > CHECK_INTERVAL:
                # This process stood still, or its clock was set: no worker was silent for that.
                for worker in self._slots.processes():
                    worker.last_message_at += late
            for worker in list(self._slots.processes()):
                if now - worker.last_message_at > STUCK_AFTER:
                    self.log.critical(
                        "worker {number} is stuck: nothing heard of it for {silent:.0f} s; it is"
                        " killed",
                        number=worker.number,
                        silent=now - worker.last_message_at,
                    )
                    worker.last_message_at = now
                    worker.kill(with_traceback=True)
            for slot in self._slots.by_number.values():
                if slot.current is not None and self._supervisor.is_stable(slot.current):
                    slot.delay = 0.0
            self._replace_the_old(now)
        except Exception:  # noqa: BLE001 - a LoopingCall whose function raises ends for good
            self.log.failure("checking the workers failed")

    def _replace_the_old(self, now: float) -> None:
        if self._replacement_lock.locked or self._supervisor.stopping:
            return
        for slot in self._slots.by_number.values():
            worker = slot.current
            if worker is not None and worker.old_at is not None and now >= worker.old_at:
                self.log.info(
                    "worker {number} is {age:.0f} s old: another takes over",
                    number=slot.number,
                    age=now - worker.started_at,
                )
                worker.old_at = None
                self._replacement_lock.run(self._replace_old, slot, worker).addErrback(
                    lambda failure: self.log.failure("replacing a worker failed", failure)
                )
                return

    def _replace_old(self, slot: Slot, worker: WorkerProcess) -> defer.Deferred[None]:
        def replaced(done: bool) -> None:
            if not done:
                worker.old_at = self._reactor.seconds() + AGE_RETRY_DELAY

        return defer.Deferred.fromCoroutine(self._supervisor.replace(slot)).addCallback(replaced)

    # -- status, see workers/overview.py ------------------------------------------------------

    @property
    def serves(self) -> bool:
        """Whether clients are served."""
        return self._overview.serves

    def faults(self) -> list[str]:
        """Why clients should be sent elsewhere; nothing where all is well."""
        return self._overview.faults()

    def status(self) -> dict[str, Any]:
        """The state of the daemon, as JSON; see overview.Overview.status."""
        certificates = self._certificates
        return self._overview.status([] if certificates is None else certificates.status())

    def figures(self) -> dict[str, Any]:
        """The values of the metrics, see totals.figures."""
        return self._overview.figures(self.status())

    async def clients(self, most: int) -> Report:
        """The slowest clients of all workers."""
        return await self._overview.clients(most)

    async def symbols(self, most: int) -> Report:
        """The busiest symbols of all workers."""
        return await self._overview.symbols(most)

    # -- stop ------------------------------------------------------------------------------------

    def stopService(self) -> defer.Deferred[None]:
        """Stop accepting, have all workers drain and end, then stop the development Redis."""
        super().stopService()  # type: ignore[no-untyped-call]  # the library's, unannotated
        return defer.Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._supervisor.stopping = True
        self._overview.stop()
        if self._checks.running:
            self._checks.stop()
        self._certificate_watch.stop()
        workers = list(self._slots.processes())
        slots, self._slots.by_number = self._slots.by_number, {}
        for slot in slots.values():
            if slot.restart is not None:
                slot.restart.cancel()
        draining = [
            defer.Deferred.fromCoroutine(self._supervisor.drain(worker, CloseCode.GOING_AWAY))
            for worker in workers
        ]
        in_use = self._resources.in_use()
        await self._resources.close_sockets(in_use)
        await defer.gatherResults(draining)
        self._supervisor.cancel_kills()
        await self._resources.stop_starting()
        # A reload that was under way undoes what it began.
        await self._replacement_lock.acquire()
        self._replacement_lock.release()
        in_use += self._resources.in_use()
        await self._resources.close_sockets(in_use)
        for _, development in in_use:
            await development.stop()
        self._launcher.close()

    def abort(self) -> None:
        """Drop the clients that are left while stopping."""
        self._supervisor.abort()


def _materials_of(certificates: Certificates | None) -> tuple[Material, ...]:
    # Not read again: workers get the very pairs that were checked.
    return () if certificates is None else certificates.materials
