"""The manager: opens the sockets, has workers serve on them, replaces those that end or are old.

Must not know: clients, quotes, options' names, how a worker does what it is told, or what operators
are shown of it. It is idle while quotes flow.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet import defer
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from pushservice.config.coercers import AUTO
from pushservice.config.config import Config
from pushservice.metrics import Counters
from pushservice.monitoring import systemd
from pushservice.protocol.close_codes import CloseCode
from pushservice.server import ports
from pushservice.server.client_counts import ENTRIES_PER_SLOT, ClientCounts
from pushservice.server.client_reports import Report
from pushservice.server.ports import CannotListen
from pushservice.server.socket_info import bound_send_buffer
from pushservice.service.daemon import CannotStart, check, log_served, materials, outlets_here
from pushservice.service.development import Development
from pushservice.tls.certificates import Certificates
from pushservice.tls.material import Material
from pushservice.tls.watches import ExpiryWatch, FilesWatch
from pushservice.workers import worker_link
from pushservice.workers.overview import Overview
from pushservice.workers.slots import Slot, Slots
from pushservice.workers.worker_process import WorkerEnded, WorkerProcess

#: Seconds that a new worker, once it runs, has for its feed before it serves without, and for each
#: other step.
FEED_TIMEOUT: Final = 5.0
STEP_TIMEOUT: Final = 30.0
#: Seconds beyond the time for draining, or once there is none, after which a worker that has not
#: ended is killed.
KILL_DELAY: Final = 5.0
#: Seconds between two looks at all workers, and of silence after which one counts as stuck.
CHECK_INTERVAL: Final = 1.0
STUCK_AFTER: Final = 30.0
#: Seconds before a worker that ended is started again: none at first, then doubling up to the last;
#: one that served so long begins anew.
RESTART_DELAY: Final = 0.25
MAX_RESTART_DELAY: Final = 30.0
STABLE_AFTER: Final = 10.0
#: How much sooner or later than its age a worker is replaced; seconds until that is tried again.
AGE_JITTER: Final = 0.1
AGE_RETRY_DELAY: Final = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: a configuration, and the options it was made of, for other processes.

    `warnings` are for people: what in it may not be meant.
    """

    config: Config
    texts: Mapping[str, Any]
    warnings: Sequence[str] = ()


#: Open sockets by their endpoints' words, and what else workers need.
_Sources = tuple[dict[str, Any], Development]


class NoFeed(Exception):
    """A worker gets no quotes."""


