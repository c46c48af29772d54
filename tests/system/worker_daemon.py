"""Daemons with workers for system tests: start, status, log, end; and clients that follow them.

Each daemon leads a session of its own, so that a test finds every process that it leaves behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, Self

import psutil
from free_ports import free_port
from system_clients import open_websocket
from system_harness import (
    DEADLINE,
    TWISTD,
    Address,
    Daemon,
    Publisher,
    RedisServer,
    poll,
    poll_async,
)
from websockets.exceptions import ConnectionClosed, WebSocketException

#: Seconds that the long tests last; they are short unless QUOTEPUSH_SOAK asks for more.
SECONDS: Final = float(os.environ.get("QUOTEPUSH_SOAK", "12"))
LONG: Final = SECONDS > 30
#: Workers need longer to start where many do at once on a busy machine.
PATIENCE: Final = 60.0

Json = dict[str, Any]


def in_session(session: int) -> list[psutil.Process]:
    """The processes of a session that have not ended."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def can_bind(port: int) -> bool:
    """Whether somebody could listen on this port now, as a daemon does."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError:
            return False
    return True


class WorkerDaemon(Daemon):
    """A daemon whose pidfile, logs and temporary files are in `directory`."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        port: int,
        admin_port: int,
        directory: Path,
        certs: Path,
        plain: bool,
        env: dict[str, str],
        descriptors: Sequence[int],
    ) -> None:
        self.directory = directory
        self.admin_port = admin_port
        self.pidfile = directory / "pid"
        self.logfile = directory / "log"
        super().__init__(
            command,
            port=port,
            directory=directory,
            certs=certs,
            plain=plain,
            env=env,
            own_session=True,
            descriptors=descriptors,
        )

    # -- what it says of itself --------------------------------------------------------------------

    def ask(self, path: str) -> tuple[int, Json]:
        """What the admin port answers to a path: a status and JSON."""
        url = f"http://127.0.0.1:{self.admin_port}/{path}"
        try:
            with urllib.request.urlopen(url, timeout=DEADLINE) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, json.load(refusal)

    def workers(self, state: str | None = "serving") -> list[Json]:
        """The workers in a state, or all, by number."""
        found = self.ask("status")[1]["workers"]
        return sorted(
            (worker for worker in found if state in (None, worker["state"])),
            key=lambda worker: worker["number"],
        )

    def pids(self) -> dict[int, int]:
        """The process ids of the workers that serve, by number."""
        return {worker["number"]: worker["pid"] for worker in self.workers()}

    def wait_until_serving(self, count: int, unlike: Sequence[int] = ()) -> dict[int, int]:
        """Wait until so many workers, none of them `unlike`, serve and are fed, and no others are.

        Returns their process ids by number.
        """
        found: list[Json] = []

        def serving() -> bool:
            found[:] = self.workers(None)
            return len(found) == count and all(
                worker["state"] == "serving"
                and worker.get("feed") == "up"
                and worker["pid"] not in unlike
                for worker in found
            )

        try:
            poll(serving, f"{count} workers that serve", PATIENCE)
        except AssertionError:
            raise AssertionError(f"{count} workers were to serve: {found} {self.log()}") from None
        return {worker["number"]: worker["pid"] for worker in found}

    def log(self) -> str:
        """All that was logged, wherever that goes."""
        with contextlib.suppress(FileNotFoundError):
            return self.output() + self.logfile.read_text()
        return self.output()

    def wait_for_log(self, text: str, *, times: int = 1, seconds: float = PATIENCE) -> None:
        """Wait until `text` was logged `times` times."""
        try:
            poll(lambda: self.log().count(text) >= times, "", seconds)
        except AssertionError:
            raise AssertionError(f"no {text!r} in {seconds} s: {self.log()}") from None

    # -- what is done to it ------------------------------------------------------------------------

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def signal_group(self, number: int) -> None:
        """As a terminal's Ctrl-C does: to the whole process group."""
        os.killpg(self.process.pid, number)

    def session(self) -> list[psutil.Process]:
        """All processes of it that have not ended."""
        return in_session(self.process.pid)

    def left(self) -> list[str]:
        """What there is of it in its directory, beside logs."""
        return sorted(p.name for p in self.directory.iterdir() if not p.name.startswith("log"))

    def check_left_nothing(self, *but: str) -> None:
        """After its end: no process, port, pidfile, socket or temporary directory."""
        poll(lambda: not self.session(), "the end of all processes", 5)
        assert can_bind(self.port)
        assert can_bind(self.admin_port)
        assert self.left() == sorted(but)

    def end_all(self) -> None:
        """End whatever is left, by force."""
        for process in self.session():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.wait()


