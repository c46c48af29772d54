"""Publishes the simulated market through Redis, so that a demonstration takes the whole path.

Must not know: the hub, the feed or any client; it is a publisher like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import txredisapi
from twisted.internet.task import LoopingCall

from pushservice.market import Market
from pushservice.metrics import Counters
from pushservice.redislink import RedisLink
from pushservice.redisurl import RedisAddress, RedisTLS

_TICK: Final = 0.02
#: Publishes that Redis has not answered yet before new ones are left out.
_MAX_OUTSTANDING: Final = 20_000


class DemoMarket:
    """Publishes `rate` quotes a second, evenly, while Redis is there."""

    def __init__(
        self,
        reactor: Any,
        address: RedisAddress,
        market: Market,
        channel_of: Callable[[str], str],
        rate: int,
        counters: Counters,
        tls: RedisTLS | None = None,
    ) -> None:
        self._clock = reactor
        self._market = market
        self._channel_of = channel_of
        self._rate = rate
        self._counters = counters
        self._outstanding = 0
        self._due = 0.0
        self._link = RedisLink(
            "simulated market",
            reactor,
            address,
            txredisapi.RedisProtocol,
            # A Redis that does not let us in says so here, and not at every publish.
            lambda connection: connection.ping(),
            lambda _up: None,
            tls=tls,
        )
        # `withCount` keeps the rate when a call comes late.
        self._loop = LoopingCall.withCount(self._tick)
        self._loop.clock = reactor

    def start(self) -> None:
        """Begin to publish as soon as Redis answers; returns at once."""
        self._link.start()
        self._loop.start(_TICK)

    async def stop(self) -> None:
        """Publish no more."""
        if self._loop.running:
            self._loop.stop()
        await self._link.stop()

    def _tick(self, count: int) -> None:
        connection = self._link.up
        if connection is None:
            self._due = 0.0
            return
        self._due = min(self._due + self._rate * _TICK * count, self._rate)
        now_ms = int(self._clock.seconds() * 1000)
        while self._due >= 1:
            self._due -= 1
            if self._outstanding >= _MAX_OUTSTANDING:
                self._counters.demo_failed += 1
                continue
            symbol, payload = self._market.tick(now_ms)
            channel = self._channel_of(symbol).encode()
            self._outstanding += 1
            connection.publish(channel, payload).addCallbacks(self._published, self._failed)

    def _published(self, receivers: object) -> None:
        self._outstanding -= 1
        self._counters.demo_published += 1

    def _failed(self, failure: object) -> None:
        # The link says why; here it only must not be lost without a count.
        self._outstanding -= 1
        self._counters.demo_failed += 1
