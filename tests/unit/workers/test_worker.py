"""A worker process: what the manager's words do to a daemon, and what it says of itself."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from waiting import until
from worker_doubles import SpawningReactor

from pushservice.config.config import Config
from pushservice.protocol.close_codes import CloseCode
from pushservice.redis.url import redis_address
from pushservice.server.client_counts import ClientCounts
from pushservice.service.daemon import Daemon
from pushservice.service.worker_setup import WorkerSetup
from pushservice.workers import worker as worker_room
from pushservice.workers import worker_link
from pushservice.workers.worker import (
    FLUSH_TIMEOUT,
    STATUS_EVERY,
    Worker,
    setup_and_config,
    stop_when_sent,
)
from pushservice.workers.worker_link import MessageDecoder, encoded

OPTIONS = {"plain": True, "redis": ["unix:///nowhere/redis.sock"], "drain-timeout": "5"}
FIRST: dict[str, Any] = {
    "number": 2,
    "entry": 4,
    "core": None,
    "log_level": "info",
    "materials": [],
    "sockets": [],
    "redis_socket": None,
    "options": OPTIONS,
}


class Link:
    """Keeps what is said to the manager."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []
        self.closed = False

    def send(self, message: dict[str, Any], needed: bool = True) -> bool:
        self.said.append(message)
        return True

    def close(self) -> Deferred[None]:
        self.closed = True
        return succeed(None)

    def words(self) -> list[str]:
        told_by_themselves = ("status", "feed_up", "feed_down")
        return [word["is"] for word in self.said if word["is"] not in told_by_themselves]


class Stopping:
    """The real reactor, but for its end."""

    def __init__(self) -> None:
        self.running = True

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)

    def stop(self) -> None:
        assert self.running
        self.running = False


@pytest.fixture
def made(monkeypatch) -> Iterator[tuple[Worker, Link, Stopping, Daemon]]:
    """A worker in this process, on a setup."""
    counts = ClientCounts()
    values = os.memfd_create("values")
    monkeypatch.setattr(worker_link, "VALUES", values)
    config = Config(plain=True, redis=(redis_address("unix:///nowhere/s"),), registry_prefix=None)
    link, stopping = Link(), Stopping()
    daemon = Daemon(stopping, config, WorkerSetup(2, 4, counts))
    worker = Worker(stopping, link, daemon)
    worker.start()
    yield worker, link, stopping, daemon
    pytest_twisted.blockon(daemon.stopService())
    if worker._statuses.running:
        worker._statuses.stop()
    counts.close()
    os.close(values)


def test_it_serves_counts_and_says_so_once_it_is_told(made):
    worker, link, _, daemon = made
    assert link.words() == []
    counts = daemon.connections.balance._counts
    assert counts.serving() == []
    worker.receive({"do": "serve"})
    assert link.words() == ["serving"]
    assert counts.serving() == [0]


@pytest_twisted.ensureDeferred
async def test_values_are_handed_on_and_taken_over_as_it_is_told(made):
    worker, link, _, daemon = made
    daemon.hub.publish("A", b"1")
    daemon.hub.flush()
    worker.receive({"do": "dump_values"})
    await until(lambda: "values_dumped" in link.words(), "the values")
    assert link.said[-1] == {"is": "values_dumped", "values": 1}
    daemon.hub.values.forget("A")
    worker.receive({"do": "load_values"})
    await until(lambda: "values_loaded" in link.words(), "its reading")
    assert daemon.hub.recent_symbols(5) == ["A"]


@pytest_twisted.ensureDeferred
async def test_values_that_can_not_be_read_are_none_and_no_end(made, logged_failures):
    worker, link, stopping, _ = made
    os.write(worker_link.VALUES, b"\0\0\0\x05nonsense")
    worker.receive({"do": "load_values"})
    await until(lambda: "values_loaded" in link.words(), "an answer")
    assert link.said[-1] == {"is": "values_loaded", "values": 0}
    assert stopping.running
    assert logged_failures.flush(ValueError)


@pytest_twisted.ensureDeferred
async def test_it_drains_says_so_and_ends_once(made):
    worker, link, stopping, daemon = made
    worker.receive({"do": "serve"})
    worker.receive({"do": "drain", "code": 1012})
    worker.receive({"do": "drain", "code": 1001})
    worker.receive({"do": "serve"})
    await until(lambda: not stopping.running, "the end")
    assert link.words() == ["serving", "drained"]
    assert link.closed
    assert link.said[-2]["status"]["draining"]
    assert daemon.connections.balance._counts.serving() == []


