"""One Redis as a source of quotes: each read of its socket becomes one turn of the hub.

Must not know: clients, or how quotes reach them. It never waits, because Redis disconnects a
subscriber that falls behind.
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
from pushservice.feed.channels import ChannelSelection
from pushservice.feed.publish_time import published_at
from pushservice.feed.symbol_reader import Ignored
from pushservice.metrics import Counters, Measures
from pushservice.redis.link import RedisLink
from pushservice.redis.url import RedisAddress, RedisTLS

#: Seconds of CPU that one turn may keep the reactor from everything else.
TURN_BUDGET: Final = 0.025
#: The largest difference in seconds, between when a quote says it was published and when it came,
#: that is measured.
_MAX_LAG: Final = 24 * 3600.0
_SMALLEST_READ: Final = 4 * 1024
_LARGEST_READ: Final = 64 * 1024
#: Seconds between two log lines about one fault.
_LOG_EVERY: Final = 60.0
#: Seconds between pings, and of silence after which the link counts as dead: so a Redis that hangs
#: is noticed within two seconds.
PING_EVERY: Final = 0.4
SILENCE: Final = 1.3
#: Seconds until silence is confirmed: a process that was suspended reads first what arrived.
_CONFIRM_AFTER: Final = 0.1


class _Subscriber(txredisapi.SubscriberProtocol):
    """One connection in subscribe mode.

    txredisapi connects, sends commands and correlates replies. Messages are read here, because its
    dispatch of a message costs more than all that the hub does with one.
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
        started, began, used = stopwatch(), self.feed.now(), self.feed.cpu()
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
                    if not count:
                        # Replies that came before the messages are not what is measured.
                        first = message
                    continue
                message = following()
        except txredisapi.InvalidData as error:
            self.feed.garbled(error)
            self.transport.abortConnection()
        finally:
            self.feed.end_of_read(count, began, started, first)
            # Under TLS it is the transport below that reads from the socket.
            reading: Any = getattr(self.transport, "transport", self.transport)
            size = getattr(reading, "bufferSize", _LARGEST_READ)
            reading.bufferSize = self.feed.read_size(used, size)


