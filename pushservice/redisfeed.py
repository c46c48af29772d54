"""The feed: a txredisapi subscriber that turns what one read brought into one turn of the hub.

Must not know: clients, or how quotes reach them. Runs at the pace of Redis and never waits, since
Redis drops a subscriber that falls behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import hiredis
import txredisapi
from twisted.internet import defer
from twisted.logger import Logger

from pushservice.channels import Ignored, SymbolReader
from pushservice.interfaces import Publish
from pushservice.metrics import Counters
from pushservice.redislink import RedisLink
from pushservice.redisurl import RedisAddress

#: Seconds that one turn may keep the reactor from everything else.
TURN_BUDGET: Final = 0.025
_SMALLEST_READ: Final = 4 * 1024
_LARGEST_READ: Final = 64 * 1024
#: Seconds between two log lines about messages of one fault.
_LOG_EVERY: Final = 60.0


class _Subscriber(txredisapi.SubscriberProtocol):
    """One connection in subscribe mode.

    txredisapi connects, commands and correlates replies; messages are taken from a reader of our
    own, because its dispatch per message costs more than all that the hub does with one.
    """

    feed: RedisFeed

    def connectionMade(self) -> Any:
        self._messages = hiredis.Reader(
            protocolError=txredisapi.InvalidData, replyError=txredisapi.ResponseError
        )
        return super().connectionMade()

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:
        reader = self._messages
        reader.feed(data)
        following = reader.gets
        deliver = self.feed.deliver
        count = 0
        began = self.feed.now()
        try:
            message = following()
            while message is not False:
                if type(message) is list and len(message) == 4 and message[0] == b"pmessage":
                    count += 1
                    deliver(message[1], message[2], message[3])
                else:
                    self.replyReceived(message)
                message = following()
        except txredisapi.InvalidData as error:
            self.feed.garbled(error)
            self.transport.abortConnection()
        finally:
            self.feed.end_of_read(count)
            size = getattr(self.transport, "bufferSize", _LARGEST_READ)
            self.transport.bufferSize = self.feed.read_size(began, size)


class RedisFeed:
    """Subscribes the channel patterns and delivers every message, for as long as it runs."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        address: RedisAddress,
        patterns: Sequence[str],
        symbols: SymbolReader,
        target: Publish,
        counters: Counters,
    ) -> None:
        self._clock = reactor
        self._patterns = [pattern.encode() for pattern in dict.fromkeys(patterns)]
        self._symbols = symbols
        self._target = target
        self._counters = counters
        self._logged_at: dict[str, float] = {}
        subscriber = type("Subscriber", (_Subscriber,), {"feed": self})
        self._link = RedisLink("feed", reactor, address, subscriber, self._subscribe, self._changed)

    def start(self) -> None:
        """Begin to connect; returns at once."""
        self._link.start()

    async def stop(self) -> None:
        """Disconnect for good."""
        await self._link.stop()

    @property
    def up(self) -> bool:
        """True while every pattern is subscribed."""
        return self._link.up is not None

    @defer.inlineCallbacks
    def _subscribe(self, connection: Any) -> Any:
        # One pattern a command: txredisapi pairs one reply with one command.
        for pattern in self._patterns:
            yield connection.psubscribe([pattern])

    def _changed(self, up: bool) -> None:
        if up:
            self._counters.feed_connects += 1
        else:
            self._counters.feed_losses += 1
        self._target.feed_changed(up)

    # -- called per message and per read -----------------------------------------------------------

    def deliver(self, pattern: bytes, channel: bytes, payload: bytes) -> None:
        """One message; whatever is wrong with it, the next one is served."""
        try:
            symbol = self._symbols.read(pattern, channel, payload)
            if symbol is None:
                self._counters.symbols_missing += 1
                self._log_rarely(
                    "no symbol in the message on {channel!r}; this is said at most once a minute",
                    channel=channel[:80],
                )
            elif not isinstance(symbol, Ignored):
                self._target.publish(symbol, payload)
        except Exception:  # noqa: BLE001 - one bad message must not stop the feed
            self.log.failure("a message on {channel!r} was skipped", channel=channel[:80])

    def end_of_read(self, count: int) -> None:
        """A read of `count` messages is parsed."""
        self._counters.quotes_in += count
        self._target.flush()

    def now(self) -> float:
        """Seconds, by the clock."""
        seconds: float = self._clock.seconds()
        return seconds

    def read_size(self, began: float, size: int) -> int:
        """Bytes to read next, after a read of up to `size` whose turn began at `began`.

        Halved when the turn kept the reactor longer than its budget, so that accepts, clients'
        messages and timers get their turns; doubled again when there is room.
        """
        spent = self.now() - began
        if spent > TURN_BUDGET:
            return max(_SMALLEST_READ, size // 2)
        if spent < TURN_BUDGET / 2:
            return min(_LARGEST_READ, size * 2)
        return size

    def garbled(self, error: Exception) -> None:
        """Redis sent what is no RESP; the connection is dropped and made again."""
        self._log_rarely("Redis sent garbage: {error}", error=str(error))

    def _log_rarely(self, format: str, **values: object) -> None:
        now = self._clock.seconds()
        if now - self._logged_at.get(format, -_LOG_EVERY) >= _LOG_EVERY:
            self._logged_at[format] = now
            self.log.warn(format, **values)
