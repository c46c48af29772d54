"""The options of clients: what they come to, and words that name what would be right."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from pushservice.cli import client_options
from pushservice.cli.client_options import client_settings, explain_error, symbols_of
from pushservice.client import QuoteError


def said(*words: str, **environment: str):
    """What a command with these options makes of them: url, settings, symbols; and its outcome."""
    found = []

    @click.command()
    @client_options.client_options
    def command(**given):
        url, settings = client_settings(given)
        found.append((url, settings, symbols_of(given, url, settings, 5)))
        assert given == {}

    done = CliRunner().invoke(command, words, env={"QUOTEPUSH_TOKEN": ""} | environment)
    return (found[0] if found else None), done


def test_options_become_settings_of_the_client(tmp_path):
    ca, token = tmp_path / "ca.pem", tmp_path / "token"
    ca.write_text("")
    token.write_text(" one\n")
    words = ["--ca", str(ca), "--token-file", str(token), "--interval", "250", "--no-snapshot"]
    (url, settings, symbols), _ = said("wss://host:8008", "AAPL", "MSFT", "AAPL", *words)
    assert (url, symbols) == ("wss://host:8008", ["AAPL", "MSFT"])
    asked = settings.pop("token")
    assert settings == {"ca": str(ca), "insecure": False, "interval": 0.25, "snapshot": False}
    assert asked("connect") == "one"
    token.write_text("two")
    assert asked("expiring") == "two", "the file is read again"


def test_a_token_may_be_typed_or_in_the_environment_and_is_not_shown():
    (_, settings, _), _ = said("ws://host", "A", "--token", "typed")
    assert settings["token"] == "typed"
    (_, settings, _), _ = said("ws://host", "A", QUOTEPUSH_TOKEN="from-there")
    assert settings["token"] == "from-there"
    _, done = said("--help", QUOTEPUSH_TOKEN="geheim")
    assert "QUOTEPUSH_TOKEN" in done.output
    assert "geheim" not in done.output


@pytest.mark.parametrize(
    ("words", "text", "status"),
    [
        ([], "Missing argument 'URL'", 2),
        (["http://host", "A"], "ws:// in place of http://", 2),
        (["wss://me:geheim@host", "A"], "a user has no place in it: give a token", 2),
        (["host:8008", "A"], "this one begins with neither", 2),
        (["ws://host", "A", "--insecure"], "ws:// has none: use wss://", 2),
        (["wss://host", "A", "--insecure", "--ca", "x"], "give one of them", 2),
        (["wss://host", "A", "--ca", "nothing"], "--ca: there is no file nothing", 2),
        (["wss://host", "A B"], "'A B': a symbol has no white space", 2),
        (["wss://host", "A", "--interval", "60001"], "--interval", 2),
        (["wss://host", "A", "--token-file", "nothing"], "can't read nothing: No such file", 1),
        (["wss://host", "A", "--token-file", "/dev/null"], "/dev/null is empty", 1),
    ],
)
def test_a_wrong_use_is_an_error(words, text, status):
    found, done = said(*words)
    assert found is None
    assert text in done.stderr
    assert "geheim" not in done.output
    assert done.exit_code == status


class Page(http.server.BaseHTTPRequestHandler):
    """Answers as a daemon's page does, or otherwise."""

    status = 200
    body = b""

    def do_GET(self):
        assert self.path == "/symbols.json?limit=5"
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_):
        pass


@pytest.fixture
def page() -> Iterator:
    """page(body, status): where that is the answer."""
    servers = []

    def serve(body: object, status: int = 200) -> str:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        answers = type("Answers", (Page,), {"body": text, "status": status})
        server = http.server.HTTPServer(("127.0.0.1", 0), answers)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        servers.append(server)
        return f"ws://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_without_symbols_those_that_were_quoted_last_are_taken_and_reported(page):
    (_, _, symbols), done = said(page(["AAPL", "贵"]))
    assert symbols == ["AAPL", "贵"]
    assert "no SYMBOL is named: taking the 2 that were quoted last" in done.stderr


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ([], 200, "list of symbols is empty"),
        (b"", 404, "it answers 404 Not Found: it serves no page"),
        (b"<html>", 200, "not JSON"),
        ({"error": 1}, 200, "not a list of symbols"),
        ([1], 200, "not a list of symbols"),
    ],
)
def test_a_page_that_does_not_say_is_named(page, body, status, text):
    found, done = said(page(body, status))
    assert found is None
    assert text in done.stderr
    assert done.exit_code == 1


def test_a_daemon_that_is_not_there_is_named():
    _, done = said("ws://127.0.0.1:1")
    assert "no answer from 127.0.0.1:1: Connection refused" in done.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            QuoteError(1015, "the certificate of h is refused: it has expired"),
            ["--ca", "--insecure"],
        ),
        (QuoteError(1015, "name yours with ca="), ["name yours with --ca"]),
        (QuoteError(4001, "the server asks for a token: give one with token="), ["--token-file"]),
        (QuoteError(403, "HTTP 403: origin"), ["HTTP 403: origin"]),
        (QuoteError(1006, ""), ["ended with 1006"]),
    ],
)
def test_why_there_is_no_connection_comes_with_what_to_type(error, words):
    text = explain_error(error)
    for word in words:
        assert word in text
    assert "=" not in text