class StartWorkerDaemon(Protocol):
    """The `worker_daemon` fixture."""

    def __call__(
        self,
        *options: str,
        workers: int = 2,
        redis: str | None = None,
        logfile: bool = False,
        tls: bool = False,
        before: Sequence[str] = (),
        env: dict[str, str] | None = None,
        descriptors: Sequence[int] = (),
        port: int | None = None,
        wait: bool = True,
    ) -> WorkerDaemon: ...


def worker_daemons(  # noqa: C901 - the options of a start, one after the other
    redis_server: RedisServer, certs: Path, directory: Path
) -> Iterator[StartWorkerDaemon]:
    """What the `worker_daemon` fixture yields, and how it ends."""
    started: list[WorkerDaemon] = []

    def start(
        *options: str,
        workers: int = 2,
        redis: str | None = None,
        logfile: bool = False,
        tls: bool = False,
        before: Sequence[str] = (),
        env: dict[str, str] | None = None,
        descriptors: Sequence[int] = (),
        port: int | None = None,
        wait: bool = True,
    ) -> WorkerDaemon:
        # A configuration file, where there is one, says on what port, with how many workers and
        # with which certificates.
        own = directory / f"worker_daemon{len(started)}"
        own.mkdir()
        port, admin_port = port or free_port(), free_port()
        command = [*before, TWISTD, "-n", "--pidfile", str(own / "pid")]
        command += ["--logfile", str(own / "log")] if logfile else []
        command += ["quotepush", "--admin", f"127.0.0.1:{admin_port}", "--client-log-rate", "0"]
        command += ["--max-per-address", "0", "--connect-rate", "0"]
        command += ["--interface", "127.0.0.1"] if "--listen" not in options else []
        if "--config" not in options:
            command += ["--workers", str(workers), "--port", str(port)]
            command += ["--certs", str(certs)] if tls else ["--plain"]
        if redis != "":
            command += ["--redis", redis or redis_server.socket_url]
        worker_daemon = WorkerDaemon(
            [*command, *options],
            port=port,
            admin_port=admin_port,
            directory=own,
            certs=certs,
            plain=not tls,
            env={"TMPDIR": str(own)} | (env or {}),
            descriptors=descriptors,
        )
        started.append(worker_daemon)
        if wait:
            worker_daemon.wait_for_log("is served")
            if workers:
                worker_daemon.wait_until_serving(workers)
            else:
                worker_daemon.wait_for_log("connected for the feed")
        return worker_daemon

    yield start
    try:
        for worker_daemon in started:
            if worker_daemon.process.poll() is None:
                worker_daemon.stop()
    finally:
        for worker_daemon in started:
            worker_daemon.end_all()
    for worker_daemon in started:
        if not worker_daemon.may_log_tracebacks:
            assert "Traceback" not in worker_daemon.log(), worker_daemon.log()


# -- quotes --------------------------------------------------------------------------------------


