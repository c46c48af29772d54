"""What the system tests share: the daemon as a process, a fast publisher, clients, bare frames.

Everything that waits has a deadline and says, when it passes, what it waited for.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

TWISTD = str(Path(sys.executable).with_name("twistd"))
DEADLINE = 20.0


class RedisServer(Protocol):
    """What tests/conftest.py gives as `redis_server` and by `own_redis`."""

    port: int
    path: str
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str: ...
    @property
    def socket_url(self) -> str: ...
    def stop(self) -> None: ...


def poll(condition: Callable[[], object], what: str, seconds: float = DEADLINE) -> None:
    """Wait for something outside that nobody announces, such as the end of a foreign process."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.01)


async def poll_async(condition: Callable[[], object], what: str, seconds: float = DEADLINE) -> None:
    """Like `poll`, and the event loop goes on."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        await asyncio.sleep(0.01)


def environment(**changes: str) -> dict[str, str]:
    """The environment for a daemon: ours without what would change its options.

    The kind of outlets is kept: CI runs these tests with each. The size of a terminal, which
    pytest-xdist sets, is left out: programs ask their own terminal.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "QUOTEPUSH_OUTLET"
        or not (name.startswith("QUOTEPUSH_") or name in ("COLUMNS", "LINES"))
    }
    return kept | changes


# -- the daemon ----------------------------------------------------------------------------------


@dataclass
class Address:
    """Where a daemon is, and what a client needs to trust it."""

    port: int
    certs: Path
    plain: bool = False

    @property
    def url(self) -> str:
        return f"{'ws' if self.plain else 'wss'}://localhost:{self.port}/"

    @property
    def ssl_context(self) -> ssl.SSLContext | None:
        """A context that trusts the development certificate and nothing else; None where plain."""
        if self.plain:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.certs / "dev.crt")
        return context


def for_two_threads(context: ssl.SSLContext | None) -> ssl.SSLContext | None:
    """`context`, limited to TLS 1.2: for websockets' threaded client.

    That client sends its handshake in one thread while another already reads. CPython 3.11 guards
    no SSL object against that, and where the tickets of TLS 1.3 arrive meanwhile, the request is
    lost in about one of a thousand handshakes, with any server.
    """
    if context is not None:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


class Daemon(Address):
    """A `twistd -n quotepush` of our own; its output is read by a thread."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        port: int,
        directory: Path,
        certs: Path,
        plain: bool = False,
        env: dict[str, str] | None = None,
        own_session: bool = False,
        descriptors: Sequence[int] = (),
    ) -> None:
        """With `own_session` it leads a session, and a process group, of all it starts."""
        super().__init__(port, certs, plain)
        #: whether a traceback in the output is what the test expects
        self.may_log_tracebacks = False
        self._lines: list[str] = []
        self._ended = False
        self._news = threading.Condition()
        self.process = subprocess.Popen(
            command,
            cwd=directory,
            env=environment(**(env or {})),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=own_session,
            pass_fds=descriptors,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self._lines.append(line.decode("utf-8", "replace"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def output(self) -> str:
        """All that the daemon has written so far."""
        with self._news:
            return "".join(self._lines)

    def wait_for(self, text: str, *, times: int = 1, seconds: float = DEADLINE) -> str:
        """Wait until `text` was written `times` times; returns the line that has it last."""
        deadline = time.monotonic() + seconds
        with self._news:
            while True:
                found = [line for line in self._lines if text in line]
                if len(found) >= times:
                    return found[times - 1]
                left = deadline - time.monotonic()
                assert not self._ended, f"the daemon ended without {text!r}: {''.join(self._lines)}"
                assert left > 0, f"no {text!r} in {seconds} s: {''.join(self._lines)}"
                self._news.wait(left)

    def serving(self) -> psutil.Process:
        """The process that serves clients: the first worker, or the daemon itself without any."""
        own = psutil.Process(self.process.pid)
        workers = [child for child in own.children() if child.name().startswith("quotepush: w")]
        return workers[0] if workers else own

    def wait_until_fed(self) -> None:
        """Wait until clients are served and every published quote comes in."""
        self.wait_for("is served")
        self.wait_for("connected for the feed")

    def wait(self, seconds: float = DEADLINE) -> int:
        """Wait until it has ended; returns its exit status."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(DEADLINE)
            raise AssertionError(f"it did not end in {seconds} s: {self.output()}") from None
        self._reader.join(DEADLINE)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """End it and return its exit status; may be called twice."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        return self.wait()


class StartDaemon(Protocol):
    """The `daemon` fixture."""

    def __call__(
        self,
        *options: str,
        redis: str | None = None,
        env: dict[str, str] | None = None,
        fed: bool = True,
    ) -> Daemon: ...


# -- the publisher -------------------------------------------------------------------------------


def _command(*words: bytes) -> bytes:
    head = b"*%d\r\n" % len(words)
    return head + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


class Publisher:
    """A connection to Redis that publishes pipelined."""

    def __init__(self, redis: RedisServer) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.settimeout(DEADLINE)
        self._connection.connect(redis.path)

    def publish(
        self, messages: Iterable[tuple[str, bytes | str]], *, together: bool = False
    ) -> None:
        """Publish (channel, payload) in order; `together` makes them one transaction.

        Redis sends a subscriber all of a transaction at once. Returns when Redis has it all.
        """
        commands = [
            _command(
                b"PUBLISH",
                channel.encode(),
                payload.encode() if isinstance(payload, str) else payload,
            )
            for channel, payload in messages
        ]
        lines = len(commands)
        if together:
            commands = [_command(b"MULTI"), *commands, _command(b"EXEC")]
            lines = 2 * lines + 2
        self._connection.sendall(b"".join(commands))
        replies = b""
        while replies.count(b"\r\n") < lines:
            received = self._connection.recv(65536)
            assert received, "Redis closed the publisher's connection"
            replies += received
        assert b"-" not in replies, f"Redis refused: {replies[-200:]!r}"

    def close(self) -> None:
        self._connection.close()


class Publish(Protocol):
    """The `publish` fixture."""

    def __call__(
        self,
        redis: RedisServer,
        messages: Iterable[tuple[str, bytes | str]],
        *,
        together: bool = False,
    ) -> None: ...
