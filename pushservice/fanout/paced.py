"""One client's subscriptions of one interval, and what changed since they were last served.

Must not know: timers, which clients share a group, outboxes, or how updates become bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

from pushservice.fanout.topic import Topic


class Changes:
    """The symbols that were quoted since a group of clients was last served."""

    __slots__ = ("_before", "mark")

    def __init__(self) -> None:
        # Each with its `n` before the first of these quotes.
        self._before: dict[Topic, int] = {}
        #: called with a topic and its `n` before, for each quote of a symbol the group watches
        self.mark = self._before.setdefault

    def take(self) -> dict[Topic, int]:
        """What was quoted since the last call: each symbol with its `n` before."""
        # `mark` is bound to this very dictionary.
        changed = self._before.copy()
        self._before.clear()
        return changed

    def before(self, topic: Topic) -> int:
        """The `n` of `topic` when the group was last served."""
        return self._before.get(topic, topic.n)


class Paced:
    """One client's subscriptions of one interval."""

    __slots__ = ("changes", "interval_ms", "since", "topics")

    def __init__(self, interval_ms: int, changes: Changes) -> None:
        """`changes` are those of the group that the client is served with."""
        self.interval_ms = interval_ms
        self.changes = changes
        self.topics: dict[Topic, None] = {}
        #: the `n` this client has, for symbols it got at another moment than its group did
        self.since: dict[Topic, int] = {}

    def last(self, topic: Topic) -> int:
        """The `n` of `topic` that this client has, or knows to have missed."""
        since = self.since.get(topic)
        return self.changes.before(topic) if since is None else since

    def correction(self, topics: set[Topic], jumps: Mapping[Topic, int]) -> int:
        """What to add to `jumps` for symbols of which the client has another `n` than its group.

        Takes out of `topics` those of which it has the newest already.
        """
        correction = 0
        for topic in topics & self.since.keys():
            before = self.since.pop(topic)
            if topic.n > before:
                correction += topic.n - before - 1 - jumps[topic]
            else:
                topics.discard(topic)
        return correction

    def add(self, topic: Topic, last: int) -> None:
        """The client watches `topic`, of which it has `last`."""
        self.topics[topic] = None
        self.since[topic] = last

    def remove(self, topic: Topic) -> None:
        """The client watches `topic` no more."""
        del self.topics[topic]
        self.since.pop(topic, None)
