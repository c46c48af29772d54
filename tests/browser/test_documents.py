"""JavaScript from the documents, run as it stands in a browser."""

from __future__ import annotations

import json

from code_blocks import code_blocks
from playwright.sync_api import Page


def log_of_a_page_of_another_origin(page: Page, program: str, *beginnings: str) -> str:
    """The first line with one of `beginnings` that `program` logs, in a page of another origin."""
    reader = f'<!doctype html><script type="module">{program}</script>'
    page.route(
        "http://localhost/reader",
        lambda route: route.fulfill(body=reader, content_type="text/html"),
    )
    with page.expect_console_message(
        lambda message: message.text.startswith(beginnings), timeout=20_000
    ) as logged:
        page.goto("http://localhost/reader")
    return logged.value.text


def is_a_quote(line: str) -> bool:
    symbol, n, last = line.split()
    return symbol in ("AAPL", "600519.SH") and int(n) >= 1 and float(last) > 0


def test_the_javascript_client_of_the_setup_page_receives_quotes(hospitable_daemon, page: Page):
    host = hospitable_daemon.url.removeprefix("https://").rstrip("/")
    program = code_blocks("docs/setup.rst")["client-javascript"].replace("localhost:8008", host)
    assert is_a_quote(log_of_a_page_of_another_origin(page, program, "AAPL ", "600519.SH "))


def test_the_console_example_of_the_quickstart_receives_quotes(demo_daemon, page: Page):
    host = demo_daemon.url.removeprefix("https://").rstrip("/")
    program = code_blocks("docs/quickstart.rst")["console"].replace("localhost:8008", host)
    page.goto(demo_daemon.url)
    with page.expect_console_message(
        lambda message: message.text.startswith(("AAPL ", "600519.SH ")), timeout=20_000
    ) as logged:
        # In the console `await` may stand anywhere.
        page.evaluate(f"(async () => {{ {program} }})()")
    assert is_a_quote(logged.value.text)


def test_a_client_of_the_old_script_gets_bare_payloads(hospitable_daemon, page: Page):
    program = code_blocks("docs/moving-from-swoole.rst")["raw-client"]
    url = hospitable_daemon.url.replace("https", "wss")
    program = program.replace("wss://quotes.example.org/", url)
    payload = json.loads(log_of_a_page_of_another_origin(page, program, "{"))
    assert payload["symbol"] in ("AAPL", "600519.SH")
    assert payload["last"] > 0
