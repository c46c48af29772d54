"""twistd's process: what signals bring, what is told to systemd and to operators."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import defer, reactor
from twisted.internet.error import ReactorNotRunning
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.logger import globalLogPublisher

from pushservice.config.config import Config
from pushservice.server.ports import CannotListen
from pushservice.service.startup import CannotStart
from pushservice.workers.plan import Plan
from pushservice.workers.process import Process


class Backend:
    """Serves nobody, and keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.serves = False
        self.found: list[str] = []
        self.plans: list[Plan] = []
        self.reloaded: list[defer.Deferred[bool]] = []
        self.stopped: defer.Deferred[None] = defer.Deferred()

    def privilegedStartService(self) -> None:
        self.told.append("listen")

    def startService(self) -> None:
        self.told.append("start")

    def stopService(self) -> defer.Deferred[None]:
        self.told.append("stop")
        return self.stopped

    def abort(self) -> None:
        self.told.append("abort")

    def faults(self) -> list[str]:
        return self.found

    def status(self) -> dict[str, Any]:
        return {"pid": 1, "workers": [{"number": 1, "clients": 2}]}

    def figures(self) -> dict[str, Any]:
        return {"totals": {"subscriptions": 7}}

    async def clients(self, most: int) -> dict[str, Any]:
        return {"clients": [most]}

    async def symbols(self, most: int) -> dict[str, Any]:
        return {"symbols": [most]}

    async def reload(self, plan: Plan) -> bool:
        self.plans.append(plan)
        self.reloaded.append(defer.Deferred())
        return await self.reloaded[-1]


class Stoppable(Clock):
    """Time is the test's; ports and threads are real."""

    def __init__(self) -> None:
        super().__init__()
        self.stops = 0
        self.running = True

    listenTCP = staticmethod(reactor.listenTCP)
    listenUNIX = staticmethod(reactor.listenUNIX)
    callFromThread = staticmethod(reactor.callFromThread)

    def callWhenRunning(self, call: Callable[[], object]) -> None:
        call()

    def stop(self) -> None:
        if not self.running:
            raise ReactorNotRunning
        self.running = False
        self.stops += 1


