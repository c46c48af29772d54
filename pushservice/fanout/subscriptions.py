"""Who watches which symbol in which mode: the subscriptions of one hub.

Must not know: quotes, when anything is sent, or what clients say.
"""

from __future__ import annotations

from pushservice.fanout.interfaces import Interest
from pushservice.fanout.outbox import Common, Outbox
from pushservice.fanout.paced import Paced
from pushservice.fanout.pacing import Pacing
from pushservice.fanout.topic import Topic, Topics
from pushservice.fanout.watchers import Watchers
from pushservice.fanout.watchlist import RAW, Mode


class NoRoom(Exception):
    """As many symbols as may be are watched: no other can be."""


class Subscriptions:
    """The subscriptions of the clients of one hub."""

    __slots__ = ("_common", "_interest", "_pacing", "_topics", "watchers")

    def __init__(
        self, topics: Topics, pacing: Pacing, common: Common, interest: Interest | None
    ) -> None:
        """`interest`, if any, is told who watches what; `common` has how many subscriptions."""
        self._topics = topics
        self._pacing = pacing
        self._common = common
        self._interest = interest
        #: who watches each symbol that anybody watches
        self.watchers: dict[Topic, Watchers] = {}

    def subscribe(
        self, outbox: Outbox, symbol: str, *, raw: bool = False, interval_ms: int = 0
    ) -> Topic:
        """Have `outbox` watch `symbol`, which must be well-formed, in this way from now on.

        Raises NoRoom where no further symbol can be watched.
        """
        topic = self._topics.by_symbol.get(symbol) or self._topics.new(symbol)
        if topic is None:
            raise NoRoom
        if topic in outbox.topics:
            self._change(outbox, topic, raw, interval_ms)
        else:
            self._topics.watched(topic)
            first = not topic.watched
            self._common.subscriptions += 1
            outbox.begin(topic)
            self._join(outbox, topic, self._mode(outbox, raw, interval_ms), topic.n)
            if self._interest is not None:
                self._interest.watched(outbox.conn, topic.symbol, first)
        return topic

    def unsubscribe(self, outbox: Outbox, topic: Topic) -> None:
        """Take `outbox` out of the audience of `topic`; a symbol never quoted is forgotten."""
        self._common.subscriptions -= 1
        outbox.end(topic)
        self._part(outbox, topic)
        outbox.forget(topic)
        if self._interest is not None:
            self._interest.unwatched(outbox.conn, topic.symbol, not topic.watched)
        if not topic.watched:
            del self.watchers[topic]
            self._topics.unwatched(topic)

    def _change(self, outbox: Outbox, topic: Topic, raw: bool, interval_ms: int) -> None:
        """Replace how `outbox` watches `topic`; what is pending under the old way is kept."""
        old = outbox.topics[topic]
        if isinstance(old, Paced):
            if not raw and old.interval_ms == self._pacing.interval(interval_ms):
                return
            outbox.deliver_pending(topic, old.last(topic))
        elif old is (RAW if raw else None) and not interval_ms:
            return
        self._part(outbox, topic)
        outbox.unwatch(topic)
        self._join(outbox, topic, self._mode(outbox, raw, interval_ms), topic.n)

    def _mode(self, outbox: Outbox, raw: bool, interval_ms: int) -> Mode:
        if raw:
            return RAW
        if not interval_ms:
            return None
        interval_ms = self._pacing.interval(interval_ms)
        return outbox.paced(interval_ms) or self._pacing.new(interval_ms)

    def _join(self, outbox: Outbox, topic: Topic, mode: Mode, last: int) -> None:
        watchers = self.watchers.get(topic)
        if watchers is None:
            watchers = self.watchers[topic] = Watchers(topic)
        if isinstance(mode, Paced):
            watchers.add_paced(self._pacing.join(mode, outbox, topic, last))
        else:
            watchers.add(outbox, raw=mode is RAW)
        outbox.watch(topic, mode)

    def _part(self, outbox: Outbox, topic: Topic) -> None:
        mode = outbox.topics[topic]
        watchers = self.watchers[topic]
        if isinstance(mode, Paced):
            watchers.remove_paced(self._pacing.part(mode, topic))
        else:
            watchers.remove(outbox, raw=mode is RAW)
