"""What the admin port tells of a daemon, held against what its clients really got."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
import urllib.request
from collections import Counter
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final, TypeAlias

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from redis_process import RedisServer
from system_clients import Puppet, open_websocket
from system_harness import DEADLINE, Publish, poll, poll_async
from worker_daemon import PATIENCE, Market, StartWorkerDaemon, WorkerDaemon, signal_worker

CLIENTS: Final = 6
SYMBOLS: Final = ("A", "B", "C")
TURNS: Final = 40

Samples: TypeAlias = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(worker_daemon: WorkerDaemon, accept: str = "") -> Samples:
    """Every sample of /metrics by name and labels; none comes twice."""
    url = f"http://127.0.0.1:{worker_daemon.admin_port}/metrics"
    request = urllib.request.Request(url, headers={"Accept": accept} if accept else {})
    with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
        text = answer.read().decode()
    parse = openmetrics.text_string_to_metric_families if accept else text_string_to_metric_families
    found: Samples = {}
    for family in parse(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, key
            found[key] = sample.value
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"quotepush_{name}", frozenset(labels.items())]


def summed(samples: Samples, name: str, **labels: str) -> float:
    """The sum over all series that have these labels."""
    wanted = set(labels.items())
    return sum(
        each
        for (found, of), each in samples.items()
        if found == f"quotepush_{name}" and wanted <= of
    )


# -- counted as it was ---------------------------------------------------------------------------


class Counting:
    """A client that counts what comes."""

    def __init__(self) -> None:
        self.got: Counter[str] = Counter()

    async def follow(self, connection: Any) -> None:
        await connection.send(
            json.dumps({"op": "subscribe", "symbols": list(SYMBOLS), "snapshot": False})
        )
        async for text in connection:
            events = json.loads(text)
            quotes = [event for event in events if event["ev"] == "quote"]
            self.got.update(event["ev"] for event in events)
            if quotes:
                assert quotes == events
                size = len(text.encode())
                self.got["frames"] += 1
                # RFC 6455, 5.2: a server's frame has a head of 2 or 4 bytes, or 10 beyond 65535.
                self.got["bytes"] += size + (2 if size < 126 else 4)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_counted_is_what_clients_got(
    worker_daemon: StartWorkerDaemon, redis_server: RedisServer, publish: Publish, workers: int
) -> None:
    prefix = f"count{workers}"
    served = worker_daemon("--channels", f"{prefix}.*", "--heartbeat", "60000", workers=workers)
    clients = [Counting() for _ in range(CLIENTS)]
    quotes = TURNS * len(SYMBOLS)

    async def run() -> None:
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            connections = [await stack.enter_async_context(open_websocket(served)) for _ in clients]
            for client, connection in zip(clients, connections, strict=True):
                group.create_task(client.follow(connection))
            await poll_async(
                lambda: all(client.got["subscribed"] for client in clients), "all to subscribe"
            )
            for turn in range(1, TURNS + 1):
                messages = [
                    (f"{prefix}.{symbol}", f'{{"c":{turn},"ts":{int(time.time() * 1000)}}}')
                    for symbol in SYMBOLS
                ]
                await asyncio.to_thread(publish, redis_server, messages)
                # One after the other, so that nobody is behind.
                await poll_async(
                    partial(all_got, clients, turn * len(SYMBOLS)), "the quotes of a turn", PATIENCE
                )
            await asyncio.to_thread(check_counts, served, clients, quotes, workers)
            for connection in connections:
                await connection.close()

    asyncio.run(run())


def all_got(clients: list[Counting], quotes: int) -> bool:
    return all(client.got["quote"] == quotes for client in clients)


def check_counts(served: WorkerDaemon, clients: list[Counting], quotes: int, workers: int) -> None:
    events = CLIENTS * quotes
    poll(
        lambda: (
            value(scrape(served), "events_sent_total") == events
            and all(
                each["counters"]["quotes_in"] == quotes
                for each in served.ask("status")[1]["workers"]
            )
        ),
        "the counts to be told",
        PATIENCE,
    )
    numbers = [str(number) for number in range(1, workers + 1)] or ["0"]
    for accept in ("", "application/openmetrics-text; version=1.0.0"):
        samples = scrape(served, accept)
        assert value(samples, "frames_sent_total") == sum(each.got["frames"] for each in clients)
        assert value(samples, "sent_bytes_total") == sum(each.got["bytes"] for each in clients)
        assert value(samples, "merged_total") == 0
        assert value(samples, "subscriptions") == CLIENTS * len(SYMBOLS)
        assert value(samples, "symbols") == len(SYMBOLS)
        assert value(samples, "connections") == CLIENTS
        assert summed(samples, "clients", state="flowing") == CLIENTS
        assert summed(samples, "clients", state="behind") == 0
        assert value(samples, "handshakes_total", outcome="accepted") == CLIENTS
        assert value(samples, "ready") == 1
        for number in numbers:
            assert value(samples, "quotes_in_total", worker=number) == quotes
            assert value(samples, "feed_up", worker=number) == 1
            assert value(samples, "worker_state", worker=number, state="serving") == 1
            assert value(samples, "process_resident_memory_bytes", worker=number) > 10_000_000
        assert value(samples, "turn_quotes_sum") == quotes * len(numbers)
        assert value(samples, "turn_events_sum") == events
        assert value(samples, "receive_to_write_seconds_count") == events
        assert value(samples, "feed_lag_seconds_count") >= TURNS * len(numbers)
        assert value(samples, "feed_lag_seconds_bucket", le="50.0") >= TURNS * len(numbers)
    totals = served.ask("status")[1]["totals"]
    assert (totals["clients"], totals["feed"]) == (CLIENTS, "up")
    assert totals["counters"]["events_out"] == events
    _, report = served.ask("symbols?top=2")
    assert [row["watchers"] for row in report["symbols"]] == [CLIENTS, CLIENTS]
    assert report["total"] == len(SYMBOLS)
    assert {row["n"] for row in report["symbols"]} == {TURNS}
    assert served.ask("clients?slow=2")[1]["total"] == CLIENTS
    assert served.ask("clients?slow=many")[0] == 400
    assert served.ask("symbols?bottom=1")[0] == 400


# -- who is slow ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "tls"), [(0, True), (2, False)], ids=["solo", "workers"])
def test_a_client_that_does_not_read_is_the_slowest_with_what_waits_for_it(
    worker_daemon: StartWorkerDaemon,
    redis_server: RedisServer,
    publish: Publish,
    workers: int,
    tls: bool,
) -> None:
    prefix = f"slow{workers}"
    served = worker_daemon(
        "--channels", f"{prefix}.*", "--stall-timeout", "120", workers=workers, tls=tls
    )

    def slowest() -> dict[str, Any]:
        status, report = served.ask("clients?slow=1")
        assert status == 200
        assert report["missing"] == []
        assert report["total"] == 2
        (row,) = report["clients"]
        return row

    with Puppet(served, receive_buffer=16 * 1024) as stalled, Puppet(served) as idle:
        conn = stalled.upgrade()["conn"]
        stalled.subscribe("A", "B")
        idle.upgrade()

        bursts = 0

        def behind() -> bool:
            nonlocal bursts
            bursts += 1
            publish(redis_server, [(f"{prefix}.A", json.dumps("x" * 2000))] * 50)
            return slowest()["behind"] is not None

        poll(behind, "the client to fall behind", PATIENCE)
        row = slowest()
        assert row["conn"] == conn
        assert row["worker"] in ({1, 2} if workers else {0})
        assert row["address"] == "127.0.0.1"
        assert row["user"] is None
        assert row["protocol"] == "quotepush.v1.json"
        assert row["symbols"] == 2
        assert row["queued"] > 10_000
        # One read of Redis may have brought all so far: only what comes from here on must merge.
        publish(redis_server, [(f"{prefix}.A", "0")] * 10)
        read = (50 * bursts + 10) * max(workers, 1)
        poll(
            lambda: summed(scrape(served), "quotes_in_total") == read,
            "the quotes to be read",
            PATIENCE,
        )
        poll(lambda: slowest()["behind"] >= row["behind"] + 0.2, "it to be behind for longer")
        poll(
            lambda: summed(scrape(served), "clients", state="behind") == 1,
            "the metrics to say so",
            PATIENCE,
        )
        reading = threading.Event()
        reader = threading.Thread(target=read_on, args=(stalled, reading))
        reader.start()
        poll(lambda: slowest()["behind"] is None, "it to catch up", PATIENCE)
        reading.set()
        poll(lambda: value(scrape(served), "merged_total") >= 9, "what was merged", PATIENCE)
        publish(redis_server, [(f"{prefix}.A", "1")])
        reader.join(DEADLINE)
        assert not reader.is_alive()
        row = slowest()
        assert row["conn"] == conn, "the most was merged for it"
        assert row["merged"] >= 9


def read_on(client: Puppet, enough: threading.Event) -> None:
    while not enough.is_set():
        client.events()


# -- what never falls, and never waits -----------------------------------------------------------


def growing(samples: Samples) -> Samples:
    """What must not fall, of the whole daemon or of a worker's post."""
    suffixes = ("_total", "_bucket", "_count", "_sum")
    return {key: value for key, value in samples.items() if key[0].endswith(suffixes)}


