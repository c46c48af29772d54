"""One client's flow: what waits for it this turn, and what is kept while it is behind.

Must not know: Twisted, sockets, commands, or how frames are laid out (a codec does).

FLOWING: each turn's pieces leave as they came. BEHIND: the outlet is full, so only *which* symbols
changed is kept; when it drains, the newest update of each goes out in one write. CLOSED: nothing
more is taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from pushservice import wire
from pushservice.interfaces import Outlet

if TYPE_CHECKING:
    from pushservice.hub import Topic

#: Bytes of answers kept for a client that is behind before its messages are no longer read.
ANSWERS_BUDGET: Final = 64 * 1024


class _Backlog:
    """What is kept for a client while it is behind; made only then, so others cost nothing."""

    __slots__ = ("answers", "answers_size", "as_snapshot", "missed", "pong")

    def __init__(self) -> None:
        # symbol -> the last n this client has or is about to get from bytes already written; None
        # where it has none yet and the snapshot it asked for will be its first.
        self.missed: dict[Topic, int | None] = {}
        self.as_snapshot: set[Topic] = set()
        self.answers: list[bytes] = []
        self.answers_size = 0
        self.pong = b""


class Outbox:
    """One client's flow. `offer` is what the hub calls per quote: the append of a list."""

    __slots__ = (
        "_backlog",
        "_pending",
        "closed",
        "codec",
        "group",
        "merged",
        "offer",
        "outlet",
        "topics",
    )

    def __init__(self, codec: wire.Codec, outlet: Outlet) -> None:
        self.codec = codec
        self.outlet = outlet
        self.group = 0
        #: what this client watches; kept by the hub
        self.topics: dict[Topic, None] = {}
        #: updates merged into later ones on this connection, in all
        self.merged = 0
        #: True once nothing more is taken
        self.closed = False
        self._pending: list[bytes] = []
        self.offer = self._pending.append
        # BEHIND while there is one, FLOWING or CLOSED while there is none.
        self._backlog: _Backlog | None = None

    @property
    def behind(self) -> bool:
        """True while the outlet is full."""
        return self._backlog is not None

    # -- called by the hub -----------------------------------------------------------------------

    def flush(self, turn: dict[Topic, int], share: wire.Share) -> None:
        """End of a turn; `turn` has each symbol that was quoted, with its `n` before."""
        pending = self._pending
        if self._backlog is None:
            if pending and not self.closed:
                self.outlet.post(pending, self.codec, share)
            else:
                pending.clear()
            return
        pending.clear()
        missed = self._backlog.missed
        for topic in (turn.keys() & self.topics.keys()) - missed.keys():
            missed[topic] = turn[topic]

    def forget(self, topic: Topic) -> None:
        """This client no longer watches `topic`."""
        self.topics.pop(topic, None)
        if self._backlog is not None:
            self._backlog.missed.pop(topic, None)
            self._backlog.as_snapshot.discard(topic)

    def shut(self) -> None:
        """Take nothing more, drop what waits."""
        self.closed = True
        self._pending.clear()
        self._backlog = None

    # -- called by the session -------------------------------------------------------------------

    def send(self, frames: bytes) -> None:
        """Whole frames outside the quotes' path: answers and heartbeats."""
        backlog = self._backlog
        if backlog is not None:
            backlog.answers.append(frames)
            backlog.answers_size += len(frames)
            if backlog.answers_size > ANSWERS_BUDGET:
                self.outlet.pause_reading()
        elif not self.closed:
            self.outlet.write(frames)

    def send_pong(self, payload: bytes) -> None:
        """Answer a ping frame; while behind only the latest is answered (RFC 6455, 5.5.3)."""
        if self._backlog is not None:
            self._backlog.pong = wire.pong_frame(payload)
        elif not self.closed:
            self.outlet.write(wire.pong_frame(payload))

    def send_snapshots(self, topics: Iterable[tuple[Topic, bool]]) -> None:
        """The last known values of `topics`; the flag says that it was not watched before."""
        backlog = self._backlog
        if backlog is not None:
            for topic, is_new in topics:
                if topic.payload is not None:
                    backlog.missed.setdefault(topic, None if is_new else topic.n)
                    backlog.as_snapshot.add(topic)
        elif not self.closed:
            pieces = [
                piece for topic, _ in topics if (piece := topic.snapshot(self.codec)) is not None
            ]
            if pieces:
                self.outlet.write(self.codec.frames(pieces))

    # -- called by the outlet --------------------------------------------------------------------

    def blocked(self) -> None:
        """The outlet is full. May be called twice."""
        if self._backlog is None and not self.closed:
            self._backlog = _Backlog()

    def drained(self) -> None:
        """The outlet is empty: answers first, then the newest update of each changed symbol."""
        backlog, self._backlog = self._backlog, None
        if backlog is None:
            return
        data = b"".join(backlog.answers) + backlog.pong
        pieces = [self._newest(topic, before, backlog) for topic, before in backlog.missed.items()]
        if pieces:
            data += self.codec.frames(pieces)
        self.outlet.resume_reading()
        if data:
            self.outlet.write(data)

    def _newest(self, topic: Topic, before: int | None, backlog: _Backlog) -> bytes:
        """The newest update of `topic` as a piece; counts what it merged."""
        if before is not None and topic.n > before:
            self.merged += topic.n - before - 1
        piece = None if topic in backlog.as_snapshot else topic.newest.get(self.codec)
        if piece is None:
            piece = topic.snapshot(self.codec)
        assert piece is not None, "only symbols that were quoted are ever missed"
        return piece
