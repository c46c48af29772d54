"""Restarts of the daemon, and of its workers, under clients of quotepush.js in Chromium."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from npm_packages import CLIENT
from playwright.sync_api import BrowserContext, Page, Route
from redis_process import RedisServer
from restarts import PATIENCE, StartClients, proven, whole_daemons, workers
from worker_daemon import StartWorkerDaemon, worker_daemons

RECORDER = Path(__file__).parents[1] / "restart_recorder.mjs"
PAGES = 2
ON_EACH = 2
#: Starts the recorders of a page.
START = """async (clients) => {
  const {Quotepush} = await import("./quotepush.js");
  const {Recorder} = await import("./recorder.js");
  globalThis.recorders = clients.map((client) => new Recorder(Quotepush, client));
}"""


class ChromiumClients:
    """Recorders on pages of the daemon's own origin."""

    def __init__(self, context: BrowserContext, url: str, clients: list[Any]) -> None:
        files = {
            "page": ("<!doctype html>", "text/html"),
            "quotepush.js": ((CLIENT / "quotepush.js").read_text("utf-8"), "text/javascript"),
            "recorder.js": (RECORDER.read_text("utf-8"), "text/javascript"),
        }

        def serve(route: Route) -> None:
            body, content_type = files[route.request.url.rpartition("/")[2]]
            route.fulfill(body=body, content_type=content_type)

        origin = url.replace("wss:", "https:")
        context.route(f"{origin}**", serve)
        self._pages: list[Page] = []
        for at in range(PAGES):
            page = context.new_page()
            page.goto(f"{origin}page")
            page.evaluate(START, clients[at::PAGES])
            self._pages.append(page)

    def wait_until_they_have(self, wanted: dict[str, int]) -> None:
        deadline = time.monotonic() + PATIENCE
        has = "(wanted) => recorders.every((recorder) => recorder.has(wanted))"
        for page in self._pages:
            while not page.evaluate(has, wanted):
                assert time.monotonic() < deadline, (
                    f"waited {PATIENCE} s for quotes of every symbol"
                )
                page.wait_for_timeout(20)

    def reports(self) -> list[Any]:
        report = "recorders.map((recorder) => recorder.report())"
        return [found for page in self._pages for found in page.evaluate(report)]


@pytest.fixture
def start_clients(context: BrowserContext) -> StartClients:
    """Starts clients, on pages that end with the test."""
    return lambda url, clients: ChromiumClients(context, url, clients)


@pytest.fixture
def worker_daemon(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartWorkerDaemon]:
    """Daemons with workers, as in the system tests."""
    directory = Path(tempfile.mkdtemp(prefix="quotepush-test-"))
    yield from worker_daemons(redis_server, tmp_path_factory.mktemp("certs"), directory)
    shutil.rmtree(directory)


def test_no_restart_of_the_daemon_loses_a_quote_in_silence(
    worker_daemon: StartWorkerDaemon,
    own_redis: Callable[..., RedisServer],
    start_clients: StartClients,
) -> None:
    done = whole_daemons(worker_daemon, own_redis(), start_clients, PAGES * ON_EACH)
    found = proven(done, "Chromium, daemon without workers")
    assert found.holes > 0
    assert all(len(each["outages"]) >= len(done.restarts) for each in done.reports)


def test_no_restart_of_a_worker_loses_a_quote_in_silence(
    worker_daemon: StartWorkerDaemon,
    own_redis: Callable[..., RedisServer],
    start_clients: StartClients,
) -> None:
    done = workers(worker_daemon, own_redis(), start_clients, PAGES * ON_EACH)
    proven(done, "Chromium, daemon with workers")
