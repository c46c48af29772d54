"""Signals: caught from the start, delivered in the reactor, ignored at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import pytest_twisted
from twisted.internet import reactor
from waiting import until

from pushservice.workers.signals import Signals

pytestmark = pytest.mark.usefixtures("signal_handlers")


@pytest_twisted.ensureDeferred
async def test_a_signal_is_one_call_in_a_turn_of_the_reactor_each_time_it_comes():
    came: list[str] = []
    signals = Signals(
        reactor,
        {signal.SIGUSR1: lambda: came.append("1"), signal.SIGHUP: lambda: came.append("hup")},
    )
    signals.install()
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGHUP)
    assert came == [], "not in the midst of anything"
    await until(lambda: len(came) == 3, "the calls")
    assert sorted(came) == ["1", "1", "hup"]


@pytest_twisted.ensureDeferred
async def test_what_comes_around_the_end_is_not_delivered_and_ends_nothing():
    came: list[int] = []
    signals = Signals(reactor, {signal.SIGUSR1: lambda: came.append(1)})
    signals.install()
    os.kill(os.getpid(), signal.SIGUSR1)
    signals.ignore()
    os.kill(os.getpid(), signal.SIGUSR1)
    turns: list[int] = []
    reactor.callLater(0.01, turns.append, 1)
    await until(lambda: turns, "a turn")
    assert came == []


_EARLY = """
import os, signal
from twisted.internet import reactor
from pushservice.workers.signals import Signals

came = []

def heard(name):
    came.append(name)
    print(name, reactor.running, flush=True)
    if name == "int":
        reactor.callLater(0, os.kill, os.getpid(), signal.SIGTERM)
    elif name == "term":
        reactor.stop()

signals = Signals(reactor, {
    signal.SIGTERM: lambda: heard("term"),
    signal.SIGINT: lambda: heard("int"),
    signal.SIGHUP: lambda: heard("hup"),
})
signals.install()
os.kill(os.getpid(), signal.SIGHUP)
os.kill(os.getpid(), signal.SIGINT)
assert not came
reactor.run()
print("ended", flush=True)
"""


def test_signals_of_before_the_reactor_runs_are_delivered_once_it_does_and_end_nothing():
    done = subprocess.run(
        [sys.executable, "-c", _EARLY], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split("\n") == ["hup True", "int True", "term True", "ended", ""]
    assert done.returncode == 0, "SIGINT and SIGTERM came as calls, not as the process's end"
