"""Every kind of --redis address with a real Redis: users, TLS, Unix sockets, sentinels."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis_process import Authority, RedisServer, start_redis, start_sentinel
from system_clients import Client, client_of
from system_harness import DEADLINE, Daemon, Publish, StartDaemon, poll

Start = Callable[..., RedisServer]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers in directories of their own: start(start_redis, *arguments, **settings)."""
    directories: list[str] = []
    servers: list[RedisServer] = []

    def begin(how: Start, *arguments: Any, **settings: Any) -> RedisServer:
        directories.append(tempfile.mkdtemp(prefix="quotepush-test-"))
        servers.append(how(directories[-1], *arguments, **settings))
        return servers[-1]

    yield begin
    for server in servers:
        server.stop()
    for directory in directories:
        shutil.rmtree(directory)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def quote(client: Client) -> dict[str, Any]:
    """The next quote; events about the feed may come before it."""
    async with asyncio.timeout(DEADLINE):
        while (event := await client.event())["ev"] != "quote":
            assert event["ev"] in ("heartbeat", "feed", "gap", "snapshot"), event
    return event


def reaches_a_client(served: Daemon, publish: Callable[[], object]) -> None:
    """Check that a quote of the symbol A, which `publish` publishes, reaches a client."""

    async def run() -> None:
        async with client_of(served, "A") as client:
            await asyncio.to_thread(publish)
            assert (await quote(client))["d"] == 1.5

    asyncio.run(run())


def publish_with_password(redis: RedisServer, password: str, channel: str) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(DEADLINE)
        connection.connect(redis.path)
        connection.sendall(f"AUTH {password}\r\nPUBLISH {channel} 1.5\r\n".encode())
        replies = b""
        while replies.count(b"\r\n") < 2:
            replies += connection.recv(1000)
        assert replies == b"+OK\r\n:1\r\n"


# -- logins ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", ["TCP", "a Unix socket"])
def test_a_user_with_few_rights_and_a_password_is_enough(
    daemon: StartDaemon, publish: Publish, start: Start, over: str
) -> None:
    redis = start(start_redis)
    rights = ("on", ">s3:same@", "~*", "&*", "+@all", "-@dangerous")
    assert redis.cli("ACL", "SETUSER", "bot", *rights) == b"+OK\r\n"
    login = "bot:s3%3Asame%40"
    tcp = f"redis://{login}@127.0.0.1:{redis.port}"
    url = tcp if over == "TCP" else f"unix://{login}@{redis.path}"
    served = daemon("--channels", "kinds.*", redis=url)
    assert b"user=bot" in redis.cli("CLIENT", "LIST", "TYPE", "pubsub")
    reaches_a_client(served, lambda: publish(redis, [("kinds.A", "1.5")]))
    served.stop()
    assert "s3" not in served.output()


def test_a_unix_socket_may_have_a_password(daemon: StartDaemon, start: Start) -> None:
    redis = start(start_redis, "--requirepass", "s3same")
    served = daemon("--channels", "kinds.*", redis=f"unix://:s3same@{redis.path}")
    reaches_a_client(served, lambda: publish_with_password(redis, "s3same", "kinds.A"))
    wrong = daemon("--channels", "kinds.*", redis=f"unix://:0pen@{redis.path}", fed=False)
    assert "WRONGPASS" in wrong.wait_for("no connection for the feed")
    for each in (served, wrong):
        each.stop()
        assert "s3same" not in each.output()
        assert "0pen" not in each.output()


# -- TLS -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("demanded", [False, True])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_tls_with_a_private_authority(
    daemon: StartDaemon,
    publish: Publish,
    start: Start,
    authority: Authority,
    host: str,
    demanded: bool,
) -> None:
    files = authority.issue("redis", host)
    redis = start(start_redis, tls=files, demand_certificates=demanded)
    options = ["--redis-ca", str(authority.ca)]
    if demanded:
        own = authority.issue("quotepush")
        options += ["--redis-cert", str(own.cert), "--redis-key", str(own.key)]
    url = f"rediss://{host}:{redis.port}"
    served = daemon("--channels", "kinds.*", *options, redis=url)
    assert url in served.wait_for("connected for the feed")
    reaches_a_client(served, lambda: publish(redis, [("kinds.A", "1.5")]))


def test_many_large_quotes_arrive_whole_over_tls(
    daemon: StartDaemon, publish: Publish, start: Start, authority: Authority
) -> None:
    redis = start(start_redis, tls=authority.issue("redis", "localhost"))
    served = daemon(
        *("--channels", "kinds.*", "--redis-ca", str(authority.ca)),
        redis=f"rediss://localhost:{redis.port}",
    )
    many = [("kinds.A", f'"{n:04}{"x" * 5000}"') for n in range(200)]

    async def run() -> None:
        async with client_of(served, "A") as client:
            await asyncio.to_thread(publish, redis, many, together=True)
            seen = await quote(client)
            while not seen["d"].startswith("0199"):
                seen = await quote(client)
            assert seen["n"] == 200

    asyncio.run(run())


def test_an_unknown_authority_is_refused_until_it_is_in_the_file(
    daemon: StartDaemon, start: Start, authority: Authority, tmp_path: Path
) -> None:
    redis = start(start_redis, tls=authority.issue("redis", "localhost"))
    trusted = tmp_path / "trusted.crt"
    trusted.write_bytes(Authority(tmp_path, "other").ca.read_bytes())
    served = daemon(
        *("--channels", "kinds.*", "--redis-ca", str(trusted)),
        redis=f"rediss://localhost:{redis.port}",
        fed=False,
    )
    line = served.wait_for("no connection for the feed")
    assert "is signed by an authority that is not trusted: CN=authority; trying again" in line
    trusted.write_bytes(authority.ca.read_bytes())
    served.wait_until_fed()


