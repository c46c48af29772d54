"""Publishes through Redis what a source has due, and counts what became of it.

Must not know: what is published or why; it is a publisher like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import txredisapi
from twisted.internet import defer

from pushservice.fanout.interfaces import DelayedCall
from pushservice.market.playback import Source
from pushservice.redis.link import RedisLink
from pushservice.redis.url import RedisAddress, RedisTLS

#: Publishes that Redis has not answered yet before there is no room for more.
MAX_OUTSTANDING: Final = 20_000
#: Seconds between two looks at the source, at least and at most; the most while Redis is away.
_MIN_DELAY_S: Final = 0.001
_MAX_DELAY_S: Final = 0.02


class Publisher:
    """Publishes what `source` has due while Redis is there; while it is not, the source waits.

    `purpose` is a word for the log. `settled` is called for each message with the number of its
    receivers, or with None where Redis did not take it. `done` fires once the source has ended and
    all is settled, or fails then with what the source raised. Raises ValueError when the address
    wants TLS and a file of `tls` can't be used.
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
        #: whether Redis was there at any time
        self.reached = False
        self.done: defer.Deferred[None] = defer.Deferred()
        self.link = RedisLink(
            purpose,
            reactor,
            address,
            txredisapi.RedisProtocol,
            # A Redis that does not let us in says so here, and not at every publish.
            lambda connection: connection.ping(),
            self._changed,
            tls=tls,
        )

    @property
    def up(self) -> bool:
        """Whether Redis is there."""
        return self.link.up is not None

    def start(self) -> None:
        """Begin to publish as soon as Redis answers; returns at once."""
        self.link.start()
        self._publish()

    def finish(self) -> None:
        """Publish no more; `done` fires once what is under way is settled."""
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
            except Exception as error:  # noqa: BLE001 - whatever it is ends this, and is told
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
        # The link says why; here it only must not be lost without a count.
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
