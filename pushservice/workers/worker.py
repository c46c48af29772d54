"""A worker process: a whole daemon on sockets of its manager, whose commands it carries out.

Must not know: other workers, option names, or why a command is given.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Final

import setproctitle
from twisted.internet import defer
from twisted.internet.task import LoopingCall
from twisted.logger import Logger, LogLevel, globalLogBeginner
from twisted.python.failure import Failure

from pushservice.config.config import Config
from pushservice.config.settings import config_from_texts
from pushservice.monitoring.worker_logs import ForwardingObserver
from pushservice.protocol.close_codes import CloseCode
from pushservice.server.client_counts import ClientCounts
from pushservice.server.client_reports import Report
from pushservice.server.ports import Listening
from pushservice.service.daemon import Daemon
from pushservice.service.startup import CannotStart, prepare_memory
from pushservice.service.worker_setup import WorkerSetup
from pushservice.tls.material import Material
from pushservice.workers import worker_link
from pushservice.workers.handover import dump_values, load_values
from pushservice.workers.signals import Signals
from pushservice.workers.worker_link import ManagerLink, Message

#: Seconds between two status messages to the manager.
STATUS_EVERY: Final = 1.0
#: Seconds, beyond the time for load balancers, after which one that was told to end by somebody
#: else than the manager asks for it, and seconds that the manager has to have another take over.
ASK_DELAY: Final = 1.0
ANSWER_TIMEOUT: Final = 5.0
#: Seconds without a turn of the reactor after which the kernel ends the process; the manager does
#: so sooner.
STUCK_KILL_DELAY: Final = 45
#: Seconds in which a worker without a manager says goodbye, and after which it is gone whatever
#: keeps it.
ORPHAN_DRAIN_TIMEOUT: Final = 1.0
ORPHAN_KILL_DELAY: Final = 4
#: Seconds that the manager has for reading the last messages of a worker.
FLUSH_TIMEOUT: Final = 2.0


class Worker:
    """Carries out the commands of the manager on a daemon; see workers/supervisor.py."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        link: ManagerLink,
        daemon: Daemon,
        alive: Callable[[], object] = lambda: None,
    ) -> None:
        """`alive` is called every STATUS_EVERY seconds while there is a manager."""
        self._alive = alive
        self._reactor = reactor
        self._link = link
        self._daemon = daemon
        self._leaving = False
        self._commands: dict[str, Callable[[Message], None]] = {
            "serve": self._serve,
            "dump_values": self._dump_values,
            "load_values": self._load_values,
            "drain": self._drain,
            "abort": lambda _message: daemon.abort(),
            "certificates": self._certificates,
            "report": self._report,
        }
        daemon.feed_changed = self._feed_changed
        self._statuses = LoopingCall(self._status)
        self._statuses.clock = reactor

    def start(self) -> None:
        """Start the daemon; it serves after the command `serve`."""
        self._daemon.privilegedStartService()
        self._daemon.startService()
        self._statuses.start(STATUS_EVERY)

    def receive(self, message: Message) -> None:
        """Carry out a command of the manager; an exception in it is logged, and ends nothing."""
        try:
            self._commands[message["do"]](message)
        except Exception:  # noqa: BLE001 - said; the manager decides what becomes of this worker
            self.log.failure("the command of the manager failed: {what}", what=message.get("do"))

    def manager_lost(self) -> None:
        """The manager is gone: nobody would restart this worker, or close its sockets."""
        self._alive = lambda: None
        # The kernel ends this process in case it is stuck.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(ORPHAN_KILL_DELAY)
        self._reactor.callLater(ORPHAN_DRAIN_TIMEOUT, self._daemon.abort)
        self._leave(CloseCode.GOING_AWAY)

    def terminate(self) -> None:
        """A process other than the manager sent SIGTERM: ask the manager for a replacement.

        A signal to all processes of the daemon reaches the manager too. It then stops all workers
        itself, so this one waits before it asks.
        """
        self.log.info("told to end")
        self._reactor.callLater(self._daemon.config.drain_delay + ASK_DELAY, self._ask)

    def _ask(self) -> None:
        if not self._leaving:
            self._link.send({"is": "replace_me"})
            # Without an answer it drains all the same.
            self._reactor.callLater(ANSWER_TIMEOUT, self._leave, CloseCode.RESTARTING)

    # -- commands --------------------------------------------------------------------------------

    def _serve(self, message: Message) -> None:
        if self._leaving:
            return
        self._daemon.serve()
        self._link.send({"is": "serving"})

    def _dump_values(self, message: Message) -> None:
        work = dump_values(self._daemon.hub, worker_link.VALUES)
        self._answer(work, "values_dumped")

    def _load_values(self, message: Message) -> None:
        work = load_values(self._daemon.hub, worker_link.VALUES)
        self._answer(work, "values_loaded")

    def _answer(self, work: Any, word: str) -> None:
        def failed(failure: Failure) -> int:
            self.log.failure("handing over values failed", failure)
            return 0

        def say(count: int) -> None:
            self._link.send({"is": word, "values": count})

        defer.Deferred.fromCoroutine(work).addErrback(failed).addCallback(say)

    def _drain(self, message: Message) -> None:
        self._leave(CloseCode(message["code"]))

    def _certificates(self, message: Message) -> None:
        self._daemon.replace_certificates(list(map(Material.from_texts, message["materials"])))

    def _report(self, message: Message) -> None:
        """Send the manager a report on single clients or symbols."""

        def say(report: Report) -> None:
            self._link.send({"is": "report", "id": message["id"], "report": report}, needed=False)

        def failed(failure: Failure) -> None:
            self.log.failure("a report on {what} failed", failure, what=message["what"])

        client_queries = self._daemon.client_queries
        if message["what"] == "named":
            say(client_queries.named_symbols(message["symbols"]))
            return
        work = {"clients": client_queries.clients, "symbols": client_queries.symbols}[
            message["what"]
        ]
        defer.Deferred.fromCoroutine(work(message["most"])).addCallbacks(say, failed)

    def _leave(self, code: CloseCode) -> None:
        if not self._leaving:
            self._leaving = True
            self._daemon.leave(code).addCallback(self._left)

    def _left(self, _result: object) -> None:
        self._status()
        self._link.send({"is": "drained"})
        stop_when_sent(self._link, self._reactor)

    # -- messages --------------------------------------------------------------------------------

    def _feed_changed(self, up: bool) -> None:
        self._link.send({"is": "feed_up" if up else "feed_down"})

    def _status(self) -> None:
        self._alive()
        try:
            self._link.send({"is": "status", "status": self._daemon.status()}, needed=False)
        except Exception:  # noqa: BLE001 - a LoopingCall whose function raises ends for good
            self.log.failure("sending the status failed")

    def log_status(self) -> None:
        """Log the status of this process."""
        self.log.info("status: {status}", status=self._daemon.status())