class Market:
    """Publishes numbers of each symbol, evenly, in a thread of its own."""

    def __init__(
        self, redis: RedisServer, prefix: str, symbols: Sequence[str], rate: int = 1000
    ) -> None:
        self.symbols = list(symbols)
        self.c: Counter[str] = Counter()
        self.quotes = 0
        self._rate = rate
        self._prefix = prefix
        self._publisher = Publisher(redis)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._publisher.close()

    def stop(self) -> None:
        """No more quotes. May be called twice."""
        self._ended.set()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "the publisher hangs"

    def _run(self) -> None:
        due = time.monotonic()
        at = 0
        while not self._ended.is_set():
            count = max(1, self._rate // 50)
            self.publish([self.symbols[(at + k) % len(self.symbols)] for k in range(count)])
            at += count
            # What could not be published in time is made up for, but for a second at most.
            due = max(due + count / self._rate, time.monotonic() - 1.0)
            self._ended.wait(max(0.0, due - time.monotonic()))

    def publish(self, symbols: Sequence[str]) -> None:
        """One more quote of each."""
        quotes = []
        for symbol in symbols:
            self.c[symbol] += 1
            quotes.append((f"{self._prefix}.{symbol}", json.dumps({"c": self.c[symbol]})))
        self._publisher.publish(quotes)
        self.quotes += len(quotes)


# -- clients that come back ----------------------------------------------------------------------


@dataclass
class Visit:
    """One connection of a follower."""

    epoch: str = ""
    #: when the handshake was done, and the first value came (monotonic seconds)
    opened: float = 0.0
    first: float | None = None
    #: when it was told to go, and what was said
    told: float | None = None
    bye: Json | None = None
    code: int | None = None


@dataclass
class Follower:
    """A client that comes back as it is told, and checks every number it is given.

    The payloads of each symbol count {"c": 1}, {"c": 2} and so on.
    """

    daemon: Address
    symbols: Sequence[str]
    chance: random.Random
    visits: list[Visit] = field(default_factory=list)
    #: connections that did not come about, as they were refused
    refused: list[str] = field(default_factory=list)
    #: what should not be, in words
    faults: list[str] = field(default_factory=list)
    quotes: int = 0
    #: the newest payload's number of each symbol
    c: dict[str, int] = field(default_factory=dict)
    subscribed: bool = False
    _ending: bool = False
    _connection: Any = None

    async def run(self) -> None:
        """Follow until `end`."""
        while not self._ending:
            visit = Visit()
            try:
                async with open_websocket(self.daemon, close_timeout=2) as connection:
                    self._connection = connection
                    visit.opened = time.monotonic()
                    self.visits.append(visit)
                    await self._follow(connection, visit)
            except (OSError, TimeoutError, WebSocketException) as error:
                if not visit.opened and not self._ending:
                    self.refused.append(repr(error))
            self.subscribed = False
            if not self._ending:
                retry = 0 if visit.bye is None else visit.bye["retry"] / 1000
                # How long clients wait before they come back.
                await asyncio.sleep(retry + self.chance.random() * 0.2)

    async def end(self) -> None:
        self._ending = True
        if self._connection is not None:
            await self._connection.close()

    async def _follow(  # noqa: C901 - the kinds of events, one after the other
        self, connection: Any, visit: Visit
    ) -> None:
        n: dict[str, int] = {}
        # The last payload's number in this visit, and which of them may have holes after them.
        c: dict[str, int] = {}
        gap: set[str] = set()
        jumped = 0
        down = False
        await connection.send(json.dumps({"op": "subscribe", "symbols": list(self.symbols)}))
        try:
            async for text in connection:
                for event in json.loads(text):
                    kind = event["ev"]
                    if kind in ("quote", "snapshot"):
                        if visit.first is None:
                            visit.first = time.monotonic()
                        symbol = event["s"]
                        step = event["n"] - n.get(symbol, event["n"] - 1)
                        grown = event["d"]["c"] - c.get(symbol, event["d"]["c"] - step)
                        told = down or symbol in gap
                        if kind == "quote":
                            self.quotes += 1
                            if step < 1:
                                self.faults.append(f"n did not grow: {event} after {n[symbol]}")
                            jumped += step - 1 if symbol in n else 0
                            # A value from another worker has no number here: 0.
                            of_another = n.get(symbol) == 0
                            if not told and (grown > step or (grown != step and not of_another)):
                                self.faults.append(f"{grown} quotes in {step} numbers: {event}")
                            gap.discard(symbol)
                        n[symbol] = event["n"]
                        c[symbol] = self.c[symbol] = event["d"]["c"]
                    elif kind == "heartbeat":
                        if event["merged"] != jumped:
                            self.faults.append(f"{jumped} merged, and told {event}")
                    elif kind == "gap":
                        gap.add(event["s"])
                    elif kind == "feed":
                        down = event["state"] == "down"
                    elif kind == "welcome":
                        visit.epoch = event["epoch"]
                    elif kind == "subscribed":
                        self.subscribed = True
                        if event.get("errors"):
                            self.faults.append(f"refused: {event}")
                    elif kind == "bye":
                        visit.bye, visit.told = event, time.monotonic()
                    else:
                        self.faults.append(f"unexpected: {event}")
        except ConnectionClosed:
            pass
        finally:
            visit.code = connection.close_code


class Followers:
    """Many of them."""

    def __init__(self, daemon: Address, watched: Sequence[Sequence[str]], seed: int) -> None:
        self.each = [Follower(daemon, symbols, random.Random(seed + at))
                     for at, symbols in enumerate(watched)]  # fmt: skip
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Have all of them come, and wait until they are there."""
        for at, follower in enumerate(self.each):
            self._tasks.append(asyncio.create_task(follower.run()))
            if at % 20 == 19:
                await self.settled(self.each[: at + 1])
        await self.settled()

    async def settled(self, those: Sequence[Follower] | None = None) -> None:
        """Wait until all of them, or those, are subscribed."""
        those = self.each if those is None else those
        await poll_async(
            lambda: all(each.subscribed for each in those), "all clients to be there", PATIENCE
        )

    async def caught_up(self, market: Market) -> None:
        """Wait until every client has the newest quote of each of its symbols."""

        def caught_up() -> bool:
            return all(
                each.c.get(symbol, 0) == market.c[symbol]
                for each in self.each
                for symbol in each.symbols
            )

        await poll_async(caught_up, "the newest quote of each symbol at each client", PATIENCE)

    async def end(self) -> None:
        await asyncio.gather(*(each.end() for each in self.each))
        await asyncio.wait_for(asyncio.gather(*self._tasks), DEADLINE)

    @property
    def visits(self) -> list[Visit]:
        return [visit for each in self.each for visit in each.visits]

    @property
    def refused(self) -> list[str]:
        return [refusal for each in self.each for refusal in each.refused]

    @property
    def faults(self) -> list[str]:
        return [fault for each in self.each for fault in each.faults]

    @property
    def quotes(self) -> int:
        return sum(each.quotes for each in self.each)

    def slowest_first_value(self) -> float:
        """Seconds from a handshake until the first value came, at worst, of those who came back."""
        return max(
            (
                visit.first - visit.opened
                for each in self.each
                for visit in each.visits[1:]
                if visit.first is not None
            ),
            default=0.0,
        )


def reload_and_wait(served: WorkerDaemon, workers: int) -> None:
    """Have all workers replaced, and wait until that is done."""
    before = [worker["pid"] for worker in served.workers(None)]
    times = served.log().count("the configuration is loaded")
    served.signal(signal.SIGHUP)
    served.wait_for_log("the configuration is loaded", times=times + 1)
    served.wait_until_serving(workers, before)


def signal_worker(pid: int, number: int = signal.SIGKILL) -> None:
    """Signal a worker; one that has ended since it was looked up is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


async def wait_for_end(worker_daemon: WorkerDaemon, seconds: float = PATIENCE) -> int:
    """Its exit status, while clients go on."""
    return await asyncio.to_thread(worker_daemon.wait, seconds)


def until_async(condition: Callable[[], object], what: str) -> Any:
    return poll_async(condition, what, PATIENCE)
