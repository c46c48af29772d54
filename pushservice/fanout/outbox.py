"""One client's flow: what waits for it this turn, and what is kept while it is behind.

Must not know: Twisted, sockets, commands, or how frames are laid out (a codec does).

FLOWING: each turn's pieces leave as they came. BEHIND: the outlet is full, so only *which* symbols
changed is kept; when it drains, the newest update of each goes out in one write. Raw subscriptions
keep every update instead, up to a budget. CLOSED: nothing more is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Final

from pushservice.fanout.backlog import Backlog, RawLog
from pushservice.fanout.interfaces import Outlet
from pushservice.fanout.paced import Paced
from pushservice.fanout.shared_frames import SharedFrames
from pushservice.fanout.topic import Topic
from pushservice.fanout.watchlist import RAW, Mode, Watchlist
from pushservice.metrics import Counters
from pushservice.protocol import events
from pushservice.protocol.codecs import Codec, count_frames
from pushservice.protocol.frames import pong_frame

#: Bytes of answers kept for a client that is behind before its messages are no longer read.
ANSWERS_BUDGET: Final = 64 * 1024
#: Bytes of raw updates that are handed to the outlet at once when it has drained.
RAW_CHUNK: Final = 64 * 1024


@dataclass(slots=True)
class Common:
    """What the outboxes of one hub share.

    `raw_budget`: bytes of raw updates kept for one client; `too_slow` is told whose were more, and
    closes it. `seconds` is the time since the epoch. `behind`: those that are, in the order in
    which they fell behind, and when that was. `subscriptions`: how many there are, of all clients.
    """

    counters: Counters
    raw_budget: int
    too_slow: Callable[[Outbox], None]
    seconds: Callable[[], float]
    behind: dict[Outbox, float] = field(default_factory=dict)
    subscriptions: int = 0


class Outbox(Watchlist):
    """One client's flow. `offer` is what the hub calls per quote: the append of a list.

    It is the client's watchlist as well, so that a client costs one object.
    """

    __slots__ = (
        "_backlog",
        "_common",
        "_pending",
        "closed",
        "codec",
        "conn",
        "group",
        "merged",
        "offer",
        "outlet",
        "unanswered",
        "updates",
    )

    def __init__(self, codec: Codec, outlet: Outlet, common: Common, conn: str) -> None:
        """`common` is the hub's; `conn` is the connection's id, for the client and the log."""
        super().__init__()
        self.codec = codec
        self.outlet = outlet
        self.conn = conn
        self.group = 0
        #: updates merged into later ones on this connection, in all
        self.merged = 0
        # For each time that it watched a symbol: the `n` it had at the end, less the `n` at which
        # it began. What is still watched is in it with its beginning alone.
        self.updates = 0
        #: True once nothing more is taken
        self.closed = False
        #: None unless a ping is unanswered: then how much the client had taken, see Liveness
        self.unanswered: int | None = None
        self._common = common
        self._pending: list[bytes] = []
        self.offer = self._pending.append
        # BEHIND while there is one, FLOWING or CLOSED while there is none.
        self._backlog: Backlog | None = None

    @property
    def behind(self) -> bool:
        """True while the outlet is full."""
        return self._backlog is not None

    @property
    def behind_since(self) -> float | None:
        """When the outlet became full, in seconds since the epoch; None while it is not full."""
        return self._common.behind.get(self)

    def queued(self) -> int:
        """Bytes that wait for this client: here, with the transport and with the kernel.

        Merged updates have no bytes yet: only their symbols are kept.
        """
        kept = 0 if self._backlog is None else self._backlog.size
        return kept + self.outlet.queued()

    def merged_by_now(self) -> int:
        """`merged`, and what would be merged if this client drained now; goes through all of it."""
        return self.merged + (0 if self._backlog is None else self._backlog.count_merging())

    # -- called by the hub: quotes ---------------------------------------------------------------

    def flush(self, turn: dict[Topic, int], raw_log: RawLog, shared: SharedFrames) -> None:
        """End of a turn; `turn` has each symbol that was quoted, with its `n` before."""
        pending = self._pending
        backlog = self._backlog
        if backlog is None:
            if pending and not self.closed:
                self.outlet.post(pending, self.codec, shared)
            else:
                pending.clear()
            return
        pending.clear()
        special = self.special
        backlog.note(turn, self.topics, None if special is None else special.apart)
        if special is not None and special.raw and raw_log:
            backlog.keep_raw_of(raw_log, self.codec, special.raw)
            self._check_budget(backlog)

    def flush_paced(
        self,
        topics: AbstractSet[Topic],
        pieces: dict[Topic, bytes],
        jumps: int,
        shared: SharedFrames,
    ) -> None:
        """The newest update of each of `topics`, from `pieces`; in all they merged `jumps`."""
        self._count_merged(jumps)
        self.outlet.post(list(map(pieces.__getitem__, topics)), self.codec, shared)

    def miss_paced(self, paced: Paced, topics: Iterable[Topic], turn: Mapping[Topic, int]) -> None:
        """Note, while this client is behind, which updates of `topics` would be due now."""
        if self._backlog is not None:
            missed = self._backlog.missed
            for topic in topics:
                before = paced.since.pop(topic, turn[topic])
                if topic.n > before:
                    missed.setdefault(topic, before)

    # -- called by the hub: interest -------------------------------------------------------------

    @property
    def quotes(self) -> int:
        """How many updates this client was handed, known once it has left the hub.

        An update has a number of its own: a quote, or a snapshot in a quote's place. What was
        merged, or still waited when the client unsubscribed or left, does not count. What counts
        may be lost on the way. Derived from the symbols' numbers, so that counting costs nothing.
        """
        return self.updates - self.merged

    def begin(self, topic: Topic) -> None:
        """This client is about to watch `topic`, which it does not: what comes now counts."""
        self.updates -= topic.n

    def end(self, topic: Topic) -> None:
        """This client is about to watch `topic` no more, and to get nothing more of it."""
        backlog = self._backlog
        if backlog is None or topic not in backlog.missed:
            self.updates += self.last(topic)
        else:
            # None where its first snapshot has yet to come: then it has not begun.
            self.updates += backlog.missed[topic] or 0

    def watch(self, topic: Topic, mode: Mode) -> None:
        """This client watches `topic` from now on."""
        super().watch(topic, mode)
        if mode is RAW:
            self._begin_raw(topic)

    def forget(self, topic: Topic) -> None:
        """This client no longer watches `topic`, and gets nothing more of it."""
        self.unwatch(topic)
        if self._backlog is not None:
            self._backlog.forget(topic)

    def deliver_pending(self, topic: Topic, before: int) -> None:
        """Send the newest update of `topic` now, or when drained; the client has `before`."""
        if topic.n <= before:
            return
        if self._backlog is not None:
            self._backlog.missed.setdefault(topic, before)
        elif not self.closed:
            self._count_merged(topic.n - before - 1)
            self._write_updates(b"", [topic.update(self.codec)])

    # -- called for announcements ----------------------------------------------------------------

    def tell_feed(self, event: bytes) -> None:
        """The feed's state changed; while behind only the latest state is kept."""
        self._tell_latest("feed", event)

    def tell_all_quiet(self, event: bytes) -> None:
        """The whole feed went quiet or came back; while behind only the latest is kept."""
        self._tell_latest("quiet", event)

    def _tell_latest(self, what: str, event: bytes) -> None:
        if self._backlog is not None:
            self._backlog.notices[what] = event
        elif not self.closed:
            self.outlet.write(self.codec.frames([self.codec.event(event)]))

    def tell_gaps(self, pieces: Mapping[Topic, bytes], shared: SharedFrames) -> None:
        """Updates of each of this client's symbols may be missing; `pieces` say so of each."""
        topics = self.topics
        backlog = self._backlog
        if backlog is None:
            if topics and not self.closed:
                self.outlet.post(list(map(pieces.__getitem__, topics)), self.codec, shared)
            return
        for topic, mode in topics.items():
            if mode is RAW:
                # In its place among the updates.
                backlog.keep_other(topic, pieces[topic])
            else:
                backlog.gaps[topic] = None
        self._check_budget(backlog)

    def tell_quiet(self, topics: Sequence[Topic], *, stale: bool) -> None:
        """Symbols of this client have gone quiet for long, or are back."""
        if self._backlog is not None:
            self._backlog.quiet.update(dict.fromkeys(topics, stale))
        elif topics and self.codec.converses and not self.closed:
            event = events.quiet([topic.symbol for topic in topics], stale)
            self.outlet.write(self.codec.frames([self.codec.event(event)]))

    def shut(self) -> None:
        """Take nothing more, and drop what waits."""
        self.closed = True
        # Something is pending only after a turn that failed.
        self.updates -= len(self._pending)
        self._pending.clear()
        if self._backlog is not None:
            self.updates -= self._backlog.count_unsent()
        self._end_backlog()

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

    def send_last(self, frames: bytes) -> None:
        """Whole frames before a close: next in order, whatever else is kept for the client."""
        if not self.closed:
            self.outlet.write(frames)

    def send_pong(self, payload: bytes) -> None:
        """Answer a ping frame; while behind only the latest is answered (RFC 6455, 5.5.3)."""
        if self._backlog is not None:
            self._backlog.pong = pong_frame(payload)
        elif not self.closed:
            self.outlet.write(pong_frame(payload))

    def send_snapshots(self, topics: Iterable[tuple[Topic, bool]]) -> None:
        """The last known values of `topics`; the flag says that it was not watched before."""
        known = [(topic, is_new) for topic, is_new in topics if topic.payload is not None]
        backlog = self._backlog
        if backlog is not None:
            for topic, is_new in known:
                if self.topics[topic] is RAW:
                    backlog.keep_other(topic, topic.snapshot(self.codec))
                else:
                    self._miss_snapshot(topic, is_new, backlog)
            self._check_budget(backlog)
        elif known and not self.closed:
            for topic, _ in known:
                self._caught_up(topic)
            self.outlet.write(self.codec.frames([topic.snapshot(self.codec) for topic, _ in known]))

    # -- called by the outlet, and by Liveness -----------------------------------------------------

    def blocked(self) -> None:
        """The outlet is full. May be called twice."""
        if self._backlog is not None:
            self._backlog.full = True
        elif not self.closed:
            self._backlog = Backlog()
            self._common.behind[self] = self._common.seconds()

    def drained(self) -> None:
        """The outlet is empty: answers first, then raw updates, then the newest of all others."""
        backlog = self._backlog
        if backlog is None:
            return
        backlog.full = False
        data = backlog.take_answers()
        if self.codec.converses and (notices := backlog.take_notices()):
            data += self.codec.frames(map(self.codec.event, notices))
        while raw := backlog.take_raw(RAW_CHUNK):
            self._count_merged(backlog.take_merged())
            self._write_updates(data, raw)
            data = b""
            if backlog.full or self.closed:
                return
        self.updates -= backlog.count_unsent()
        self._end_backlog()
        self.outlet.resume_reading()
        pieces = [self._newest(topic, before, backlog) for topic, before in backlog.missed.items()]
        quiet = backlog.take_quiet() if self.codec.converses else []
        if data or pieces or quiet:
            self._write_updates(data, pieces, quiet)

    def seconds_stalled(self, now: float) -> float:
        """For how long a client that is behind has taken nothing, as far as it was looked at."""
        if self._backlog is None:
            return 0.0
        return self._backlog.seconds_stalled(self.outlet.progress(), now)

    # -- within ----------------------------------------------------------------------------------

    def _write_updates(self, data: bytes, pieces: list[bytes], after: Sequence[bytes] = ()) -> None:
        """Write updates, with `data` before them, and events `after` them; only updates count."""
        if pieces or after:
            frames = self.codec.frames([*pieces, *map(self.codec.event, after)])
            if pieces:
                counters = self._common.counters
                counters.events_out += len(pieces)
                counters.frames_out += count_frames(self.codec, len(pieces))
                counters.bytes_out += len(frames)
            data += frames
        self.outlet.write(data)

    def _end_backlog(self) -> None:
        if self._backlog is not None:
            self._backlog = None
            self._common.behind.pop(self, None)

    def _miss_snapshot(self, topic: Topic, is_new: bool, backlog: Backlog) -> None:
        """The newest value of `topic` is to go out as a snapshot once this client has drained."""
        if topic not in backlog.missed:
            backlog.missed[topic] = None if is_new else self.last(topic)
            if is_new:
                # It begins anew with the snapshot, see `_newest`.
                self.updates += self.last(topic)
        backlog.as_snapshot.add(topic)

    def _check_budget(self, backlog: Backlog) -> None:
        if backlog.raw_size > self._common.raw_budget and not self.closed:
            backlog.drop_forgotten()
            if backlog.raw_size > self._common.raw_budget:
                self._common.too_slow(self)

    def _begin_raw(self, topic: Topic) -> None:
        """What was merged of `topic` so far is kept as it is now: from here on nothing merges."""
        backlog = self._backlog
        if backlog is not None and topic in backlog.missed:
            before = backlog.missed.pop(topic)
            piece = backlog.newest(topic, self.codec)
            backlog.as_snapshot.discard(topic)
            if before is None:
                self.updates -= topic.n
            if before is None or topic.n <= before:
                backlog.keep_other(topic, piece)
            else:
                backlog.keep_raw([(topic, piece)], topic.n - before - 1)

    def _caught_up(self, topic: Topic) -> None:
        """The client is about to get the newest value of `topic`, before its interval is over."""
        mode = self.topics.get(topic)
        if isinstance(mode, Paced):
            self._count_merged(max(0, topic.n - mode.last(topic) - 1))
            mode.since[topic] = topic.n

    def _newest(self, topic: Topic, before: int | None, backlog: Backlog) -> bytes:
        """The newest update of `topic` as a piece; counts what it merged."""
        if before is None:
            self.updates -= topic.n
        elif topic.n > before:
            self._count_merged(topic.n - before - 1)
        mode = self.topics.get(topic)
        if isinstance(mode, Paced):
            mode.since[topic] = topic.n
        return backlog.newest(topic, self.codec)

    def _count_merged(self, updates: int) -> None:
        self.merged += updates
        self._common.counters.merged += updates