def stop_when_sent(link: ManagerLink, reactor: Any) -> None:
    """Stop the reactor once all messages are sent, or the manager is gone."""

    def stop(_result: object) -> None:
        if reactor.running:
            reactor.stop()

    link.close().addTimeout(FLUSH_TIMEOUT, reactor).addBoth(stop)


def setup_and_config(first: Message) -> tuple[WorkerSetup, Config]:
    """What the first message of the manager says. Raises ValueError if it is not understood."""
    setup = WorkerSetup(
        number=first["number"],
        entry=first["entry"],
        counts=ClientCounts(worker_link.COUNTS),
        materials=list(map(Material.from_texts, first["materials"])),
        sockets=[
            Listening(text, worker_link.SOCKETS + at, family)
            for at, (text, family) in enumerate(first["sockets"])
        ],
        redis_socket=first["redis_socket"],
    )
    return setup, config_from_texts(first["options"])


def main() -> None:
    """Run a worker; worker_link names its descriptors."""
    faulthandler.enable()
    # Ctrl-C and hang-up of the terminal are for the manager, which tells workers what to do.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    try:
        first = worker_link.first_message(worker_link.COMMANDS)
    except EOFError:
        return
    setproctitle.setproctitle(f"quotepush: worker {first['number']}")
    if first["core"] is not None:
        os.sched_setaffinity(0, {first["core"]})

    from twisted.internet import reactor

    worker: Worker | None = None

    def heard(message: Message) -> None:
        if worker is not None:
            worker.receive(message)

    def lost() -> None:
        if worker is not None:
            worker.manager_lost()

    link = ManagerLink(heard, lost)
    link.open(reactor)
    level = LogLevel.levelWithName(first["log_level"])
    observer = ForwardingObserver(
        lambda event: link.send({"is": "log", "event": event}, False), level
    )
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False, discardBuffer=True)
    try:
        setup, config = setup_and_config(first)
        daemon = Daemon(reactor, config, setup)
        worker = Worker(reactor, link, daemon, lambda: signal.alarm(STUCK_KILL_DELAY))
        worker.start()
    except (CannotStart, ValueError, OSError) as error:
        link.send({"is": "failed", "why": str(error)})
        worker = None
        stop_when_sent(link, reactor)
        reactor.run()
        sys.exit(1)
    signals = Signals(
        reactor,
        {
            signal.SIGTERM: worker.terminate,
            signal.SIGUSR2: worker.log_status,
        },
    )
    signals.install()
    prepare_memory()
    reactor.run()
