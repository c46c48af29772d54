"""Connections of a daemon: what the kernel keeps, silent clients, endpoints that refuse."""

from __future__ import annotations

import socket

import pytest
import pytest_twisted
from daemon_doubles import (
    REQUEST,
    SUBSCRIBE_A,
    a_turn,
    address_of,
    connect,
    local,
    started,
    stop,
)
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from waiting import until

from pushservice.config.config import Config
from pushservice.limits import Limits
from pushservice.redis.url import redis_address
from pushservice.service.daemon import Daemon

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
async def test_a_client_that_answers_no_ping_is_aborted_and_named_in_the_log(redis_server, logged):
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
    assert f"{gone} is given up: no answer to a ping for 0.2 s" in logged
    assert daemon.counters.aborted_silent == 1
    await stop(daemon, alive)
    assert outbox.conn + " is given up" not in logged


@pytest_twisted.ensureDeferred
async def test_a_client_that_takes_nothing_is_aborted_and_named_in_the_log(redis_server, logged):
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
    assert f"{outbox.conn} is given up: behind, and took nothing for 0.4 s" in logged
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
