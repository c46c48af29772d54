"""One worker process as its manager sees it: start, commands, messages, state and end.

Must not know: other workers, or when any of this is due.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from itertools import count
from typing import Any, Final

from twisted.internet import defer
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IProcessTransport
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from pushservice.monitoring.worker_logs import emit_worker_event
from pushservice.workers import worker_link
from pushservice.workers.worker_link import Message, MessageDecoder

#: Seconds that a process has for writing a traceback after SIGABRT, before SIGKILL.
_ABORT_TIMEOUT: Final = 2.0
#: Bytes kept of a line that a process has not ended yet.
_LONGEST_LINE: Final = 8192

# With the manager's own module path, so that both are of one installation.
_LAUNCH: Final = (
    "import signal, sys;"
    # Signals that the worker does not want are ignored from here on, not only once all is imported.
    " [signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGHUP,"
    " signal.SIGUSR1, signal.SIGUSR2)];"
    " sys.path += [p for p in sys.argv[1:] if p not in sys.path];"
    " from pushservice.workers.worker import main; main()"
)


class WorkerEnded(Exception):
    """A worker process ended before it did what was waited for; the text says how."""


class WorkerProcess(ProcessProtocol):
    """A process, from its start to its end."""

    log = Logger()

    def __init__(
        self, reactor: Any, number: int, entry: int, ended: Callable[[WorkerProcess], None]
    ) -> None:
        """`ended` is called once, when the process is gone and all its messages are read."""
        self.number = number
        self.entry = entry
        #: "starting", "serving", "draining" or "ended"
        self.state = "starting"
        #: whether quotes come in there
        self.feed_up = False
        #: its last status message, and when any message last came
        self.status: Message = {}
        self.last_message_at: float = reactor.seconds()
        self.started_at = self.last_message_at
        #: when it began to serve; None if it never did
        self.serving_since: float | None = None
        #: when it is to be replaced for its age; None for never
        self.old_at: float | None = None
        #: seconds that it may take to drain
        self.drain_timeout = 0.0
        #: how it ended, in words
        self.end = ""
        self._reactor = reactor
        self._ended = ended
        self._lines = MessageDecoder()
        self._raw = b""
        self._expected: dict[str, list[defer.Deferred[Message]]] = {}
        self._gone: list[defer.Deferred[None]] = []
        # Requests without an answer, by their ids.
        self._asked: dict[int, defer.Deferred[Any]] = {}
        self._ids = count(1)
        self._process: IProcessTransport | None = None

    @property
    def pid(self) -> int | None:
        """Its process id; None once it has ended."""
        return None if self._process is None else self._process.pid

    def start(
        self, first: Message, descriptors: Mapping[int, int], environment: Mapping[str, str]
    ) -> None:
        """Start it with `descriptors`, of this process by those of the worker, and send `first`."""
        try:
            with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - a descriptor is what is wanted
                child_files: dict[int, Any] = {0: nothing.fileno(), 1: "r", 2: "r"}
                child_files |= {worker_link.COMMANDS: "w", worker_link.MESSAGES: "r"}
                self._process = self._reactor.spawnProcess(
                    self,
                    sys.executable,
                    [sys.executable, "-P", "-c", _LAUNCH, *filter(None, sys.path)],
                    env=environment,
                    childFDs=child_files | dict(descriptors),
                )
        except OSError as error:
            # No descriptor is left, or no process: it is as if it had ended at once.
            self._reactor.callLater(0, self._finish, f"before it began: {error.strerror}")
            return
        worker_link.tell(self._process, first)

    def tell(self, do: str, **more: Any) -> None:
        """Send the command `do`, if it runs."""
        if self._process is not None:
            worker_link.tell(self._process, {"do": do} | more)

    def expect(self, word: str) -> defer.Deferred[Message]:
        """Fires with its next message of this kind; fails with WorkerEnded."""
        expected = self._expected.setdefault(word, [])
        waiting: defer.Deferred[Message] = defer.Deferred(expected.remove)
        expected.append(waiting)
        if self.state == "ended":
            self._give_up_waiting()
        return waiting

    def ask(self, what: str, **more: Any) -> defer.Deferred[Any]:
        """Fires with its report on `what`; fails with WorkerEnded. May be cancelled."""
        number = next(self._ids)

        def cancelled(_answer: object) -> None:
            self._asked.pop(number, None)

        answer: defer.Deferred[Any] = defer.Deferred(cancelled)
        self._asked[number] = answer
        if self.state == "ended":
            self._give_up_waiting()
        else:
            self.tell("report", id=number, what=what, **more)
        return answer

    def when_ended(self) -> defer.Deferred[None]:
        """Fires once it is gone."""
        gone: defer.Deferred[None] = defer.Deferred(self._gone.remove)
        self._gone.append(gone)
        if self.state == "ended":
            self._tell_gone()
        return gone

    def _tell_gone(self) -> None:
        gone, self._gone = self._gone, []
        for one in gone:
            one.callback(None)

    def kill(self, with_traceback: bool = False) -> None:
        """Kill it at once, or by SIGABRT first, so that it writes a traceback of where it is."""
        if with_traceback:
            self._signal(signal.SIGABRT)
            self._reactor.callLater(_ABORT_TIMEOUT, self._signal, signal.SIGKILL)
        else:
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._process is not None:
            with suppress(ProcessExitedAlready):
                self._process.signalProcess(number)

    # -- what Twisted calls ----------------------------------------------------------------------

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self.last_message_at = self._reactor.seconds()
        if childFD != worker_link.MESSAGES:
            self._log_output(data)
            return
        try:
            for message in self._lines.feed(data):
                self._received(message)
        except Exception:  # noqa: BLE001 - a process that sends invalid messages is replaced
            self.log.failure("worker {number} sent an invalid message", number=self.number)
            self.kill()

    def processEnded(self, reason: Failure) -> None:
        self._log_output(b"\n" if self._raw else b"")
        self._finish(_how(reason))

    # -- within ----------------------------------------------------------------------------------

    def _finish(self, end: str) -> None:
        self._process = None
        self.state = "ended"
        self.feed_up = False
        self.end = end
        self._give_up_waiting()
        self._ended(self)
        self._tell_gone()

    def _received(self, message: Message) -> None:
        word = message["is"]
        if word == "log":
            emit_worker_event(message["event"], self.number)
        elif word == "status":
            self.status = message["status"]
        elif word == "report":
            # None if the report came too late.
            answer = self._asked.pop(message["id"], None)
            if answer is not None:
                answer.callback(message["report"])
        elif word in ("feed_up", "feed_down"):
            self.feed_up = word == "feed_up"
        elif word == "serving" and self.state == "starting":
            self.state = "serving"
            self.serving_since = self._reactor.seconds()
        elif word == "replace_me":
            # Another process told it to end, so replace it as if it were old.
            self.old_at = self._reactor.seconds()
        elif word == "failed":
            self.log.error(
                "worker {number} can't start: {why}", number=self.number, why=message["why"]
            )
        for one in self._expected.pop(word, []):
            one.callback(message)

    def _log_output(self, data: bytes) -> None:
        """Log what the process wrote to its standard output, such as a crash of the interpreter."""
        *lines, rest = (self._raw + data).split(b"\n")
        self._raw = rest[-_LONGEST_LINE:]
        for line in lines:
            if line.strip():
                self.log.warn(
                    "worker {number} wrote: {text}",
                    number=self.number,
                    text=line[:_LONGEST_LINE].decode("utf-8", "replace"),
                )

    def _give_up_waiting(self) -> None:
        expected, self._expected = self._expected, {}
        asked, self._asked = self._asked, {}
        for waiting in [*_all(expected.values()), *asked.values()]:
            waiting.errback(WorkerEnded(f"worker {self.number} ended: {self.end}"))


def _all(lists: Iterable[list[defer.Deferred[Message]]]) -> list[defer.Deferred[Message]]:
    return [one for each in lists for one in each]


def _how(reason: Failure) -> str:
    error: Any = reason.value
    number = getattr(error, "signal", None)
    if number is not None:
        with suppress(ValueError):
            return f"by {signal.Signals(number).name}"
        # Those of real time have no names here.
        return f"by signal {number}"
    return f"with exit status {getattr(error, 'exitCode', None)}"
