"""From which pages browsers may connect: handshakes with every Origin, and a real Chromium.

Nothing here runs an event loop of its own: Playwright has one in this thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
from authenticated_clients import JSON, Issuer, check_not_logged
from chromium import TIMEOUT_MS, chromium
from playwright.sync_api import Browser, Frame, Page, Route, expect, sync_playwright
from system_harness import DEADLINE, Daemon, StartDaemon, for_two_threads
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

EVIL: Final = "https://evil.example/"
BLANK: Final = "<!doctype html><title>a page</title>"

#: In a page: connect, say what was offered, and tell what came of it.
CONNECT: Final = """([url, token]) => new Promise((resolve) => {
  const protocols = ["quotepush.v1.json"];
  if (token) protocols.push(`quotepush.auth.${token}`);
  const socket = new WebSocket(url, protocols);
  const seen = [];
  socket.onmessage = (message) => {
    for (const event of JSON.parse(message.data)) seen.push(event.user ?? event.auth ?? event.ev);
    if (!token || seen.length > 1) socket.close(1000);
  };
  socket.onclose = (event) => resolve([event.code, ...seen]);
})"""
REFUSED: Final = [1006]


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    return Issuer(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def served(module_daemon: StartDaemon) -> Daemon:
    """One daemon for all of the tests that need no options of their own."""
    return module_daemon()


# -- any program ---------------------------------------------------------------------------------


def outcome(daemon: Daemon, origin: str | None, host: str | None = None) -> int | str:
    """What a handshake with these headers gets: "served", or the status of its refusal."""
    headers = {} if host is None else {"Host": host}
    try:
        connection = connect(
            daemon.url,
            ssl=for_two_threads(daemon.ssl_context),
            origin=None if origin is None else Origin(origin),
            subprotocols=[Subprotocol(JSON)],
            additional_headers=headers,
            compression=None,
            open_timeout=DEADLINE,
            proxy=None,
        )
    except InvalidStatus as refusal:
        return refusal.response.status_code
    with connection:
        assert '"welcome"' in str(connection.recv(DEADLINE))
        return "served"


def test_only_the_daemon_s_own_pages_may_connect_where_none_are_named(served: Daemon) -> None:
    own = f"localhost:{served.port}"
    right = [None, f"https://{own}", f"http://{own}", f"https://LOCALHOST:{served.port}"]
    wrong = [
        "https://localhost",
        f"https://127.0.0.1:{served.port}",
        f"https://localhost:{served.port + 1}",
        f"https://evil.example:{served.port}",
        f"https://{own}@evil.example",
        f"https://{own}/path",
        f"ftp://{own}",
        f"chrome-extension://{own}",
        "null",
        "file://",
    ]
    unreadable = [
        f"https://{own}.evil.example",
        own,
        "*",
        "",
        "https://",
        f"https://{own} https://evil.example",
        "https://a:b",
    ]
    assert {origin: outcome(served, origin) for origin in right} == dict.fromkeys(right, "served")
    assert {origin: outcome(served, origin) for origin in wrong} == dict.fromkeys(wrong, 403)
    found = {origin: outcome(served, origin) for origin in unreadable}
    assert found == dict.fromkeys(unreadable, 400)


def test_named_pages_alone_may_connect(daemon: StartDaemon) -> None:
    found = daemon("--origins", "https://shop.example", "--origins", "http://shop.example:8080")
    right = [None, "https://shop.example", "https://shop.example:443", "http://shop.example:8080"]
    wrong = [
        f"https://localhost:{found.port}",
        "http://shop.example",
        "https://shop.example:8080",
        "https://www.shop.example",
        "https://shop.example.evil.example",
        "https://evilshop.example",
        "null",
        "file://",
    ]
    assert {origin: outcome(found, origin) for origin in right} == dict.fromkeys(right, "served")
    assert {origin: outcome(found, origin) for origin in wrong} == dict.fromkeys(wrong, 403)


def test_all_pages_may_connect_where_that_was_said_and_programs_unless_an_origin_is_required(
    daemon: StartDaemon,
) -> None:
    found = daemon("--origins", "*", "--require-origin")
    for origin in ("https://evil.example", "null", "file://", f"https://localhost:{found.port}"):
        assert outcome(found, origin) == "served", origin
    assert outcome(found, None) == 403


def test_an_origin_that_is_none_keeps_the_daemon_from_starting(
    daemon: StartDaemon,
) -> None:
    with pytest.raises(AssertionError, match=r"'shop\.example' is no origin"):
        daemon("--origins", "shop.example")


# -- a browser -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright, chromium(playwright) as started:
        yield started


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(ignore_https_errors=True, locale="en-US")
    context.set_default_timeout(TIMEOUT_MS)
    yield context.new_page()
    context.close()


class _OnePage(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(BLANK)))
        self.end_headers()
        self.wfile.write(BLANK.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """The origin of another server on this machine, which has one page."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _OnePage) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(DEADLINE)