@pytest.mark.parametrize(
    ("hosts", "days", "words"),
    [
        (["elsewhere.example"], 30.0, "is not for that name but for elsewhere.example"),
        ([], 30.0, "is not for that name but for nobody: it has no subjectAltName"),
        (["localhost"], -1.0, "the certificate of localhost has expired"),
    ],
)
def test_a_wrong_or_expired_certificate_is_refused_until_it_is_replaced(
    daemon: StartDaemon,
    start: Start,
    authority: Authority,
    hosts: list[str],
    days: float,
    words: str,
) -> None:
    redis = start(start_redis, tls=authority.issue("wrong", *hosts, days=days))
    served = daemon(
        *("--channels", "kinds.*", "--redis-ca", str(authority.ca)),
        redis=f"rediss://localhost:{redis.port}",
        fed=False,
    )
    assert words in served.wait_for("no connection for the feed")
    redis.stop()
    start(start_redis, tls=authority.issue("right", "localhost"), port=redis.port)
    served.wait_until_fed()


def test_a_missing_client_certificate_is_logged(
    daemon: StartDaemon, start: Start, authority: Authority
) -> None:
    redis = start(start_redis, tls=authority.issue("redis", "localhost"), demand_certificates=True)
    served = daemon(
        *("--channels", "kinds.*", "--redis-ca", str(authority.ca)),
        redis=f"rediss://localhost:{redis.port}",
        fed=False,
    )
    assert "certificate required" in served.wait_for("no connection for the feed")


def test_a_redis_without_tls_is_logged(
    daemon: StartDaemon, redis_server: RedisServer, authority: Authority
) -> None:
    served = daemon(
        *("--channels", "kinds.*", "--redis-ca", str(authority.ca)),
        redis=f"rediss://127.0.0.1:{redis_server.port}",
        fed=False,
    )
    served.wait_for("no connection for the feed")


def test_a_redis_that_requires_tls_is_logged(
    daemon: StartDaemon, start: Start, authority: Authority
) -> None:
    redis = start(start_redis, tls=authority.issue("redis", "localhost"))
    served = daemon("--channels", "kinds.*", redis=f"redis://localhost:{redis.port}", fed=False)
    served.wait_for("no connection for the feed")


# -- sentinels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["killed", "frozen"])
def test_the_feed_follows_a_real_failover_to_the_new_master(
    daemon: StartDaemon, start: Start, way: str
) -> None:
    password = ("--requirepass", "s3same", "--masterauth", "s3same")
    master = start(start_redis, *password)
    replica = start(start_redis, *password, "--replicaof", "127.0.0.1", str(master.port))
    login = "sentinel auth-pass rates s3same"
    sentinels = [start(start_sentinel, "rates", master.port, login) for _ in range(3)]

    def settled(sentinel: RedisServer) -> bool:
        told = sentinel.cli("SENTINEL", "MASTER", "rates")
        told = told.replace(b"\r\n", b" ")
        return b"num-slaves $1 1" in told and b"num-other-sentinels $1 2" in told

    for sentinel in sentinels:
        poll(lambda sentinel=sentinel: settled(sentinel), "the sentinels to know one another", 40)
    places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
    served = daemon(
        *("--channels", "kinds.*", "--heartbeat", "200"),
        redis=f"redis+sentinel://:s3same@{places}/rates",
    )
    assert f"the master is 127.0.0.1:{master.port}" in served.wait_for("connected for the feed")

    async def run() -> None:
        async with client_of(served, "A") as client:
            publish_with_password(master, "s3same", "kinds.A")
            assert (await quote(client))["n"] == 1
            # Stop the sentinel that was asked too, so that another one has to be asked.
            for server in (master, sentinels[0]):
                server.process.send_signal(signal.SIGKILL if way == "killed" else signal.SIGSTOP)
            await asyncio.to_thread(
                served.wait_for, f"feed; the master is 127.0.0.1:{replica.port}", seconds=40
            )
            publish_with_password(replica, "s3same", "kinds.A")
            assert (await quote(client))["n"] == 2

    asyncio.run(run())
    served.stop()
    assert "s3same" not in served.output()


def test_sentinels_and_their_master_may_use_tls(
    daemon: StartDaemon, publish: Publish, start: Start, authority: Authority
) -> None:
    # Sentinels name their master by its address.
    files = authority.issue("redis", "localhost", "127.0.0.1")
    redis = start(start_redis, tls=files)
    sentinel = start(start_sentinel, "rates", redis.port, quorum=1, tls=files)
    served = daemon(
        *("--channels", "kinds.*", "--redis-ca", str(authority.ca)),
        redis=f"rediss+sentinel://localhost:{sentinel.port}/rates",
    )
    reaches_a_client(served, lambda: publish(redis, [("kinds.A", "1.5")]))


def test_a_service_that_no_sentinel_knows_is_logged_with_each_sentinel(
    daemon: StartDaemon, start: Start
) -> None:
    redis = start(start_redis)
    sentinel = start(start_sentinel, "rates", redis.port, quorum=1)
    served = daemon(
        "--channels",
        "kinds.*",
        redis=f"redis+sentinel://127.0.0.1:{sentinel.port},127.0.0.1:1/wrong",
        fed=False,
    )
    line = served.wait_for("no connection for the feed")
    assert "no sentinel names a master 'wrong': " in line
    assert f"127.0.0.1:{sentinel.port}: it knows no master of that name" in line
    assert "127.0.0.1:1: Connection was refused" in line
