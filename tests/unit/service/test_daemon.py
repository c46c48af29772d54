"""The daemon's life in this very reactor: start, what it says, faults at start, an ordered stop."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from twisted.internet import defer, reactor
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.threads import deferToThread
from twisted.logger import globalLogPublisher
from waiting import until

from pushservice.config.config import Config
from pushservice.limits import Limits
from pushservice.protocol.close_codes import CloseCode
from pushservice.redis.url import redis_address
from pushservice.server.client_counts import ClientCounts
from pushservice.server.connection_limits import PENDING_BURST
from pushservice.server.ports import Listening
from pushservice.service import daemon as service_room
from pushservice.service.daemon import CannotStart, Daemon, WorkerSetup, raise_file_limit

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
_COMMAND = b'{"op":"subscribe","symbols":["A"]}'
#: Masked with zeros.
SUBSCRIBE_A = bytes([0x81, 0x80 | len(_COMMAND), 0, 0, 0, 0]) + _COMMAND


class Listener(WebSocketClientProtocol):
    """A client that keeps what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []
        self.code: int | None = None
        self.gone = False

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.events += json.loads(payload)

    def onClose(self, wasClean: bool, code: int, reason: str) -> None:
        self.code = code
        self.gone = True

    def say(self, command: object) -> None:
        self.sendMessage(json.dumps(command).encode())

    def named(self, ev: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["ev"] == ev]


async def connect(daemon: Daemon) -> Listener:
    """A client that has been welcomed."""
    port = daemon.ports[0].getHost().port
    factory = WebSocketClientFactory(f"ws://127.0.0.1:{port}", protocols=["quotepush.v1.json"])
    factory.protocol = Listener
    factory.noisy = False
    client: Listener = await TCP4ClientEndpoint(reactor, "127.0.0.1", port).connect(factory)
    await until(lambda: client.events, "the welcome")
    return client


def address_of(daemon: Daemon) -> tuple[str, int]:
    return "127.0.0.1", daemon.ports[0].getHost().port


async def stop(daemon: Daemon, *clients: Listener) -> None:
    """Stop the daemon and see each client's end."""
    await daemon.stopService()
    await until(lambda: all(client.gone for client in clients), "the clients' ends")


async def a_turn() -> None:
    """Let the reactor turn once."""
    turn: defer.Deferred[None] = defer.Deferred()
    reactor.callLater(0, turn.callback, None)
    await turn


class Words:
    """Everything that is logged, as text."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, event: dict[str, Any]) -> None:
        if event.get("log_format"):
            self.lines.append(event["log_format"].format_map(event))

    def __contains__(self, words: str) -> bool:
        return any(words in line for line in self.lines)


@pytest.fixture
def words():
    observer = Words()
    globalLogPublisher.addObserver(observer)
    yield observer
    globalLogPublisher.removeObserver(observer)


def local(**values: Any) -> Config:
    """A configuration for a loopback port of the system's choice, without TLS."""
    return Config(listen=("tcp:0:interface=127.0.0.1",), plain=True, **values)


BRISK = Limits(heartbeat_ms=100)


def started(config: Config) -> Daemon:
    daemon = Daemon(reactor, config)
    daemon.privilegedStartService()
    daemon.startService()
    return daemon


@pytest_twisted.ensureDeferred
async def test_quotes_flow_from_redis_to_a_client_and_the_stop_says_goodbye(redis_server):
    daemon = started(local(redis=(redis_address(redis_server.url),), channels=("svc1.*",)))
    client = await connect(daemon)
    client.say({"op": "subscribe", "symbols": ["AAPL"]})
    await until(lambda: client.named("subscribed"), "the acknowledgement")
    await until(lambda: daemon.counters.feed_connects, "the feed")
    assert redis_server.cli("publish", "svc1.AAPL", '{"last":10.50}') == b":1\r\n"
    await until(lambda: client.named("quote"), "the quote")
    assert client.named("quote")[0]["d"] == {"last": 10.5}
    assert daemon.counters.quotes_in == 1
    port = daemon.ports[0].getHost().port
    await stop(daemon, client)
    [bye] = client.named("bye")
    assert bye["code"] == client.code == 1001
    assert 0 <= bye["retry"] <= service_room.RECONNECT_SPREAD_MS
    assert daemon.hub.count_outboxes() == 0
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pass