def address(daemon: Daemon) -> str:
    return daemon.url.replace("wss://", "https://")


def attempt(where: Page | Frame, daemon: Daemon, token: str | None = None) -> list[Any]:
    """Has a page connect; the close code and what it was told: [1006] for a refusal."""
    told: list[Any] = where.evaluate(CONNECT, [daemon.url, token])
    return told


def visit_evil(page: Page) -> None:
    """Go to a page of a site that is nobody's; Chromium is given the page, and believes it."""

    def serve(route: Route) -> None:
        route.fulfill(body=BLANK, content_type="text/html")

    page.route(f"{EVIL}**", serve)
    page.goto(EVIL)
    assert page.evaluate("location.origin") == EVIL.removesuffix("/")


def test_the_daemon_s_own_page_is_served_in_a_browser(served: Daemon, page: Page) -> None:
    page.goto(address(served))
    expect(page.locator("#pill")).to_have_text("Connected", timeout=TIMEOUT_MS)
    assert attempt(page, served) == [1000, "welcome"]


def test_a_page_of_another_origin_can_t_connect(served: Daemon, page: Page, elsewhere: str) -> None:
    page.goto(elsewhere)
    assert page.evaluate("location.origin") == elsewhere
    assert attempt(page, served) == REFUSED
    visit_evil(page)
    assert attempt(page, served) == REFUSED
    # What is refused is the page, and not the browser.
    page.goto(address(served))
    assert attempt(page, served) == [1000, "welcome"]


def test_a_page_without_an_origin_can_t_connect(
    served: Daemon, page: Page, elsewhere: str, tmp_path: Path
) -> None:
    file = tmp_path / "page.html"
    file.write_text(BLANK)
    page.goto(file.as_uri())
    assert attempt(page, served) == REFUSED
    # Inside a page that might: a frame that is sandboxed is of no origin.
    page.goto(elsewhere)
    page.evaluate(
        """() => {
          const frame = document.createElement("iframe");
          frame.sandbox = "allow-scripts";
          frame.srcdoc = "<p id=within>within</p>";
          document.body.append(frame);
        }"""
    )
    within = page.frames[1]
    # The frame begins with an empty document, which is not the one asked about.
    within.wait_for_selector("#within")
    assert within.evaluate("self.origin") == "null"
    assert attempt(within, served) == REFUSED


def test_pages_that_are_named_can_connect_and_the_daemon_s_own_only_if_it_is(
    daemon: StartDaemon, page: Page, elsewhere: str
) -> None:
    found = daemon("--origins", elsewhere)
    page.goto(elsewhere)
    assert attempt(page, found) == [1000, "welcome"]
    page.goto(address(found))
    assert attempt(page, found) == REFUSED
    visit_evil(page)
    assert attempt(page, found) == REFUSED


def test_any_page_can_connect_where_all_may(
    daemon: StartDaemon, page: Page, tmp_path: Path
) -> None:
    found = daemon("--origins", "*")
    visit_evil(page)
    assert attempt(page, found) == [1000, "welcome"]
    file = tmp_path / "page.html"
    file.write_text(BLANK)
    page.goto(file.as_uri())
    assert attempt(page, found) == [1000, "welcome"]


def test_a_browser_authenticates_and_a_stolen_token_is_of_no_use_on_another_page(
    daemon: StartDaemon, page: Page, issuer: Issuer
) -> None:
    found = daemon(*issuer.options, "--log-level", "debug")
    token = issuer.token("ann")
    page.goto(address(found))
    assert attempt(page, found, token) == [1000, "done", "ann"]
    assert attempt(page, found, "no-token") == REFUSED
    # The page itself asks for one, and is served by it.
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Authenticate").click()
    expect(page.locator("#who")).to_have_text("ann", timeout=TIMEOUT_MS)
    visit_evil(page)
    assert attempt(page, found, token) == REFUSED
    found.stop()
    check_not_logged(found.output(), issuer.made)
