"""Redis starts late, restarts, or refuses the login: the daemon serves on and reconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from free_ports import free_port
from system_clients import Client, client_of
from system_harness import Publish, RedisServer, StartDaemon

OwnRedis = Callable[..., RedisServer]


async def quote(client: Client) -> dict[str, Any]:
    """The next quote; events about the feed may come before it."""
    async with asyncio.timeout(20):
        while (event := await client.event())["ev"] != "quote":
            assert event["ev"] in ("heartbeat", "feed", "gap", "snapshot"), event
    return event


async def heartbeat(client: Client, feed: str) -> None:
    """Wait for a heartbeat that says that the feed is `feed`."""
    async with asyncio.timeout(20):
        while (event := await client.event())["ev"] != "heartbeat" or event["feed"] != feed:
            pass


def test_a_redis_that_is_down_at_the_start_is_logged_and_connected_to_later(
    daemon: StartDaemon, publish: Publish, own_redis: OwnRedis
) -> None:
    port = free_port()
    options = ["--channels", "late.*", "--heartbeat", "200"]
    served = daemon(*options, redis=f"redis://127.0.0.1:{port}", fed=False)
    line = served.wait_for("no connection for the feed")
    assert f"127.0.0.1:{port}" in line

    async def run() -> None:
        async with client_of(served) as client:
            assert (await client.expect("feed"))["state"] == "down"
            await client.subscribe("A")
            await heartbeat(client, "down")
            redis = await asyncio.to_thread(own_redis, port=port)
            await asyncio.to_thread(served.wait_for, "connected for the feed")
            await heartbeat(client, "up")
            await asyncio.to_thread(publish, redis, [("late.A", "1.50")])
            assert (await quote(client))["n"] == 1

    asyncio.run(run())


def test_quotes_flow_again_after_each_restart_of_redis_and_heartbeats_show_the_state(
    daemon: StartDaemon, publish: Publish, own_redis: OwnRedis
) -> None:
    redis = own_redis()
    served = daemon("--channels", "again.*", "--heartbeat", "200", redis=redis.url)

    async def run() -> None:
        nonlocal redis
        async with client_of(served, "A") as client:
            for n in range(1, 4):
                await asyncio.to_thread(publish, redis, [("again.A", str(n))])
                assert (await quote(client))["n"] == n
                redis.stop()
                await asyncio.to_thread(served.wait_for, "lost; reconnecting", times=n)
                await heartbeat(client, "down")
                redis = await asyncio.to_thread(own_redis, port=redis.port)
                await asyncio.to_thread(served.wait_for, "connected for the feed", times=n + 1)
                await heartbeat(client, "up")
            await asyncio.to_thread(publish, redis, [("again.A", "4")])
            assert (await quote(client))["n"] == 4

    asyncio.run(run())


def test_the_password_is_used_and_never_logged(daemon: StartDaemon, own_redis: OwnRedis) -> None:
    redis = own_redis("--requirepass", "s3same")
    right = daemon("--channels", "pass.*", redis=f"redis://:s3same@127.0.0.1:{redis.port}")
    wrong = daemon("--channels", "pass.*", redis=f"redis://:0pen@127.0.0.1:{redis.port}", fed=False)
    assert "WRONGPASS" in wrong.wait_for("no connection for the feed")
    none = daemon("--channels", "pass.*", redis=redis.url, fed=False)
    assert "NOAUTH" in none.wait_for("no connection for the feed")
    for served in (right, wrong, none):
        served.stop()
        assert "s3same" not in served.output()
        assert "0pen" not in served.output()


@pytest.mark.parametrize("given", ["variable", "both"])
def test_the_environment_names_the_redis_unless_the_command_line_does(
    daemon: StartDaemon, redis_server: RedisServer, given: str
) -> None:
    if given == "variable":
        served = daemon(redis="", env={"QUOTEPUSH_REDIS": redis_server.url})
        assert redis_server.url in served.wait_for("connected for the feed")
    else:
        served = daemon(
            redis=redis_server.socket_url, env={"QUOTEPUSH_REDIS": "redis://127.0.0.1:1"}
        )
        assert redis_server.socket_url in served.wait_for("connected for the feed")


def test_embedded_on_the_command_line_overrides_the_environment(daemon: StartDaemon) -> None:
    served = daemon(redis="embedded", env={"QUOTEPUSH_REDIS": "redis://127.0.0.1:1"}, fed=False)
    served.wait_for("Redis ")
    assert "embedded Redis on" in served.output()