@pytest_twisted.ensureDeferred
async def test_the_embedded_redis_and_the_simulated_market_come_and_go_with_the_daemon(words):
    daemon = started(local(demo=True, demo_rate=2000))
    client = await connect(daemon)
    client.say({"op": "subscribe", "symbols": ["AAPL", "600519.SH", "BTC/USDT"]})
    await until(lambda: len(client.named("quote")) > 5, "quotes of the simulated market")
    [line] = [line for line in words.lines if "redis-cli -s" in line]
    path = Path(line.split("redis-cli -s ")[1].split()[0])
    assert path.is_socket()
    assert "publish quote.AAPL" in line
    await stop(daemon, client)
    assert not path.parent.exists()


@pytest_twisted.ensureDeferred
async def test_heartbeats_go_out_at_their_interval(redis_server):
    config = local(redis=(redis_address(redis_server.url),), channels=("svc2.*",), limits=BRISK)
    daemon = started(config)
    client = await connect(daemon)
    assert client.events[0]["hb"] == 100
    await until(lambda: len(client.named("heartbeat")) >= 3, "three heartbeats")
    await stop(daemon, client)


@pytest_twisted.ensureDeferred
async def test_heartbeats_go_on_after_one_round_failed(redis_server, logged_failures, monkeypatch):
    config = local(redis=(redis_address(redis_server.url),), channels=("svc3.*",), limits=BRISK)
    daemon = started(config)
    client = await connect(daemon)
    calls = []

    def fail() -> None:
        calls.append(1)
        raise ZeroDivisionError

    monkeypatch.setattr(daemon.announcements, "beat", fail)
    await until(lambda: calls, "a beat that fails")
    monkeypatch.undo()
    await until(lambda: client.named("heartbeat"), "a heartbeat")
    await stop(daemon, client)
    assert logged_failures.flush(ZeroDivisionError)


@pytest_twisted.ensureDeferred
async def test_a_redis_that_is_down_is_said_and_the_daemon_serves_all_the_same(words):
    daemon = started(local(redis=(redis_address("unix:///nowhere/redis.sock"),)))
    client = await connect(daemon)
    client.say({"op": "ping", "id": 1})
    await until(lambda: client.named("pong"), "an answer")
    await until(lambda: "no connection for the feed" in words, "a word about Redis")
    await stop(daemon, client)


@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_answer_the_close_does_not_hold_up_the_stop(
    redis_server, monkeypatch
):
    limits = Limits(close_timeout=0.1)
    config = local(redis=(redis_address(redis_server.url),), channels=("svc4.*",), limits=limits)
    daemon = started(config)
    client = await connect(daemon)
    monkeypatch.setattr(client, "onCloseFrame", lambda code, reason: None)
    await stop(daemon, client)
    assert daemon.connections.limiter.connections == 0


@pytest.mark.parametrize(("auth", "shown"), [("none", ["A"]), ("redis", [])])
def test_the_page_names_no_symbol_where_clients_are_asked_who_they_are(auth, shown):
    made = Daemon(reactor, Config(plain=True, auth=auth))
    made.hub.publish("A", b"1")
    made.hub.flush()
    assert made._shown_symbols(10) == shown


def test_a_port_in_use_is_one_clear_line_and_exit_status_1():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        daemon = Daemon(reactor, Config(port=number, interface="127.0.0.1", plain=True))
        with pytest.raises(CannotStart) as caught:
            daemon.privilegedStartService()
    message = str(caught.value)
    assert f"tcp:{number}" in message
    assert "Address already in use" in message
    assert "\n" not in message
    assert isinstance(caught.value, SystemExit), "ends the process without a traceback"
    assert isinstance(caught.value, Exception), "lets twistd clean up"


@pytest.mark.parametrize(
    "text", ["nonsense:1", "tcp:port=x", "tcp:0:colour=red", "ssl:0:privateKey=/no"]
)
def test_an_endpoint_that_can_not_be_used_is_named(text):
    daemon = Daemon(reactor, Config(listen=(text,), plain=True))
    with pytest.raises(CannotStart, match="can't listen on") as caught:
        daemon.privilegedStartService()
    assert text in str(caught.value)


def test_a_certificate_that_can_not_be_used_is_named(tmp_path):
    missing = tmp_path / "missing.pem"
    with pytest.raises(CannotStart, match=r"quotepush: can't read the certificate .*missing\.pem"):
        Daemon(reactor, Config(cert=(missing,), key=(missing,)))


def test_a_development_certificate_is_made_once_and_said(tmp_path, words):
    for _ in range(2):
        Daemon(reactor, Config(certs=tmp_path / "certs"))
    lines = [line for line in words.lines if "development certificate" in line]
    assert len(lines) == 1
    assert str(tmp_path / "certs" / "dev.crt") in lines[0]


