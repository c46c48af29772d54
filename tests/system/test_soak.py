"""Fault after fault under constant quotes: clients are told of every loss.

The short form runs with the other tests. The long one, a minute with 100 clients, is run by:

    QUOTEPUSH_SOAK=60 script/test tests/system/test_soak.py -s

`QUOTEPUSH_SOAK` is its duration in seconds; the figures are printed at the end.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import random
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any, Final

import pytest
from feed_clients import Event, Watcher, watching
from redis_process import RedisServer, start_redis
from redis_proxy import Proxy
from system_harness import DEADLINE, Daemon, StartDaemon, poll

pytestmark = pytest.mark.alone

SECONDS: Final = float(os.environ.get("QUOTEPUSH_SOAK", "12"))
LONG: Final = SECONDS > 30
CLIENTS: Final = 100 if LONG else 20
RATE: Final = 1000
SYMBOLS: Final = [f"S{at}" for at in range(40)]
WATCHED: Final = 10
#: Seconds between two faults.
PAUSE: Final = (2.0, 4.0) if LONG else (0.8, 1.2)
STOPPED_FOR: Final = 3.0
LAST: Final = "last"


class Market:
    """Publishes numbered payloads of each symbol at a steady rate, and updates the hash."""

    def __init__(self, redis: Callable[[], RedisServer]) -> None:
        self._redis = redis
        self._ended = threading.Event()
        self._connection: socket.socket | None = None
        self.c: Counter[str] = Counter()
        self.quotes = 0
        self.failed = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "the publisher hangs"

    def _run(self) -> None:
        due = time.monotonic()
        at = 0
        while not self._ended.is_set():
            symbols = [SYMBOLS[(at + k) % len(SYMBOLS)] for k in range(RATE // 50)]
            at += len(symbols)
            self.publish(symbols)
            due += 0.02
            # Catch up on what could not be published in time, but for a second at most.
            due = max(due, time.monotonic() - 1.0)
            self._ended.wait(max(0.0, due - time.monotonic()))

    def publish(self, symbols: list[str], *, last: bool = False) -> None:
        """Publish a quote of each symbol; the number grows even if Redis does not take it."""
        data = b""
        if last:
            # The connection may be to a Redis that was killed since.
            self.close()
        for symbol in symbols:
            self.c[symbol] += 1
            payload = json.dumps({"c": self.c[symbol], LAST: last})
            data += f'HSET latest {symbol} "{_quoted(payload)}"\r\n'.encode()
            data += f'PUBLISH soak.{symbol} "{_quoted(payload)}"\r\n'.encode()
        self.quotes += len(symbols)
        try:
            if self._connection is None:
                self._connection = socket.socket(socket.AF_UNIX)
                self._connection.settimeout(STOPPED_FOR * 3)
                self._connection.connect(self._redis().path)
            self._connection.sendall(data)
            lines = 2 * len(symbols)
            while lines > 0:
                answer = self._connection.recv(65536)
                if not answer:
                    raise ConnectionError("Redis closed the publisher's connection")
                lines -= answer.count(b"\r\n")
        except OSError:
            assert not last, "Redis is there for the last round"
            self.failed += len(symbols)
            self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _quoted(payload: str) -> str:
    return payload.replace('"', '\\"')


class FaultyRedis:
    """A Redis behind a proxy, and the faults that happen to them."""

    def __init__(self) -> None:
        self._directories: list[str] = []
        self.redis = self._start(None)
        self.proxy = Proxy(self.redis.port)
        self.kinds = [self.kill_and_restart, self.suspend, self.kill_clients, self.cut]

    def _start(self, port: int | None) -> RedisServer:
        self._directories.append(tempfile.mkdtemp(prefix="quotepush-test-"))
        return start_redis(self._directories[-1], port=port)

    def kill_and_restart(self) -> None:
        self.redis.stop()
        self.redis = self._start(self.redis.port)

    def suspend(self) -> None:
        os.kill(self.redis.process.pid, signal.SIGSTOP)
        try:
            # The time for which it is suspended.
            time.sleep(STOPPED_FOR)
        finally:
            os.kill(self.redis.process.pid, signal.SIGCONT)

    def kill_clients(self) -> None:
        self.redis.cli("CLIENT", "KILL", "TYPE", "pubsub")

    def cut(self) -> None:
        self.proxy.reset()

    def end(self) -> None:
        self.proxy.stop()
        self.redis.stop()
        for directory in self._directories:
            shutil.rmtree(directory)


@pytest.fixture
def faulty_redis() -> Iterator[FaultyRedis]:
    made = FaultyRedis()
    yield made
    made.end()


class Reader:
    """Finds holes in the numbers of the payloads that one client got, and whether it was told."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.holes = 0
        self.unexplained: list[Event] = []
        self.last: dict[str, Any] = {}

    def read(self) -> None:
        """Go through all events."""
        self.holes = 0
        self.unexplained, self.last = [], {}
        self._n: dict[str, int] = {}
        self._gap: set[str] = set()
        self._snapshot: set[str] = set()
        self._down = False
        for event in self.watcher.events:
            if event["ev"] == "gap":
                self._gap.add(event["s"])
            elif event["ev"] == "feed":
                # Quotes while it is down count as after a gap: the gap event comes later.
                self._down = event["state"] == "down"
            elif event["ev"] in ("quote", "snapshot"):
                self._read_value(event)

    def _read_value(self, event: Event) -> None:
        symbol = event["s"]
        jump = event["n"] - self._n.get(symbol, event["n"])
        assert jump >= 0, f"n fell: {event}"
        told = symbol in self._gap or self._down
        if symbol in self.last:
            missing = event["d"]["c"] - self.last[symbol]["c"] - 1
            if event["ev"] == "quote":
                # A quote whose `n` jumps was merged with as many payloads.
                missing -= max(0, jump - 1)
                # The publisher writes the hash first, so a snapshot may come before its quote.
                known = missing == -1 and symbol in self._snapshot
                assert missing >= 0 or told or known, f"older than before: {self.last}, {event}"
            if missing > 0:
                self.holes += 1
                if not told:
                    self.unexplained.append(event)
        if event["ev"] == "quote":
            self._gap.discard(symbol)
            self._snapshot.discard(symbol)
        else:
            self._snapshot.add(symbol)
        self._n[symbol] = event["n"]
        self.last[symbol] = event["d"]

    def has(self, c: Counter[str]) -> bool:
        """Whether the latest payload of each symbol is the publisher's."""
        self.read()
        return len(self.last) == WATCHED and all(
            value == {"c": c[symbol], LAST: True} for symbol, value in self.last.items()
        )


