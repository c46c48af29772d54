"""The feed with either value of --subscribe: first values, several Redis, staleness, floods."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import closing

import pytest
from feed_clients import now_ms, watching
from redis_process import RedisServer
from system_harness import Publish, Publisher, StartDaemon, poll_async

OwnRedis = Callable[..., RedisServer]

each_mode = pytest.mark.parametrize("mode", ["all", "demand"])


def options(mode: str, *more: str) -> list[str]:
    common = ["--plain", "--channels", "feed.*", "--heartbeat", "200", "--no-registry"]
    return [*common, "--subscribe", mode, *more]


async def until_subscribed(redis: RedisServer, symbol: str) -> None:
    """Wait until the daemon is subscribed to `symbol`: on demand that takes a moment."""

    def subscribed() -> bool:
        by_channel = redis.cli("PUBSUB", "NUMSUB", f"feed.{symbol}")
        return by_channel.endswith(b":1\r\n") or redis.cli("PUBSUB", "NUMPAT") == b":1\r\n"

    await poll_async(subscribed, f"a subscriber of {symbol}")


# -- first values ----------------------------------------------------------------------------------


@each_mode
def test_a_first_subscriber_gets_the_last_value_at_once(
    daemon: StartDaemon, own_redis: OwnRedis, mode: str
) -> None:
    redis = own_redis()
    for symbol in ("A", "B"):
        redis.cli("HSET", "latest", symbol, f'{{"last":1.5,"of":"{symbol}"}}')
    served = daemon(*options(mode, "--snapshot-hash", "latest"), redis=redis.url)

    async def run() -> None:
        async with watching(served, "A", "B", "NONE") as client:
            first = {}
            for symbol in ("A", "B"):
                event = await client.event(ev="snapshot", s=symbol)
                assert event["d"] == {"last": 1.5, "of": symbol}
                first[symbol] = event["n"]
            await until_subscribed(redis, "A")
            assert await asyncio.to_thread(redis.cli, "PUBLISH", "feed.A", "2") == b":1\r\n"
            await client.event(ev="quote", s="A", n=first["A"] + 1, d=2)
            async with watching(served, "A", "B") as second:
                await second.event(ev="snapshot", s="A", n=first["A"] + 1, d=2)
                await second.event(ev="snapshot", s="B", n=first["B"])
            assert not [event for event in client.story if event.get("s") == "NONE"]

    asyncio.run(run())


@each_mode
def test_a_symbol_unwatched_during_an_outage_does_not_show_its_old_value(
    daemon: StartDaemon, own_redis: OwnRedis, mode: str
) -> None:
    redis = own_redis()
    served = daemon(*options(mode, "--snapshot-hash", "latest"), redis=redis.url)

    async def run() -> None:
        async with watching(served, "OTHER") as client:
            async with watching(served, "A") as first:
                await until_subscribed(redis, "A")
                redis.cli("PUBLISH", "feed.A", "1")
                await first.event(ev="quote", s="A", d=1)
            await asyncio.to_thread(redis.cli, "HSET", "latest", "A", "2")
            redis.cli("CLIENT", "KILL", "TYPE", "pubsub")
            await client.event(ev="feed", state="up")
            async with watching(served, "A") as late:
                await late.event(ev="snapshot", s="A", d=2)

    asyncio.run(run())


# -- several Redis ---------------------------------------------------------------------------------


@each_mode
def test_with_two_redis_the_loss_of_one_is_a_loss_of_the_feed(
    daemon: StartDaemon, own_redis: OwnRedis, mode: str
) -> None:
    one, two = own_redis(), own_redis()
    one.cli("HSET", "latest", "A", "10")
    two.cli("HSET", "latest", "B", "20")
    more = ("--redis", two.url, "--snapshot-hash", "latest")
    served = daemon(*options(mode, *more), redis=one.url, fed=False)
    served.wait_for("connected for the feed", times=2)

    async def run() -> None:
        async with watching(served, "A", "B") as client:
            await client.event(ev="snapshot", s="A", d=10)
            await client.event(ev="snapshot", s="B", d=20)
            for symbol, redis in (("A", one), ("B", two)):
                await until_subscribed(redis, symbol)
                assert redis.cli("PUBLISH", f"feed.{symbol}", "1") == b":1\r\n"
                await client.event(ev="quote", s=symbol, d=1)
            await client.heartbeat("up")
            client.forget()

            began_at = now_ms()
            await asyncio.to_thread(two.stop)
            down = await client.event(ev="feed", state="down")
            assert down["t"] - began_at < 2000
            await client.heartbeat("down")
            # Quotes of the other Redis are still served.
            assert one.cli("PUBLISH", "feed.A", "2") == b":1\r\n"
            await client.event(ev="quote", s="A", d=2)
            client.forget()
            back = await asyncio.to_thread(own_redis, port=two.port)
            await client.event(ev="feed", state="up")
            for symbol in "AB":
                await client.event(ev="gap", s=symbol)
            assert back.cli("PUBLISH", "feed.B", "3") == b":1\r\n"
            await client.event(ev="quote", s="B", d=3)
            await client.heartbeat("up")
            await client.event(ev="snapshot", s="A", d=10)

    asyncio.run(run())


# -- staleness -------------------------------------------------------------------------------------


@each_mode
def test_a_symbol_without_quotes_is_stale_until_its_next_quote(
    daemon: StartDaemon, publish: Publish, own_redis: OwnRedis, mode: str
) -> None:
    redis = own_redis()
    served = daemon(*options(mode, "--stale-after", "0.8"), redis=redis.url)

    async def run() -> None:
        async with watching(served, "A", "B") as client, watching(served, "B") as other:
            for symbol in "AB":
                await until_subscribed(redis, symbol)
            # At this pace B is never stale, and A is after its one quote.
            await asyncio.to_thread(publish, redis, [("feed.A", "1")])
            began = now_ms()
            stop = asyncio.Event()

            async def keep_b_fresh() -> None:
                while not stop.is_set():
                    await asyncio.to_thread(publish, redis, [("feed.B", "1")])
                    await asyncio.sleep(0.1)

            keeping = asyncio.create_task(keep_b_fresh())
            await client.event(ev="stale", symbols=["A"])
            assert now_ms() - began >= 800
            async with watching(served, "A") as late:
                await late.event(ev="stale", symbols=["A"])
            await asyncio.to_thread(publish, redis, [("feed.A", "2")])
            await client.event(ev="fresh", symbols=["A"])
            await client.event(ev="quote", s="A", d=2)
            stop.set()
            await keeping
            told = [event["symbols"] for event in other.story if event["ev"] in ("stale", "fresh")]
            assert told in ([], [["B"]]), "only of its own symbols, and of those only the end"

    asyncio.run(run())


@each_mode
def test_all_clients_are_told_when_the_feed_is_stale_and_fresh_again(
    daemon: StartDaemon, publish: Publish, own_redis: OwnRedis, mode: str
) -> None:
    redis = own_redis()
    served = daemon(*options(mode, "--feed-stale-after", "0.5"), redis=redis.url)

    async def run() -> None:
        async with watching(served, "A") as client, watching(served) as idle:
            for each in (client, idle):
                await each.event(ev="stale", all=True, symbols=[])
            await until_subscribed(redis, "A")
            await asyncio.to_thread(publish, redis, [("feed.A", "1")])
            for each in (client, idle):
                await each.event(ev="fresh", all=True, symbols=[])
            async with watching(served) as late:
                await late.event(ev="stale", all=True, symbols=[])

    asyncio.run(run())


# -- floods ----------------------------------------------------------------------------------------


@each_mode
@pytest.mark.alone
def test_a_flood_of_one_symbol_does_not_starve_the_others(
    daemon: StartDaemon, own_redis: OwnRedis, mode: str
) -> None:
    redis = own_redis()
    served = daemon(*options(mode), redis=redis.socket_url)
    ended = threading.Event()
    flooded = 0

    def flood() -> None:
        nonlocal flooded
        with closing(Publisher(redis)) as publisher:
            while not ended.is_set():
                publisher.publish([("feed.FLOOD", f"{flooded + at}") for at in range(500)])
                flooded += 500

    async def run() -> None:
        async with (
            watching(served, "CALM", name="calm") as calm,
            watching(served, "FLOOD", "CALM", interval=100, name="both") as both,
        ):
            flooding = asyncio.create_task(asyncio.to_thread(flood))
            with closing(Publisher(redis)) as publisher:
                try:
                    began = time.monotonic()
                    for at in range(60):
                        quote = [("feed.CALM", f'{{"at":{at},"sent":{now_ms()}}}')]
                        await asyncio.to_thread(publisher.publish, quote)
                        # The pace of the calm symbol.
                        await asyncio.sleep(0.05)
                    seconds = time.monotonic() - began
                finally:
                    ended.set()
                await flooding
                assert flooded > 2000 * seconds, f"no flood: {flooded} in {seconds} s"
                await calm.until(
                    lambda events: any(e["ev"] == "quote" and e["d"]["at"] == 59 for e in events),
                    "the last of the calm symbol",
                )
            quotes = [
                (event["d"], came)
                for event, came in zip(calm.events, calm.came, strict=True)
                if event["ev"] == "quote"
            ]
            assert [payload["at"] for payload, _ in quotes] == list(range(60)), "each, once"
            delays = sorted(came - payload["sent"] for payload, came in quotes)
            assert delays[len(delays) // 2] < 250, delays
            assert delays[-1] < 2000, delays
            await both.event(ev="quote", s="FLOOD", d=flooded - 1)
            assert not [event for event in calm.story if event["ev"] in ("feed", "gap", "bye")]

    asyncio.run(run())
