"""Tokens, origins and certificates in the opening handshake."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest
from authentication_doubles import FakeAuthenticator
from connection_doubles import (
    REQUEST,
    Connection,
    SecureTransport,
    Server,
    fail,
    masked,
)
from core_doubles import unframe
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import crypto

from pushservice.auth.identity import Identity, Refused
from pushservice.auth.revocations import Revocations
from pushservice.protocol.close_codes import CloseCode
from pushservice.server.websocket import (
    QuoteProtocol,
)
from pushservice.session.authentication import AccessControl


class AuthenticatingServer:
    """An server whose clients have to say who they are."""

    def __init__(self, **limits: float) -> None:
        self.server = Server(**limits)
        self.authenticator = FakeAuthenticator()
        self.revocations = Revocations(self.server.clock)
        self.server.connections.access_control = AccessControl(
            self.server.clock,
            self.authenticator,
            self.revocations,
            10,
            5,
            lambda _delay: self.server.hub,
        )

    def ask(self, headers: bytes = b"", request: bytes = REQUEST, rest: bytes = b"") -> Connection:
        connection = self.server.connect()
        connection.send(request % headers + rest)
        return connection


BEARER = b"Authorization: Bearer %b\r\n"


def status_of(connection: Connection) -> int:
    return int(connection.transport.value().split()[1])


def events_after_upgrade(connection: Connection) -> list[dict[str, Any]]:
    head, _, data = connection.transport.value().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    connection.transport.clear()
    return [event for _, text in unframe(data) for event in json.loads(text)]


@pytest.mark.parametrize(
    "headers",
    [
        BEARER % b"ann",
        b"Sec-WebSocket-Protocol: quotepush.auth.ann\r\n",
        b"Sec-WebSocket-Protocol: quotepush.v1.json, quotepush.auth.ann\r\n",
    ],
)
def test_a_token_in_the_handshake_says_who_it_is(headers):
    served = AuthenticatingServer()
    connection = served.ask(headers)
    assert b"quotepush.auth" not in connection.transport.value()
    welcome, authenticated = events_after_upgrade(connection)
    assert (welcome["auth"], authenticated["user"]) == ("done", "ann")
    assert connection.say({"op": "subscribe", "symbols": ["A"]})[0]["ev"] == "subscribed"
    connection.lose()
    assert served.server.clock.calls == []


def test_without_a_token_in_the_handshake_a_client_is_unauthenticated():
    connection = AuthenticatingServer().ask()
    assert [event["auth"] for event in events_after_upgrade(connection)] == ["required"]
    assert connection.say({"op": "list"})[0]["code"] == 401
    assert connection.say({"op": "auth", "token": "ann"})[0]["ev"] == "authenticated"
    connection.lose()


def test_a_client_that_does_not_authenticate_in_time_is_closed_in_order():
    served = AuthenticatingServer()
    connection = served.ask()
    connection.transport.clear()
    served.server.clock.pass_time(10.25)
    assert connection.close_code() == CloseCode.AUTHENTICATION_TOO_LATE
    assert served.server.hub.count_outboxes() == 0


@pytest.mark.parametrize(
    ("headers", "status", "words"),
    [
        (BEARER % b"secret", 401, b"the token is refused: nobody knows it"),
        (BEARER % b"busy", 503, b"the token is refused: later"),
        (b"Authorization: Basic secret\r\n", 401, b"is understood as: Bearer TOKEN"),
        (
            BEARER % b"secret" + b"Sec-WebSocket-Protocol: quotepush.auth.secret\r\n",
            401,
            b"several were sent",
        ),
        (BEARER % b"ann" + b"Sec-WebSocket-Protocol: other\r\n", 400, b"none of the subprotocols"),
    ],
)
def test_a_token_that_is_refused_refuses_the_handshake_and_is_not_repeated(headers, status, words):
    served = AuthenticatingServer()
    served.authenticator.known["busy"] = Refused("later", temporary=True)
    connection = served.ask(headers)
    answer = connection.transport.value()
    assert status_of(connection) == status
    assert words in answer
    assert b"secret" not in answer
    assert (b"WWW-Authenticate: Bearer\r\n" in answer) is (status == 401)
    assert (b"Retry-After: " in answer) is (status == 503)
    assert connection.transport.disconnecting
    assert served.server.hub.count_outboxes() == 0


def test_a_token_in_the_url_is_taken_only_where_that_is_allowed():
    request = REQUEST.replace(b"GET / ", b"GET /?token=ann ")
    served = AuthenticatingServer()
    assert status_of(served.ask(request=request)) == 401
    served.server.connections.token_in_url = True
    assert events_after_upgrade(served.ask(request=request))[1]["user"] == "ann"


def test_without_access_control_credentials_in_a_handshake_are_ignored():
    server = Server()
    for headers in (
        b"Authorization: Basic dTpw\r\n",
        BEARER % b"secret",
        b"Sec-WebSocket-Protocol: quotepush.v1.json, quotepush.auth.secret\r\n",
    ):
        server.open(headers)
    connection = server.connect()
    connection.send(REQUEST.replace(b"GET / ", b"GET /?token=x ") % b"")
    assert status_of(connection) == 101


def test_while_a_token_is_looked_at_nothing_is_read_and_what_came_along_is_answered_after():
    served = AuthenticatingServer()
    served.authenticator.later = True
    connection = served.ask(BEARER % b"ann", rest=masked(1, b'{"op":"ping","id":1}'))
    assert connection.transport.producerState == "paused"
    connection.send(masked(1, b'{"op":"ping","id":2}'))
    assert connection.transport.value() == b""
    served.authenticator.answer()
    assert connection.transport.producerState == "producing"
    assert [event["ev"] for event in events_after_upgrade(connection)] == [
        *("welcome", "authenticated", "pong", "pong"),
    ]


def test_a_verdict_on_who_is_gone_opens_nothing():
    served = AuthenticatingServer()
    served.authenticator.later = True
    connection = served.ask(BEARER % b"ann")
    connection.lose()
    served.authenticator.answer()
    assert connection.transport.value() == b""
    assert served.server.hub.count_outboxes() == 0
    assert served.server.counters.handshakes == 0
    assert served.server.clock.calls == []


def test_a_token_that_is_never_verified_ends_with_the_handshake_deadline():
    served = AuthenticatingServer()
    served.authenticator.later = True
    connection = served.ask(BEARER % b"ann")
    served.server.clock.pass_time(served.server.limits.upgrade_timeout)
    assert connection.transport.aborts == 1


def test_who_is_revoked_while_looked_at_is_refused():
    served = AuthenticatingServer()
    served.authenticator.known["t"] = Identity("ann", "7")
    served.authenticator.later = True
    connection = served.ask(BEARER % b"t")
    served.revocations.revoke("token", "7")
    served.authenticator.answer()
    assert status_of(connection) == 401


@pytest.mark.parametrize("why", ["full", "restarting"])
def test_when_a_token_was_looked_at_there_must_still_be_room(why):
    served = AuthenticatingServer(connections=1)
    served.authenticator.later = True
    first, second = served.ask(BEARER % b"ann"), served.ask(BEARER % b"ann")
    served.authenticator.answer()
    assert status_of(first) == 101
    if why == "restarting":
        first.lose()
        served.server.connections.draining = True
    served.authenticator.answer()
    assert status_of(second) == 503
    assert why.encode() in second.transport.value()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"Origin: http://localhost\r\n", 101),
        (b"Origin: http://localhost:8008\r\n", 403),
        (b"Origin: https://evil.example\r\n", 403),
        (b"Origin: null\r\n", 403),
        (b"", 101),
    ],
)
def test_pages_of_other_origins_are_refused_before_any_token_is_looked_at(headers, status):
    served = AuthenticatingServer()
    connection = served.ask(headers + BEARER % b"ann")
    assert status_of(connection) == status
    assert served.server.counters.origins_refused == (status == 403)


class CertifiedTransport(SecureTransport):
    """TLS with a client's certificate."""

    shown: Any = None

    def getPeerCertificate(self) -> Any:
        return self.shown