def test_no_count_ever_falls_when_workers_are_killed_or_replaced(
    worker_daemon: StartWorkerDaemon, redis_server: RedisServer
) -> None:
    served = worker_daemon("--channels", "fall.*", workers=2)
    before: Samples = {}
    falls: list[str] = []

    def look() -> Samples:
        now = growing(scrape(served))
        for key, count in before.items():
            if key not in now:
                falls.append(f"{key} is gone")
            elif now[key] < count:
                falls.append(f"{key} fell from {count} to {now[key]}")
        before.update(now)
        return now

    def counted() -> float:
        return value(look(), "quotes_in_total", worker="1")

    with Market(redis_server, "fall", ["A", "B"], rate=200):
        poll(lambda: counted() > 100, "quotes", PATIENCE)
        for _ in range(2):
            pids = served.pids()
            signal_worker(pids[1])
            poll(
                lambda old=pids[1]: look() and served.pids().get(1, old) != old,
                "another worker",
                PATIENCE,
            )
            served.wait_until_serving(2, unlike=[pids[1]])
            so_far = counted()
            poll(lambda least=so_far: counted() > least + 20, "it to count on", PATIENCE)
        assert value(look(), "worker_restarts_total", worker="1") == 2
        rolled = list(served.pids().values())
        served.signal(signal.SIGHUP)
        poll(
            lambda: look() and not set(served.pids().values()) & set(rolled),
            "all workers to be replaced",
            PATIENCE,
        )
        served.wait_until_serving(2, unlike=rolled)
        so_far = counted()
        poll(lambda: counted() > so_far + 20, "them to count on", PATIENCE)
    assert not falls, "\n".join(falls)


def test_a_worker_that_stands_still_holds_up_no_answer(worker_daemon: StartWorkerDaemon) -> None:
    served = worker_daemon("--channels", "still.*", workers=2)
    pids = served.pids()
    with Puppet(served) as client:
        client.upgrade()
        signal_worker(pids[2], signal.SIGSTOP)
        try:
            assert value(scrape(served), "worker_state", worker="2", state="serving") == 1
            assert served.ask("status")[1]["totals"]["feed"] == "up"
            for path in ("clients", "symbols"):
                status, report = served.ask(path)
                assert status == 200
                assert report["missing"] == [2]
        finally:
            signal_worker(pids[2], signal.SIGCONT)

        def answers() -> bool:
            return served.ask("clients")[1]["missing"] == []

        poll(answers, "it to answer again", PATIENCE)
        assert served.ask("clients")[1]["total"] == 1
