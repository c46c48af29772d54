"""A command's own reactor: it runs until the end or a signal, and leaves all as it was."""

from __future__ import annotations

import os
import signal

import pytest
from twisted.internet import defer

from pushservice.cli.foreground import after, first_of, run


def test_what_is_run_returns_its_result_from_a_reactor_of_its_own():
    async def main(reactor, interrupted):
        waiting = defer.Deferred()
        reactor.callLater(0, waiting.callback, 5)
        return await waiting

    assert run(main) == 5
    assert run(main) == 5


def test_what_it_raises_comes_out():
    async def main(reactor, interrupted):
        raise ValueError("oops")

    with pytest.raises(ValueError, match="oops"):
        run(main)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_fires_once_and_handlers_are_restored(number):
    before = signal.getsignal(number)

    async def main(reactor, interrupted):
        reactor.callLater(0, os.kill, os.getpid(), number)
        reactor.callLater(0, os.kill, os.getpid(), number)
        await interrupted
        return "interrupted"

    assert run(main) == "interrupted"
    assert signal.getsignal(number) is before


def test_the_first_of_several_ends_the_wait_and_the_others_stay():
    slow, fast = defer.Deferred(), defer.Deferred()
    waiting = defer.ensureDeferred(first_of(slow, fast))
    assert not waiting.called
    fast.callback(None)
    assert waiting.called
    again = defer.ensureDeferred(first_of(slow))
    assert not again.called
    slow.callback(None)
    assert again.called


def test_a_failure_of_the_first_comes_out_and_a_later_one_is_left_to_others():
    failing, other = defer.Deferred(), defer.Deferred()
    waiting = defer.ensureDeferred(first_of(failing, other))
    failing.errback(ValueError("oops"))
    caught = []
    waiting.addErrback(caught.append)
    assert str(caught[0].value) == "oops"
    other.errback(KeyError())
    other.addErrback(caught.append)
    assert caught[1].check(KeyError)


def test_a_timeout_fires_in_time_and_leaves_no_timer_when_it_is_abandoned():
    async def main(reactor, interrupted):
        with after(reactor, 0.001) as over:
            await over
        with after(reactor, 3600) as over, after(reactor, None) as never:
            assert not over.called
            assert not never.called
        return reactor.getDelayedCalls()

    assert run(main) == []
