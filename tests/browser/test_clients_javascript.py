"""The examples of docs/clients_javascript.rst for pages, run as they stand in Chromium."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Protocol

import jwt
import pytest
from docutils.core import publish_doctree
from docutils.nodes import literal_block
from playwright.sync_api import Page, Route, expect
from token_makers import SECRET

DOCUMENT = Path(__file__).parents[2] / "docs" / "clients_javascript.rst"
PRICE = re.compile(r"^(AAPL )?\d+(\.\d+)?$")


class Daemon(Protocol):
    """What the tests need of their daemons."""

    url: str


@pytest.fixture(scope="module")
def blocks() -> dict[str, str]:
    tree = publish_doctree(DOCUMENT.read_text("utf-8"))
    return {name: each.astext() for each in tree.findall(literal_block) for name in each["names"]}


def at(daemon: Daemon, text: str) -> str:
    """The example with this daemon's address."""
    return text.replace("localhost:8008", daemon.url.removeprefix("https://").rstrip("/"))


def show(page: Page, url: str, body: str) -> None:
    """Go to a page that consists of `body`."""
    page.route(url, lambda route: route.fulfill(body=body, content_type="text/html; charset=utf-8"))
    page.goto(url)


def test_a_page_of_another_origin_shows_a_price(
    hospitable_daemon: Daemon, blocks: dict[str, str], page: Page
) -> None:
    show(page, "http://localhost/example", at(hospitable_daemon, blocks["page"]))
    expect(page.locator("#last")).to_have_text(PRICE)
    expect(page.locator("body")).not_to_have_class("stale")


def test_a_function_gives_tokens(
    guarded_daemon: Daemon, blocks: dict[str, str], page: Page
) -> None:
    asked: list[int] = []

    def answer(route: Route) -> None:
        asked.append(len(asked))
        if len(asked) == 1:
            route.fulfill(status=503)
            return
        claims = {"sub": "ann", "exp": time.time() + 600, "symbols": ["AAPL"]}
        route.fulfill(body=jwt.encode(claims, SECRET, "HS256"), content_type="text/plain")

    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.route("**/quote-token", answer)
    script = f'<script type="module">{at(guarded_daemon, blocks["tokens"])}</script>'
    with page.expect_console_message(lambda message: message.text.startswith("AAPL ")):
        show(page, f"{guarded_daemon.url}example", script)
    assert len(asked) == 2
    assert any("no token to connect: 503" in line for line in said)
    assert any(line.startswith("ann ") for line in said)
    assert any(line.startswith("MSFT ") and "does not cover" in line for line in said)


def test_a_component_shows_a_price(
    hospitable_daemon: Daemon, blocks: dict[str, str], client_project: Path, page: Page
) -> None:
    (client_project / "price.ts").write_text(at(hospitable_daemon, blocks["react"]))
    check = ["tsc", "--strict", "--noEmit", "--module", "nodenext", "--target", "es2022"]
    # The compiler's own libraries are not what is tested.
    check.append("--skipDefaultLibCheck")
    bundle = ["esbuild", "--bundle", "--format=esm", "--outfile=price.js"]
    for program, *options in (check, bundle):
        done = subprocess.run(
            [str(client_project / "node_modules" / ".bin" / program), *options, "price.ts"],
            cwd=client_project,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    script = (client_project / "price.js").read_text("utf-8")
    page.route(
        "http://localhost/price.js",
        lambda route: route.fulfill(body=script, content_type="text/javascript"),
    )
    show(page, "http://localhost/example", '<body><script type="module" src="price.js"></script>')
    expect(page.locator("main output")).to_have_text(PRICE)
    first = page.locator("main output").inner_text()
    expect(page.locator("main output")).not_to_have_text(first)
