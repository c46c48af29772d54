"""A manager whose worker processes are doubles, on a reactor whose clock the test moves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from twisted.internet import defer, reactor
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from pushservice.config.config import Config
from pushservice.redis.url import redis_address
from pushservice.workers import worker_link
from pushservice.workers.manager import Manager
from pushservice.workers.plan import Plan
from pushservice.workers.supervisor import STEP_TIMEOUT
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

    def __init__(self, reactor: SpawningReactor, protocol: Any, pid: int, launched: Any) -> None:
        self._reactor = reactor
        self.protocol = protocol
        self.pid: int | None = pid
        self.environment, self.descriptors = launched
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


LOOPBACK = "tcp:0:interface=127.0.0.1"
NOWHERE = redis_address("unix:///nowhere/redis.sock")
TALK = 10 * SOON


def configured(**values: Any) -> Config:
    base: dict[str, Any] = {"plain": True, "listen": (LOOPBACK,), "redis": (NOWHERE,)}
    return Config(**base | values)


class Managed:
    """A manager on a reactor of the test's."""

    def __init__(self, **values: Any) -> None:
        self.reactor = SpawningReactor()
        self.config = configured(**values)
        self.manager = Manager(self.reactor, Plan(self.config, {"name": "first"}))
        self.stopped: defer.Deferred[None] | None = None

    @property
    def processes(self) -> list[FakeProcess]:
        return self.reactor.workers

    def alive(self) -> list[FakeProcess]:
        return [process for process in self.processes if not process.ended]

    def go(self, seconds: float = TALK) -> Any:
        return self.reactor.go(seconds)

    async def start(self, *, feed_up: bool = True) -> Managed:
        self.manager.privilegedStartService()
        self.manager.startService()
        await self.go()
        if feed_up:
            self.feed()
        return self

    def feed(self) -> None:
        for process in self.alive():
            process.says("feed_up")

    def feeding(self) -> None:
        """Workers are fed as soon as they are there."""
        self.reactor.on_spawn = lambda process: self.reactor.callLater(
            SOON, process.says, "feed_up"
        )

    def reload(self, name: str = "second", **values: Any) -> defer.Deferred[bool]:
        plan = Plan(replace(self.config, **values), {"name": name})
        return defer.Deferred.fromCoroutine(self.manager.reload(plan))

    def states(self) -> list[tuple[int, str]]:
        return [(each["number"], each["state"]) for each in self.manager.status()["workers"]]

    def stop(self) -> defer.Deferred[None]:
        self.stopped = self.manager.stopService()
        return self.stopped

    async def end(self) -> None:
        """Stop in order, and see that nothing is left."""
        if self.stopped is None:
            self.stop()
        await self.go(60 + STEP_TIMEOUT)
        assert self.stopped.called
        assert self.alive() == []
        assert self.reactor.getDelayedCalls() == []
        assert self.manager.status()["workers"] == []
        assert all(redis.ended for redis in self.reactor.redis)


async def speaking(managed: Managed, seconds: float, *silent: FakeProcess) -> None:
    """Let time pass, with a word of each worker every second, but for the silent ones."""
    for _ in range(round(seconds)):
        await managed.go(1)
        for process in managed.alive():
            if process not in silent:
                process.says("status", status={})


class LoggedLines:
    """Everything that is logged, as text."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.levels: list[str] = []

    def __call__(self, event: dict[str, Any]) -> None:
        if event.get("log_format") and event["log_namespace"].startswith("pushservice"):
            self.lines.append(event["log_format"].format_map(event))
            self.levels.append(event["log_level"].name)

    def __contains__(self, text: str) -> bool:
        return any(text in line for line in self.lines)

    def level_of(self, text: str) -> str:
        """The level of the last line with `text`."""
        return next(
            level
            for line, level in zip(self.lines[::-1], self.levels[::-1], strict=True)
            if text in line
        )
