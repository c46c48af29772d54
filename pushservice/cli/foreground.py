"""Runs a coroutine in a reactor of its own until it ends or Ctrl-C is pressed.

Must not know: what is run. Own code: twisted.internet.task.react exits the process, and cancels the
coroutine at Ctrl-C, where commands have to print a summary.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from twisted.internet import defer
from twisted.internet.selectreactor import SelectReactor
from twisted.python.failure import Failure

Result = TypeVar("Result")


def run(main: Callable[[Any, defer.Deferred[None]], Coroutine[Any, Any, Result]]) -> Result:
    """What `main(reactor, interrupted)` returns or raises; `interrupted` fires at the first signal.

    The reactor ends with it. In a thread other than the main one there are no signals.
    """
    # A reactor of its own runs also where the global one runs already, as in tests.
    reactor: Any = SelectReactor()
    interrupted: defer.Deferred[None] = defer.Deferred()
    outcome: list[Any] = []

    def begin() -> None:
        going = defer.Deferred.fromCoroutine(main(reactor, interrupted))
        going.addBoth(outcome.append)
        going.addCallback(lambda _: reactor.stop())

    def interrupt() -> None:
        if not interrupted.called:
            interrupted.callback(None)

    reactor.callWhenRunning(begin)
    with _signals(lambda: reactor.callFromThread(interrupt)):
        reactor.run(installSignalHandlers=False)
    if isinstance(outcome[0], Failure):
        outcome[0].raiseException()
    result: Result = outcome[0]
    return result


@contextmanager
def _signals(interrupt: Callable[[], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: interrupt()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


async def first_of(*waited: defer.Deferred[Any]) -> None:
    """Return once one of them fires; raises what it failed with, if it did."""
    either: defer.Deferred[None] = defer.Deferred()

    def fired(result: Any) -> Any:
        if either.called:
            return result
        if isinstance(result, Failure):
            either.errback(result)
            return None
        either.callback(None)
        return result

    for each in waited:
        each.addBoth(fired)
    await either


@contextmanager
def after(reactor: Any, seconds: float | None) -> Iterator[defer.Deferred[None]]:
    """Gives a Deferred that fires after `seconds`, never for None; no timer outlives the block."""
    waiting: defer.Deferred[None] = defer.Deferred()
    call = None if seconds is None else reactor.callLater(seconds, waiting.callback, None)
    try:
        yield waiting
    finally:
        if call is not None and call.active():
            call.cancel()
