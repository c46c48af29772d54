"""Worker processes that are none: a reactor that starts them, on a clock that the test moves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet import defer, reactor
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from pushservice.workers import worker_link
from pushservice.workers.worker_link import encoded

#: What a worker answers to what it is told.
ANSWERS: Mapping[str, str] = {
    "serve": "serving",
    "dump_values": "values_dumped",
    "load_values": "values_loaded",
}
#: Seconds until it answers.
SOON = 0.01


class FakeProcess:
    """The transport of a process that does what a worker does, or what a test says."""

    def __init__(self, reactor: SpawningReactor, protocol: Any, pid: int, words: Any) -> None:
        self._reactor = reactor
        self.protocol = protocol
        self.pid: int | None = pid
        self.environment, self.descriptors = words
        #: what it was told, the first message among it
        self.told: list[dict[str, Any]] = []
        self.signals: list[object] = []
        #: what it does not do
        self.ignores: set[str] = set()
        #: seconds until it runs
        self.takes = SOON
        self._rest = b""

    @property
    def asked(self) -> list[str]:
        """The orders it got."""
        return [message["do"] for message in self.told if "do" in message]

    @property
    def ended(self) -> bool:
        return self.pid is None

    def says(self, word: str, **more: object) -> None:
        """Have the manager hear this, as a worker says it."""
        if not self.ended:
            self.protocol.childDataReceived(worker_link.MESSAGES, encoded({"is": word} | more))

    def ends(self, code: int = 0, signal: int | None = None) -> None:
        """It is gone."""
        if not self.ended:
            self.pid = None
            failed = code or signal
            reason = ProcessTerminated(code, signal, 0) if failed else ProcessDone(0)
            self.protocol.processEnded(Failure(reason))

    def _runs(self) -> None:
        if not self.protocol.status:
            self.says("status", status={})

    # -- IProcessTransport -----------------------------------------------------------------------

    def writeToChild(self, descriptor: int, data: bytes) -> None:
        if self.ended:
            raise KeyError(descriptor)
        assert descriptor == worker_link.COMMANDS
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            self.told.append(message)
            do = message.get("do")
            if do is None:
                # It runs once it is told its place.
                self._reactor.callLater(self.takes, self._runs)
                continue
            if do in self.ignores:
                continue
            if do in ANSWERS:
                self._reactor.callLater(SOON, self.says, ANSWERS[do], values=0)
            elif do == "drain":
                self._reactor.callLater(SOON, self.ends)

    def signalProcess(self, number: object) -> None:
        if self.ended:
            raise ProcessExitedAlready
        self.signals.append(number)
        if number not in self.ignores:
            self._reactor.callLater(SOON, self.ends, 0, number)


class FakeRedis:
    """The transport of a private redis-server, which is ready soon, or never."""

    def __init__(self, reactor: SpawningReactor, protocol: Any) -> None:
        self._reactor = reactor
        self.protocol = protocol
        self.ended = False
        if reactor.redis_gets_ready:
            reactor.callLater(SOON, protocol.outReceived, b"Ready to accept connections")

    def signalProcess(self, _signal: object) -> None:
        if self.ended:
            return
        self.ended = True
        reason = Failure(ProcessTerminated(None, 9, 9))
        self._reactor.callLater(0, self.protocol.processEnded, reason)


class SpawningReactor(Clock):
    """Listens for real; time is the test's, and processes are doubles."""

    listenTCP = staticmethod(reactor.listenTCP)
    listenUNIX = staticmethod(reactor.listenUNIX)

    def __init__(self) -> None:
        super().__init__()
        self.rightNow = 1000.0
        self.workers: list[FakeProcess] = []
        self.redis: list[FakeRedis] = []
        self.redis_gets_ready = True
        #: is called with each new worker
        self.on_spawn: Callable[[FakeProcess], None] = lambda _process: None
        #: raised by the next spawn
        self.fault: Exception | None = None

    def callWhenRunning(self, call: Callable[..., object], *arguments: object) -> None:
        call(*arguments)

    def spawnProcess(
        self,
        protocol: Any,
        executable: str,
        args: object = (),
        env: object = None,
        childFDs: Mapping[int, object] | None = None,
        **_more: object,
    ) -> FakeProcess | FakeRedis:
        if childFDs is None:
            self.redis.append(FakeRedis(self, protocol))
            return self.redis[-1]
        fault, self.fault = self.fault, None
        if fault is not None:
            raise fault
        process = FakeProcess(self, protocol, 5000 + len(self.workers), (env, childFDs))
        self.workers.append(process)
        self.on_spawn(process)
        return process

    async def turn(self) -> None:
        """A turn of the real reactor, in which real ports close."""
        done: defer.Deferred[None] = defer.Deferred()
        reactor.callLater(0, done.callback, None)
        await done

    async def go(self, seconds: float) -> None:
        """Let time pass; each call is made at its very moment."""
        end = self.rightNow + seconds
        await self.turn()
        while self.calls and self.calls[0].getTime() <= end:
            self.rightNow = max(self.rightNow, self.calls[0].getTime())
            self.advance(0)
            await self.turn()
        self.rightNow = end
