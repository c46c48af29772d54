"""Commands to Redis from a command line: connects, sends them, disconnects; blocks until done.

Must not know: what is sent, or the daemon, whose connections are kept up.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from typing import Any, Final

import txredisapi
from twisted.internet import defer
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.selectreactor import SelectReactor
from twisted.python.failure import Failure

from pushservice.redis.link import endpoint_of
from pushservice.redis.sentinel import LossRecorder
from pushservice.redis.tls import failure_text
from pushservice.redis.url import RedisAddress, RedisTLS

#: seconds for everything together
TIMEOUT: Final = 10.0

Command = Sequence[str | bytes | int]


class RequestFailed(Exception):
    """Nothing was done, or it is unknown what; the text names the Redis and says why."""


class _Connection(LossRecorder, txredisapi.RedisProtocol):
    """A connection for one batch of commands."""


class _Connections(Factory):
    noisy = False

    def buildProtocol(self, addr: object) -> _Connection:
        return _Connection(charset=None, convertNumbers=False)


def execute(address: RedisAddress, commands: Sequence[Command], tls: RedisTLS | None = None) -> Any:
    """The answers to `commands`, which are sent in one go, in a list. Raises RequestFailed.

    Raises ValueError when the address wants TLS and a file of `tls` can't be used.
    """
    # A reactor of its own, because the caller may run in another one.
    reactor: Any = SelectReactor()
    endpoint = endpoint_of(reactor, address, tls)
    outcome: list[Any] = []

    def begin() -> None:
        running = defer.Deferred.fromCoroutine(_execute(endpoint, address, commands))
        running.addTimeout(TIMEOUT, reactor, _too_late)
        running.addBoth(outcome.append)
        running.addCallback(lambda _: reactor.stop() if reactor.running else None)

    reactor.callWhenRunning(begin)
    if _run(reactor):
        raise KeyboardInterrupt
    if isinstance(outcome[0], Failure):
        raise RequestFailed(f"Redis {address}: {failure_text(outcome[0])}")
    return outcome[0]


async def _execute(
    endpoint: IStreamClientEndpoint, address: RedisAddress, commands: Sequence[Command]
) -> list[Any]:
    connection: Any = await endpoint.connect(_Connections())
    try:
        if address.password is not None:
            await connection.auth(address.password, address.user)
        sent = [connection.execute_command(*command) for command in commands]
        answers = await defer.DeferredList(sent, consumeErrors=True)
    finally:
        lost = connection.loss
        # A lost connection over TLS can't be aborted.
        if lost is None:
            gone = connection.whenDisconnected()
            connection.transport.abortConnection()
            await gone
    if lost is not None:
        lost.raiseException()
    for succeeded, answer in answers:
        if not succeeded:
            answer.raiseException()
        # Errors within a transaction are among the answers of its EXEC.
        for part in answer if isinstance(answer, list) else ():
            if isinstance(part, Exception):
                raise part
    return [answer for _, answer in answers]


def _run(reactor: Any) -> bool:
    """Run the reactor until it stops; returns whether Ctrl-C stopped it."""
    if threading.current_thread() is not threading.main_thread():
        reactor.run(installSignalHandlers=False)
        return False
    interrupted: list[bool] = []

    def interrupt(*_: object) -> None:
        if not interrupted:
            interrupted.append(True)
            reactor.callFromThread(reactor.stop)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        reactor.run(installSignalHandlers=False)
    finally:
        signal.signal(signal.SIGINT, before)
    return bool(interrupted)


def _too_late(_result: object, timeout: float) -> Any:
    raise TimeoutError(f"no answer in {timeout:g} seconds")
