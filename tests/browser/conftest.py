"""A whole demonstration for the browser: daemon, embedded Redis, certificate, simulated market."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from chromium import TIMEOUT_MS, chromium
from free_ports import free_port
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, expect, sync_playwright
from token_makers import key_file
from waiting import wait_for_line

expect.set_options(timeout=TIMEOUT_MS)


@dataclass(frozen=True)
class DemoDaemon:
    """A running daemon; `url` is where its page is."""

    url: str


@contextmanager
def running(directory: Path, *more: str) -> Iterator[DemoDaemon]:
    """The demonstration on a loopback port, with more options; its log may hold no traceback."""
    port = free_port()
    twistd = Path(sys.executable).with_name("twistd")
    options = ["--interface", "127.0.0.1", "--port", str(port), "--demo", "--admin", "off", *more]
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(twistd), "-n", "--pidfile=", "quotepush", *options],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout is not None
        output.write(wait_for_line(process.stdout, b"connected for the simulated market"))
    yield DemoDaemon(f"https://localhost:{port}/")
    process.terminate()
    rest, _ = process.communicate(timeout=20)
    assert b"Traceback" not in log.read_bytes() + rest


@pytest.fixture
def demonstration() -> Callable[..., AbstractContextManager[DemoDaemon]]:
    """Starts one of a test's own: demonstration(directory, option, ...)."""
    return running


@pytest.fixture(scope="session")
def demo_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoDaemon]:
    """The daemon as a newcomer starts it."""
    with running(tmp_path_factory.mktemp("demo")) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def hospitable_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoDaemon]:
    """One that pages of http://localhost may connect to."""
    options = ["--origins", "http://localhost", "--admin", "off"]
    with running(tmp_path_factory.mktemp("hospitable"), *options) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def guarded_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoDaemon]:
    """One that asks for tokens, signed with the secret of `token_makers`."""
    directory = tmp_path_factory.mktemp("guarded")
    key = key_file(directory, "HS256")
    options = ["--auth", "token", "--token-key", str(key), "--admin", "off"]
    with running(directory, *options) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    with chromium(playwright) as started:
        yield started


@pytest.fixture
def remembered_page(playwright: Playwright) -> Iterator[Page]:
    """A page in a browser that keeps pages which were left, for its back button."""
    with chromium(playwright, "--disable-back-forward-cache") as started:
        made = started.new_context(ignore_https_errors=True)
        made.set_default_timeout(TIMEOUT_MS)
        yield made.new_page()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context(
        ignore_https_errors=True, viewport={"width": 1200, "height": 900}, locale="en-US"
    )
    made.set_default_timeout(TIMEOUT_MS)
    yield made
    made.close()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()
