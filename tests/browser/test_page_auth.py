"""The page and its client in a real Chromium where tokens are asked for.

What a daemon says at which moment is played here, over a WebSocket that Playwright routes; a real
one is there for the ways that are usual.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from importlib.resources import files
from typing import Any, Protocol

import jwt
import pytest
from playwright.sync_api import Page, Route, WebSocketRoute, expect
from token_makers import SECRET

from pushservice.web import content_security_policy

URL = "http://localhost/"
WEB = files("pushservice.web")
PAGE = (WEB / "index.html").read_text("utf-8")
#: A client of the daemon's own page: its first token allows both symbols, the next one of them.
REFRESHED = """async ([first, next]) => {
  const {Quotepush} = await import("./quotepush.js");
  const asked = [], told = [];
  const q = new Quotepush(undefined, {token: (why) => asked.push(why) === 1 ? first : next});
  q.on("state", ({state}) => told.push(state));
  q.on("authenticated", ({user}) => told.push(user));
  const denied = new Promise((resolve) => q.on("denied", resolve));
  const quotes = new Map();
  const both = new Promise((resolve) => q.subscribe(["AAPL", "MSFT"], ({symbol}) => {
    quotes.set(symbol, (quotes.get(symbol) ?? 0) + 1);
    if (quotes.size === 2) resolve();
  }));
  await both;
  const {symbol, code} = await denied;
  const list = await q.list();
  q.close();
  return {asked, told, symbol, code, list};
}"""
WELCOME = {
    "ev": "welcome",
    "v": 1,
    "conn": "c-1",
    "epoch": "e",
    "hb": 5000,
    "limits": {"symbols": 500, "message": 16384},
}


class PlayedDaemon:
    """Serves the page and answers its commands; takes the tokens in `good`, refuses others."""

    def __init__(self, page: Page, auth: str | None = "required") -> None:
        self.auth = auth
        self.good: dict[str, dict[str, Any]] = {}
        self.allowed: set[str] | None = None
        self.shown: list[str] = []
        self.subscribed: list[str] = []
        self.connections: list[WebSocketRoute] = []
        self.complaints: list[str] = []
        self.requested: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._logged)
        page.on("request", lambda request: self.requested.append(request.url))
        page.route(f"{URL}**", self._serve)
        page.route_web_socket("ws://localhost/", self._connected)

    def _logged(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _serve(self, route: Route) -> None:
        path = route.request.url.removeprefix(URL).partition("?")[0]
        if path == "quotepush.js":
            script = (WEB / "client" / path).read_text("utf-8")
            route.fulfill(body=script, content_type="text/javascript")
        elif path.endswith(".js"):
            route.fulfill(body=(WEB / path).read_text("utf-8"), content_type="text/javascript")
        elif path == "symbols.json":
            route.fulfill(json=["AAPL", "BTC/USDT"])
        else:
            policy = {"content-security-policy": content_security_policy(PAGE)}
            route.fulfill(body=PAGE, content_type="text/html", headers=policy)

    def _connected(self, connection: WebSocketRoute) -> None:
        self.connections.append(connection)
        connection.on_message(lambda text: self._received(connection, json.loads(text)))
        self.send(WELCOME if self.auth is None else {**WELCOME, "auth": self.auth})

    def send(self, *events: dict[str, Any]) -> None:
        """Sends events on the latest connection."""
        self.connections[-1].send(json.dumps(events))

    def close(self, code: int, reason: str) -> None:
        """Closes the latest connection."""
        self.connections[-1].close(code=code, reason=reason)

    def _received(self, connection: WebSocketRoute, command: dict[str, Any]) -> None:
        answer = {"id": command["id"]}
        if command["op"] == "ping":
            events = [{"ev": "pong"}]
        elif command["op"] == "auth":
            self.shown.append(command["token"])
            known = self.good.get(command["token"])
            refusal = {"ev": "error", "code": 402, "msg": "the token is refused: it is no token"}
            events = [refusal if known is None else {"ev": "authenticated", **known}]
        else:
            self.subscribed += command["symbols"]
            errors = {
                symbol: {"code": 409, "msg": "your token does not cover this symbol"}
                for symbol in command["symbols"]
                if self.allowed is not None and symbol not in self.allowed
            }
            served = [symbol for symbol in command["symbols"] if symbol not in errors]
            events = [{"ev": command["op"] + "d", "symbols": served, "errors": errors}]
        connection.send(json.dumps([{**event, **answer} for event in events]))


@pytest.fixture
def played(page: Page) -> Iterator[PlayedDaemon]:
    daemon = PlayedDaemon(page)
    daemon.good["t0ken"] = {"user": "alice"}
    yield daemon
    assert daemon.complaints == []


def paste(page: Page, token: str) -> None:
    """Puts a token into the form and sends it."""
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Authenticate").click()


def test_a_token_that_is_pasted_opens_the_page_and_is_kept_nowhere(
    played: PlayedDaemon, page: Page
) -> None:
    page.goto(URL)
    expect(page.locator("#pill")).to_have_text("Waiting for a token")
    expect(page.get_by_label("Token")).to_be_focused()
    expect(page.get_by_label("Token")).to_have_attribute("type", "password")
    assert played.subscribed == []
    paste(page, " t0ken\n")
    expect(page.locator("#pill")).to_have_text("Connected")
    expect(page.locator("#who")).to_have_text("alice")
    expect(page.locator("#auth")).to_be_hidden()
    expect(page.get_by_label("Token")).to_have_value("")
    page.get_by_text("Raw frames", exact=True).click()
    expect(page.locator("#frames")).to_contain_text('"op":"auth"')
    assert played.shown == ["t0ken"]
    assert sorted(played.subscribed) == ["AAPL", "BTC/USDT"]
    kept = page.evaluate(
        "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
    )
    assert "t0ken" not in kept + page.content() + "".join(played.requested)


def test_a_refused_token_is_said_to_be_and_another_is_taken(
    played: PlayedDaemon, page: Page
) -> None:
    page.goto(URL)
    paste(page, "wrong")
    expect(page.locator("#ask")).to_have_text(
        "The token is refused: it is no token. Paste another token."
    )
    paste(page, "t0ken")
    expect(page.locator("#pill")).to_have_text("Connected")
    assert played.shown == ["wrong", "t0ken"]
    expect(page.get_by_role("list", name="Errors").get_by_role("listitem")).to_have_count(0)


def test_a_person_may_be_slower_than_the_daemon_waits(played: PlayedDaemon, page: Page) -> None:
    page.goto(URL)
    expect(page.locator("#auth")).to_be_visible()
    played.send({"ev": "error", "code": 404, "msg": "the time to authenticate is over"})
    played.close(4004, "authentication too late")
    expect(page.get_by_role("button", name="Connect now")).to_be_hidden()
    expect(page.locator("#pill")).to_have_text("Waiting for a token")
    paste(page, "t0ken")
    expect(page.locator("#pill")).to_have_text("Connected")
    assert len(played.connections) == 2


def test_a_connection_that_is_lost_comes_back_with_the_same_token(
    played: PlayedDaemon, page: Page
) -> None:
    page.goto(URL)
    paste(page, "t0ken")
    expect(page.locator("#who")).to_have_text("alice")
    played.good["t0ken"] = {"user": "alice", "delay": 900.0}
    played.close(1012, "restarting")
    expect(page.locator("#who")).to_have_text("alice · quotes 15 min late")
    assert played.shown == ["t0ken", "t0ken"]


def test_a_token_that_ends_can_be_replaced_before_and_after(
    played: PlayedDaemon, page: Page
) -> None:
    page.goto(URL)
    paste(page, "t0ken")
    expect(page.locator("#pill")).to_have_text("Connected")
    played.good["next"] = {"user": "alice"}
    played.send({"ev": "expiring", "in": 100})
    expect(page.locator("#ask")).to_contain_text("Paste a newer one")
    expect(page.locator("#pill")).to_have_text("Connected")
    paste(page, "next")
    expect(page.locator("#auth")).to_be_hidden()
    assert len(played.connections) == 1
    played.good["last"] = {"user": "alice"}
    played.send({"ev": "error", "code": 401, "msg": "the token was revoked"})
    played.close(4001, "authentication failed")
    expect(page.locator("#ask")).to_contain_text("The token was revoked")
    paste(page, "last")
    expect(page.locator("#pill")).to_have_text("Connected")
    assert played.shown == ["t0ken", "next", "last"]


def test_what_a_token_does_not_cover_is_removed_and_named(played: PlayedDaemon, page: Page) -> None:
    played.allowed = {"AAPL"}
    page.goto(URL)
    paste(page, "t0ken")
    rows = page.locator("tr[data-symbol]")
    expect(page.get_by_role("list", name="Errors")).to_contain_text("not entitled to BTC/USDT")
    expect(rows).to_have_count(1)
    denied = {"AAPL": {"code": 409, "msg": "your token does not cover this symbol"}}
    played.send({"ev": "unsubscribed", "symbols": ["AAPL"], "errors": denied, "total": 0})
    expect(rows).to_have_count(0)
    expect(page.get_by_role("list", name="Errors")).to_contain_text("not entitled to AAPL")


@pytest.mark.parametrize("auth", [None, "done"])
def test_nothing_is_asked_where_nobody_has_to_authenticate(
    played: PlayedDaemon, page: Page, auth: str | None
) -> None:
    played.auth = auth
    page.goto(URL)
    expect(page.locator("#pill")).to_have_text("Connected")
    expect(page.locator("tr[data-symbol]")).to_have_count(2)
    expect(page.locator("#auth")).to_be_hidden()
    expect(page.locator("#who")).to_be_hidden()
    assert played.shown == []


def test_the_form_fits_a_phone(played: PlayedDaemon, page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(URL)
    paste(page, "wrong")
    expect(page.locator("#ask")).to_contain_text("refused")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


class Daemon(Protocol):
    """What the tests need of the `guarded_daemon` fixture."""

    url: str


def signed(life: float, **claims: object) -> str:
    """Alice's token, which ends in so many seconds."""
    return jwt.encode({"sub": "alice", "exp": time.time() + life, **claims}, SECRET, "HS256")


def test_a_real_daemon_s_page_opens_with_a_token_and_shows_what_it_covers(
    guarded_daemon: Daemon, page: Page
) -> None:
    page.goto(f"{guarded_daemon.url}#AAPL,MSFT")
    paste(page, signed(-3600))
    expect(page.locator("#ask")).to_contain_text("expired")
    paste(page, signed(600, symbols=["AAPL"]))
    expect(page.locator("#pill")).to_have_text("Connected")
    expect(page.locator("#who")).to_have_text("alice")
    expect(page.get_by_role("list", name="Errors")).to_contain_text("not entitled to MSFT")
    expect(page.locator("tr[data-symbol=AAPL][data-n]")).to_be_visible()


def test_a_real_daemon_s_client_replaces_its_token_in_place(
    guarded_daemon: Daemon, page: Page
) -> None:
    page.goto(guarded_daemon.url)
    first = signed(4)
    following = signed(600, symbols=["AAPL"])
    assert page.evaluate(REFRESHED, [first, following]) == {
        "asked": ["connect", "expiring"],
        "told": ["authenticating", "open", "alice", "alice", "closed"],
        "symbol": "MSFT",
        "code": 409,
        "list": ["AAPL"],
    }
