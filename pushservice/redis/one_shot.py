"""One errand at Redis for a command line: connect, ask, leave; it blocks until that is done.

Must not know: what is asked, or the daemon, whose connections stay.
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

#: seconds for all of it
PATIENCE: Final = 10.0

Command = Sequence[str | bytes | int]


class RequestFailed(Exception):
    """Nothing was done, or nobody knows what; the text names the Redis and says why."""


class _Connection(LossRecorder, txredisapi.RedisProtocol):
    """A connection for one errand."""


class _Connections(Factory):
    noisy = False

    def buildProtocol(self, addr: object) -> _Connection:
        return _Connection(charset=None, convertNumbers=False)


def ask(address: RedisAddress, commands: Sequence[Command], tls: RedisTLS | None = None) -> Any:
    """The answers to `commands`, which are sent in one go, in a list. Raises RequestFailed.

    Raises ValueError when the address wants TLS and a file of `tls` can't be used.
    """
    # A reactor of its own, so that it can be asked wherever another one runs already.
    reactor: Any = SelectReactor()
    endpoint = endpoint_of(reactor, address, tls)
    outcome: list[Any] = []

    def begin() -> None:
        going = defer.Deferred.fromCoroutine(_go(endpoint, address, commands))
        going.addTimeout(PATIENCE, reactor, _too_late)
        going.addBoth(outcome.append)
        going.addCallback(lambda _: reactor.stop() if reactor.running else None)

    reactor.callWhenRunning(begin)
    if _run(reactor):
        raise KeyboardInterrupt
    if isinstance(outcome[0], Failure):
        raise RequestFailed(f"Redis {address}: {failure_text(outcome[0])}")
    return outcome[0]


async def _go(
    endpoint: IStreamClientEndpoint, address: RedisAddress, commands: Sequence[Command]
) -> list[Any]:
    connection: Any = await endpoint.connect(_Connections())
    try:
        if address.password is not None:
            await connection.auth(address.password, address.user)
        asked = [connection.execute_command(*command) for command in commands]
        answers = await defer.DeferredList(asked, consumeErrors=True)
    finally:
        lost = connection.loss
        # What TLS was around and is lost already can't be aborted.
        if lost is None:
            gone = connection.whenDisconnected()
            connection.transport.abortConnection()
            await gone
    if lost is not None:
        lost.raiseException()
    for succeeded, answer in answers:
        if not succeeded:
            answer.raiseException()
        # What failed in a transaction stands among the answers to its end.
        for part in answer if isinstance(answer, list) else ():
            if isinstance(part, Exception):
                raise part
    return [answer for _, answer in answers]


def _run(reactor: Any) -> bool:
    """Run until it stops, and tell whether the terminal's Ctrl-C stopped it."""
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