def test_a_word_that_fails_or_is_unknown_is_logged_and_ends_nothing(made, logged_failures):
    worker, link, stopping, _ = made
    worker.receive({"do": "dance"})
    worker.receive({"do": "drain", "code": 77})
    worker.receive({})
    worker.receive({"do": "serve"})
    assert link.words() == ["serving"]
    assert stopping.running
    assert len(logged_failures.flush(KeyError, ValueError)) == 3


def test_whether_quotes_come_in_is_said_as_it_changes(made):
    _, link, _, daemon = made
    daemon._sources._feed_changed(True)
    daemon._sources._feed_changed(False)
    assert [word["is"] for word in link.said[-2:]] == ["feed_up", "feed_down"]


@pytest_twisted.ensureDeferred
async def test_without_a_manager_it_goes_and_the_kernel_sees_to_it(made, monkeypatch):
    worker, _, stopping, _ = made
    alarms: list[int] = []
    monkeypatch.setattr(worker_room.signal, "alarm", alarms.append)
    before = signal.getsignal(signal.SIGALRM)
    worker.manager_lost()
    await until(lambda: not stopping.running, "the end")
    signal.signal(signal.SIGALRM, before)
    assert alarms == [worker_room.ORPHAN_KILL_DELAY]
    for call in reactor.getDelayedCalls():
        if call.func == worker._daemon.abort:
            call.cancel()


@pytest_twisted.ensureDeferred
async def test_how_it_stands_is_said_every_second_also_after_a_failure(
    made, logged_failures, monkeypatch
):
    worker, link, _, daemon = made
    assert STATUS_EVERY == 1.0
    statuses = [message for message in link.said if message["is"] == "status"]
    assert statuses[0]["status"]["clients"] == 0
    assert statuses[0]["status"]["draining"] is False
    monkeypatch.setattr(daemon, "status", lambda: 1 / 0)
    worker._status()
    monkeypatch.undo()
    worker._status()
    assert len([message for message in link.said if message["is"] == "status"]) == 2
    assert logged_failures.flush(ZeroDivisionError)


def test_a_manager_that_does_not_listen_is_not_waited_for_for_ever():
    class Deaf(Link):
        def close(self) -> Deferred[None]:
            return Deferred()

    clock = SpawningReactor()
    stops: list[int] = []
    clock.running, clock.stop = True, lambda: stops.append(1)
    stop_when_sent(Deaf(), clock)
    clock.advance(FLUSH_TIMEOUT - 0.1)
    assert stops == []
    clock.advance(0.2)
    assert stops == [1]


def test_the_setup_is_read_from_the_first_message(monkeypatch):
    counts = ClientCounts()
    monkeypatch.setattr(worker_link, "COUNTS", counts.descriptor)
    sockets = [["tcp:1", socket.AF_INET], ["unix:/s", socket.AF_UNIX]]
    setup, config = setup_and_config(FIRST | {"sockets": sockets, "redis_socket": "/r"})
    assert (setup.number, setup.entry, setup.redis_socket, setup.registry_suffix) == (
        2,
        4,
        "/r",
        "-2a",
    )
    assert [tuple(each) for each in setup.sockets] == [
        ("tcp:1", worker_link.SOCKETS, socket.AF_INET),
        ("unix:/s", worker_link.SOCKETS + 1, socket.AF_UNIX),
    ]
    assert config.plain
    assert config.drain_timeout == 5
    with pytest.raises(ValueError, match="port"):
        setup_and_config(FIRST | {"options": {"port": "x"}})
    setup.counts.close()
    counts.close()


# -- as a process ----------------------------------------------------------------------------------


class Process:
    """A real worker process, and the manager's ends of its pipes."""

    def __init__(self, first: dict[str, Any], *sockets: socket.socket) -> None:
        told, self.tells = os.pipe()
        hears, says = os.pipe()
        counts, values = os.memfd_create("counts"), os.memfd_create("values")
        self.counts = ClientCounts()
        os.close(counts)
        given = [told, says, self.counts.descriptor, values, *(each.fileno() for each in sockets)]
        # Descriptors by number, as spawnProcess gives them.
        high = [os.dup(each) for each in given]
        placing = (
            "import os, sys\n"
            "given = list(map(int, sys.argv[1].split(',')))\n"
            "high = [os.dup2(each, 100 + at) for at, each in enumerate(given)]\n"
            "for at in range(len(given)): os.dup2(100 + at, 3 + at)\n"
            "os.closerange(3 + len(given), 200)\n"
            "from pushservice.workers.worker import main; main()\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", placing, ",".join(map(str, high))],
            pass_fds=high,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for each in (told, says, values, *high):
            os.close(each)
        self.hears = hears
        self._lines = MessageDecoder()
        self.heard: list[dict[str, Any]] = []
        self.tell(first)

    def tell(self, message: dict[str, Any]) -> None:
        os.write(self.tells, encoded(message))

    def hear(self, word: str) -> dict[str, Any]:
        """Read until it says this."""
        while True:
            readable, _, _ = select.select([self.hears], [], [], 20)
            assert readable, f"waited 20 s for {word}: {self.heard}"
            data = os.read(self.hears, 65536)
            assert data, f"it ended without {word}: {self.heard}"
            messages = self._lines.feed(data)
            self.heard += messages
            for message in messages:
                if message["is"] == word:
                    return message

    def words(self) -> list[str]:
        return [message["is"] for message in self.heard]

    def end(self) -> int:
        if self.tells >= 0:
            self.let_go()
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.hears)
            assert self.process.stderr is not None
            self.errors = self.process.stderr.read()
            self.process.stderr.close()
            self.counts.close()

    def let_go(self) -> None:
        os.close(self.tells)
        self.tells = -1


