"""Publishes the simulated market of --demo through Redis, as a real publisher would.

Must not know: the hub, the feed or any client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pushservice.market.playback import SimulatedSource
from pushservice.market.publisher import Publisher
from pushservice.market.simulator import Market
from pushservice.metrics import Counters
from pushservice.redis.url import RedisAddress, RedisTLS


class DemoMarket:
    """Publishes `rate` quotes a second, evenly spaced, while Redis is connected."""

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
        self._counters = counters
        source = SimulatedSource(market, channel_of, rate, self._dropped)
        self.publisher = Publisher("simulated market", reactor, address, source, self._settled, tls)

    def start(self) -> None:
        """Begin to publish as soon as Redis answers; returns at once."""
        self.publisher.start()

    async def stop(self) -> None:
        """Publish no more. May be called twice, or without `start`."""
        await self.publisher.stop()

    def _settled(self, receivers: int | None) -> None:
        if receivers is None:
            self._counters.demo_failed += 1
        else:
            self._counters.demo_published += 1

    def _dropped(self, count: int) -> None:
        self._counters.demo_failed += count
