"""Restarts of a daemon under clients of quotepush.js, and the proof that no hole was in silence.

The publisher numbers the quotes of each symbol in their payloads, so what a client missed is known;
tests/restart_recorder.mjs says how it is written down.

A run is short unless it is asked for more:

    QUOTEPUSH_RESTARTS=50 script/test -s tests/system/test_restarts.py
    QUOTEPUSH_RESTARTS=50 script/test -s tests/browser/test_restarts.py
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from redis_process import RedisServer
from worker_daemon import (
    Market,
    StartWorkerDaemon,
    WorkerDaemon,
    can_bind,
    reload_and_wait,
    signal_worker,
)

RESTARTS: Final = int(os.environ.get("QUOTEPUSH_RESTARTS", "4"))
#: Of workers: these take longer, as all that is to be replaced is replaced in turn.
OF_WORKERS: Final = max(4, RESTARTS // 5)
#: Seconds within which every client has quotes of every symbol again, on a busy machine too.
PATIENCE: Final = 60.0
PREFIX: Final = "restart"
SYMBOLS: Final = [f"S{at}" for at in range(20)]
WATCHED: Final = 8
RATE: Final = 400
#: With which codes the connection of a restarted daemon's client may end.
RETRIED: Final = {1001, 1006, 1012}
#: Sooner than the default, so that many restarts fit into a test.
BACKOFF: Final = {"backoff": 250, "backoffMax": 2000}
OPTIONS: Final = ["--channels", f"{PREFIX}.*", "--heartbeat", "1000", "--drain-timeout", "3"]

Json = dict[str, Any]


class Clients(Protocol):
    """Recorders that run somewhere."""

    def wait_until_they_have(self, wanted: dict[str, int]) -> None:
        """Wait until each is open and has these numbers of its symbols, or newer ones."""

    def reports(self) -> list[Json]:
        """Close them; what each has recorded."""


StartClients = Callable[[str, list[Json]], Clients]


def described(url: str, count: int, seed: int) -> list[Json]:
    """So many clients; every third of them gets updates in intervals, so that some are merged."""
    chance = random.Random(seed)
    return [
        {
            "name": f"client {at}",
            "url": url,
            "symbols": chance.sample(SYMBOLS, WATCHED),
            "options": BACKOFF | ({"interval": 200} if at % 3 == 2 else {}),
        }
        for at in range(count)
    ]


def lasting_port() -> int:
    """A port that stays free while the daemon is down: no outgoing connection is given it."""
    path = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first_of_outgoing = int(path.read_text().split()[0])
    candidates = range(max(1024, first_of_outgoing - 10_000), first_of_outgoing)
    return next(port for port in random.sample(candidates, len(candidates)) if can_bind(port))


# -- what is done to the daemon ------------------------------------------------------------------


@dataclass
class Run:
    """What a run of restarts took, and what its clients recorded."""

    #: when each restart began, and when all served again (seconds since the epoch)
    restarts: list[tuple[float, float]] = field(default_factory=list)
    published: Counter[str] = field(default_factory=Counter)
    quotes: int = 0
    reports: list[Json] = field(default_factory=list)


def run(
    redis: RedisServer,
    served: WorkerDaemon,
    start_clients: StartClients,
    restart: Callable[[int], object],
    times: int,
    clients: int,
) -> Run:
    """Restart so often while quotes flow; all clients are live in between and after."""
    done = Run()
    with Market(redis, PREFIX, SYMBOLS, RATE) as market:

        def all_live() -> None:
            there.wait_until_they_have({symbol: market.c[symbol] + 1 for symbol in SYMBOLS})

        there = start_clients(served.url, described(served.url, clients, seed=times))
        all_live()
        for at in range(times):
            began = time.time()
            restart(at)
            done.restarts.append((began, time.time()))
            all_live()
        market.stop()
        market.publish(SYMBOLS)
        there.wait_until_they_have(dict(market.c))
        done.published, done.quotes = market.c, market.quotes
    done.reports = there.reports()
    return done


def whole_daemons(
    worker_daemon: StartWorkerDaemon, redis: RedisServer, start_clients: StartClients, clients: int
) -> Run:
    """A daemon without workers, ended in order and by force in turn, and started again."""
    port = lasting_port()

    def start() -> WorkerDaemon:
        return worker_daemon(*OPTIONS, workers=0, tls=True, port=port, redis=redis.socket_url)

    running = start()

    def restart(at: int) -> None:
        nonlocal running
        number = (signal.SIGTERM, signal.SIGKILL)[at % 2]
        assert running.stop(number) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        running = start()

    done = run(redis, running, start_clients, restart, RESTARTS, clients)
    assert running.stop() == 0
    return done


def workers(
    worker_daemon: StartWorkerDaemon, redis: RedisServer, start_clients: StartClients, clients: int
) -> Run:
    """A daemon with two workers, of which one is killed, and both are replaced, in turn."""
    chance = random.Random(RESTARTS)
    served = worker_daemon(*OPTIONS, workers=2, tls=True, redis=redis.socket_url)

    def restart(at: int) -> None:
        if at % 2:
            reload_and_wait(served, 2)
            return
        victim = chance.choice(list(served.pids().values()))
        signal_worker(victim)
        served.wait_until_serving(2, [victim])

    done = run(redis, served, start_clients, restart, OF_WORKERS, clients)
    assert served.stop() == 0
    return done


# -- what came of it -----------------------------------------------------------------------------


@dataclass
class EventCounts:
    """What was found in the trails."""

    quotes: int = 0
    merged: int = 0
    snapshots: int = 0
    #: gaps that were told, those of them after which something was missing, and how much that was
    gaps: int = 0
    holes: int = 0
    lost: int = 0
    faults: list[str] = field(default_factory=list)


def follow(trail: list[list[Any]], newest: int, counts: EventCounts, name: str) -> None:  # noqa: C901
    """Walk along the trail of one symbol; `newest` is the last number that was published."""
    last: int | None = None
    told = False
    for at, (kind, *what) in enumerate(trail):
        if kind == "gap":
            told = True
            counts.gaps += 1
            continue
        if kind == "run":
            assert last is not None
            counts.quotes += what[0]
            last += what[0]
            continue
        c, gap = what[0], what[-1]
        merged = what[1] if kind == "quote" else 0
        counts.merged += merged
        around = f"{name}: {trail[max(0, at - 3) : at + 2]}"
        if gap != told:
            counts.faults.append(
                f"a gap was {'' if told else 'not '}told, and gap is {gap}: {around}"
            )
        if kind == "snapshot":
            counts.snapshots += 1
            if last is not None and c < last:
                counts.faults.append(f"a snapshot older than what was known: {around}")
        else:
            counts.quotes += 1
            if last is not None and c <= last:
                counts.faults.append(f"a quote came twice: {around}")
        missing = 0 if last is None else c - last - 1 - merged
        if missing > 0:
            counts.holes += 1
            counts.lost += missing
            if not told:
                counts.faults.append(f"{missing} quotes are missing in silence: {around}")
        told = False
        last = c if last is None else max(last, c)
    if last != newest:
        counts.faults.append(f"{name} ends at {last}, and {newest} was published last")


def proven(done: Run, title: str) -> EventCounts:
    """Check every trail, and print the figures, which pytest shows with -s."""
    counts = EventCounts()
    for report in done.reports:
        assert report["faults"] == [], report["faults"]
        assert report["states"][-1] == ["closed", 1000]
        assert {code for state, code in report["states"] if state == "waiting"} <= RETRIED
        for symbol, trail in report["trails"].items():
            follow(trail, done.published[symbol], counts, f"{report['name']} {symbol}")
    assert counts.faults == [], "\n".join(counts.faults[:10])
    assert counts.quotes > 0
    assert counts.merged > 0
    told: Counter[str] = Counter()
    for each in done.reports:
        told.update(each["told"])
    outages = [outage for each in done.reports for outage in each["outages"]]
    restart = spread(to - since for since, to in done.restarts)
    dark = spread((to - since) / 1000 for since, to in outages)
    after = spread(to / 1000 - served_again(done, since / 1000) for since, to in outages)
    print(  # noqa: T201 - the figures, for who asks for them with -s
        f"\n{title}: {len(done.restarts)} restarts, {len(done.reports)} clients, {done.quotes}"
        f" quotes published, {counts.quotes} received, {counts.merged} merged, {counts.snapshots}"
        f" snapshots; {len(outages)} connections lost, {counts.gaps} gaps told, {counts.holes} with"
        f" holes, in which {counts.lost} quotes were lost, and none in silence; {dict(told)};"
        f" a restart took {restart}; first quote {dark} after the loss, {after} after all served"
    )
    return counts


def served_again(done: Run, lost: float) -> float:
    """When the restart was over by which a connection was lost."""
    return next((ended for began, ended in reversed(done.restarts) if began <= lost), lost)


def spread(seconds: Iterable[float]) -> str:
    """In words."""
    found = sorted(seconds)
    return f"{found[len(found) // 2]:.2f} s ({found[0]:.2f} to {found[-1]:.2f})" if found else "no"
