"""Latest payloads of watched symbols that the registry in Redis does not have yet.

Must not know: Redis, clients, or when a batch is written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from itertools import repeat
from typing import Final

from pushservice.fanout.topic import Topic

#: Seconds between two collections of what was quoted: of a symbol's quotes in between, only the
#: latest is written.
COLLECT_EVERY: Final = 0.5
#: Payloads in one batch, and about how many bytes.
_BATCH: Final = 200
_BATCH_BYTES: Final = 262_144


class PendingPayloads:
    """The symbols whose payload is to be written; each payload is read when it is taken.

    Each stands with a flag. True says that the symbol was quoted, so its payload is newer than
    whatever Redis has. False says that Redis may have none, and keeps the one it has.
    """

    def __init__(self, now: float) -> None:
        """`now` is in seconds since the epoch, as all times here."""
        self._quoted: dict[Topic, object] = {}
        self._known: dict[Topic, object] = {}
        self._queue: deque[tuple[Topic, bool]] = deque()
        self._collected_at = now
        # All that was quoted until then is written.
        self._written_until = now

    def __len__(self) -> int:
        return len(self._quoted) + len(self._known) + len(self._queue)

    def add_quoted(self, topics: Mapping[Topic, object]) -> None:
        """New quotes came for `topics`."""
        self._quoted.update(topics)

    def add_known(self, topic: Topic) -> None:
        """`topic` has a payload from before anybody watched it."""
        self._known[topic] = None

    def resync(self, topics: Iterable[Topic]) -> None:
        """Redis may have none of the payloads of `topics`, which are all that are watched."""
        for topic in topics:
            new = topic.t >= int(self._written_until * 1000)
            (self._quoted if new else self._known)[topic] = None

    def take(self, now: float) -> list[tuple[Topic, bool]]:
        """The next batch; empty when everything is written, or was collected too recently."""
        if not self._queue and now >= self._collected_at + COLLECT_EVERY:
            self._collected_at = now
            self._queue.extend(zip(self._quoted, repeat(True)))
            self._queue.extend(zip(self._known, repeat(False)))
            self._quoted.clear()
            self._known.clear()
        taken: list[tuple[Topic, bool]] = []
        size = 0
        while self._queue and len(taken) < _BATCH and size < _BATCH_BYTES:
            topic, new = self._queue.popleft()
            if topic.watched and topic.payload is not None:
                taken.append((topic, new))
                size += len(topic.payload)
        return taken

    def put_back(self, taken: list[tuple[Topic, bool]]) -> None:
        """The batch `taken` was not written: it is the next one again."""
        self._queue.extendleft(reversed(taken))

    def confirm(self) -> None:
        """All that was taken is written."""
        if not self._queue:
            self._written_until = self._collected_at

    def drop_unwatched(self) -> None:
        """Drop the symbols that nobody watches any more, so that they don't pile up."""
        self._quoted = {topic: None for topic in self._quoted if topic.watched}
        self._known = {topic: None for topic in self._known if topic.watched}

    def clear(self) -> None:
        """Keep nothing until `resync`, which knows from when on quotes are not written."""
        self._collected_at = self._written_until
        for topics in (self._quoted, self._known, self._queue):
            topics.clear()