def test_a_process_serves_on_the_socket_it_was_given_and_drains():
    with socket.create_server(("127.0.0.1", 0)) as server:
        worker = Process(FIRST | {"sockets": [["tcp:0", socket.AF_INET]]}, server)
        worker.hear("status")
        worker.tell({"do": "serve"})
        worker.hear("serving")
        with socket.create_connection(server.getsockname(), timeout=10) as client:
            client.sendall(b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 404")
        worker.tell({"do": "drain", "code": int(CloseCode.GOING_AWAY)})
        worker.hear("drained")
        assert worker.end() == 0
    assert worker.errors == b""
    logged = [message["event"]["message"] for message in worker.heard if message["is"] == "log"]
    assert any(text.startswith("quotepush ") for text in logged)


def test_a_process_that_can_not_start_says_why():
    worker = Process(FIRST | {"options": {"port": "x"}})
    failed = worker.hear("failed")
    assert "port" in failed["why"]
    assert worker.end() == 1
    assert worker.errors == b""


def test_a_process_whose_manager_is_gone_before_it_is_told_anything_just_ends():
    worker = Process(FIRST)
    # The first message is there; a second process gets none.
    worker.hear("status")
    worker.let_go()
    assert worker.end() == 0
    code = "import os; os.dup2(0, 3); from pushservice.workers.worker import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_process_that_is_told_to_end_by_somebody_else_asks_its_manager():
    worker = Process(FIRST)
    worker.hear("status")
    worker.tell({"do": "serve"})
    worker.hear("serving")
    worker.process.send_signal(signal.SIGINT)
    worker.process.send_signal(signal.SIGHUP)
    worker.hear("status")
    worker.process.send_signal(signal.SIGTERM)
    worker.hear("replace_me")
    worker.tell({"do": "drain", "code": int(CloseCode.RESTARTING)})
    worker.hear("drained")
    assert worker.end() == 0


def test_a_process_that_is_stuck_says_where():
    worker = Process(FIRST)
    worker.hear("status")
    worker.process.send_signal(signal.SIGABRT)
    assert worker.end() == -signal.SIGABRT
    assert b"Fatal Python error: Aborted" in worker.errors


@pytest_twisted.ensureDeferred
async def test_a_report_is_told_with_the_number_of_its_question(made):
    worker, link, _, daemon = made
    daemon.hub.publish("A", b"1")
    daemon.hub.flush()
    worker.receive({"do": "report", "id": 7, "what": "clients", "most": 3})
    worker.receive({"do": "report", "id": 8, "what": "symbols", "most": 3})
    worker.receive({"do": "report", "id": 9, "what": "named", "symbols": ["A", "B"]})
    await until(lambda: link.words().count("report") == 3, "the reports")
    reports = {each["id"]: each["report"] for each in link.said if each["is"] == "report"}
    assert reports[7] == {"clients": [], "total": 0}
    assert [row["symbol"] for row in reports[8]["symbols"]] == ["A"]
    assert [row["symbol"] for row in reports[9]["symbols"]] == ["A"]


@pytest_twisted.ensureDeferred
async def test_a_report_that_fails_is_logged_and_ends_nothing(made, logged_failures, monkeypatch):
    worker, link, stopping, daemon = made
    monkeypatch.setattr(daemon.hub, "outboxes", lambda: 1 / 0)
    worker.receive({"do": "report", "id": 7, "what": "clients", "most": 3})
    worker.receive({"do": "report", "id": 8, "what": "nonsense", "most": 3})
    await until(lambda: logged_failures.flush(ZeroDivisionError), "the failure")
    assert logged_failures.flush(KeyError)
    monkeypatch.undo()
    assert "report" not in link.words()
    assert stopping.running