def certified(served: AuthenticatingServer, headers: bytes, *, subject: str | None) -> Connection:
    served.server.connections.by_certificate = True
    connection = served.server.connect(transport=CertifiedTransport)
    if subject is not None:
        name = x509.Name.from_rfc4514_string(subject)
        connection.transport.shown = crypto.X509.from_cryptography(certificate_of(name))
    connection.send(REQUEST % headers)
    return connection


def certificate_of(name: x509.Name) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    day = datetime.datetime(2026, 11, 22, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    builder = builder.public_key(key.public_key()).not_valid_before(day)
    return builder.not_valid_after(day + datetime.timedelta(days=1)).sign(key, hashes.SHA256())


def test_a_clients_certificate_says_who_it_is_by_its_subject():
    served = AuthenticatingServer()
    connection = certified(served, b"", subject="CN=ann,O=Shop")
    assert events_after_upgrade(connection)[1]["user"] == "CN=ann,O=Shop"
    served.revocations.revoke("user", "CN=ann,O=Shop")
    assert status_of(certified(served, b"", subject="CN=ann,O=Shop")) == 401
    connection.lose()


@pytest.mark.parametrize("subject", [None, "", "CN=" + "a" * 60 + ",O=" + "b" * 64])
def test_a_certificate_that_names_nobody_is_refused(subject):
    assert status_of(certified(AuthenticatingServer(), b"", subject=subject)) == 401


@pytest.mark.parametrize("end", [b"\r", b"\x0b", b"\x0c", b"\x1c", b"\x1d", b"\x1e", b"\x85"])
def test_a_header_does_not_end_where_http_has_no_end_of_a_line(end):
    served = AuthenticatingServer()
    connection = served.ask(b"Cookie: a=\xc3" + end + BEARER % b"ann")
    [welcome] = events_after_upgrade(connection)
    assert welcome["auth"] == "required"
    connection.lose()


def test_a_token_that_is_offered_twice_is_not_shown():
    offers = b"Sec-WebSocket-Protocol: quotepush.auth.s3cr3t, quotepush.auth.s3cr3t\r\n"
    connection = AuthenticatingServer().ask(offers)
    assert status_of(connection) == 400
    assert b"s3cr3t" not in connection.transport.value()
    assert b'duplicate protocol "quotepush.auth.' in connection.transport.value()


def test_who_is_revoked_while_a_token_is_looked_at_may_answer_the_close():
    served = AuthenticatingServer()
    connection = served.ask(BEARER % b"ann")
    served.authenticator.later = True
    connection.send(masked(1, b'{"op":"auth","token":"ann"}'))
    assert connection.transport.producerState == "paused"
    served.revocations.revoke("user", "ann")
    served.server.connections.access_control.end_revoked("ann", None)
    assert connection.transport.producerState == "producing"
    connection.send(masked(8, CloseCode.AUTHENTICATION_FAILED.to_bytes(2)))
    assert connection.transport.disconnecting
    assert connection.transport.aborts == 0
    connection.lose()


def test_an_open_client_keeps_nothing_of_its_token():
    served = AuthenticatingServer()
    connection = served.ask(BEARER % b"ann")
    kept = vars(connection.protocol).keys()
    assert not {"_identity", "_verifying", "http_headers", "http_request_data"} & kept
    assert "_verifying" not in vars(AuthenticatingServer().ask().protocol)
    connection.lose()


@pytest.mark.parametrize("later", [False, True])
def test_a_fault_in_a_handshake_is_500_with_the_id_that_the_log_has(
    logged_failures, monkeypatch, later
):
    served = AuthenticatingServer()
    served.authenticator.later = later
    monkeypatch.setattr(QuoteProtocol, "_accept", fail)
    connection = served.ask(BEARER % b"ann")
    if later:
        served.authenticator.answer()
    head, _, body = connection.transport.value().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    [event] = logged_failures.flush(ZeroDivisionError)
    assert body.decode() == f"internal error: incident {event['incident']}\n"
    assert event["conn"] == connection.protocol.conn
    assert connection.transport.disconnecting
    assert served.server.counters.client_failures == 1
