"""Which symbols there are, asked of a real daemon's page over TLS, and of who is no daemon."""

from __future__ import annotations

import ssl
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from redis_process import Authority

from pushservice.cli.recent_symbols import SymbolsUnavailable, recent_symbols


class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'["AAPL"]')

    def log_message(self, *_):
        pass


class Quietly(HTTPServer):
    def handle_error(self, request, client_address):
        """A client that does not trust it goes away."""


@pytest.fixture
def served(tmp_path):
    """A server over TLS; its port and the authority's certificate."""
    files = Authority(tmp_path).issue("page", "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    server = Quietly(("127.0.0.1", 0), Answers)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    yield server.server_port, files.ca
    server.shutdown()
    server.server_close()


def test_it_is_asked_over_tls_of_whom_is_trusted(served):
    port, ca = served
    url = f"wss://localhost:{port}/"
    assert recent_symbols(url, 5, ca) == ["AAPL"]
    assert recent_symbols(url, 5, insecure=True) == ["AAPL"]
    with pytest.raises(
        SymbolsUnavailable, match="the certificate of localhost is refused: unable to get"
    ):
        recent_symbols(url, 5)
    with pytest.raises(SymbolsUnavailable, match=r"127\.0\.0\.1 is refused: IP address mismatch"):
        recent_symbols(f"wss://127.0.0.1:{port}/", 5, ca)


def test_who_does_not_speak_tls_is_named(served):
    with pytest.raises(SymbolsUnavailable, match="no answer from localhost"):
        recent_symbols(f"ws://localhost:{served[0]}", 5)
