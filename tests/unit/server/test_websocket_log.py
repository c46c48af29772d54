"""The log lines about clients that connect and disconnect."""

from __future__ import annotations

import struct
import sys
from typing import Any

import pytest
import pytest_twisted
from connection_doubles import (
    BEHIND_PROXIES,
    HOME,
    PROXIES,
    PROXY,
    REQUEST,
    Connection,
    Server,
    forwarded,
    masked,
)
from core_doubles import publish
from twisted.internet import reactor
from twisted.internet import ssl as twisted_ssl
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, wrapClientTLS
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.python.failure import Failure
from waiting import until

from pushservice.protocol.close_codes import CloseCode
from pushservice.server.client_log import ClientLog
from pushservice.server.connections import Connections, Services
from pushservice.server.outlets.choice import choose
from pushservice.tls.factory import TLSFactory, development_pair, server_options


def logging(server: Server, rate: int = 100) -> Server:
    """`server`, which writes lines about the clients that come and go."""
    server.connections.client_log = ClientLog(server.clock, rate)
    return server


def told(events: list[LogEvent]) -> list[LogEvent]:
    """What the log was told of clients since the last call."""
    lines = [event for event in events if "client_log" in event["log_namespace"]]
    events.clear()
    return lines


def test_a_client_that_connects_and_disconnects_is_logged():
    with capturedLogs() as events:
        server = logging(Server())
        connection = server.open(b"Sec-WebSocket-Protocol: quotepush.v1.json\r\n")
        conn = connection.protocol.conn
        [came] = told(events)
        assert formatEvent(came) == f"{conn} connected from {HOME} (quotepush.v1.json)"
        connection.say({"op": "subscribe", "symbols": ["A"]})
        publish(server.hub, ("A", b"1"), ("A", b"2"))
        connection.transport.producer.pauseProducing()
        publish(server.hub, ("A", b"3"), ("A", b"4"))
        connection.transport.producer.resumeProducing()
        server.clock.pass_time(2.5)
        connection.send(masked(8, struct.pack("!H", 1001)))
        assert told(events) == []
        connection.lose()
        connection.lose()
        [went] = told(events)
    assert formatEvent(went) == (
        f"{conn} disconnected after 2.5 s: 3 quotes, 1 merged, closed by client with 1001"
    )
    assert went["address"] == HOME
    assert went["subprotocol"] == "quotepush.v1.json"
    assert "bytes" not in went, "this transport has no socket"


@pytest.mark.parametrize(
    ("proxy", "headers", "shown"),
    [
        (PROXIES["TCP"], forwarded("192.0.2.1"), "192.0.2.1"),
        (PROXIES["TCP"], b"", PROXY),
        (PROXIES["Unix"], forwarded("192.0.2.1"), "192.0.2.1"),
        (PROXIES["Unix"], b"", "unix"),
    ],
)
def test_of_clients_behind_a_proxy_that_does_not_name_them_the_proxy_is_named(
    proxy, headers, shown
):
    with capturedLogs() as events:
        server = logging(Server(trusted=BEHIND_PROXIES))
        connection = server.connect(*proxy)
        connection.send(REQUEST % headers)
        assert (connection.protocol.about().address or "unix") == shown
        connection.lose()
        lines = told(events)
    assert [line["address"] for line in lines] == [shown, shown]


def close_by_daemon(connection: Connection) -> None:
    [outbox] = connection.server.hub.outboxes()
    outbox.outlet.close(CloseCode.RESTARTING)


def close_by_both(connection: Connection) -> None:
    close_by_daemon(connection)
    connection.send(masked(8, struct.pack("!H", 1000)))


@pytest.mark.parametrize(
    ("end", "by", "code"),
    [
        (lambda c: c.send(masked(8, struct.pack("!H", 1000))), "client", 1000),
        (lambda c: c.send(masked(8, b"")), "client", None),
        (close_by_daemon, "server", CloseCode.RESTARTING),
        (close_by_both, "server", CloseCode.RESTARTING),
        (lambda c: c.send(masked(2, b"x")), "server", CloseCode.UNSUPPORTED_DATA),
        (lambda c: c.send(masked(8, struct.pack("!H", 999))), "server", 1002),
        (lambda c: c.lose(ConnectionLost()), "lost", None),
        (lambda c: c.lose(), "lost", None),
    ],
)
def test_the_log_says_who_closed_first_and_with_which_code(end, by, code):
    with capturedLogs() as events:
        server = logging(Server())
        connection = server.open()
        told(events)
        end(connection)
        connection.lose()
        [went] = told(events)
    assert (went["by"], went["code"]) == (by, code)
    assert type(went["code"]) in (int, type(None))


