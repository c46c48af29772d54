"""Restarts of the daemon, and of its workers, under clients of quotepush.js in Node."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from npm_packages import CLIENT, node_with_websocket
from redis_process import RedisServer
from restarts import PATIENCE, EventCounts, StartClients, follow, proven, whole_daemons, workers
from worker_daemon import StartWorkerDaemon

SCRIPT = Path(__file__).with_name("restart_clients.mjs")
OF_EACH = 3


class NodeClients:
    """Recorders in a Node process: half of them with `ws`, half with Node's own WebSocket."""

    def __init__(self, clients: list[Any], node_modules: Path, trusted: Path) -> None:
        sockets = ["ws", "own"]
        self._process = subprocess.Popen(
            [*node_with_websocket(), str(SCRIPT), str(node_modules), str(CLIENT / "quotepush.js")],
            env=os.environ | {"NODE_EXTRA_CA_CERTS": str(trusted), "NODE_NO_WARNINGS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._send([c | {"socket": sockets[at % 2]} for at, c in enumerate(clients)])

    def _send(self, what: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def _ask(self, command: object, what: str) -> Any:
        patience = threading.Timer(PATIENCE, self._process.kill)
        patience.start()
        self._send(command)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        patience.cancel()
        assert line, f"the clients ended, or waited {PATIENCE} s for {what}"
        return json.loads(line)

    def wait_until_they_have(self, wanted: dict[str, int]) -> None:
        self._ask({"has": wanted}, "quotes of every symbol")

    def reports(self) -> list[Any]:
        found: list[Any] = self._ask({"end": True}, "their reports")
        assert self._process.wait(PATIENCE) == 0
        return found

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def start_clients(node_modules: Path, certs_directory: Path) -> Iterator[StartClients]:
    """Starts clients, and ends them in the end."""
    started: list[NodeClients] = []

    def start(url: str, clients: list[Any]) -> NodeClients:
        started.append(NodeClients(clients, node_modules, certs_directory / "dev.crt"))
        return started[-1]

    yield start
    for each in started:
        each.end()


def test_no_restart_of_the_daemon_loses_a_quote_in_silence(
    worker_daemon: StartWorkerDaemon,
    own_redis: Callable[..., RedisServer],
    start_clients: StartClients,
) -> None:
    done = whole_daemons(worker_daemon, own_redis(), start_clients, 2 * OF_EACH)
    found = proven(done, "Node, daemon without workers")
    assert found.holes > 0
    assert all(len(each["outages"]) >= len(done.restarts) for each in done.reports)


def test_no_restart_of_a_worker_loses_a_quote_in_silence(
    worker_daemon: StartWorkerDaemon,
    own_redis: Callable[..., RedisServer],
    start_clients: StartClients,
) -> None:
    proven(
        workers(worker_daemon, own_redis(), start_clients, 2 * OF_EACH), "Node, daemon with workers"
    )


# -- the proof itself ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trail", "fault"),
    [
        ([["quote", 1, 0, False], ["run", 2], ["quote", 5, 0, False]], "1 quotes are missing"),
        ([["quote", 1, 0, False], ["quote", 5, 2, False]], "1 quotes are missing"),
        ([["snapshot", 1, False], ["quote", 5, 0, False]], "3 quotes are missing"),
        ([["quote", 4, 0, False], ["run", 1], ["quote", 5, 0, False]], "came twice"),
        ([["quote", 5, 0, False], ["snapshot", 4, False]], "older than what was known"),
        ([["quote", 4, 0, False], ["gap", "link"], ["quote", 5, 0, False]], "gap is False"),
        ([["quote", 4, 0, False], ["quote", 5, 0, True]], "gap is True"),
        ([["quote", 1, 0, False], ["run", 3]], "ends at 4"),
        ([], "ends at None"),
    ],
)
def test_what_is_wrong_in_a_trail_is_found(trail: list[Any], fault: str) -> None:
    counts = EventCounts()
    follow(trail, 5, counts, "client S")
    assert any(fault in found for found in counts.faults)


def test_a_trail_without_fault_is_counted() -> None:
    counts = EventCounts()
    trail: list[list[Any]] = [["snapshot", 3, False], ["quote", 4, 0, False], ["run", 2]]
    trail += [["quote", 10, 3, False], ["gap", "link"], ["snapshot", 20, True]]
    trail += [["snapshot", 20, False], ["quote", 21, 0, False], ["gap", "feed"]]
    trail += [["quote", 22, 0, True]]
    follow(trail, 22, counts, "client S")
    assert counts == EventCounts(quotes=6, merged=3, snapshots=3, gaps=2, holes=1, lost=9)
