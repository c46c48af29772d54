"""Compression in a real Chromium, which offers it without being asked to."""

import json
import socket
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from playwright.sync_api import Page


class Daemon(Protocol):
    """What the test needs of the `demonstration` fixture."""

    url: str


#: So many that what they share is compressed in a quiet market.
SOCKETS = 16
QUOTES = 200

#: Subscribes to three symbols on so many sockets, until each has had as many quotes as it should.
SCRIPT = """
async ([count, quotes]) => Promise.all(Array.from({ length: count }, () =>
  new Promise((resolve, reject) => {
    const seen = { extensions: null, last: {}, quotes: 0, faults: [] };
    const socket = new WebSocket(location.href.replace("https:", "wss:"), "quotepush.v1.json");
    socket.onerror = () => reject(new Error("an error"));
    socket.onclose = (event) => reject(new Error(`closed with ${event.code}`));
    socket.onopen = () => {
      seen.extensions = socket.extensions;
      const symbols = ["AAPL", "MSFT", "NVDA"];
      socket.send(JSON.stringify({ op: "subscribe", symbols, snapshot: false }));
    };
    socket.onmessage = (message) => {
      for (const event of JSON.parse(message.data)) {
        if (event.ev !== "quote") continue;
        const before = seen.last[event.s];
        if (before !== undefined && event.n !== before + 1) seen.faults.push(event);
        if (event.d.symbol !== event.s) seen.faults.push(event);
        seen.last[event.s] = event.n;
        seen.quotes += 1;
      }
      if (seen.quotes >= quotes) resolve(seen);
    };
  })))
"""


def test_chromium_agrees_on_compression_and_understands_every_quote(
    demonstration: Callable[..., AbstractContextManager[Daemon]], page: Page, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        admin = f"127.0.0.1:{probe.getsockname()[1]}"
    more = ["--workers", "0", "--admin", admin, "--demo-rate", "2000"]
    with demonstration(tmp_path, *more) as daemon:
        page.goto(daemon.url)
        seen = page.evaluate(SCRIPT, [SOCKETS, QUOTES])
        with urllib.request.urlopen(f"http://{admin}/status", timeout=20) as answer:
            counters = json.load(answer)["counters"]
    assert len(seen) == SOCKETS
    for each in seen:
        assert each["extensions"].startswith("permessage-deflate")
        assert each["faults"] == []
    assert counters["deflated_events"] > QUOTES / 10
