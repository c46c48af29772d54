"""A real redis-server as a child process, for tests."""

from __future__ import annotations

import os
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from waiting import wait_for_line

from pushservice.embedded import find_redis_server


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
