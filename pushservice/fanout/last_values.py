"""Last values that the feed did not bring: learnt from a snapshot source, or taken over.

Must not know: where a snapshot source keeps its values, or how values come from another process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from pushservice.fanout.interfaces import Interest
from pushservice.fanout.outbox import Outbox
from pushservice.fanout.topic import Topic, Topics
from pushservice.fanout.watchers import Watchers


class LastValues:
    """The last values of the symbols of one hub."""

    __slots__ = (
        "_interest",
        "_is_late",
        "_now",
        "_topics",
        "_waiting",
        "_watchers",
        "can_be_learnt",
    )

    def __init__(
        self,
        topics: Topics,
        watchers: Mapping[Topic, Watchers],
        interest: Interest | None,
        now: Callable[[], int],
        *,
        is_late: bool,
    ) -> None:
        """`now` gives milliseconds since the epoch; `interest`, if any, is told of new values.

        A hub that `is_late` takes over none: the values are of now, and its quotes are older.
        """
        self._topics = topics
        self._watchers = watchers
        self._interest = interest
        self._now = now
        self._is_late = is_late
        #: whether `learn` may be called, so that who wants a first value is kept
        self.can_be_learnt = False
        # Clients that wait for a first value, by symbol.
        self._waiting: dict[Topic, dict[Outbox, None]] = {}

    def wait_for(self, outbox: Outbox, topics: Iterable[Topic]) -> None:
        """`outbox` wants the snapshots of `topics`; of some no value may be known yet."""
        for topic in topics if self.can_be_learnt else ():
            if topic.payload is None:
                self._waiting.setdefault(topic, {})[outbox] = None

    def stop_waiting(self, outbox: Outbox, topic: Topic) -> None:
        """`outbox` is about to watch `topic` no more."""
        waiting = self._waiting.get(topic)
        if waiting is not None:
            waiting.pop(outbox, None)
            if not waiting:
                del self._waiting[topic]

    def learn(self, symbol: str, payload: bytes, n: int, everybody: bool) -> None:
        """Take over a value that was not numbered here: what a snapshot source keeps of `symbol`.

        Does nothing if the feed has brought an update since `n`. Otherwise it is the last known
        value from now on, with the number that the symbol has, and goes out as a snapshot to those
        who wait for one, or to `everybody` who watches it.
        """
        topic = self._topics.by_symbol.get(symbol)
        if topic is None or self._is_late:
            return
        waiting = self._waiting.pop(topic, {})
        if topic.n != n or not topic.watched:
            return
        topic.payload = payload
        topic.t = self._now()
        topic.newest.clear()
        if self._interest is not None:
            self._interest.quoted({topic: n})
        for outbox in list(self._watchers[topic]) if everybody else waiting:
            outbox.send_snapshots([(topic, outbox in waiting)])

    def newest_first(self) -> Iterator[tuple[str, int, bytes]]:
        """Every last value, the newest first: symbol, receive time in milliseconds, payload.

        Symbols that come or go while this is read are left out.
        """
        known = self._topics.by_symbol
        for topic in sorted(known.values(), key=lambda topic: topic.t, reverse=True):
            if topic.payload is not None and known.get(topic.symbol) is topic:
                yield topic.symbol, topic.t, topic.payload

    def inherit(self, symbol: str, t: int, payload: bytes) -> bool:
        """Know a last value from another hub, unless the feed has brought one; whether it is taken.

        It has no number of its own, as nothing was counted here (see `learn`), counts as older than
        all values that are known, and makes none of them go: the newest are to be given first.
        """
        if self._is_late:
            return False
        topic = self._topics.by_symbol.get(symbol)
        if topic is None:
            if self._topics.full:
                return False
            topic = self._topics.new(symbol)
        if topic is None or topic.payload is not None:
            return False
        topic.t = t
        topic.payload = payload
        if not topic.watched:
            self._topics.inherited(topic)
        return True

    def forget(self, symbol: str) -> None:
        """The last value of `symbol`, which nobody watches, is not kept up to date any more."""
        topic = self._topics.by_symbol.get(symbol)
        if topic is not None and not topic.watched:
            self._topics.forget(topic)
