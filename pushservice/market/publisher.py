"""Publishes a source's messages in Redis as they become due.

Must not know: what is published, or why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet import defer

from pushservice.fanout.interfaces import DelayedCall
from pushservice.market.playback import Source
from pushservice.redis.link import command_link
from pushservice.redis.url import RedisAddress, RedisTLS

#: Most publishes that Redis has not answered yet.
MAX_OUTSTANDING: Final = 20_000
#: Least and most seconds between two calls of the source; the most while Redis is away.
_MIN_DELAY_S: Final = 0.001
_MAX_DELAY_S: Final = 0.02


class Publisher:
    """Publishes the messages of `source` while Redis is connected; otherwise the source pauses.

    `purpose` names the link in the log. `settled` is called for each message with the number of its
    receivers, or with None where Redis did not take it. `done` fires once the source has ended and
    all messages are settled, or fails with the exception that the source raised. Raises ValueError
    when the address asks for TLS and a file of `tls` can't be used.
    """

    def __init__(
        self,
        purpose: str,
        reactor: Any,
        address: RedisAddress,
        source: Source,
        settled: Callable[[int | None], None],
        tls: RedisTLS | None = None,
    ) -> None:
        self._clock = reactor
        self._source = source
        self._report = settled
        self._timer: DelayedCall | None = None
        self._finishing = False
        self._error: Exception | None = None
        self.outstanding = 0
        #: whether Redis was ever connected
        self.reached = False
        self.done: defer.Deferred[None] = defer.Deferred()
        self.link = command_link(purpose, reactor, address, self._changed, tls=tls)

    @property
    def up(self) -> bool:
        """Whether Redis is connected."""
        return self.link.up is not None

    def start(self) -> None:
        """Begin to publish as soon as Redis answers; returns at once."""
        self.link.start()
        self._publish()

    def finish(self) -> None:
        """Publish no more; `done` fires once Redis has answered all publishes."""
        self._finishing = True
        self._cancel_timer()
        self._end()

    async def stop(self) -> None:
        """Publish no more. May be called twice."""
        self._cancel_timer()
        await self.link.stop()

    def _changed(self, up: bool) -> None:
        self.reached = self.reached or up

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _publish(self) -> None:
        self._timer = None
        connection = self.link.up
        now = self._clock.seconds()
        if connection is None:
            self._source.hold(now)
            wait = _MAX_DELAY_S
        else:
            try:
                due = self._source.due(now, MAX_OUTSTANDING - self.outstanding)
            except Exception as error:  # noqa: BLE001 - whatever it is ends this, and `done` fails with it
                self._error = error
                self._end()
                return
            for channel, payload in due:
                self.outstanding += 1
                connection.publish(channel, payload).addCallbacks(self._published, self._failed)
            wait = min(max(self._source.wait(), _MIN_DELAY_S), _MAX_DELAY_S)
        if self._source.ended:
            self._end()
        else:
            self._timer = self._clock.callLater(wait, self._publish)

    def _published(self, receivers: int) -> None:
        self._settled(receivers)

    def _failed(self, failure: object) -> None:
        # The link logs the reason; here the message is only counted.
        self._settled(None)

    def _settled(self, receivers: int | None) -> None:
        self.outstanding -= 1
        self._report(receivers)
        self._end()

    def _end(self) -> None:
        ended = self._source.ended or self._finishing or self._error is not None
        if ended and not self.outstanding and not self.done.called:
            if self._error is None:
                self.done.callback(None)
            else:
                self.done.errback(self._error)