class Manager(Service):
    """The processes of one daemon; its own is the parent of all."""

    log = Logger()

    def __init__(self, reactor: Any, plan: Plan) -> None:
        """Raises CannotStart for what can't be used; listens and starts workers when started."""
        self._reactor = reactor
        self._plan = plan
        self._found: tuple[Material, ...] = ()
        self._certificates: Certificates | None = None
        self._expiry: ExpiryWatch | None = None
        self._files: FilesWatch | None = None
        try:
            # What no worker could do is not left to all of them to find out, again and again.
            outlets_here(reactor)
            self._certificates = check(plan.config)
            self._found = _materials_of(self._certificates)
        except ValueError as error:
            raise CannotStart(f"quotepush: {error}") from None
        self._ports: dict[str, Any] = {}
        self._slots = Slots()
        self._counts = ClientCounts()
        self._values = os.memfd_create("quotepush-values")
        # One at a time: values to hand over, and what replaces workers that serve.
        self._handing_over = defer.DeferredLock()
        self._replacement_lock = defer.DeferredLock()
        # Of what comes along with the workers.
        self._counters = Counters()
        self._development = Development(reactor, plan.config, self._counters)
        # One that is about to take its place.
        self._coming: Development | None = None
        # What workers may use that run an earlier plan, as not all of them could be replaced.
        self._superseded: list[_Sources] = []
        self._overview = Overview(reactor, self._slots, self._counters)
        self._checked_at = 0.0
        self._checks = LoopingCall(self._check)
        self._checks.clock = reactor
        self._stopping = False
        self._kill_calls: list[IDelayedCall] = []

    # -- start -----------------------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        """Open the sockets, while the process may still have the rights to."""
        super().privilegedStartService()  # type: ignore[no-untyped-call]  # the library's, unannotated
        for text in self._plan.config.endpoints():
            try:
                self._ports[text] = self._open(text, self._plan.config)
            except CannotListen as error:
                raise CannotStart(f"quotepush: {error}") from None

    def _open(self, text: str, config: Config) -> Any:
        ports.check_shareable(text)
        port: Any = ports.listen(self._reactor, text, Factory())
        # Workers accept; here the socket only stays open, so that whoever waits outlives them.
        port.stopReading()
        bound_send_buffer(port.socket, config.limits.send_buffer)
        return port

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
        # Its place is known before it listens, and workers try until it does.
        starting = defer.Deferred.fromCoroutine(self._development.start())
        for number in self._wanted_numbers():
            self._slots.by_number[number] = Slot(number)
        await defer.gatherResults([self._fill(slot) for slot in self._slots.by_number.values()])
        if not self._stopping:
            for text, port in self._ports.items():
                self._log_served(text, port)
        await starting

    def _log_served(self, text: str, port: Any) -> None:
        log_served(port, not self._plan.config.plain, self._plan.config.page)

    # -- one worker ------------------------------------------------------------------------------

    def _spawn(self, slot: Slot) -> WorkerProcess:
        plan = self._plan
        config = plan.config
        taken = {other.entry for other in self._slots.processes()}
        entry = next(entry for entry in entries_of(slot.number) if entry not in taken)
        worker = WorkerProcess(self._reactor, slot.number, entry, self._ended)
        worker.drain_timeout = config.drain_timeout
        if config.max_worker_age is not None:
            jitter = random.uniform(1 - AGE_JITTER, 1 + AGE_JITTER)  # noqa: S311 - spreads load
            worker.old_at = self._reactor.seconds() + config.max_worker_age * jitter
        sockets = list(self._ports.items())
        private = None if config.redis else self._development.addresses()[0].path
        cores = sorted(os.sched_getaffinity(0))
        assert self._counts.descriptor is not None, "it is this process that made it"
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
                "materials": [found.as_texts() for found in self._found],
                "sockets": [(text, port.socket.family) for text, port in sockets],
                "redis_socket": private,
                "options": plan.texts,
            },
            descriptors,
            _environment(),
        )
        return worker

    def _fill(self, slot: Slot) -> defer.Deferred[None]:
        """Put a process on an empty slot; what goes wrong with it is tried again later."""
        slot.restart = None
        try:
            worker = slot.current = self._spawn(slot)
        except Exception:  # noqa: BLE001 - whatever it is, the slot must not stay empty
            self._not_spawned(slot)
            return defer.succeed(None)
        return defer.Deferred.fromCoroutine(self._bring_up(worker)).addErrback(self._not_up, worker)

    def _not_spawned(self, slot: Slot) -> None:
        self.log.failure("worker {number} can't be started", number=slot.number)
        if slot.current is None and not self._stopping:
            slot.restart = self._reactor.callLater(MAX_RESTART_DELAY, self._fill, slot)

    def _not_up(self, failure: Failure, worker: WorkerProcess) -> None:
        # One that ended is dealt with where that is told.
        if failure.check(WorkerEnded) is None:
            self.log.failure(
                "worker {number} does not get up", failure=failure, number=worker.number
            )
            worker.kill(with_traceback=True)

    async def _bring_up(self, worker: WorkerProcess, replaced: WorkerProcess | None = None) -> None:
        """Have `worker` serve, with the values that others know. Raises WorkerEnded and others.

        One that gets no quotes where the one to be `replaced` does raises NoFeed.
        """
        await self._hand_over_values(worker)
        if (
            replaced is not None
            and replaced.feed_up
            and not worker.feed_up
            and worker.state != "ended"
        ):
            raise NoFeed("it gets no quotes, and the old one does")
        if worker.state == "draining":
            raise WorkerEnded(f"worker {worker.number} is told to end")
        serving = worker.expect("serving")
        worker.tell("serve")
        await serving.addTimeout(STEP_TIMEOUT, self._reactor)
        self.log.info("worker {number} serves, pid {pid}", number=worker.number, pid=worker.pid)

    async def _hand_over_values(self, successor: WorkerProcess) -> None:
        if not self._value_source(successor):
            return
        # First its feed, then the values: what comes in between is not missed. Its time for that
        # begins once it runs, which takes long where all cores are busy.
        for word, within in (("status", STEP_TIMEOUT), ("feed_up", FEED_TIMEOUT)):
            if not successor.feed_up:
                with suppress(defer.TimeoutError):
                    await successor.expect(word).addTimeout(within, self._reactor)
        if self._plan.config.subscribe == "demand":
            # On demand a value that nobody watches would not be kept up to date.
            return
        await self._handing_over.acquire()
        try:
            source = self._value_source(successor)
            if source is None or not successor.feed_up or successor.state != "starting":
                return
            ready = source.expect("values_dumped")
            source.tell("dump_values")
            with suppress(defer.TimeoutError, WorkerEnded):
                await ready.addTimeout(STEP_TIMEOUT, self._reactor)
                known = successor.expect("values_loaded")
                successor.tell("load_values")
                await known.addTimeout(STEP_TIMEOUT, self._reactor)
        finally:
            self._handing_over.release()
        if successor.state == "ended":
            raise WorkerEnded(f"worker {successor.number} ended: {successor.end}")

    def _value_source(self, successor: WorkerProcess) -> WorkerProcess | None:
        """A process that serves and is fed, and so knows the last values."""
        for worker in self._slots.processes():
            if (
                worker is not successor
                and worker.feed_up
                and worker.state in ("serving", "draining")
            ):
                return worker
        return None

    def _ended(self, worker: WorkerProcess) -> None:
        """A process is gone; if it was to stay, another takes its slot."""
        self._overview.ended(worker)
        with suppress(ValueError):
            # It is closed where one could not even be killed in time.
            self._counts.write(worker.entry, None)
        if worker in self._slots.leaving:
            self._slots.leaving.discard(worker)
            return
        slot = self._slots.by_number.get(worker.number)
        if slot is None or self._stopping:
            return
        if slot.next is worker:
            slot.next = None
        elif slot.current is worker:
            slot.current = None
            if slot.next is None:
                self._plan_restart(slot, worker)

    def _plan_restart(self, slot: Slot, worker: WorkerProcess) -> None:
        if self._stable(worker):
            slot.delay = 0.0
        delay = slot.delay * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, guards nothing
        slot.delay = min(MAX_RESTART_DELAY, max(RESTART_DELAY, slot.delay * 2))
        slot.restarts += 1
        say = self.log.critical if slot.crash_loop else self.log.error
        say(
            "worker {number} ended {how} after {lived:.1f} s{again}: another starts in"
            " {delay:.1f} s",
            number=slot.number,
            how=worker.end,
            lived=self._reactor.seconds() - worker.started_at,
            again=", and keeps doing so" if slot.crash_loop else "",
            delay=delay,
        )
        slot.restart = self._reactor.callLater(delay, self._fill, slot)

    def _stable(self, worker: WorkerProcess) -> bool:
        # Not one that took long to fail at its start.
        since = worker.serving_since
        return since is not None and bool(self._reactor.seconds() - since >= STABLE_AFTER)

    # -- replacing workers -----------------------------------------------------------------------

    async def _replace(self, slot: Slot) -> bool:
        """Have a new process take over `slot`, then send the old one's clients away.

        False where the new one does not get up: the old one serves on.
        """
        if self._stopping:
            return False
        if slot.restart is not None:
            slot.restart.cancel()
            slot.restart = None
        try:
            new = slot.next = self._spawn(slot)
        except Exception:  # noqa: BLE001 - whatever it is, the old one is better
            self._not_spawned(slot)
            return False
        try:
            await self._bring_up(new, slot.current)
        except Exception as error:  # noqa: BLE001 - whatever it is, the old one is better
            if self._ends():
                # It ends with the others.
                return False
            if isinstance(error, WorkerEnded | NoFeed):
                self.log.error("the new worker does not get up: {reason}", reason=str(error))
            else:
                self.log.failure("the new worker {number} does not get up", number=slot.number)
            new.kill(with_traceback=True)
            if slot.next is new:
                slot.next = None
                self._slots.leaving.add(new)
            if slot.current is None:
                self._plan_restart(slot, new)
            return False
        old, slot.current, slot.next = slot.current, new, None
        if old is not None:
            await self._dismiss(old, CloseCode.RESTARTING)
        return True

    def _ends(self) -> bool:
        # A call, since this changes while others are awaited, which mypy does not expect.
        return self._stopping

    async def _dismiss(self, worker: WorkerProcess, code: CloseCode) -> None:
        """Have `worker` drain and end; it is killed if it does not."""
        self._slots.leaving.add(worker)
        if worker.state == "ended":
            self._slots.leaving.discard(worker)
            return
        worker.state = "draining"
        worker.tell("drain", code=int(code))
        patience = worker.drain_timeout + KILL_DELAY
        try:
            await worker.when_ended().addTimeout(patience, self._reactor)
        except defer.TimeoutError:
            self.log.error(
                "worker {number} has not ended in {patience} s: it is killed",
                number=worker.number,
                patience=patience,
            )
            worker.kill()
            with suppress(defer.TimeoutError):
                await worker.when_ended().addTimeout(STEP_TIMEOUT, self._reactor)

    async def reload(self, plan: Plan) -> bool:
        """Run `plan` from now on: what is new is started before what is old ends.

        Raises ValueError where it can't be run, and CannotListen; then everything stays as it was.
        Returns whether all workers were replaced; one that does not get up ends it.
        """
        await self._replacement_lock.acquire()
        try:
            return not self._stopping and await self._reload(plan)
        finally:
            self._replacement_lock.release()

    async def _reload(self, plan: Plan) -> bool:
        config = plan.config
        if not config.workers:
            raise ValueError("--workers 0 needs a new start: this process serves no clients")
        certificates = check(config)
        found = _materials_of(certificates)
        opened = self._open_new(config)
        try:
            development = await self._development_for(config)
        except Exception:
            await self._let_go((opened, self._development))
            raise
        before = self._plan, self._found, self._ports, self._development
        self._plan, self._found = plan, found
        self._ports, self._development = opened, development
        for number in self._wanted_numbers():
            self._slots.by_number.setdefault(number, Slot(number))
        first, *others = self._wanted_slots()
        first.delay = 0.0
        if self._stopping or not await self._replace(first):
            # Nothing of it has come to be used.
            self._plan, self._found, self._ports, self._development = before
            await self._drop_slots()
            await self._let_go((opened, development))
            return False
        self._superseded.append(before[2:])
        self._certificates = certificates
        if not self._stopping:
            self._watch_certificates()
            for port in opened.values():
                bound_send_buffer(port.socket, config.limits.send_buffer)
        for slot in others:
            slot.delay = 0.0
            if self._stopping or not await self._replace(slot):
                self._fill_empty_slots()
                return False
        await self._drop_slots()
        superseded, self._superseded = self._superseded, []
        await self._let_go(*superseded)
        return True

    async def _development_for(self, config: Config) -> Development:
        """What there is, if it is right for `config`; else another, which is started."""
        if self._development.serves(config):
            return self._development
        self._coming = coming = Development(self._reactor, config, self._counters)
        try:
            await coming.start()
        finally:
            self._coming = None
        return coming

    def _fill_empty_slots(self) -> None:
        """New ones that it did not come to."""
        for slot in self._slots.by_number.values():
            if not slot.processes() and slot.restart is None:
                self._fill(slot)

    async def _let_go(self, *unused: _Sources) -> None:
        """Close and stop what is not used any more of these."""
        used = self._in_use()
        kept = {id(port) for sockets, _ in used for port in sockets.values()}
        for sockets, development in unused:
            for text, port in sockets.items():
                if id(port) not in kept and port.connected:
                    await ports.stop_listening(port)
                    self.log.info("{text} is not listened on any more", text=text)
            if all(development is not other for _, other in used):
                await development.stop()

    def _open_new(self, config: Config) -> dict[str, Any]:
        """The sockets for `config`, those that are open already among them."""
        there: dict[str, Any] = {}
        for sockets, _ in [*self._superseded, (self._ports, None)]:
            there |= sockets
        opened: dict[str, Any] = {}
        for text in config.endpoints():
            try:
                opened[text] = there.get(text) or self._open(text, config)
            except CannotListen:
                for other, port in opened.items():
                    if other not in there:
                        port.stopListening()
                raise
        return opened

    def _wanted_slots(self) -> list[Slot]:
        return [self._slots.by_number[number] for number in self._wanted_numbers()]

    def _wanted_numbers(self) -> range:
        return range(1, count_of(self._plan.config) + 1)

    async def _drop_slots(self) -> None:
        """End the workers of slots that are not wanted any more, one at a time."""
        for number in sorted(self._slots.by_number.keys() - self._wanted_numbers()):
            slot = self._slots.by_number.pop(number)
            if slot.restart is not None:
                slot.restart.cancel()
            for worker in slot.processes():
                await self._dismiss(worker, CloseCode.RESTARTING)

    # -- certificates ----------------------------------------------------------------------------

    def _watch_certificates(self) -> None:
        self._stop_watching()
        config = self._plan.config
        if self._certificates is not None:
            self._expiry = ExpiryWatch(self._reactor, self._certificates)
            self._expiry.start()
            if config.cert_watch:
                paths = config.certificate_files
                self._files = FilesWatch(self._reactor, paths, self._renew_certificates)
                self._files.start()
                # They may have changed between their reading and now.
                self._renew_certificates()

    def _stop_watching(self) -> None:
        for watch in (self._expiry, self._files):
            if watch is not None:
                watch.stop()
        self._expiry = self._files = None

    def _renew_certificates(self) -> None:
        """Their files have changed: new connections get what is there now, if it can be used."""
        assert self._certificates is not None, "only then they are watched"
        try:
            found = materials(self._plan.config)
            changed = self._certificates.replace(found)
        except ValueError as error:
            self.log.error("the certificates stay as they are: {reason}", reason=str(error))
            return
        self._found = found
        if changed:
            self.log.info("new certificates for new connections")
            texts = [material.as_texts() for material in found]
            for worker in self._slots.processes():
                worker.tell("certificates", materials=texts)
            assert self._expiry is not None, "it began with the certificates"
            self._expiry.check()

    # -- while they run --------------------------------------------------------------------------

    def _check(self) -> None:
        """Once in a while: which worker is stuck, and which is old."""
        try:
            now = self._reactor.seconds()
            late = now - self._checked_at - CHECK_INTERVAL
            self._checked_at = now
            if late > CHECK_INTERVAL:
                # This process stood still, or its clock was set: that is nobody's silence.
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
                if slot.current is not None and self._stable(slot.current):
                    slot.delay = 0.0
            self._replace_the_old(now)
        except Exception:  # noqa: BLE001 - a LoopingCall whose function raises ends for good
            self.log.failure("looking at the workers failed")

    def _replace_the_old(self, now: float) -> None:
        if self._replacement_lock.locked or self._stopping:
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

        return defer.Deferred.fromCoroutine(self._replace(slot)).addCallback(replaced)

    # -- status, see workers/overview.py ------------------------------------------------------

    @property
    def serves(self) -> bool:
        """Whether clients are served."""
        return self._overview.serves

    def faults(self) -> list[str]:
        """Why clients should be sent elsewhere; nothing where all is well."""
        return self._overview.faults()

    def status(self) -> dict[str, Any]:
        """How it stands, as JSON."""
        certificates = self._certificates
        return self._overview.status([] if certificates is None else certificates.status())

    def figures(self) -> dict[str, Any]:
        """What metrics are made of, see totals.figures."""
        return self._overview.figures(self.status())

    async def clients(self, most: int) -> Report:
        """The slowest clients of all workers."""
        return await self._overview.clients(most)

    async def symbols(self, most: int) -> Report:
        """The busiest symbols of all workers."""
        return await self._overview.symbols(most)

    # -- stop ------------------------------------------------------------------------------------

    def stopService(self) -> defer.Deferred[None]:
        """Accept no more, have all workers drain and end, then end what came along with them."""
        super().stopService()  # type: ignore[no-untyped-call]  # the library's, unannotated
        return defer.Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._stopping = True
        self._overview.stop()
        if self._checks.running:
            self._checks.stop()
        self._stop_watching()
        workers = list(self._slots.processes())
        slots, self._slots.by_number = self._slots.by_number, {}
        for slot in slots.values():
            if slot.restart is not None:
                slot.restart.cancel()
        going = [
            defer.Deferred.fromCoroutine(self._dismiss(worker, CloseCode.GOING_AWAY))
            for worker in workers
        ]
        in_use = self._in_use()
        await self._close_sockets(in_use)
        await defer.gatherResults(going)
        for kill in self._kill_calls:
            if kill.active():
                kill.cancel()
        if self._coming is not None:
            await self._coming.stop()
        # A reload that was under way undoes what it had begun.
        await self._replacement_lock.acquire()
        self._replacement_lock.release()
        in_use += self._in_use()
        await self._close_sockets(in_use)
        for _, development in in_use:
            await development.stop()
        self._counts.close()
        os.close(self._values)

    def _in_use(self) -> list[_Sources]:
        return [(self._ports, self._development), *self._superseded]

    @staticmethod
    async def _close_sockets(sources: list[_Sources]) -> None:
        for sockets, _ in sources:
            for port in sockets.values():
                if port.connected:
                    await ports.stop_listening(port)

    def abort(self) -> None:
        """Whoever is still there while stopping is dropped now."""
        for worker in list(self._slots.processes()):
            worker.tell("abort")
            # One that is stuck does not hear it.
            self._kill_calls.append(self._reactor.callLater(KILL_DELAY, worker.kill))


def _materials_of(certificates: Certificates | None) -> tuple[Material, ...]:
    # Not read again: workers get the very pairs that were found good.
    return () if certificates is None else certificates.materials


def entries_of(number: int) -> range:
    """The entries of one slot: while a process drains, others may come, fail and come again."""
    first = ENTRIES_PER_SLOT * (number - 1)
    return range(first, first + ENTRIES_PER_SLOT)


def count_of(config: Config) -> int:
    """How many workers there are to be."""
    if config.workers == AUTO:
        return len(os.sched_getaffinity(0))
    return int(config.workers)


def _environment() -> dict[str, str]:
    """A worker's environment: ours, without what was said to this process alone."""
    ours = {*systemd.VARIABLES, "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ours and (not name.startswith("QUOTEPUSH_") or name == "QUOTEPUSH_OUTLET")
    }