def limits_of(monkeypatch, files: int, **values: Any) -> Limits:
    """The limits of a daemon that may open so many files."""
    monkeypatch.setattr(service_room, "raise_file_limit", lambda: files)
    daemon = Daemon(reactor, Config(plain=True, **values))
    assert daemon.connections.limits == daemon.connections.limiter._limits
    return daemon.connections.limits


@pytest.mark.parametrize(
    ("room", "asked", "handshakes", "connections"),
    [
        (100_000, 1000, 1000, 99_000),
        (4000, 1000, 1000, 3000),
        (3999, 1000, 999, 3000),
        (400, 1000, 100, 300),
        (400, 20, 20, 380),
        (4, 16, 1, 3),
        (2, 16, 1, 1),
        (-1000, 16, 1, 1),
    ],
)
def test_the_files_are_split_with_a_quarter_at_most_for_those_that_are_no_clients(
    monkeypatch, room, asked, handshakes, connections
):
    files = service_room.RESERVED_FILES + room
    limits = limits_of(monkeypatch, files, limits=Limits(handshakes=asked))
    assert (limits.handshakes, limits.connections) == (handshakes, connections)


def test_what_is_reserved_has_room_for_those_that_are_dropped_unheard():
    assert service_room.RESERVED_FILES >= PENDING_BURST + 32


def test_more_connections_than_files_are_cut_down_in_words(words, monkeypatch):
    files = service_room.RESERVED_FILES + 4000
    limits = limits_of(monkeypatch, files, max_connections=3001)
    assert limits.connections == 3000
    assert f"--max-connections 3001 is more than the file limit {files} allows: using 3000" in words


@pytest.mark.parametrize("asked", [1, 7, 3000])
def test_as_many_connections_as_there_are_files_for_are_taken_without_a_word(
    words, monkeypatch, asked
):
    files = service_room.RESERVED_FILES + 4000
    assert limits_of(monkeypatch, files, max_connections=asked).connections == asked
    assert "--max-connections" not in words


def test_all_other_limits_are_those_of_the_configuration(monkeypatch):
    asked = Limits(symbols=3, raw_budget=2000, ping_interval=0, handshakes=16)
    limits = limits_of(monkeypatch, 100_000, limits=asked, max_connections=5)
    assert limits == replace(asked, connections=5)


def test_the_file_limit_is_the_soft_one_where_it_can_not_be_raised(monkeypatch):
    def refuse(which: int, limits: tuple[int, int]) -> None:
        raise ValueError("not permitted")

    monkeypatch.setattr(service_room.resource, "getrlimit", lambda which: (256, 4096))
    monkeypatch.setattr(service_room.resource, "setrlimit", refuse)
    assert raise_file_limit() == 256


@pytest_twisted.ensureDeferred
async def test_an_embedded_redis_that_does_not_start_is_said_and_clients_are_served(
    words, monkeypatch
):
    def none() -> str:
        raise service_room_embedded.NoRedisServer("there is none")

    from pushservice.redis import embedded as service_room_embedded

    monkeypatch.setattr(service_room_embedded, "find_redis_server", none)
    daemon = started(local())
    client = await connect(daemon)
    assert "no quotes: there is none" in words
    await stop(daemon, client)


@pytest_twisted.ensureDeferred
async def test_a_stop_right_after_the_start_leaves_nothing():
    daemon = started(local(demo=True))
    await daemon.stopService()
    await a_turn()


# -- what the kernel keeps -------------------------------------------------------------------------


def kept_by_the_kernel(daemon: Daemon) -> int:
    """SO_SNDBUF of the only client's connection."""
    [outbox] = daemon.hub.outboxes()
    return outbox.outlet._transport.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("size", [20_000, 65_536])
async def test_the_kernel_keeps_so_much_for_a_client(redis_server, size):
    limits = Limits(send_buffer=size)
    daemon = started(local(redis=(redis_address(redis_server.url),), limits=limits))
    client = await connect(daemon)
    # Linux doubles what it is told.
    assert kept_by_the_kernel(daemon) == 2 * size
    await stop(daemon, client)


@pytest_twisted.ensureDeferred
async def test_a_send_buffer_of_nothing_leaves_it_to_the_kernel(redis_server):
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()),
        server.accept()[0] as accepted,
    ):
        usual = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    limits = Limits(send_buffer=0)
    daemon = started(local(redis=(redis_address(redis_server.url),), limits=limits))
    client = await connect(daemon)
    assert kept_by_the_kernel(daemon) == usual
    await stop(daemon, client)