def test_what_never_became_a_client_is_not_logged():
    with capturedLogs() as events:
        server = logging(Server(connections=1))
        server.connect().lose()
        page = server.connect()
        page.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        page.lose()
        server.open()
        told(events)
        refused = server.connect()
        refused.send(REQUEST % b"")
        refused.lose()
        assert told(events) == []


def test_without_a_client_log_nothing_is_kept_for_it():
    server = Server()
    services = Services(server.connections.site, client_log=ClientLog(server.clock, 0))
    silent = Connections(server.clock, server.hub, server.limits, server.counters, services)
    assert silent.client_log is None
    with capturedLogs() as events:
        connection = server.open()
        assert "_logged_since" not in vars(connection.protocol)
        connection.lose()
        assert told(events) == []


def test_a_logged_client_takes_little_more_memory():
    plain, told_of = (vars(server.open().protocol) for server in (Server(), logging(Server())))
    assert set(told_of) - set(plain) == {"_logged_since"}
    assert sys.getsizeof(told_of) == sys.getsizeof(plain)


class Counting(Protocol):
    """A client over a real socket that counts what it is sent."""

    def __init__(self) -> None:
        self.size = 0
        self.lost = False

    def dataReceived(self, data: bytes) -> None:
        self.size += len(data)

    def connectionLost(self, reason: Failure) -> None:
        self.lost = True


@pytest.mark.parametrize("end", ["by a close", "by the daemon", "by hanging up", "by an abort"])
@pytest.mark.parametrize("mode", ["portable", "auto"])
@pytest_twisted.ensureDeferred
async def test_the_bytes_that_were_sent_are_known_however_it_ends(mode, end):
    server = logging(Server())
    server.connections.reactor = reactor
    server.connections.make_outlet = choose(mode, reactor).make
    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(server.factory)
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
    with capturedLogs() as events:
        client = await endpoint.connect(Factory.forProtocol(Counting))
        client.transport.write(REQUEST % b"")
        await until(lambda: server.hub.count_outboxes() == 1, "the handshake")
        [outbox] = server.hub.outboxes()
        outbox.send(outbox.codec.frames([b'"%b"' % (b"x" * 50_000)]))
        await until(lambda: client.size > 50_000, "what was sent")
        size = client.size
        if end == "by a close":
            client.transport.write(masked(8, struct.pack("!H", 1000)))
        elif end == "by the daemon":
            outbox.outlet.close(CloseCode.RESTARTING)
            await until(lambda: client.size > size, "the close frame")
            size = client.size
            client.transport.write(masked(8, struct.pack("!H", 1012)))
        elif end == "by hanging up":
            client.transport.loseConnection()
        else:
            outbox.outlet.abort()
        await until(lambda: server.connections.limiter.connections == 0, "the end")
        await until(lambda: client.lost, "the end at the client")
        went = told(events)[-1]
    assert went["bytes"] == size
    await port.stopListening()


@pytest.mark.parametrize("mode", ["portable", "auto"])
@pytest.mark.parametrize("secure", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_logged_client_falls_behind_and_catches_up_like_any(mode, secure, tmp_path):
    server = logging(Server())
    server.connections.reactor = reactor
    server.connections.make_outlet = choose(mode, reactor).make
    listening: Any = server.factory
    files = development_pair(tmp_path)
    if secure:
        listening = TLSFactory(server_options(files.certificate, files.key), listening, reactor)
    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(listening)
    endpoint: Any = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
    if secure:
        root = twisted_ssl.Certificate.loadPEM(files.certificate.read_bytes())
        trusting = twisted_ssl.optionsForClientTLS("localhost", trustRoot=root)
        endpoint = wrapClientTLS(trusting, endpoint)
    with capturedLogs() as events:
        client = await endpoint.connect(Factory.forProtocol(Counting))
        client.transport.write(REQUEST % b"")
        await until(lambda: server.hub.count_outboxes() == 1, "the handshake")
        [outbox] = server.hub.outboxes()
        client.transport.pauseProducing()
        sent = 0
        while not outbox.behind:
            outbox.send(b"\x00" * 500_000)
            sent += 500_000
        client.transport.resumeProducing()
        await until(lambda: not outbox.behind, "it to catch up")
        await until(lambda: client.size > sent, "all that was sent")
        client.transport.abortConnection()
        await until(lambda: server.connections.limiter.connections == 0, "the end")
        await until(lambda: client.lost, "the end at the client")
        went = told(events)[-1]
    # What TLS adds is sent too.
    added = went["bytes"] - client.size
    assert 100 < added < client.size // 20 if secure else added == 0
    await port.stopListening()
