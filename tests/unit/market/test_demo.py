"""The simulated market: published through a real Redis, evenly, and never without bounds."""

from __future__ import annotations

import json
import os
import signal

import pytest
import pytest_twisted
from redis_process import RedisServer
from twisted.internet import defer, reactor
from twisted.internet.task import Clock
from waiting import until

from pushservice.feed.channels import AllPatterns
from pushservice.feed.redis_pubsub import RedisFeed
from pushservice.feed.symbol_reader import SymbolReader
from pushservice.market.demo import DemoMarket
from pushservice.market.simulator import SYMBOLS, Market
from pushservice.metrics import Counters
from pushservice.redis.url import RedisAddress, redis_address

#: Seconds between two ticks of the market, a little over, so that rounding skips none.
TICK = 0.020001


class ClockedReactor(Clock):
    """Connects for real; time is the test's."""

    connectUNIX = staticmethod(reactor.connectUNIX)


class Target:
    """Takes what a feed delivers."""

    def __init__(self) -> None:
        self.quotes: list[tuple[str, bytes]] = []

    def publish(self, symbol: str, payload: bytes) -> None:
        self.quotes.append((symbol, payload))

    def flush(self) -> None:
        pass


class Demonstration:
    """A market that publishes into a Redis, and its time."""

    def __init__(self, address: RedisAddress, rate: int) -> None:
        self.time = ClockedReactor()
        self.time.advance(1000.0)
        self.counters = Counters()
        self.market = DemoMarket(
            self.time, address, Market(7), "test_demo.{}.x".format, rate, self.counters
        )

    @property
    def settled(self) -> int:
        return self.counters.demo_published + self.counters.demo_failed

    async def publishes(self) -> None:
        """Wait until the link is up: a tick then publishes something."""
        await until(lambda: self.market.publisher.link.up is not None, "the market's link")

    async def after(self, *advances: float) -> int:
        """How many quotes were published while time went on."""
        before = self.counters.demo_published
        for seconds in advances:
            self.time.advance(seconds)
        await until(lambda: self.market.publisher.outstanding == 0, "Redis's answers")
        return self.counters.demo_published - before


@pytest.fixture
def demonstrate():
    """demonstrate(server, rate): a market that was started and is stopped at the end."""
    made = []

    def start(server: RedisServer, rate: int) -> Demonstration:
        made.append(Demonstration(redis_address(server.socket_url), rate))
        made[-1].market.start()
        return made[-1]

    yield start
    for demonstration in made:
        pytest_twisted.blockon(defer.ensureDeferred(demonstration.market.stop()))
        assert not demonstration.time.getDelayedCalls(), "no tick is planned"


@pytest_twisted.ensureDeferred
async def test_quotes_take_the_whole_path_through_redis(redis_server, demonstrate):
    pattern = "test_demo.*.x"
    target = Target()
    feed = RedisFeed(
        reactor,
        redis_address(redis_server.url),
        AllPatterns([pattern], SymbolReader([pattern])),
        target,
        Counters(),
        lambda _feed, _up: None,
    )
    feed.start()
    await until(lambda: feed.up, "the feed")
    shown = demonstrate(redis_server, 1000)
    await shown.publishes()
    assert await shown.after(*[TICK] * 10) == 200
    await until(lambda: len(target.quotes) == 200, "the quotes")
    await feed.stop()
    assert {symbol for symbol, _ in target.quotes} == {listing.symbol for listing in SYMBOLS}
    for symbol, payload in target.quotes:
        quote = json.loads(payload)
        assert quote["symbol"] == symbol
        assert 0 <= quote["ts"] - 1_000_000 <= 201, "the market's time, in milliseconds"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("rate", [1, 7, 200, 5000])
async def test_the_rate_is_kept_over_the_seconds(redis_server, demonstrate, rate):
    shown = demonstrate(redis_server, rate)
    await shown.publishes()
    seconds = 3
    published = await shown.after(*[TICK] * (50 * seconds))
    assert abs(published - seconds * rate) <= 1


@pytest_twisted.ensureDeferred
async def test_quotes_come_evenly_and_not_once_a_second(redis_server, demonstrate):
    shown = demonstrate(redis_server, 200)
    await shown.publishes()
    assert [await shown.after(TICK) for _ in range(10)] == [4] * 10


@pytest_twisted.ensureDeferred
async def test_ticks_that_come_late_are_made_up_for_within_one_second(redis_server, demonstrate):
    shown = demonstrate(redis_server, 200)
    await shown.publishes()
    assert await shown.after(TICK * 25) == 100
    assert await shown.after(3600) == 200, "an hour's sleep of the machine makes no flood"


@pytest_twisted.ensureDeferred
async def test_nothing_is_published_without_redis_and_nothing_is_caught_up_with(
    own_redis, demonstrate
):
    server = own_redis()
    shown = demonstrate(server, 200)
    assert await shown.after(TICK) == 0, "the link is not up yet"
    await shown.publishes()
    assert await shown.after(TICK) == 4
    server.cli("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await until(lambda: shown.market.publisher.link.up is None, "the loss")
    assert await shown.after(*[TICK] * 20) == 0
    assert shown.counters.demo_failed == 0
    await shown.publishes()
    assert await shown.after(TICK) == 4


@pytest_twisted.ensureDeferred
async def test_what_redis_does_not_answer_is_bounded_and_counted(own_redis, demonstrate):
    server = own_redis()
    shown = demonstrate(server, 100_000)
    await shown.publishes()
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        shown.time.advance(1.0)
        assert shown.market.publisher.outstanding == 20_000
        assert shown.counters.demo_failed == 80_000
        assert shown.counters.demo_published == 0
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    await until(lambda: shown.counters.demo_published == 20_000, "the answers")
    assert await shown.after(TICK) == 2000


@pytest_twisted.ensureDeferred
async def test_quotes_on_their_way_when_redis_dies_are_counted_as_failed(own_redis, demonstrate):
    server = own_redis()
    shown = demonstrate(server, 1000)
    await shown.publishes()
    os.kill(server.process.pid, signal.SIGSTOP)
    shown.time.advance(TICK)
    server.stop()
    await until(lambda: shown.settled == 20, "all to be accounted for")
    assert (shown.counters.demo_published, shown.counters.demo_failed) == (0, 20)


@pytest_twisted.ensureDeferred
async def test_a_redis_that_hangs_does_not_delay_the_stop(own_redis, demonstrate):
    server = own_redis()
    shown = demonstrate(server, 100_000)
    await shown.publishes()
    os.kill(server.process.pid, signal.SIGSTOP)
    shown.time.advance(1.0)
    stopping = defer.ensureDeferred(shown.market.stop())
    try:
        await until(lambda: stopping.called, "the stop", seconds=2)
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
        await stopping


@pytest_twisted.ensureDeferred
async def test_a_stopped_market_publishes_no_more(redis_server, demonstrate):
    shown = demonstrate(redis_server, 200)
    await shown.publishes()
    await shown.market.stop()
    await shown.market.stop()
    assert await shown.after(*[TICK] * 50) == 0


@pytest_twisted.ensureDeferred
async def test_a_market_can_be_stopped_without_having_been_started(redis_server):
    shown = Demonstration(redis_address(redis_server.socket_url), 200)
    await shown.market.stop()
    assert shown.settled == 0