@pytest_twisted.ensureDeferred
async def test_the_kernel_keeps_so_much_for_a_client_of_a_unix_socket_too(redis_server, tmp_path):
    path = tmp_path / "socket"
    config = Config(
        listen=(f"unix:{path}",),
        plain=True,
        redis=(redis_address(redis_server.url),),
        limits=Limits(send_buffer=20_000),
    )
    daemon = started(config)
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        client.connect(str(path))
        client.send(REQUEST)
        await until(lambda: daemon.hub.count_outboxes() == 1, "the handshake")
        kept = kept_by_the_kernel(daemon)
    await daemon.stopService()
    assert kept == 40_000


# -- clients that are gone without a word ----------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_client_that_answers_no_ping_is_aborted_and_named_in_the_log(redis_server, words):
    limits = Limits(ping_interval=0.3, ping_timeout=0.2)
    daemon = started(local(redis=(redis_address(redis_server.url),), limits=limits))
    alive = await connect(daemon)
    with socket.create_connection(address_of(daemon)) as silent:
        silent.sendall(REQUEST)
        await until(lambda: daemon.hub.count_outboxes() == 2, "the handshake")
        conns = {outbox.conn for outbox in daemon.hub.outboxes()}
        came = reactor.seconds()
        await until(lambda: daemon.hub.count_outboxes() == 1, "the end of the silent one")
        assert reactor.seconds() - came < 5
    [outbox] = daemon.hub.outboxes()
    [gone] = conns - {outbox.conn}
    assert alive.events[0]["conn"] == outbox.conn
    assert f"{gone} is given up: no answer to a ping for 0.2 s" in words
    assert daemon.counters.aborted_silent == 1
    await stop(daemon, alive)
    assert outbox.conn + " is given up" not in words


@pytest_twisted.ensureDeferred
async def test_a_client_that_takes_nothing_is_aborted_and_named_in_the_log(redis_server, words):
    limits = Limits(ping_interval=0, stall_timeout=0.4, send_buffer=16_384)
    daemon = started(local(redis=(redis_address(redis_server.url),), limits=limits))
    with socket.socket() as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        stalled.connect(address_of(daemon))
        stalled.sendall(REQUEST + SUBSCRIBE_A)
        await until(lambda: daemon.counters.commands == 1, "the subscription")
        [outbox] = daemon.hub.outboxes()
        while not outbox.behind:
            daemon.hub.publish("A", b'"' + b"x" * 10_000 + b'"')
            daemon.hub.flush()
            await a_turn()
        await until(lambda: daemon.hub.count_outboxes() == 0, "the end of the stalled one")
    assert f"{outbox.conn} is given up: behind, and took nothing for 0.4 s" in words
    assert daemon.counters.aborted_stalled == 1
    await daemon.stopService()


@pytest_twisted.ensureDeferred
async def test_without_an_interval_nobody_is_pinged(redis_server):
    limits = Limits(ping_interval=0, ping_timeout=0.1, heartbeat_ms=100)
    daemon = started(local(redis=(redis_address(redis_server.url),), limits=limits))
    pings: list[bytes] = []
    client = await connect(daemon)
    client.onPing = pings.append
    await until(lambda: len(client.named("heartbeat")) >= 5, "five heartbeats")
    assert pings == []
    await stop(daemon, client)


# -- endpoints that refuse -------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("kind", ["tcp", "tls", "haproxy"])
async def test_a_connection_that_may_not_come_in_is_ended_on_every_kind_of_endpoint(
    redis_server, tmp_path, kind
):
    config = Config(
        listen=(f"{'haproxy:' if kind == 'haproxy' else ''}tcp:0:interface=127.0.0.1",),
        plain=kind != "tls",
        certs=tmp_path,
        redis=(redis_address(redis_server.url),),
        limits=Limits(connect_rate=1, per_address=0),
    )
    daemon = started(config)
    clients = [socket.create_connection(address_of(daemon)) for _ in range(11)]
    counters = daemon.counters
    try:
        await until(
            lambda: counters.connections_accepted + counters.connections_refused == 11,
            "all attempts",
        )
        assert counters.connections_refused == 1
        clients[-1].settimeout(10)
        assert await deferToThread(read_to_the_end, clients[-1]) == b""
    finally:
        for client in clients:
            client.close()
        await daemon.stopService()


def read_to_the_end(client: socket.socket) -> bytes:
    try:
        return client.recv(100)
    except ConnectionResetError:
        return b""


