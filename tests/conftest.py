"""What all tests share: a real redis-server, and proof that each test left the reactor clean."""

from __future__ import annotations

import gc
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from twisted.internet import defer, reactor
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

from pushservice.embedded import find_redis_server


def wait_for_line(stream: object, words: bytes) -> bytes:
    """Read lines of `stream` until one has `words`; returns all that was read. An end fails."""
    seen = b""
    for line in stream:  # type: ignore[attr-defined]  # any binary stream of lines
        seen += line
        if words in line:
            return seen
    raise AssertionError(f"the stream ended without {words!r}: {seen.decode(errors='replace')}")


def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class RedisServer:
    """A redis-server of our own; `url` and `socket_url` lead to it, `cli` speaks to it."""

    port: int
    path: str
    process: subprocess.Popen[bytes]
    arguments: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def socket_url(self) -> str:
        return f"unix://{self.path}"

    def cli(self, *words: str | bytes) -> bytes:
        """Send one command over a connection of its own and return the raw reply."""
        encoded = [word.encode() if isinstance(word, str) else word for word in words]
        command = b"*%d\r\n" % len(encoded)
        command += b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(self.path)
            connection.sendall(command)
            return connection.recv(65536)

    def stop(self) -> None:
        """End it; may be called twice."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        if self.process.stdout is not None:
            self.process.stdout.close()


def start_redis(directory: Path | str, *arguments: str, port: int | None = None) -> RedisServer:
    """Start a redis-server on a loopback port and a Unix socket; returns when it is ready."""
    port = port or free_port()
    path = str(Path(directory) / "redis.sock")
    command = [find_redis_server(), "--port", str(port), "--bind", "127.0.0.1"]
    command += ["--unixsocket", path, "--save", "", "--appendonly", "no", "--dir", str(directory)]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, env=os.environ)
    wait_for_line(process.stdout, b"eady to accept connections")
    return RedisServer(port, path, process, list(arguments))


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A redis-server for the whole run; tests use channels of their own."""
    directory = tempfile.mkdtemp(prefix="quotepush-test-")
    server = start_redis(directory)
    yield server
    server.stop()
    shutil.rmtree(directory)


@pytest.fixture
def own_redis() -> Iterator[Callable[..., RedisServer]]:
    """Starts redis-servers that a test may kill: own_redis(*arguments, port=None)."""
    directories: list[str] = []
    servers: list[RedisServer] = []

    def start(*arguments: str, port: int | None = None) -> RedisServer:
        directories.append(tempfile.mkdtemp(prefix="quotepush-test-"))
        servers.append(start_redis(directories[-1], *arguments, port=port))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
    for directory in directories:
        shutil.rmtree(directory)


# -- the reactor stays clean ---------------------------------------------------------------------


@implementer(ILogObserver)
class LoggedFailures:
    """Collects the failures that are logged, unhandled Deferreds among them."""

    def __init__(self) -> None:
        self.events: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_failure") is not None:
            self.events.append(event)

    def flush(self, *types: type[BaseException]) -> list[LogEvent]:
        """Take out the failures of `types`, which the test expected; returns them."""
        taken = [event for event in self.events if event["log_failure"].check(*types)]
        self.events = [event for event in self.events if event not in taken]
        return taken


@pytest.fixture(autouse=True)
def logged_failures() -> Iterator[LoggedFailures]:
    """Fails a test that leaves delayed calls, open connections or unhandled failures behind."""
    observer = LoggedFailures()
    globalLogPublisher.addObserver(observer)
    sockets_before = set(reactor.getReaders()) | set(reactor.getWriters())
    calls_before = set(reactor.getDelayedCalls())
    yield observer
    gc.collect()
    globalLogPublisher.removeObserver(observer)
    left_calls = [call for call in reactor.getDelayedCalls() if call not in calls_before]
    left_sockets = (set(reactor.getReaders()) | set(reactor.getWriters())) - sockets_before
    for call in left_calls:
        call.cancel()
    for left in left_sockets:
        reactor.removeReader(left)
        reactor.removeWriter(left)
    assert not left_calls, f"delayed calls left behind: {left_calls}"
    # The reactor's own waker comes with its first run.
    left_sockets = {left for left in left_sockets if "Waker" not in type(left).__name__}
    assert not left_sockets, f"still in the reactor: {left_sockets}"
    assert not observer.events, f"failures logged: {observer.events}"


async def until(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Let the reactor turn until `condition` holds; fails, naming `what`, past a deadline."""
    deadline = reactor.seconds() + seconds
    while not condition():
        assert reactor.seconds() < deadline, f"waited {seconds} s for {what}"
        turn: defer.Deferred[None] = defer.Deferred()
        reactor.callLater(0.005, turn.callback, None)
        await turn
