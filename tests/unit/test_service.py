"""The daemon's life in this very reactor: start, what it says, faults at start, an ordered stop."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from twisted.internet import defer, reactor
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.logger import globalLogPublisher
from waiting import until

from pushservice import service as service_room
from pushservice.config import Config, redis_address
from pushservice.service import CannotStart, Daemon, raise_file_limit


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


async def stop(daemon: Daemon, *clients: Listener) -> None:
    """Stop the daemon and see each client's end."""
    await daemon.stopService()
    await until(lambda: all(client.gone for client in clients), "the clients' ends")


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


def started(config: Config) -> Daemon:
    daemon = Daemon(reactor, config)
    daemon.privilegedStartService()
    daemon.startService()
    return daemon


@pytest_twisted.ensureDeferred
async def test_quotes_flow_from_redis_to_a_client_and_the_stop_says_goodbye(redis_server):
    daemon = started(local(redis=redis_address(redis_server.url), channels=("svc1.*",)))
    client = await connect(daemon)
    client.say({"op": "subscribe", "symbols": ["AAPL"]})
    await until(lambda: client.named("subscribed"), "the acknowledgement")
    await until(lambda: daemon.feed is not None and daemon.feed.up, "the feed")
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
    config = local(redis=redis_address(redis_server.url), channels=("svc2.*",), heartbeat=100)
    daemon = started(config)
    client = await connect(daemon)
    assert client.events[0]["hb"] == 100
    await until(lambda: len(client.named("heartbeat")) >= 3, "three heartbeats")
    await stop(daemon, client)


@pytest_twisted.ensureDeferred
async def test_heartbeats_go_on_after_one_round_failed(redis_server, logged_failures, monkeypatch):
    config = local(redis=redis_address(redis_server.url), channels=("svc3.*",), heartbeat=100)
    daemon = started(config)
    client = await connect(daemon)
    calls = []

    def fail() -> None:
        calls.append(1)
        raise ZeroDivisionError

    monkeypatch.setattr(daemon.hub, "beat", fail)
    await until(lambda: calls, "a beat that fails")
    monkeypatch.undo()
    await until(lambda: client.named("heartbeat"), "a heartbeat")
    await stop(daemon, client)
    assert logged_failures.flush(ZeroDivisionError)


@pytest_twisted.ensureDeferred
async def test_a_redis_that_is_down_is_said_and_the_daemon_serves_all_the_same(words):
    daemon = started(local(redis=redis_address("unix:///nowhere/redis.sock")))
    client = await connect(daemon)
    client.say({"op": "ping", "id": 1})
    await until(lambda: client.named("pong"), "an answer")
    await until(lambda: "no connection for the feed" in words, "a word about Redis")
    await stop(daemon, client)


@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_answer_the_close_does_not_hold_up_the_stop(
    redis_server, monkeypatch
):
    daemon = Daemon(reactor, local(redis=redis_address(redis_server.url), channels=("svc4.*",)))
    bounds = daemon.factory.bounds
    daemon.factory.bounds = type(bounds)(bounds.connections, close_timeout=0.1)
    daemon.privilegedStartService()
    daemon.startService()
    client = await connect(daemon)
    monkeypatch.setattr(client, "onCloseFrame", lambda code, reason: None)
    await stop(daemon, client)
    assert daemon.factory.open_connections == 0


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
        Daemon(reactor, Config(cert=missing, key=missing))


def test_a_development_certificate_is_made_once_and_said(tmp_path, words):
    for _ in range(2):
        Daemon(reactor, Config(certs=tmp_path / "certs"))
    lines = [line for line in words.lines if "development certificate" in line]
    assert len(lines) == 1
    assert str(tmp_path / "certs" / "dev.crt") in lines[0]


def test_more_connections_than_files_are_cut_down_in_words(words):
    limit = raise_file_limit()
    daemon = Daemon(reactor, Config(plain=True, max_connections=10_000_000))
    assert daemon.factory.bounds.connections == limit - service_room.RESERVED_FILES
    assert "--max-connections 10000000 is more than the file limit" in words
    assert Daemon(reactor, Config(plain=True, max_connections=7)).factory.bounds.connections == 7


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

    from pushservice import embedded as service_room_embedded

    monkeypatch.setattr(service_room_embedded, "find_redis_server", none)
    daemon = started(local())
    client = await connect(daemon)
    assert "no quotes: there is none" in words
    await stop(daemon, client)


@pytest_twisted.ensureDeferred
async def test_a_stop_right_after_the_start_leaves_nothing():
    daemon = started(local(demo=True))
    await daemon.stopService()
    waited: defer.Deferred[None] = defer.Deferred()
    reactor.callLater(0, waited.callback, None)
    await waited
