"""One Redis as a source of quotes: a txredisapi subscriber; one read becomes one turn of the hub.

Must not know: clients, or how quotes reach them. Runs at the pace of Redis and never waits, since
Redis drops a subscriber that falls behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import hiredis
import txredisapi
from twisted.internet import defer
from twisted.logger import Logger

from pushservice.fanout.interfaces import DelayedCall, Publish
from pushservice.feed.listening import Listening
from pushservice.feed.publish_time import published_at
from pushservice.feed.symbol_reader import Ignored
from pushservice.metrics import Counters, Measures
from pushservice.redis.link import RedisLink
from pushservice.redis.url import RedisAddress, RedisTLS

#: Seconds of CPU that one turn may keep the reactor from everything else.
TURN_BUDGET: Final = 0.025
#: Seconds between what a quote says of when it was published and when it came that are believed.
_MOST_LAG: Final = 24 * 3600.0
_SMALLEST_READ: Final = 4 * 1024
_LARGEST_READ: Final = 64 * 1024
#: Seconds between two log lines about messages of one fault.
_LOG_EVERY: Final = 60.0
#: Seconds between pings, and of silence after which the link counts as dead. Together with what a
#: look takes, a Redis that hangs is noticed within two seconds.
PING_EVERY: Final = 0.4
SILENCE: Final = 1.3
#: Seconds in which what came while this process stood still is read before silence counts.
_SECOND_LOOK: Final = 0.1


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
        stopwatch = self.feed.measures.stopwatch
        watch, began, used = stopwatch(), self.feed.now(), self.feed.cpu()
        first: Any = False
        try:
            message = first = following()
            while message is not False:
                if type(message) is list and message[0] == b"pmessage" and len(message) == 4:
                    count += 1
                    deliver(message[1], message[2], message[3])
                elif type(message) is list and message[0] == b"message" and len(message) == 3:
                    count += 1
                    deliver(None, message[1], message[2])
                else:
                    self.replyReceived(message)
                message = following()
        except txredisapi.InvalidData as error:
            self.feed.garbled(error)
            self.transport.abortConnection()
        finally:
            self.feed.end_of_read(count, began, watch, first)
            # Under TLS it is the transport below that reads from the socket.
            reading: Any = getattr(self.transport, "transport", self.transport)
            size = getattr(reading, "bufferSize", _LARGEST_READ)
            reading.bufferSize = self.feed.read_size(used, size)


class RedisFeed:
    """Listens to one Redis and delivers every message, for as long as it runs."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        address: RedisAddress,
        listening: Listening,
        target: Publish,
        counters: Counters,
        changed: Callable[[RedisFeed, bool], None],
        tls: RedisTLS | None = None,
        cpu: Callable[[], float] = time.thread_time,
        measures: Measures | None = None,
    ) -> None:
        """`changed` is told when the link comes up, and with False when it is lost or can't be.

        `cpu` gives the seconds of CPU that the reactor's thread has used.
        """
        self._clock = reactor
        self.cpu = cpu
        self._listening = listening
        self._target = target
        self._counters = counters
        self.measures = measures or Measures()
        self._tell = changed
        self._logged_at: dict[str, float] = {}
        self._heard_at = 0.0
        self._watch: DelayedCall | None = None
        subscriber = type("Subscriber", (_Subscriber,), {"feed": self})
        self._link = RedisLink(
            "feed",
            reactor,
            address,
            subscriber,
            self._prepare,
            self._changed,
            tls=tls,
            refused=lambda: changed(self, False),
        )

    def start(self) -> None:
        """Begin to connect; returns at once."""
        self._link.start()

    async def stop(self) -> None:
        """Disconnect for good."""
        self._stop_watching()
        await self._link.stop()

    @property
    def up(self) -> bool:
        """True while everything that is to be listened to is subscribed."""
        return self._link.up is not None

    @property
    def connection(self) -> Any | None:
        """The connection in subscribe mode, while it is up."""
        return self._link.up

    @defer.inlineCallbacks
    def _prepare(self, connection: Any) -> Any:
        # A Redis that loads its data takes subscriptions, and has nothing to say: a ping tells.
        yield connection.ping()
        yield self._listening.begin(connection)

    def _changed(self, up: bool) -> None:
        if up:
            self._counters.feed_connects += 1
            self._heard_at = self.now()
            self._watch = self._clock.callLater(PING_EVERY, self._look)
        else:
            self._counters.feed_losses += 1
            self._stop_watching()
        self._tell(self, up)

    # -- whether Redis is alive --------------------------------------------------------------------

    def _look(self) -> None:
        """Ask for a sign of life, and miss those that did not come."""
        connection = self._link.up
        if connection is None:
            self._watch = None
            return
        # Always: where this process stood still, the answer to the last ping may be read long ago.
        connection.ping().addErrback(lambda _lost: None)
        if self.now() - self._heard_at > SILENCE:
            self._watch = self._clock.callLater(_SECOND_LOOK, self._look_again)
        else:
            self._watch = self._clock.callLater(PING_EVERY, self._look)

    def _look_again(self) -> None:
        # This process may have stood still itself: what waited for it has been read by now, or the
        # answer to the ping of just before.
        self._watch = None
        if self.now() - self._heard_at > SILENCE:
            self.log.warn("Redis has said nothing for {seconds:.1f} s", seconds=SILENCE)
            self._link.abort()
        else:
            self._look()

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    # -- called per message and per read -----------------------------------------------------------

    def deliver(self, pattern: bytes | None, channel: bytes, payload: bytes) -> None:
        """One message; whatever is wrong with it, the next one is served."""
        try:
            symbol = self._listening.symbol(pattern, channel, payload)
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

    def end_of_read(self, count: int, began: float, watch: float, first: Any) -> None:
        """A read of `count` messages, begun at `began`, is parsed; write what it brought.

        `watch` is what the stopwatch said then, `first` the first message as hiredis gave it.
        """
        self._heard_at = began
        counters = self._counters
        counters.quotes_in += count
        sent = counters.events_out
        self._target.flush()
        if count:
            self._measure(count, counters.events_out - sent, began, watch, first)

    def _measure(self, count: int, sent: int, began: float, watch: float, first: Any) -> None:
        """Add a read to the measures: once for each, so that no quote costs anything."""
        measures = self.measures
        took = measures.stopwatch() - watch
        measures.turn_quotes.observe(count)
        measures.turn_seconds.observe(took)
        if sent:
            # As often as there were events: then its percentiles are those of what clients get.
            measures.receive_to_write_seconds.observe(took, sent)
        # The first of a read has waited longest.
        payload = first[-1] if type(first) is list else None
        published = published_at(payload) if type(payload) is bytes else None
        if published is None or abs(began - published) > _MOST_LAG:
            return
        # Below 0 where the publisher's clock is ahead of ours.
        lag = max(0.0, began - published)
        measures.feed_lag_seconds.observe(lag)
        if sent:
            measures.publish_to_write_seconds.observe(lag + took)

    def now(self) -> float:
        """Seconds, by the clock."""
        seconds: float = self._clock.seconds()
        return seconds

    def read_size(self, used: float, size: int) -> int:
        """Bytes to read next, after a read of up to `size` before which `cpu` said `used`.

        Halved when the turn took more of the CPU than its budget, so that accepts, clients'
        messages and timers get their turns; doubled again when there is room. Time in which other
        processes had the CPU does not count: smaller reads would not bring it back.
        """
        spent = self.cpu() - used
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
