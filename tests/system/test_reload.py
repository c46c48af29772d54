"""SIGHUP: workers are replaced under load, what is wrong changes nothing, what is right holds.

The first test is short, like any other; its long form, 20 rolls, is asked for:

    QUOTEPUSH_SOAK=60 script/test tests/system/test_reload.py -s
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
from free_ports import free_port
from redis_process import RedisServer
from system_clients import client_of
from system_harness import Address, Publish, poll
from worker_daemon import (
    LONG,
    PATIENCE,
    Followers,
    Market,
    StartWorkerDaemon,
    WorkerDaemon,
    reload_and_wait,
)

from pushservice.tls.factory import development_pair

ROOT = Path(__file__).parents[2]
ROLLS = 20 if LONG else 3
CLIENTS = 100 if LONG else 40
JS_CLIENTS = 30 if LONG else 10
SYMBOLS = [f"S{at}" for at in range(200)]
WATCHED = 4


class JavaScript:
    """Clients of quotepush.js in a Node process; see roll_client.mjs."""

    def __init__(self, served: WorkerDaemon, node_modules: Path, clients: list[list[str]]) -> None:
        script = Path(__file__).with_name("roll_client.mjs")
        quotepush = ROOT / "pushservice" / "web" / "client" / "quotepush.js"
        self._process = subprocess.Popen(
            ["node", str(script), str(node_modules), str(quotepush)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._patience = threading.Timer(10 * PATIENCE, self._process.kill)
        self._patience.start()
        ca = None if served.plain else str(served.certs / "dev.crt")
        self._send({"url": served.url, "ca": ca, "clients": clients})

    def __enter__(self) -> Self:
        assert self._line() == "open"
        return self

    def __exit__(self, *_: object) -> None:
        self._patience.cancel()
        self._process.kill()
        self._process.communicate()

    def _send(self, what: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def _line(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the JavaScript clients ended"
        return json.loads(line)

    def ask(self, command: object) -> Any:
        """What comes of a command."""
        self._send(command)
        return self._line()


# -- rolls ---------------------------------------------------------------------------------------


def test_reloads_under_load_refuse_nobody_and_lose_nothing_in_silence(
    worker_daemon: StartWorkerDaemon,
    redis_server: RedisServer,
    node_modules: Path,
    publish: Publish,
) -> None:
    chance = random.Random(20251122)
    served = worker_daemon(
        "--channels", "roll.*", "--heartbeat", "1000", "--drain-timeout", "6", tls=True
    )
    publish(redis_server, [("roll.QUIET", '{"c": 1}')])
    watched = [chance.sample(SYMBOLS, WATCHED) for _ in range(CLIENTS)]
    of_js = [chance.sample(SYMBOLS, WATCHED) for _ in range(JS_CLIENTS)]
    took: list[float] = []

    async def run() -> None:
        followers = Followers(served, watched, seed=1)
        with (
            Market(redis_server, "roll", SYMBOLS) as market,
            await asyncio.to_thread(JavaScript, served, node_modules, of_js) as node,
        ):
            await followers.start()
            for _ in range(ROLLS):
                began = time.monotonic()
                await asyncio.to_thread(reload_and_wait, served, 2)
                took.append(time.monotonic() - began)
            await followers.settled()
            await asyncio.to_thread(market.stop)
            await asyncio.to_thread(market.publish, SYMBOLS)
            await followers.caught_up(market)
            assert await asyncio.to_thread(node.ask, {"await": market.c}) == "current"
            quiet = await asyncio.to_thread(node.ask, {"subscribe": ["QUIET"]})
            assert quiet["QUIET"]["data"] == {"c": 1}
            assert quiet["QUIET"]["snapshot"]
            async with client_of(served, "QUIET") as client:
                assert (await client.expect("snapshot"))["d"] == {"c": 1}
            report = await asyncio.to_thread(node.ask, {"end": True})
        assert followers.refused == report["refused"] == []
        assert followers.faults == []
        gone = [visit for each in followers.each for visit in each.visits[:-1]]
        # Each roll sends everybody away once, or twice: to a worker whose turn is next.
        assert ROLLS * CLIENTS <= len(gone) <= 2 * ROLLS * CLIENTS
        for visit in gone:
            assert visit.code == 1012
            assert visit.bye is not None
            assert visit.bye["code"] == 1012
            assert 0 <= visit.bye["retry"] < 1000
        for each in report["clients"]:
            assert each["unannounced"] == []
            assert each["faults"] == []
            assert set(each["closes"]) <= {1012, 1000}
            assert all(bye["code"] == 1012 and bye["retry"] >= 0 for bye in each["byes"])
            assert ROLLS <= len(each["byes"]) <= 2 * ROLLS
        slowest = max(
            followers.slowest_first_value(), max(c["slowest"] for c in report["clients"]) / 1000
        )
        assert slowest < 2
        holes = sum(each["holes"] for each in report["clients"])
        gaps = sum(each["gaps"] for each in report["clients"])
        print(  # noqa: T201 - the figures, for who asks for them with -s
            f"\n{ROLLS} rolls of {max(took):.1f} s at most, {CLIENTS} clients and {JS_CLIENTS} of"
            f" quotepush.js, {market.quotes} quotes, {followers.quotes} delivered; {len(gone)}"
            f" byes; of JavaScript {sum(c['connects'] for c in report['clients'])} connects,"
            f" {holes} holes at reconnects and {gaps} gaps; first value"
            f" {slowest * 1000:.0f} ms after the handshake at worst"
        )
        await followers.end()

    asyncio.run(run())
    assert served.stop() == 0
    served.check_left_nothing()


def test_hundreds_of_clients_are_sent_away_over_some_time(
    worker_daemon: StartWorkerDaemon, redis_server: RedisServer
) -> None:
    many = 300
    served = worker_daemon("--channels", "spread.*", "--drain-timeout", "9", workers=1)

    async def run() -> None:
        followers = Followers(served, [["A"]] * many, seed=1)
        await followers.start()
        await asyncio.to_thread(reload_and_wait, served, 1)
        await followers.settled()
        assert followers.refused == []
        told = sorted(each.visits[0].told or 0.0 for each in followers.each)
        assert told[0] > 0
        busiest = max(sum(at <= other < at + 0.1 for other in told) for at in told)
        span = told[-1] - told[0]
        print(f"\n{many} clients told within {span:.2f} s, {busiest} of them in 0.1 s at most")  # noqa: T201
        # A hundred a second are sent away.
        assert span > 1.5
        assert busiest < many / 4
        await followers.end()

    asyncio.run(run())


def test_a_storm_of_sighups_ends_with_as_many_workers_as_there_should_be(
    worker_daemon: StartWorkerDaemon,
) -> None:
    served = worker_daemon("--channels", "storm.*")
    before = list(served.pids().values())
    began = time.monotonic()
    for _ in range(20):
        served.signal(signal.SIGHUP)
        # The pace of the storm; nothing is waited for here.
        time.sleep(0.004)
    assert time.monotonic() - began < 1
    served.wait_for_log("after the reload that is under way")
    served.wait_for_log("the configuration is loaded", times=2)
    pids = served.wait_until_serving(2, before)
    poll(lambda: len(served.session()) == 3, "the end of all but the manager and two workers")
    assert served.pids() == pids
    assert served.log().count("the configuration is loaded") == 2
    reload_and_wait(served, 2)


def test_a_stop_in_the_midst_of_a_roll_ends_all(worker_daemon: StartWorkerDaemon) -> None:
    for words in ("loading the configuration again", "worker 1 serves", "worker 2 serves"):
        served = worker_daemon("--channels", "midst.*")
        times = served.log().count(words)
        served.signal(signal.SIGHUP)
        served.wait_for_log(words, times=times + 1)
        assert served.stop() == 0
        served.check_left_nothing()
        assert "failed to start" not in served.log()


# -- the configuration ---------------------------------------------------------------------------


class File:
    """A configuration file, and the certificates that it names."""

    def __init__(self, directory: Path, workers: int, *, tls: bool = True) -> None:
        self.path = directory / "quotepush.toml"
        self.port = free_port()
        self.workers = workers
        self.symbols = 100
        self.certs = directory / "served"
        self._tls = tls
        self.renew_certificate()
        self.write()

    def renew_certificate(self) -> None:
        """Another certificate and its key, in the same files."""
        for name in ("dev.crt", "dev.key"):
            (self.certs / name).unlink(missing_ok=True)
        self.pair = development_pair(self.certs)

    def write(self) -> None:
        tls = f'cert = ["{self.pair.certificate}"]\nkey = ["{self.pair.key}"]'
        self.path.write_text(
            f"port = {self.port}\n[limits]\nmax-symbols = {self.symbols}\n"
            f"[workers]\nworkers = {self.workers}\n[tls]\n{tls if self._tls else 'plain = true'}\n"
        )

    @property
    def address(self) -> Address:
        return Address(self.port, self.certs, not self._tls)

    def served_certificate(self) -> str:
        """What a client is shown, in PEM."""
        return ssl.get_server_certificate(("127.0.0.1", self.port))


async def symbols_limit(address: Address) -> int:
    from system_clients import Client, open_websocket

    async with open_websocket(address) as connection:
        return int((await Client(connection).expect("welcome"))["limits"]["symbols"])


def refused_reload(served: WorkerDaemon, *words: str) -> None:
    """Reload, and find all `words` in one line of what the log says of it."""
    said = "the configuration stays as it was: "
    before = served.log().count(said)
    served.signal(signal.SIGHUP)
    served.wait_for_log(said, times=before + 1)
    lines = [line for line in served.log().splitlines() if said in line][before:]
    assert any(all(word in line for word in words) for line in lines), lines


def break_everything(served: WorkerDaemon, file: File) -> None:
    """Reload with one fault after the other; the log names each."""
    good = file.path.read_text()
    file.path.write_text(good + "port = \n")
    refused_reload(served, str(file.path), "not valid TOML")
    file.path.write_text(good.replace("max-symbols = 100", 'max-symbols = "many"'))
    refused_reload(served, str(file.path), "[limits] max-symbols", "a whole number")
    file.path.write_text(good.replace("max-symbols", "max-cymbals"))
    refused_reload(served, str(file.path), "max-cymbals")
    file.path.unlink()
    refused_reload(served, str(file.path), "No such file")
    file.path.write_text(good)
    certificate, key = file.pair.certificate.read_bytes(), file.pair.key.read_bytes()
    file.pair.certificate.write_text("no certificate")
    refused_reload(served, str(file.pair.certificate), "PEM")
    file.pair.certificate.write_bytes(certificate)
    file.pair.key.write_bytes(key[:100])
    refused_reload(served, str(file.pair.key))
    file.pair.key.unlink()
    refused_reload(served, str(file.pair.key), "No such file")
    other = development_pair(file.certs / "other")
    file.pair.key.write_bytes(other.key.read_bytes())
    refused_reload(served, str(file.pair.key))
    file.pair.key.write_bytes(key)


def test_what_is_wrong_is_said_and_changes_nothing_and_what_is_right_holds(
    worker_daemon: StartWorkerDaemon,
    short_directory: Path,
    redis_server: RedisServer,
    publish: Publish,
) -> None:
    file = File(short_directory, workers=1)
    served = worker_daemon(
        *("--channels", "config.*", "--config", str(file.path)), workers=1, port=file.port
    )
    pids = served.pids()

    async def run() -> None:
        async with client_of(file.address, "A") as client:
            await asyncio.to_thread(break_everything, served, file)
            assert served.pids() == pids
            publish(redis_server, [("config.A", "1")])
            assert (await client.expect("quote"))["d"] == 1
            assert await symbols_limit(file.address) == 100
            # The new limit, a certificate of its own, another port and another number of workers.
            file.symbols = 7
            file.write()
            await asyncio.to_thread(reload_and_wait, served, 1)
            assert (await client.expect("bye"))["code"] == 1012
        assert await symbols_limit(file.address) == 7
        shown = file.served_certificate()
        file.renew_certificate()
        await asyncio.to_thread(reload_and_wait, served, 1)
        assert file.served_certificate() != shown
        old, file.port, file.workers = file.port, free_port(), 3
        file.write()
        await asyncio.to_thread(reload_and_wait, served, 3)
        assert await symbols_limit(file.address) == 7
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", old), timeout=5).close()
        file.workers = 1
        file.write()
        await asyncio.to_thread(reload_and_wait, served, 1)
        assert await symbols_limit(file.address) == 7

    asyncio.run(run())
    poll(lambda: len(served.session()) == 2, "the end of all but the manager and one worker")
    # No port in use: the new one can't be listened on, and the old one is served on.
    with socket.create_server(("127.0.0.1", 0)) as taken:
        good, file.port = file.port, taken.getsockname()[1]
        file.write()
        refused_reload(served, str(file.port), "in use")
    file.port = good
    assert asyncio.run(symbols_limit(file.address)) == 7
    assert served.stop() == 0
    served.check_left_nothing()


def test_without_workers_what_is_wrong_changes_nothing_and_certificates_are_loaded_anew(
    worker_daemon: StartWorkerDaemon, short_directory: Path
) -> None:
    file = File(short_directory, workers=0)
    served = worker_daemon(
        *("--channels", "solo.*", "--config", str(file.path)), workers=0, port=file.port
    )

    async def run() -> None:
        async with client_of(file.address, "A") as client:
            await asyncio.to_thread(break_everything, served, file)
            shown = file.served_certificate()
            file.renew_certificate()
            file.symbols = 7
            file.write()
            served.signal(signal.SIGHUP)
            await asyncio.to_thread(served.wait_for_log, "start again for limits")
            assert file.served_certificate() != shown
            assert (await client.ask({"op": "ping"}))["ev"] == "pong"

    asyncio.run(run())
    assert psutil.Process(served.process.pid).children() == []
    assert os.getpgid(served.process.pid) == served.process.pid
    assert served.stop() == 0
    served.check_left_nothing()
