"""What is kept for one client while it is behind.

Must not know: outlets, frames, or when anything is sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, TypeAlias

from pushservice.fanout.interfaces import Progress
from pushservice.fanout.topic import Topic
from pushservice.protocol import events
from pushservice.protocol.codecs import Codec

#: Symbols of a turn that are looked at one by one.
_FEW: Final = 16


#: What a turn brought for raw subscriptions: the symbol, the codec, the update as its piece.
RawLog: TypeAlias = Sequence[tuple[Topic, Codec, bytes]]


class Backlog:
    """What is kept for a client while it is behind; made only then, so others cost nothing."""

    __slots__ = (
        "_forgotten",
        "_kept",
        "_merged",
        "_others",
        "_raw",
        "_since",
        "_stands_for",
        "_taken",
        "_unwanted",
        "answers",
        "answers_size",
        "as_snapshot",
        "full",
        "gaps",
        "missed",
        "notices",
        "pong",
        "quiet",
        "raw_size",
    )

    def __init__(self) -> None:
        #: whether the outlet takes nothing for now
        self.full = True
        # symbol -> the last n this client has or is about to get from bytes already written; None
        # where it has none yet and the snapshot it asked for will be its first.
        self.missed: dict[Topic, int | None] = {}
        self.as_snapshot: set[Topic] = set()
        self.answers: list[bytes] = []
        self.answers_size = 0
        self.pong = b""
        #: the latest of each kind of announcement
        self.notices: dict[str, bytes] = {}
        #: symbols of which updates may be missing before the next
        self.gaps: dict[Topic, None] = {}
        #: symbols that have gone quiet for long (True) or are back
        self.quiet: dict[Topic, bool] = {}
        #: bytes of the raw updates that are kept
        self.raw_size = 0
        # The symbol, how many were kept before it, and the piece.
        self._raw: deque[tuple[Topic, int, bytes]] = deque()
        self._kept = 0
        # Which of them had others merged into them before they were kept: how many.
        self._stands_for: dict[int, int] = {}
        # Which of them are no updates, but snapshots or gaps in their place among them.
        self._others: set[int] = set()
        self._merged = 0
        self._unwanted = 0
        # symbol -> how many were kept when all of it so far was of no interest any more
        self._forgotten: dict[Topic, int] = {}
        # When this client was last seen to take something, and how much it had taken by then.
        self._since: float | None = None
        self._taken: int | None = None

    def note(
        self,
        turn: Mapping[Topic, int],
        topics: Mapping[Topic, object],
        apart: AbstractSet[Topic] | None,
    ) -> None:
        """Of a turn, the symbols among `topics` but not `apart` are missed from now on."""
        missed = self.missed
        if len(turn) > _FEW:
            changed = (turn.keys() & topics.keys()) - missed.keys()
            if apart is not None:
                changed -= apart
            for topic in changed:
                missed[topic] = turn[topic]
            return
        # Sets cost more than they save.
        for topic, before in turn.items():
            if topic in topics and topic not in missed and (apart is None or topic not in apart):
                missed[topic] = before

    def keep_raw(self, updates: Iterable[tuple[Topic, bytes]], merged: int = 0) -> None:
        """Keep updates of symbols, as pieces, in this order; the first stands for `merged` more."""
        if merged:
            self._stands_for[self._kept] = merged
        for topic, piece in updates:
            self._raw.append((topic, self._kept, piece))
            self._kept += 1
            self.raw_size += len(piece)

    def keep_raw_of(self, raw_log: RawLog, codec: Codec, topics: AbstractSet[Topic]) -> None:
        """Keep the updates of a turn that are of `topics` and pieces of `codec`."""
        self.keep_raw(
            (topic, piece)
            for topic, its_codec, piece in raw_log
            if topic in topics and its_codec is codec
        )

    def keep_other(self, topic: Topic, piece: bytes) -> None:
        """Keep a piece that is no update in its place among the raw updates."""
        self._others.add(self._kept)
        self.keep_raw([(topic, piece)])

    def newest(self, topic: Topic, codec: Codec) -> bytes:
        """The newest update of `topic` as a piece; a snapshot where the client asked for one."""
        if topic in self.as_snapshot:
            return topic.snapshot(codec)
        return topic.update(codec)

    def count_merging(self) -> int:
        """How many updates would be merged if the client drained now."""
        return sum(
            topic.n - before - 1
            for topic, before in self.missed.items()
            if before is not None and topic.n > before
        )

    @property
    def size(self) -> int:
        """Bytes that are kept: answers, and raw updates."""
        return self.answers_size + self.raw_size

    def forget(self, topic: Topic) -> None:
        """Nothing that is kept of `topic` is wanted any more."""
        self.missed.pop(topic, None)
        self.as_snapshot.discard(topic)
        self.gaps.pop(topic, None)
        self.quiet.pop(topic, None)
        if self._raw:
            self._forgotten[topic] = self._kept

    def drop_forgotten(self) -> None:
        """Free the memory of raw updates whose symbols are not watched any more."""
        if self._forgotten:
            wanted: deque[tuple[Topic, int, bytes]] = deque()
            for update in self._raw:
                if self._wanted(update):
                    wanted.append(update)
                else:
                    self._drop(update[1])
            self._raw = wanted
            self.raw_size = sum(len(piece) for _, _, piece in self._raw)
            self._forgotten.clear()

    def take_answers(self) -> bytes:
        """The answers that were kept, and the latest pong."""
        data = b"".join(self.answers) + self.pong
        self.answers.clear()
        self.answers_size, self.pong = 0, b""
        return data

    def take_notices(self) -> list[bytes]:
        """What was announced: the latest of each kind, then of which symbols updates may miss."""
        notices = [*self.notices.values(), *(events.gap(topic.symbol_text) for topic in self.gaps)]
        self.notices.clear()
        self.gaps.clear()
        return notices

    def take_quiet(self) -> list[bytes]:
        """Which symbols have gone quiet, and which are back."""
        notices = []
        for stale in (True, False):
            symbols = [topic.symbol for topic, is_stale in self.quiet.items() if is_stale is stale]
            if symbols:
                notices.append(events.quiet(symbols, stale))
        self.quiet.clear()
        return notices

    def take_raw(self, size: int) -> list[bytes]:
        """Raw updates in order, until they have `size` bytes or more, or there are no more."""
        taken: list[bytes] = []
        while self._raw and size > 0:
            update = self._raw.popleft()
            _, kept_before, piece = update
            self.raw_size -= len(piece)
            if self._wanted(update):
                taken.append(piece)
                size -= len(piece)
                self._merged += self._stands_for.pop(kept_before, 0)
                self._others.discard(kept_before)
            else:
                self._drop(kept_before)
        return taken

    def take_merged(self) -> int:
        """How many updates were merged into those that were taken since the last call."""
        merged, self._merged = self._merged, 0
        return merged

    def count_unsent(self) -> int:
        """How many raw updates, and merged into them, were dropped, or are if this ends now."""
        kept = len(self._raw) - len(self._others) + sum(self._stands_for.values())
        return self._unwanted + kept

    def seconds_stalled(self, progress: Progress | None, now: float) -> float:
        """For how long the client has taken nothing, as far as this was called."""
        taken = None if progress is None else progress.taken
        if self._since is None or taken != self._taken:
            self._since, self._taken = now, taken
        return now - self._since

    def _drop(self, kept_before: int) -> None:
        """What was kept after so many others is not sent."""
        merged = self._stands_for.pop(kept_before, 0)
        if kept_before in self._others:
            self._others.discard(kept_before)
        else:
            self._unwanted += 1 + merged

    def _wanted(self, update: tuple[Topic, int, bytes]) -> bool:
        topic, kept_before, _ = update
        return kept_before >= self._forgotten.get(topic, 0)