# -- leaving ---------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_to_leave_twice_is_to_leave_once_and_both_hear_of_its_end():
    daemon = started(local(redis=(redis_address("unix:///nowhere/redis.sock"),)))
    first, second = daemon.leave(CloseCode.GOING_AWAY), daemon.stopService()
    assert daemon.status()["draining"]
    await first
    await second
    await daemon.leave(CloseCode.RESTARTING)


@pytest_twisted.ensureDeferred
async def test_where_others_serve_on_clients_are_told_to_come_back_at_once():
    daemon = started(local(redis=(redis_address("unix:///nowhere/redis.sock"),)))
    client = await connect(daemon)
    left = daemon.leave(CloseCode.RESTARTING)
    await until(lambda: client.gone, "the client's end")
    await left
    [bye] = client.named("bye")
    assert bye["code"] == client.code == 1012
    assert 0 <= bye["retry"] <= service_room.MOVE_SPREAD_MS
    await daemon.stopService()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("when", ["at the deadline", "told before the ports are closed", "told"])
async def test_who_does_not_go_is_dropped(when):
    values = {"drain_timeout": 0.3} if when == "at the deadline" else {}
    daemon = started(local(redis=(redis_address("unix:///nowhere/redis.sock"),), **values))
    with socket.create_connection(address_of(daemon)) as deaf:
        deaf.sendall(REQUEST)
        await until(lambda: daemon.hub.count_outboxes() == 1, "the handshake")
        left = daemon.leave(CloseCode.GOING_AWAY)
        if when == "told before the ports are closed":
            assert daemon._farewell is None
            daemon.abort()
        elif when == "told":
            await until(lambda: daemon._farewell is not None, "the goodbye")
            daemon.abort()
        began = reactor.seconds()
        await left
        assert reactor.seconds() - began < Limits().close_timeout
    assert daemon.connections.limiter.connections == 0
    daemon.abort()
    await daemon.stopService()


@pytest_twisted.ensureDeferred
async def test_a_hurry_before_it_leaves_is_nothing():
    daemon = started(local(redis=(redis_address("unix:///nowhere/redis.sock"),)))
    client = await connect(daemon)
    daemon.abort()
    client.say({"op": "ping", "id": 1})
    await until(lambda: client.named("pong"), "an answer")
    left = daemon.stopService()
    await until(lambda: client.gone, "the client's end")
    await left
    assert client.code == 1001, "it was told goodbye"


# -- on a setup ------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_on_a_berth_clients_are_served_once_that_is_told_and_counted_until_it_leaves():
    counts = ClientCounts()
    with socket.create_server(("127.0.0.1", 0)) as server:
        listening = Listening("tcp:0", os.dup(server.fileno()), server.family)
        setup = WorkerSetup(1, 2, counts, sockets=[listening], redis_socket="/nowhere/redis.sock")
        config = Config(plain=True, listen=("tcp:1",), max_connections=1, registry_prefix=None)
        daemon = Daemon(reactor, config, setup)
        daemon.privilegedStartService()
        daemon.startService()
        with pytest.raises(IndexError):
            daemon.ports[0]
        assert counts.serving() == []
        daemon.serve()
        assert counts.serving() == [0]
        client = await connect(daemon)
        assert counts.serving() == [1]
        assert daemon.connections.full(), "the most that there may be is for all processes together"
        left = daemon.leave(CloseCode.RESTARTING)
        assert counts.serving() == []
        await until(lambda: client.gone, "the client's end")
        await left
        with socket.create_connection(server.getsockname(), timeout=10):
            accepted, _ = server.accept()
            accepted.close()
    counts.close()


@pytest.mark.parametrize(("number", "entry", "name"), [(1, 0, "-1a"), (3, 11, "-3d")])
def test_a_berth_has_a_name_of_its_own_for_each_seat(number, entry, name):
    counts = ClientCounts()
    assert WorkerSetup(number, entry, counts).name == name
    counts.close()


@pytest_twisted.ensureDeferred
async def test_how_it_stands_is_plain_numbers():
    daemon = started(local(redis=(redis_address("unix:///nowhere/redis.sock"),)))
    client = await connect(daemon)
    client.say({"op": "subscribe", "symbols": ["A", "B"]})
    await until(lambda: client.named("subscribed"), "the acknowledgement")
    status = json.loads(json.dumps(daemon.status()))
    assert (status["clients"], status["connections"], status["symbols"]) == (1, 1, 2)
    assert (status["feed"], status["age"], status["draining"]) == ("down", None, False)
    assert status["counters"]["commands"] == 1
    await stop(daemon, client)
    assert daemon.status()["draining"]
