"""The README's JavaScript client, run as it stands in a page of another origin."""

from __future__ import annotations

from pathlib import Path

from docutils.core import publish_doctree
from docutils.nodes import literal_block
from playwright.sync_api import Page

README = Path(__file__).parents[2] / "README.rst"


def test_the_readme_s_javascript_client_receives_quotes(hospitable_daemon, page: Page):
    tree = publish_doctree(README.read_text("utf-8"))
    [program] = [
        block.astext()
        for block in tree.findall(literal_block)
        if "client-javascript" in block["names"]
    ]
    host = hospitable_daemon.url.removeprefix("https://").rstrip("/")
    program = program.replace("localhost:8008", host)
    reader = f'<!doctype html><script type="module">{program}</script>'
    page.route(
        "http://localhost/reader",
        lambda route: route.fulfill(body=reader, content_type="text/html"),
    )
    with page.expect_console_message(
        lambda message: message.text.startswith(("AAPL ", "600519.SH ")), timeout=20_000
    ) as logged:
        page.goto("http://localhost/reader")
    symbol, n, last = logged.value.text.split()
    assert symbol in ("AAPL", "600519.SH")
    assert int(n) >= 1
    assert float(last) > 0
