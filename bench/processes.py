"""Starts and ends the benchmark's processes, Redis and the server under test, each on its core."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
PEERS = Path(__file__).with_name("peers")
#: The server under test has a core to itself; everything else shares the other.
SERVER_CORE = 0
LOAD_CORE = 1
_START_SECONDS = 20
_STOP_SECONDS = 5


class DidNotStart(Exception):
    """A process ended, or was not ready in time; the text has the end of its output."""


@dataclass(frozen=True)
class Target:
    """A server to measure: `command` before its options, `style` of its subscribe message."""

    name: str
    title: str
    command: tuple[str, ...]
    style: str = "bare"
    ours: bool = False


def _peer(name: str, title: str, file: str, *options: str) -> Target:
    return Target(name, title, (sys.executable, str(PEERS / file), *options))


TARGETS = (
    Target(
        "quotepush",
        "quotepush",
        (
            *(str(ROOT / ".venv/bin/twistd"), "-n", "--pidfile=", "quotepush"),
            *("--workers", "0", "--admin", "off"),
        ),
        style="json",
        ours=True,
    ),
    _peer("autobahn", "Autobahn, prepared message", "autobahn_server.py"),
    _peer("websockets", "websockets, broadcast()", "websockets_server.py"),
    _peer("picows", "picows, as documented", "picows_server.py"),
    _peer("picows-joined", "picows, joined per read", "picows_server.py", "--joined"),
    _peer("socketify", "socketify (uWebSockets)", "socketify_server.py"),
    Target("node-ws", "Node's ws", ("node", str(PEERS / "ws_server.mjs"))),
)


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Processes that are started within the context run on this core."""
    usual = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, usual)


def stop(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """Terminate a process that was started here; kill it if that takes too long."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def send_queues(port: int) -> list[int]:
    """Bytes that the kernel holds, unsent or not acknowledged, for each connection to a port."""
    queues = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, waiting, *_ = line.split()
        if int(local.partition(":")[2], 16) == port and state == "01":
            queues.append(int(waiting.partition(":")[0], 16))
    return queues


def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(
    command: list[str], core: int, log: Path, words: str, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a process whose output goes to `log`; returns once `words` are in the log."""
    with log.open("wb") as output, pinned(core):
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
    deadline = time.monotonic() + _START_SECONDS
    while words not in (text := log.read_text(errors="replace")):
        if process.poll() is not None or time.monotonic() > deadline:
            stop(process)
            raise DidNotStart(f"{Path(command[0]).name} did not start:\n{text[-2000:]}")
        time.sleep(0.02)
    return process


class Redis:
    """A redis-server that listens on a Unix socket only."""

    def __init__(self, program: str, directory: Path) -> None:
        self.path = directory / "redis.sock"
        options = ["--port", "0", "--unixsocket", str(self.path), "--dir", str(directory)]
        options += ["--save", "", "--appendonly", "no"]
        log = directory / "redis.log"
        self._process = _start([program, *options], LOAD_CORE, log, "eady to accept", {})

    def close(self) -> None:
        """End the process."""
        stop(self._process)


class Server:
    """The process of a target, and the resources it has used."""

    def __init__(
        self,
        target: Target,
        directory: Path,
        redis: Path,
        pair: tuple[Path, Path] | None,
        more: Sequence[str] = (),
    ) -> None:
        """`more` are options for quotepush only."""
        self.port = free_port()
        options = ["--port", str(self.port)]
        if pair is not None:
            options += ["--cert", str(pair[0]), "--key", str(pair[1])]
        words = "ready\n"
        if target.ours:
            words = "connected for the feed"
            options += ["--interface", "127.0.0.1", "--redis", f"unix://{redis}", "--no-page"]
            options += ["--max-symbols", "5000"] + ([] if pair else ["--plain"])
            options += more
        else:
            options += ["--redis", str(redis)]
        environment = {"BENCH_NODE_MODULES": str(Path(sys.prefix) / "node_modules")}
        command = [*target.command, *options]
        log = directory / f"{target.name}.log"
        self._process = _start(command, SERVER_CORE, log, words, environment)
        self._watched = psutil.Process(self._process.pid)

    def cpu(self) -> float:
        """Seconds of CPU used so far, as the kernel accounts it: user and system, all threads."""
        times = self._watched.cpu_times()
        return times.user + times.system

    def others_cpu(self) -> float:
        """Seconds for which anything else has used the server's core, the kernel included.

        Counted since boot: only differences have a meaning.
        """
        core = psutil.cpu_times(percpu=True)[SERVER_CORE]
        return sum(core) - core.idle - core.iowait - core.guest - core.guest_nice - self.cpu()

    def rss(self) -> int:
        """Resident bytes."""
        return int(self._watched.memory_info().rss)

    def settle(self) -> None:
        """Wait until the process is idle, for some seconds at most."""
        for _ in range(20):
            before = self.cpu()
            time.sleep(0.15)
            if self.cpu() - before <= 0.011:
                return

    def close(self) -> None:
        """End the process."""
        stop(self._process)
