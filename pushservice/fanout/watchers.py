"""Who watches one symbol, and the audience that a quote of it is offered to.

Must not know: who publishes, when anything is sent, or what clients say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pushservice.fanout.outbox import Outbox
from pushservice.fanout.pacing import Group
from pushservice.fanout.topic import Audience, Topic
from pushservice.protocol.codecs import Codec


class Watchers:
    """The clients that watch one symbol; made when the first comes, for as long as there are any.

    It keeps in its topic what a publish needs: the audience, what to mark, and how many they are.
    """

    __slots__ = ("_at_once", "_topic", "groups", "listeners")

    def __init__(self, topic: Topic) -> None:
        self._topic = topic
        #: the clients that want each update at once
        self._at_once: dict[Outbox, None] = {}
        #: the groups of clients that want it paced, with how many of each
        self.groups: dict[Group, int] = {}
        #: the clients in the topic's audience; none after interest changed, until the next publish
        self.listeners: frozenset[Outbox] = frozenset()

    def __iter__(self) -> Iterator[Outbox]:
        """Every client that watches the symbol, in whatever mode."""
        yield from self._at_once
        for group in self.groups:
            for paced, outbox in group.members.items():
                if self._topic in paced.topics:
                    yield outbox

    def nobody_takes(self) -> bool:
        """Whether each client is behind and has updates merged, so that none needs their bytes."""
        return not self._topic.raw_watchers and all(outbox.behind for outbox in self._at_once)

    def add(self, outbox: Outbox, *, raw: bool) -> None:
        """`outbox` wants each update at once."""
        self._at_once[outbox] = None
        self._topic.watcher_count += 1
        self._topic.raw_watchers += raw
        self._outdate_audience()

    def remove(self, outbox: Outbox, *, raw: bool) -> None:
        """`outbox`, which was added with the same `raw`, wants no more."""
        del self._at_once[outbox]
        self._topic.watcher_count -= 1
        self._topic.raw_watchers -= raw
        self._outdate_audience()

    def add_paced(self, group: Group) -> None:
        """One more client of `group` watches the symbol."""
        self.groups[group] = self.groups.get(group, 0) + 1
        self._topic.watcher_count += 1
        self._update_marking()

    def remove_paced(self, group: Group) -> None:
        """One client fewer of `group` watches the symbol."""
        self.groups[group] -= 1
        if not self.groups[group]:
            del self.groups[group]
        self._topic.watcher_count -= 1
        self._update_marking()

    def rebuild_audience(self) -> Audience:
        """Make the topic's audience anew from those who want each update at once."""
        topic = self._topic
        self.listeners = frozenset(self._at_once)
        by_codec: dict[Codec, list[Callable[[bytes], None]]] = {}
        for outbox in self._at_once:
            by_codec.setdefault(outbox.codec, []).append(outbox.offer)
        for codec in topic.newest.keys() - by_codec.keys():
            # It would not be kept up to date.
            del topic.newest[codec]
        topic.audience = tuple(
            (codec, codec.quoting(len(offers)), tuple(offers)) for codec, offers in by_codec.items()
        )
        return topic.audience

    def _outdate_audience(self) -> None:
        # At once, so that it does not keep a client that left.
        self._topic.audience = None if self._at_once else ()
        self.listeners = frozenset()

    def _update_marking(self) -> None:
        self._topic.marking = tuple(group.changes.mark for group in self.groups)
