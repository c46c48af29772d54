"""quotepush.js on pages that are left and come back, and networks that go and come back."""

from __future__ import annotations

import json
from typing import Protocol

from npm_packages import CLIENT
from playwright.sync_api import Page, Route, WebSocketRoute

#: Starts a client that would wait for long before it connects again, and notes what it tells.
START = """async () => {
  const {Quotepush} = await import("./quotepush.js");
  globalThis.told = [];
  globalThis.q = new Quotepush(undefined, {backoff: 600_000, backoffMax: 600_000, random: () => 1});
  q.on("state", ({state, reason}) => told.push(reason ? `${state}: ${reason}` : state));
  addEventListener("pageshow", ({persisted}) => told.push(persisted ? "back" : "begun"));
  q.subscribe("AAPL", ({gap}) => { if (gap) told.push("quote after a gap"); });
  for await (const quote of q.stream("AAPL")) break;
}"""
#: What it told, once the last of it is this, or it is not for too long.
UNTIL = """async (wanted) => {
  const end = performance.now() + 20_000;
  while (globalThis.told?.at(-1) !== wanted && performance.now() < end) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return globalThis.told;
}"""


class Daemon(Protocol):
    """What the tests need of their daemons."""

    url: str


def test_a_page_that_comes_back_by_the_back_button_goes_on(
    demo_daemon: Daemon, remembered_page: Page
) -> None:
    page = remembered_page
    page.goto(f"{demo_daemon.url}#NONE")
    page.evaluate(START)
    page.goto(f"{demo_daemon.url}symbols.json")
    page.go_back(wait_until="commit")
    left = ["open", "waiting: the page was left"]
    again = ["connecting", "back", "open", "quote after a gap"]
    assert page.evaluate(UNTIL, "quote after a gap") == left + again


def test_a_network_that_is_back_ends_the_wait(page: Page) -> None:
    connections: list[WebSocketRoute] = []

    def connected(socket: WebSocketRoute) -> None:
        connections.append(socket)
        welcome = {"ev": "welcome", "v": 1, "conn": "c", "epoch": "e", "hb": 60_000}
        quote = {"ev": "quote", "s": "AAPL", "n": 1, "t": 1, "d": 1}
        socket.on_message(lambda _: socket.send(json.dumps([quote])))
        socket.send(json.dumps([welcome]))

    def serve(route: Route) -> None:
        if route.request.url.endswith("quotepush.js"):
            script = (CLIENT / "quotepush.js").read_text("utf-8")
            route.fulfill(body=script, content_type="text/javascript")
        else:
            route.fulfill(body="<!doctype html>", content_type="text/html")

    page.route("http://localhost/**", serve)
    page.route_web_socket("ws://localhost/", connected)
    page.goto("http://localhost/")
    page.evaluate(START)
    page.context.set_offline(offline=True)
    connections[0].close(code=4008, reason="too slow")
    assert page.evaluate(UNTIL, "waiting: too slow") == ["open", "waiting: too slow"]
    page.context.set_offline(offline=False)
    assert page.evaluate(UNTIL, "open")[-2:] == ["connecting", "open"]
    assert len(connections) == 2