def memory_of(served: Daemon) -> tuple[int, float]:
    """Open files, and megabytes of memory."""
    process = served.serving()
    return process.num_fds(), process.memory_info().rss / 1e6


@pytest.mark.parametrize("mode", ["all", "demand"])
def test_clients_are_told_of_every_hole_and_end_with_the_latest_values(
    daemon: StartDaemon, faulty_redis: FaultyRedis, mode: str
) -> None:
    rng = random.Random(20251122)
    url = f"redis://127.0.0.1:{faulty_redis.proxy.port}"
    options = ["--channels", "soak.*", "--snapshot-hash", "latest", "--subscribe", mode]
    served = daemon(*options, "--plain", "--heartbeat", "1000", redis=url)
    market = Market(lambda: faulty_redis.redis)
    faults_by_name: Counter[str] = Counter()

    def faults(until: float) -> None:
        market.start()
        kinds: list[Callable[[], None]] = []
        while time.monotonic() < until:
            # The pause between two faults.
            time.sleep(rng.uniform(*PAUSE))
            kinds = kinds or rng.sample(faulty_redis.kinds, len(faulty_redis.kinds))
            fault = kinds.pop()
            fault()
            faults_by_name[fault.__name__] += 1

    async def run() -> None:
        async with AsyncExitStack() as stack:
            readers = []
            for at in range(CLIENTS):
                symbols = rng.sample(SYMBOLS, WATCHED)
                client = watching(served, *symbols, name=f"client {at}")
                readers.append(Reader(await stack.enter_async_context(client)))
            files, megabytes = memory_of(served)
            began = time.monotonic()
            await asyncio.to_thread(faults, began + SECONDS)
            seconds = time.monotonic() - began
            await asyncio.to_thread(market.stop)
            # No fault follows, so the feed stays up once it is.
            for reader in readers:
                await reader.watcher.heartbeat_that_says("up")
            await asyncio.to_thread(market.publish, SYMBOLS, last=True)
            for reader in readers:
                has = functools.partial(reader.has, market.c)
                await reader.watcher.until(lambda _, has=has: has(), "the last round")
            for reader in readers:
                await reader.watcher.check_connected()
                assert len(reader.last) == WATCHED
                assert not reader.unexplained, reader.unexplained[:5]
            holes = sum(reader.holes for reader in readers)
            downs = Counter(e["state"] for e in readers[0].watcher.events if e["ev"] == "feed")
            gaps = sum(e["ev"] == "gap" for r in readers for e in r.watcher.events)
            assert gaps == downs["up"] * CLIENTS * WATCHED
            assert holes > 0, "the faults caused losses"
            assert downs["down"] == downs["up"] > 0
            poll(lambda: memory_of(served)[0] <= files, "files to be closed")
            files_after, megabytes_after = memory_of(served)
            assert megabytes_after - megabytes < 12, (megabytes, megabytes_after)
            print(  # noqa: T201 - figures, shown with -s
                f"\n{mode}: {seconds:.0f} s, {market.quotes} quotes ({market.failed} not taken by"
                f" Redis), {CLIENTS} clients, faults {dict(faults_by_name)}, feed lost"
                f" {downs['down']} times, {holes} holes, all announced; {gaps} gaps;"
                f" {files} descriptors, then {files_after};"
                f" {megabytes:.1f} MB, then {megabytes_after:.1f} MB"
            )

    try:
        asyncio.run(run())
    finally:
        market.close()