class Run:
    """A process around a backend, with a systemd that listens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: str, **values: Any) -> None:
        self.systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.systemd.bind(path)
        self.systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        monkeypatch.setenv("WATCHDOG_USEC", "20000000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        monkeypatch.setattr("setproctitle.setproctitle", lambda _title: None)
        self.reactor, self.backend = Stoppable(), Backend()
        self.next: Plan | Exception = Plan(Config(**values), {})
        config = Config(**{"admin": None} | values)
        self.process = Process(
            self.reactor, Plan(config, {}), self.backend, "quotepush", self._load
        )
        self.process.privilegedStartService()
        self.process.startService()
        self.ended = False

    def _load(self) -> Plan:
        if isinstance(self.next, Exception):
            raise self.next
        return self.next

    def messages(self) -> list[str]:
        """What systemd was told since the last call."""
        found = []
        while True:
            try:
                found.append(self.systemd.recv(1000).decode())
            except BlockingIOError:
                return found

    async def end(self) -> None:
        if not self.ended:
            self.ended = True
            stopped = self.process.stopService()
            if not self.backend.stopped.called:
                self.backend.stopped.callback(None)
            await stopped
        self.systemd.close()
        assert self.reactor.getDelayedCalls() == []


@pytest.fixture
def run(monkeypatch, tmp_path, signal_handlers):
    """run(**config): a process that is stopped at the end."""
    made: list[Run] = []

    def one(**values: Any) -> Run:
        made.append(Run(monkeypatch, str(tmp_path / "notify"), **values))
        return made[-1]

    yield one
    for each in made:
        pytest_twisted.blockon(defer.ensureDeferred(each.end()))


@pytest.fixture
def lines():
    """What is logged, as text."""
    found: list[str] = []

    def observe(event: dict[str, Any]) -> None:
        if event.get("log_format"):
            found.append(event["log_format"].format_map(event))

    globalLogPublisher.addObserver(observe)
    yield found
    globalLogPublisher.removeObserver(observe)


# -- the end ---------------------------------------------------------------------------------------


def test_told_to_end_it_ends_in_order(run):
    daemon = run(plain=True)
    daemon.process.leave()
    daemon.reactor.advance(0)
    assert daemon.reactor.stops == 1
    assert daemon.backend.told == ["listen", "start"]
    assert daemon.process.faults() == ["draining"]


def test_load_balancers_are_told_for_a_while_before_it_ends(run):
    daemon = run(plain=True, drain_delay=10.0)
    daemon.process.leave()
    assert daemon.process.faults() == ["draining"]
    daemon.reactor.advance(9.9)
    assert daemon.reactor.stops == 0
    daemon.reactor.advance(0.2)
    assert daemon.reactor.stops == 1


@pytest_twisted.ensureDeferred
async def test_told_twice_in_the_delay_it_drops_all_as_soon_as_it_ends(run):
    daemon = run(plain=True, drain_delay=10.0)
    daemon.process.leave()
    daemon.process.leave()
    assert daemon.reactor.stops == 1
    daemon.reactor.advance(11)
    stopped = daemon.process.stopService()
    assert daemon.backend.told[-2:] == ["stop", "abort"]
    daemon.backend.stopped.callback(None)
    await stopped
    daemon.ended = True


@pytest_twisted.ensureDeferred
async def test_told_again_while_it_ends_it_drops_who_is_left(run):
    daemon = run(plain=True)
    daemon.process.leave()
    daemon.reactor.advance(0)
    stopped = daemon.process.stopService()
    assert daemon.backend.told[-1] == "stop"
    daemon.process.leave()
    assert daemon.backend.told[-1] == "abort"
    assert daemon.reactor.stops == 1, "it had been stopped"
    daemon.backend.stopped.callback(None)
    await stopped
    daemon.ended = True


@pytest_twisted.ensureDeferred
async def test_signals_are_what_does_all_this(run, monkeypatch):
    daemon = run(plain=True)
    os.kill(os.getpid(), signal.SIGHUP)
    turn: defer.Deferred[None] = defer.Deferred()
    reactor.callLater(0.01, turn.callback, None)
    await turn
    assert len(daemon.backend.plans) == 1
    daemon.backend.reloaded[0].callback(True)
    await daemon.end()
    # What is left is twistd's: its pidfile, say.
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        assert signal.getsignal(number) is signal.SIG_IGN


# -- reload ----------------------------------------------------------------------------------------


def test_a_reload_runs_what_is_there_now_and_says_what_it_can_not_change(run, lines):
    daemon = run(plain=True)
    daemon.next = Plan(Config(plain=True, log_keep=3, drain_delay=4.0, admin=None), {})
    daemon.process.reload()
    assert daemon.backend.plans == [daemon.next]
    assert "the configuration is loaded" not in lines
    daemon.backend.reloaded[0].callback(True)
    assert "the configuration is loaded" in lines
    assert "--log-keep holds from the next start on" in lines
    daemon.process.leave()
    daemon.reactor.advance(3.9)
    assert daemon.reactor.stops == 0, "the new delay holds"
    daemon.reactor.advance(0.2)


def test_told_to_reload_while_it_reloads_it_does_so_once_more_after_it(run):
    daemon = run(plain=True)
    for _ in range(3):
        daemon.process.reload()
    assert len(daemon.backend.plans) == 1
    daemon.backend.reloaded[0].callback(True)
    assert len(daemon.backend.plans) == 2
    daemon.backend.reloaded[1].callback(True)
    assert len(daemon.backend.plans) == 2
    daemon.process.reload()
    assert len(daemon.backend.plans) == 3
    daemon.backend.reloaded[2].callback(True)


@pytest.mark.parametrize("where", ["load", "reload"])
def test_what_can_not_be_run_is_said_line_by_line_and_the_next_reload_is_another_chance(
    run, lines, where
):
    daemon = run(plain=True)
    if where == "load":
        good, daemon.next = daemon.next, ValueError("one\ntwo")
        daemon.process.reload()
        daemon.next = good
    else:
        daemon.process.reload()
        daemon.backend.reloaded[0].errback(CannotListen("one\ntwo"))
    for words in ("one", "two"):
        assert f"the configuration stays as it was: {words}" in lines
    assert "the configuration is loaded" not in lines
    daemon.process.reload()
    daemon.backend.reloaded[-1].callback(True)
    assert "the configuration is loaded" in lines


def test_a_reload_that_fails_in_an_unknown_way_is_logged_and_the_next_one_possible(
    run, logged_failures
):
    daemon = run(plain=True)
    daemon.process.reload()
    daemon.backend.reloaded[0].errback(ZeroDivisionError())
    assert logged_failures.flush(ZeroDivisionError)
    daemon.process.reload()
    daemon.backend.reloaded[1].callback(False)


def test_while_it_ends_nothing_is_loaded_and_no_reload_is_over(run):
    daemon = run(plain=True)
    daemon.process.reload()
    daemon.process.reload()
    daemon.process.leave()
    daemon.messages()
    daemon.process.reload()
    daemon.backend.reloaded[0].callback(False)
    assert len(daemon.backend.plans) == 1
    assert "READY=1" not in daemon.messages()
    daemon.reactor.advance(0)


# -- what is told ----------------------------------------------------------------------------------


def test_systemd_hears_when_it_is_ready_how_it_stands_that_it_lives_and_that_it_ends(run):
    daemon = run(plain=True)
    assert daemon.messages() == ["WATCHDOG=1"]
    daemon.reactor.advance(1)
    assert daemon.messages() == ["STATUS=all is well"]
    daemon.backend.serves, daemon.backend.found = True, ["the feed is down"]
    daemon.reactor.advance(1)
    assert daemon.messages() == ["READY=1", "STATUS=the feed is down"]
    daemon.reactor.advance(1)
    assert daemon.messages() == []
    daemon.reactor.advance(7)
    assert daemon.messages() == ["WATCHDOG=1"]
    daemon.process.reload()
    assert daemon.messages()[0].startswith("RELOADING=1\nMONOTONIC_USEC=")
    daemon.backend.reloaded[0].callback(True)
    assert daemon.messages() == ["READY=1"]
    daemon.process.stopService()
    assert daemon.messages() == ["STOPPING=1"]
    daemon.reactor.advance(10)
    assert daemon.messages() == ["WATCHDOG=1"], "it lives while it drains"


def test_a_reload_that_is_over_before_anybody_is_served_makes_nothing_ready(run):
    daemon = run(plain=True)
    daemon.next = ValueError("bad")
    daemon.process.reload()
    assert "READY=1" not in daemon.messages()
    daemon.backend.serves = True
    daemon.reactor.advance(1)
    assert "READY=1" in daemon.messages()


def test_how_it_stands_is_a_line_for_each_process(run, lines):
    daemon = run(plain=True)
    daemon.process.log_status()
    assert "status: {'pid': 1}" in lines
    assert "status of worker 1: {'number': 1, 'clients': 2}" in lines


def test_histograms_and_sums_are_left_out_of_the_log_and_what_is_there_twice(run, lines):
    daemon = run(plain=True)
    of_process = {"clients": 2, "measures": {"a": 1}}
    daemon.backend.status = lambda: {
        "pid": 1,
        **of_process,
        "workers": [{"number": 0} | of_process],
        "totals": {"clients": 2},
    }
    daemon.process.log_status()
    assert [line for line in lines if "status" in line] == ["status: {'pid': 1, 'clients': 2}"]


@pytest_twisted.ensureDeferred
async def test_the_process_answers_as_its_backend_does_and_is_ready_by_its_faults(run):
    daemon = run(plain=True)
    assert await daemon.process.clients(3) == {"clients": [3]}
    assert await daemon.process.symbols(4) == {"symbols": [4]}
    assert daemon.process.figures() == {"totals": {"subscriptions": 7}, "ready": 1}
    daemon.process.leave()
    assert daemon.process.figures()["ready"] == 0
    daemon.reactor.advance(0)


@pytest_twisted.ensureDeferred
async def test_operators_are_answered_until_the_end(run):
    daemon = run(plain=True, admin=("127.0.0.1", 0))
    where = ("127.0.0.1", daemon.process._admin.getHost().port)
    assert (await deferToThread(ask, where))["pid"] == 1
    stopped = daemon.process.stopService()
    assert (await deferToThread(ask, where))["faults"] == ["draining"]
    daemon.backend.stopped.callback(None)
    await stopped
    daemon.ended = True
    with pytest.raises(ConnectionRefusedError):
        await deferToThread(ask, where)


def ask(where: tuple[str, int]) -> dict[str, Any]:
    with socket.create_connection(where, timeout=10) as client:
        client.sendall(b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        data = b"".join(iter(lambda: client.recv(65536), b""))
    return json.loads(data.partition(b"\r\n\r\n")[2])


def test_a_busy_admin_port_is_one_line_and_the_end(signal_handlers):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = Config(plain=True, admin=taken.getsockname())
        process = Process(
            Stoppable(), Plan(config, {}), Backend(), "quotepush", lambda: Plan(config, {})
        )
        with pytest.raises(CannotStart, match="quotepush: --admin: can't listen") as caught:
            process.privilegedStartService()
    assert "\n" not in str(caught.value)
