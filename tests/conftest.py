"""What all tests share: a redis-server, the npm package, proof that the reactor was left clean."""

from __future__ import annotations

import gc
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import pytest_twisted
from free_ports import free_port
from made_once import made_once
from npm_packages import npm_project, packed_client, project_with
from redis_process import RedisServer, start_redis
from twisted.internet import reactor, task
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from waiting import until, wait_for_line
from zope.interface import implementer

__all__ = ["RedisServer", "free_port", "start_redis", "until", "wait_for_line"]


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


@pytest.fixture(scope="session")
def client_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project for Node that has our npm package installed, and what its examples need."""

    def make(directory: Path) -> None:
        types = ["@types/node", "@types/react", "@types/react-dom", "@types/ws"]
        needed = ["esbuild", "react", "react-dom", "typescript", "ws", *types]
        npm_project(directory, packed_client(directory), *needed)

    made = made_once(tmp_path_factory, "client-project", make)
    return project_with(tmp_path_factory.mktemp("npm"), made)


@pytest.fixture
def signal_handlers() -> Iterator[None]:
    """For tests in which signals are caught: the handlers of before are given back."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# -- the reactor stays clean ---------------------------------------------------------------------


@implementer(ILogObserver)
class LoggedFailures:
    """Collects the failures that are logged, unhandled Deferreds among them."""

    def __init__(self) -> None:
        self.events: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        # Twisted's older code, such as that which calls dataReceived, logs by the older name.
        failure = event.get("log_failure") or event.get("failure")
        if failure is not None:
            self.events.append({**event, "log_failure": failure})

    def flush(self, *types: type[BaseException]) -> list[LogEvent]:
        """Take out the failures of `types`, which the test expected; returns them."""
        taken = [event for event in self.events if event["log_failure"].check(*types)]
        self.events = [event for event in self.events if event not in taken]
        return taken


def pytest_configure() -> None:
    """Take SIGINT, which a shell has its background jobs ignore: programs under test would too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--alone",
        choices=["only", "without"],
        help="run only the tests that load or measure the machine, or all others",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = config.getoption("--alone")
    if chosen is not None:
        wanted = [
            i for i in items if (i.get_closest_marker("alone") is None) == (chosen == "without")
        ]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(wanted)])
        items[:] = wanted


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Names long bytes, such as keys made on the spot, by their argument: ids must be stable."""
    return argname if isinstance(val, bytes) and len(val) > 40 else None


@pytest.fixture(autouse=True)
def logged_failures() -> Iterator[LoggedFailures]:
    """Fails a test that leaves delayed calls, open connections or unhandled failures behind."""
    observer = LoggedFailures()
    globalLogPublisher.addObserver(observer)
    # What is there by now is left out of the collections below: each would go through all of it.
    gc.collect()
    gc.freeze()
    sockets_before = set(reactor.getReaders()) | set(reactor.getWriters())
    calls_before = set(reactor.getDelayedCalls())
    yield observer
    gc.collect()
    globalLogPublisher.removeObserver(observer)
    left_calls = [call for call in reactor.getDelayedCalls() if call not in calls_before]
    if any(call.getTime() <= reactor.seconds() for call in left_calls):
        # A test may end in the middle of a turn; what is due then is no leftover.
        pytest_twisted.blockon(task.deferLater(reactor, 0.05))
        left_calls = [call for call in reactor.getDelayedCalls() if call not in calls_before]
    left_sockets = (set(reactor.getReaders()) | set(reactor.getWriters())) - sockets_before
    # The reactor's own wakers, for threads and for ended processes, come with its first run.
    left_sockets = {left for left in left_sockets if "Waker" not in type(left).__name__}
    for call in left_calls:
        call.cancel()
    for left in left_sockets:
        reactor.removeReader(left)
        reactor.removeWriter(left)
    assert not left_calls, f"delayed calls left behind: {left_calls}"
    assert not left_sockets, f"still in the reactor: {left_sockets}"
    assert not observer.events, f"failures logged: {observer.events}"
