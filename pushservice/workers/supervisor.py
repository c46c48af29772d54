"""Brings workers up, restarts those that end, replaces and drains them: one slot at a time.

Must not know: what a worker is started with, when one is due to be replaced, or clients and quotes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from twisted.internet import defer
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from pushservice.protocol.close_codes import CloseCode
from pushservice.workers.launcher import Launcher
from pushservice.workers.slots import Slot, Slots
from pushservice.workers.worker_process import WorkerEnded, WorkerProcess

#: Seconds that a worker which runs has for connecting to its feed, after which it serves without;
#: and seconds for each other step.
FEED_TIMEOUT: Final = 5.0
STEP_TIMEOUT: Final = 30.0
#: Seconds beyond the drain timeout, or after `abort`, after which a worker that runs is killed.
KILL_DELAY: Final = 5.0
#: Seconds before a worker that ended is started again: none at first, then doubling from the first
#: of these to the second; a worker that has served for STABLE_AFTER seconds begins at none again.
RESTART_DELAY: Final = 0.25
MAX_RESTART_DELAY: Final = 30.0
STABLE_AFTER: Final = 10.0


class NoFeed(Exception):
    """A worker gets no quotes."""


class Supervisor:
    """Keeps a process in each slot."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        slots: Slots,
        launcher: Launcher,
        ended: Callable[[WorkerProcess], None],
    ) -> None:
        """`ended` is called with each process that is gone."""
        self._reactor = reactor
        self._slots = slots
        self._launcher = launcher
        self._told_ended = ended
        self._kill_calls: list[IDelayedCall] = []
        # One worker at a time uses the file in which values are handed over.
        self._handover_lock = defer.DeferredLock()
        #: whether the daemon stops, and no process is started any more
        self.stopping = False

    # -- start -----------------------------------------------------------------------------------

    def fill(self, slot: Slot) -> defer.Deferred[None]:
        """Start a process in an empty slot; fires once it serves or has failed, to be retried."""
        slot.restart = None
        try:
            worker = slot.current = self._launcher.spawn(slot, self._ended)
        except Exception:  # noqa: BLE001 - whatever it is, the slot must not stay empty
            self._not_spawned(slot)
            return defer.succeed(None)
        return defer.Deferred.fromCoroutine(self._bring_up(worker)).addErrback(self._not_up, worker)

    def fill_empty(self) -> None:
        """Start a process in each slot that has none and waits for none."""
        for slot in self._slots.by_number.values():
            if not slot.processes() and slot.restart is None:
                self.fill(slot)

    def _not_spawned(self, slot: Slot) -> None:
        self.log.failure("worker {number} can't be started", number=slot.number)
        if slot.current is None and not self.stopping:
            slot.restart = self._reactor.callLater(MAX_RESTART_DELAY, self.fill, slot)

    def _not_up(self, failure: Failure, worker: WorkerProcess) -> None:
        # `_ended` deals with a process that has ended.
        if failure.check(WorkerEnded) is None:
            self.log.failure(
                "worker {number} failed to start", failure=failure, number=worker.number
            )
            worker.kill(with_traceback=True)

    async def _bring_up(self, worker: WorkerProcess, replaced: WorkerProcess | None = None) -> None:
        """Have `worker` serve, with the last values that another knows.

        Raises WorkerEnded, TimeoutError, and NoFeed if it gets no quotes and `replaced` does.
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

    async def _hand_over_values(self, worker: WorkerProcess) -> None:
        if not self._value_source(worker):
            return
        # First its feed, then the values, so that no quote in between is missed. Its time for the
        # feed begins once it runs, which takes long where all cores are busy.
        for word, within in (("status", STEP_TIMEOUT), ("feed_up", FEED_TIMEOUT)):
            if not worker.feed_up:
                with suppress(defer.TimeoutError):
                    await worker.expect(word).addTimeout(within, self._reactor)
        if self._launcher.plan.config.subscribe == "demand":
            # A value that nobody watches would not be kept up to date.
            return
        await self._handover_lock.acquire()
        try:
            source = self._value_source(worker)
            if source is None or not worker.feed_up or worker.state != "starting":
                return
            dumped = source.expect("values_dumped")
            source.tell("dump_values")
            with suppress(defer.TimeoutError, WorkerEnded):
                await dumped.addTimeout(STEP_TIMEOUT, self._reactor)
                loaded = worker.expect("values_loaded")
                worker.tell("load_values")
                await loaded.addTimeout(STEP_TIMEOUT, self._reactor)
        finally:
            self._handover_lock.release()
        if worker.state == "ended":
            raise WorkerEnded(f"worker {worker.number} ended: {worker.end}")

    def _value_source(self, receiver: WorkerProcess) -> WorkerProcess | None:
        """A process that gets quotes and serves, and so knows the last values."""
        for worker in self._slots.processes():
            if (
                worker is not receiver
                and worker.feed_up
                and worker.state in ("serving", "draining")
            ):
                return worker
        return None

    # -- a process that ended --------------------------------------------------------------------

    def _ended(self, worker: WorkerProcess) -> None:
        """Plan a restart for a process that was to stay."""
        self._told_ended(worker)
        with suppress(ValueError):
            # The counts are closed if the process could not even be killed in time.
            self._launcher.forget_clients(worker)
        if worker in self._slots.leaving:
            self._slots.leaving.discard(worker)
            return
        slot = self._slots.by_number.get(worker.number)
        if slot is None or self.stopping:
            return
        if slot.next is worker:
            slot.next = None
        elif slot.current is worker:
            slot.current = None
            if slot.next is None:
                self._plan_restart(slot, worker)

    def _plan_restart(self, slot: Slot, worker: WorkerProcess) -> None:
        if self.is_stable(worker):
            slot.delay = 0.0
        delay = slot.delay * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, guards nothing
        slot.delay = min(MAX_RESTART_DELAY, max(RESTART_DELAY, slot.delay * 2))
        slot.restarts += 1
        log = self.log.critical if slot.crash_loop else self.log.error
        log(
            "worker {number} ended {how} after {lived:.1f} s{again}: another starts in"
            " {delay:.1f} s",
            number=slot.number,
            how=worker.end,
            lived=self._reactor.seconds() - worker.started_at,
            again=", and keeps doing so" if slot.crash_loop else "",
            delay=delay,
        )
        slot.restart = self._reactor.callLater(delay, self.fill, slot)

    def is_stable(self, worker: WorkerProcess) -> bool:
        """Whether `worker` has served for long; a slow failure at its start does not count."""
        since = worker.serving_since
        return since is not None and bool(self._reactor.seconds() - since >= STABLE_AFTER)

    # -- replace and drain -----------------------------------------------------------------------

    async def replace(self, slot: Slot) -> bool:
        """Have a new process take over `slot`, then drain the old one.

        Returns False where the new one fails to serve: the old one serves on.
        """
        if self.stopping:
            return False
        if slot.restart is not None:
            slot.restart.cancel()
            slot.restart = None
        try:
            new = slot.next = self._launcher.spawn(slot, self._ended)
        except Exception:  # noqa: BLE001 - whatever it is, the old one is better
            self._not_spawned(slot)
            return False
        try:
            await self._bring_up(new, slot.current)
        except Exception as error:  # noqa: BLE001 - whatever it is, the old one is better
            if self._stops():
                # It ends with the others.
                return False
            if isinstance(error, WorkerEnded | NoFeed):
                self.log.error("the new worker failed to start: {reason}", reason=str(error))
            else:
                self.log.failure("the new worker {number} failed to start", number=slot.number)
            new.kill(with_traceback=True)
            if slot.next is new:
                slot.next = None
                self._slots.leaving.add(new)
            if slot.current is None:
                self._plan_restart(slot, new)
            return False
        old, slot.current, slot.next = slot.current, new, None
        if old is not None:
            await self.drain(old, CloseCode.RESTARTING)
        return True

    def _stops(self) -> bool:
        # A call, since `stopping` changes during an await, which mypy does not expect.
        return self.stopping

    async def drain(self, worker: WorkerProcess, code: CloseCode) -> None:
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

    def abort(self) -> None:
        """Drop the clients that are left; kill workers that do not end then."""
        for worker in list(self._slots.processes()):
            worker.tell("abort")
            # A worker that is stuck does not read the command.
            self._kill_calls.append(self._reactor.callLater(KILL_DELAY, worker.kill))

    def cancel_kills(self) -> None:
        """All workers have ended: there is nothing to kill."""
        for kill in self._kill_calls:
            if kill.active():
                kill.cancel()
