"""The daemon's life in this very reactor: start, what it says, faults at start, an ordered stop."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
import pytest_twisted
from daemon_doubles import (
    BRISK,
    REQUEST,
    a_turn,
    address_of,
    connect,
    local,
    started,
    stop,
)
from twisted.internet import reactor
from waiting import until

from pushservice.config.config import Config
from pushservice.limits import Limits
from pushservice.protocol.close_codes import CloseCode
from pushservice.redis.url import redis_address
from pushservice.server.client_counts import ClientCounts
from pushservice.server.ports import Listening
from pushservice.service.daemon import MOVE_SPREAD_MS, RECONNECT_SPREAD_MS, Daemon
from pushservice.service.startup import CannotStart
from pushservice.service.worker_setup import WorkerSetup


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
    assert 0 <= bye["retry"] <= RECONNECT_SPREAD_MS
    assert daemon.hub.count_outboxes() == 0
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pass


@pytest_twisted.ensureDeferred
async def test_the_embedded_redis_and_the_simulated_market_come_and_go_with_the_daemon(logged):
    daemon = started(local(demo=True, demo_rate=2000))
    client = await connect(daemon)
    client.say({"op": "subscribe", "symbols": ["AAPL", "600519.SH", "BTC/USDT"]})
    await until(lambda: len(client.named("quote")) > 5, "quotes of the simulated market")
    [line] = [line for line in logged.lines if "redis-cli -s" in line]
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
async def test_a_redis_that_is_down_is_said_and_the_daemon_serves_all_the_same(logged):
    daemon = started(local(redis=(redis_address("unix:///nowhere/redis.sock"),)))
    client = await connect(daemon)
    client.say({"op": "ping", "id": 1})
    await until(lambda: client.named("pong"), "an answer")
    await until(lambda: "no connection for the feed" in logged, "a word about Redis")
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


@pytest_twisted.ensureDeferred
async def test_an_embedded_redis_that_does_not_start_is_said_and_clients_are_served(
    logged, monkeypatch
):
    def none() -> str:
        raise embedded.NoRedisServer("there is none")

    from pushservice.redis import embedded

    monkeypatch.setattr(embedded, "find_redis_server", none)
    daemon = started(local())
    client = await connect(daemon)
    assert "no quotes: there is none" in logged
    await stop(daemon, client)


@pytest_twisted.ensureDeferred
async def test_a_stop_right_after_the_start_leaves_nothing():
    daemon = started(local(demo=True))
    await daemon.stopService()
    await a_turn()


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
    assert 0 <= bye["retry"] <= MOVE_SPREAD_MS
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
            assert daemon._goodbye is None
            daemon.abort()
        elif when == "told":
            await until(lambda: daemon._goodbye is not None, "the goodbye")
            daemon.abort()
        began = reactor.seconds()
        await left
        assert reactor.seconds() - began < Limits().close_timeout
    assert daemon.connections.limiter.connections == 0
    daemon.abort()
    await daemon.stopService()


@pytest_twisted.ensureDeferred
async def test_an_abort_before_it_leaves_does_nothing():
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
async def test_a_worker_serves_and_counts_clients_from_serve_until_it_drains():
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
def test_each_entry_of_a_slot_has_a_registry_suffix_of_its_own(number, entry, name):
    counts = ClientCounts()
    assert WorkerSetup(number, entry, counts).registry_suffix == name
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