class RedisFeed:
    """Subscribes to one Redis and delivers every message, until it is stopped."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        address: RedisAddress,
        channels: ChannelSelection,
        target: Publish,
        counters: Counters,
        changed: Callable[[RedisFeed, bool], None],
        tls: RedisTLS | None = None,
        measures: Measures | None = None,
    ) -> None:
        """`changed` is called with True when the link comes up, False when it is lost or fails."""
        self._clock = reactor
        #: seconds of CPU that the reactor's thread has used
        self.cpu: Callable[[], float] = time.thread_time
        self._channels = channels
        self._target = target
        self._counters = counters
        self.measures = measures or Measures()
        self._notify = changed
        self._logged_at: dict[str, float] = {}
        self._heard_at = 0.0
        self._check: DelayedCall | None = None
        subscriber = type("Subscriber", (_Subscriber,), {"feed": self})
        self._link = RedisLink(
            "feed",
            reactor,
            address,
            subscriber,
            self._prepare,
            self._changed,
            tls=tls,
            failed=lambda: changed(self, False),
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
        """Whether everything that is wanted is subscribed."""
        return self._link.up is not None

    @property
    def connection(self) -> Any | None:
        """The connection in subscribe mode, while it is up."""
        return self._link.up

    @defer.inlineCallbacks
    def _prepare(self, connection: Any) -> Any:
        # A Redis that is loading its data accepts subscriptions, but refuses a ping.
        yield connection.ping()
        yield self._channels.begin(connection)

    def _changed(self, up: bool) -> None:
        if up:
            self._counters.feed_connects += 1
            self._heard_at = self.now()
            self._check = self._clock.callLater(PING_EVERY, self._check_liveness)
        else:
            self._counters.feed_losses += 1
            self._stop_watching()
        self._notify(self, up)

    # -- liveness of Redis -------------------------------------------------------------------------

    def _check_liveness(self) -> None:
        """Send a ping, and look whether anything was received lately."""
        connection = self._link.up
        if connection is None:
            self._check = None
            return
        # After silence too: if this process was suspended, the answer is what proves Redis alive.
        connection.ping().addErrback(lambda _lost: None)
        if self.now() - self._heard_at > SILENCE:
            self._check = self._clock.callLater(_CONFIRM_AFTER, self._confirm_silence)
        else:
            self._check = self._clock.callLater(PING_EVERY, self._check_liveness)

    def _confirm_silence(self) -> None:
        # If this process was suspended itself, it has read by now what arrived meanwhile, or the
        # answer to the latest ping.
        self._check = None
        if self.now() - self._heard_at > SILENCE:
            self.log.warn("Redis has said nothing for {seconds:.1f} s", seconds=SILENCE)
            self._link.abort()
        else:
            self._check_liveness()

    def _stop_watching(self) -> None:
        if self._check is not None:
            self._check.cancel()
            self._check = None

    # -- called per message and per read -----------------------------------------------------------

    def deliver(self, pattern: bytes | None, channel: bytes, payload: bytes) -> None:
        """Publish one message; whatever is wrong with it, the feed goes on."""
        try:
            symbol = self._channels.symbol(pattern, channel, payload)
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

    def end_of_read(self, count: int, began: float, started: float, first: Any) -> None:
        """A read of `count` messages, begun at `began`, is parsed: write its quotes to clients.

        `started` is the stopwatch's time then, `first` the first message as hiredis gave it.
        """
        self._heard_at = began
        counters = self._counters
        counters.quotes_in += count
        sent = counters.events_out
        self._target.flush()
        if count:
            self._measure(count, counters.events_out - sent, began, started, first)

    def _measure(self, count: int, sent: int, began: float, started: float, first: Any) -> None:
        """Measure one read: not each quote, so that quotes cost nothing."""
        measures = self.measures
        took = measures.stopwatch() - started
        measures.turn_quotes.observe(count)
        measures.turn_seconds.observe(took)
        if sent:
            # Weighted by events, so that its percentiles are those of what clients receive.
            measures.receive_to_write_seconds.observe(took, sent)
        # The first message of a read has waited longest.
        payload = first[-1] if type(first) is list else None
        published = published_at(payload) if type(payload) is bytes else None
        if published is None or abs(began - published) > _MAX_LAG:
            return
        # The difference is negative if the publisher's clock is ahead of ours.
        lag = max(0.0, began - published)
        measures.feed_lag_seconds.observe(lag)
        if sent:
            measures.publish_to_write_seconds.observe(lag + took)

    def now(self) -> float:
        """Seconds, by the clock."""
        seconds: float = self._clock.seconds()
        return seconds

    def read_size(self, used: float, size: int) -> int:
        """How many bytes to read next, after a read of up to `size` before which `cpu` gave `used`.

        The size is halved when the turn took more CPU than its budget, so that accepts, clients'
        messages and timers get their turns, and doubled again when there is room. Time in which
        other processes had the CPU does not count: smaller reads would not bring it back.
        """
        spent = self.cpu() - used
        if spent > TURN_BUDGET:
            return max(_SMALLEST_READ, size // 2)
        if spent < TURN_BUDGET / 2:
            return min(_LARGEST_READ, size * 2)
        return size

    def garbled(self, error: Exception) -> None:
        """Redis sent what is not RESP; the link reconnects."""
        self._log_rarely("Redis sent garbage: {error}", error=str(error))

    def _log_rarely(self, format: str, **values: object) -> None:
        now = self._clock.seconds()
        if now - self._logged_at.get(format, -_LOG_EVERY) >= _LOG_EVERY:
            self._logged_at[format] = now
            self.log.warn(format, **values)
