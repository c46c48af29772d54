"""What a newcomer's daemon brings along: a private Redis and a market, together or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from redis_process import RedisServer
from twisted.internet import defer, reactor
from twisted.logger import globalLogPublisher
from waiting import until

from pushservice.config.config import Config
from pushservice.metrics import Counters
from pushservice.redis import embedded
from pushservice.redis.url import redis_address
from pushservice.service.development import Development

ELSEWHERE = redis_address("unix:///nowhere/redis.sock")


@pytest.fixture
def lines():
    """What is logged, as text."""
    found: list[str] = []

    def observe(event: dict[str, Any]) -> None:
        if event.get("log_format"):
            found.append(event["log_format"].format_map(event))

    globalLogPublisher.addObserver(observe)
    yield found
    globalLogPublisher.removeObserver(observe)


@pytest.fixture
def make():
    """make(**config): what there is for it, stopped at the end."""
    made: list[Development] = []

    def one(**values: Any) -> Development:
        made.append(Development(reactor, Config(plain=True, **values), Counters()))
        return made[-1]

    yield one
    for development in made:
        pytest_twisted.blockon(defer.ensureDeferred(development.stop()))


@pytest_twisted.ensureDeferred
async def test_where_redis_is_named_and_no_market_wanted_nothing_is_done(make):
    development = make(redis=(ELSEWHERE,))
    assert development.addresses() == (ELSEWHERE,)
    await development.start()
    assert reactor.getDelayedCalls() == []


@pytest_twisted.ensureDeferred
async def test_the_private_redis_listens_where_it_was_said_before(make, lines):
    development = make(symbol_field="sym", channels=("q.*",))
    [address] = development.addresses()
    assert not Path(address.path).exists()
    await development.start()
    assert Path(address.path).is_socket()
    assert development.addresses() == (address,)
    [line] = [line for line in lines if "embedded Redis" in line]
    assert line.endswith("""publish q.AAPL '{"sym":"AAPL","last":189.50}'""")
    await development.stop()
    assert not Path(address.path).parent.exists()


@pytest_twisted.ensureDeferred
async def test_the_market_publishes_into_the_first_redis_that_is_named(make, own_redis):
    server: RedisServer = own_redis()
    development = make(redis=(redis_address(server.url),), demo=True, demo_rate=1000)
    await development.start()
    await until(lambda: development._counters.demo_published > 10, "quotes of the market")
    await development.stop_market()
    published = development._counters.demo_published
    await development.stop_market()
    await development.stop()
    assert development._counters.demo_published == published


@pytest_twisted.ensureDeferred
async def test_a_stop_in_the_midst_of_the_start_leaves_nothing_and_is_no_fault(make, lines):
    development = make(demo=True)
    starting = defer.Deferred.fromCoroutine(development.start())
    [address] = development.addresses()
    await development.stop()
    await starting
    assert not Path(address.path).parent.exists()
    assert not [line for line in lines if "no quotes" in line or "market" in line]


@pytest_twisted.ensureDeferred
async def test_a_redis_that_can_not_be_started_is_said(make, lines, monkeypatch):
    def none() -> str:
        raise embedded.NoRedisServer("there is none")

    monkeypatch.setattr(embedded, "find_redis_server", none)
    await make().start()
    assert "no quotes: there is none" in lines


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({}, {"stale_after": 5.0}, True),
        ({}, {"redis": (ELSEWHERE,)}, False),
        ({}, {"demo": True}, False),
        ({"demo": True}, {"demo": True, "demo_rate": 5}, False),
        ({"demo": True}, {"demo": True, "channels": ("x.*",)}, False),
        ({"demo_rate": 1}, {"demo_rate": 5}, True),
        ({"redis": (ELSEWHERE,)}, {"redis": (redis_address("redis://h"),)}, True),
        (
            {"redis": (ELSEWHERE,), "demo": True},
            {"redis": (redis_address("redis://h"),), "demo": True},
            False,
        ),
    ],
)
def test_it_serves_another_configuration_where_that_wants_the_same(one, other, same):
    development = Development(reactor, Config(plain=True, **one), Counters())
    assert development.serves(Config(plain=True, **other)) is same
