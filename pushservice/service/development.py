"""What a daemon for development starts itself: a private Redis, and a simulated market.

Must not know: clients, or which process serves them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.logger import Logger

from pushservice.config.config import Config
from pushservice.market.demo import DemoMarket
from pushservice.market.instruments import SYMBOLS
from pushservice.market.simulator import Market
from pushservice.metrics import Counters
from pushservice.redis.embedded import EmbeddedRedis, NoRedisServer
from pushservice.redis.url import RedisAddress


class Development:
    """The private Redis and the simulated market of one daemon, where it is to have them."""

    log = Logger()

    def __init__(self, reactor: Any, config: Config, counters: Counters) -> None:
        self._reactor = reactor
        self._config = config
        self._counters = counters
        self._embedded = None if config.redis else EmbeddedRedis(reactor)
        self._demo: DemoMarket | None = None
        self._stopping = False

    def serves(self, config: Config) -> bool:
        """Whether all this is what `config` wants too."""
        return _wanted(self._config) == _wanted(config)

    def addresses(self) -> Sequence[RedisAddress]:
        """Where quotes come from, private or not; a private one need not listen yet."""
        if self._embedded is None:
            return self._config.redis
        self._embedded.prepare()
        return (RedisAddress(path=self._embedded.socket_path),)

    async def start(self) -> None:
        """Start what there is to start; a private Redis takes connections when this returns.

        If it can't be started that is logged, and it is tried again where that makes sense.
        """
        addresses = self.addresses()
        if self._embedded is not None:
            try:
                await self._embedded.start()
            except NoRedisServer as error:
                # Stopping in the middle of a start is no fault. Else feeds keep trying, and the
                # server starts again if it ended by itself.
                if not self._stopping:
                    self.log.error("no quotes: {reason}", reason=str(error))
            if self._stopping:
                return
            self.log.info(
                "embedded Redis on {path}; publish with: redis-cli -s {path} publish {example}",
                path=addresses[0].path,
                example=_example(self._config),
            )
        if self._config.demo:
            self._start_demo(addresses[0])

    def _start_demo(self, address: RedisAddress) -> None:
        config = self._config
        self._demo = DemoMarket(
            self._reactor,
            address,
            Market(),
            lambda symbol: config.demo_channel(symbol) or symbol,
            config.demo_rate,
            self._counters,
            config.redis_tls,
        )
        self._demo.start()
        self.log.info(
            "simulated market: {symbols} symbols, {rate} quotes a second",
            symbols=len(SYMBOLS),
            rate=config.demo_rate,
        )

    async def stop_market(self) -> None:
        """No more simulated quotes. May be called twice."""
        self._stopping = True
        if self._demo is not None:
            demo, self._demo = self._demo, None
            await demo.stop()

    async def stop(self) -> None:
        """Stop all of it, and leave nothing behind. May be called twice."""
        await self.stop_market()
        if self._embedded is not None:
            await self._embedded.stop()


def _wanted(config: Config) -> tuple[object, ...]:
    """What of a configuration matters here."""
    market = (config.demo_rate, config.channels, config.redis[:1], config.redis_tls)
    return (not config.redis, market if config.demo else None)


def _example(config: Config) -> str:
    """The words after `publish` that bring a quote of AAPL, where the configuration allows one."""
    symbol = "" if config.symbol_field is None else f'"{config.symbol_field}":"AAPL",'
    channel = config.demo_channel("AAPL")
    if channel is None or config.symbol_regex is not None:
        return "CHANNEL PAYLOAD"
    return f"{channel} '{{{symbol}\"last\":189.50}}'"
