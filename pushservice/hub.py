"""The hub: symbol to audience, numbering, last values, and who is dirty this turn.

Must not know: Twisted, sockets, Redis, or what clients say. Nothing here does I/O; bytes leave
through the outboxes when the feed has parsed a whole read and calls `flush`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeAlias

from pushservice import wire
from pushservice.closing import CloseCode
from pushservice.interfaces import Clock
from pushservice.metrics import Counters
from pushservice.outbox import Outbox

#: The clients of one codec that watch a symbol, as the append of each one's list of pieces.
Offers: TypeAlias = tuple[Callable[[bytes], None], ...]


class Topic:
    """One symbol: its number, its last value and its audience.

    `n` counts updates from 1, 0 before the first; `t` is the last one's receive time in
    milliseconds since the epoch; `payload` is as published.
    """

    __slots__ = (
        "audience",
        "listeners",
        "members",
        "n",
        "newest",
        "payload",
        "symbol",
        "symbol_text",
        "t",
    )

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self.symbol_text = wire.symbol_text(symbol)
        self.n = 0
        self.t = 0
        self.payload: bytes | None = None
        #: the newest update as each codec's piece, for those that were behind when it came
        self.newest: dict[wire.Codec, bytes] = {}
        self.members: dict[Outbox, None] = {}
        # Immutable snapshots of `members`, rebuilt at the next publish after interest changed:
        # a publish then costs one C call per client and no look-up.
        self.audience: tuple[tuple[wire.Codec, Offers], ...] | None = ()
        self.listeners: frozenset[Outbox] = frozenset()

    def snapshot(self, codec: wire.Codec) -> bytes | None:
        """The last known value as a piece for `codec`, or None before the first."""
        if self.payload is None:
            return None
        return codec.snapshot(self.symbol_text, self.n, self.t, codec.body(self.payload))

    def interest_changed(self) -> None:
        """Forget the audience; at once, so that it does not keep a client that left."""
        self.audience = None
        self.listeners = frozenset()

    def rebuild(self) -> tuple[tuple[wire.Codec, Offers], ...]:
        """Make the audience anew from the members."""
        self.listeners = frozenset(self.members)
        by_codec: dict[wire.Codec, list[Callable[[bytes], None]]] = {}
        for outbox in self.members:
            by_codec.setdefault(outbox.codec, []).append(outbox.offer)
        self.audience = tuple((codec, tuple(offers)) for codec, offers in by_codec.items())
        return self.audience


class Hub:
    """Takes quotes from the feed and keeps who wants them; one for the process."""

    def __init__(
        self,
        clock: Clock,
        epoch: str,
        counters: Counters,
        failed: Callable[[Outbox, Exception], None],
        end_of_turn: Callable[[wire.Share], None] = lambda _share: None,
        beats: int = 20,
    ) -> None:
        """`failed` is told whose outbox raised, once all others are served.

        `end_of_turn` is called when every outbox has posted what the turn brought it, and counts
        what it sends.
        `beats` is into how many groups connections are dealt for heartbeats.
        """
        self.epoch = epoch
        self._failed = failed
        self._end_of_turn = end_of_turn
        self.feed_up = False
        self._clock = clock
        self._counters = counters
        self._topics: dict[str, Topic] = {}
        self._turn: dict[Topic, int] = {}
        self._turn_t: int | None = None
        self._last_message_t: int | None = None
        self._groups: list[dict[Outbox, None]] = [{} for _ in range(beats)]
        self._group_of_next = 0
        self._next_beat = 0

    # -- the path of a quote -------------------------------------------------------------------

    def publish(self, symbol: str, payload: bytes) -> None:
        """Number one quote and offer it to its audience; `flush` sends it."""
        t = self._turn_t
        if t is None:
            t = self._turn_t = self._last_message_t = self.now()
        try:
            topic = self._topics[symbol]
        except KeyError:
            topic = self._topics[symbol] = Topic(symbol)
        n = topic.n = topic.n + 1
        topic.t = t
        topic.payload = payload
        audience = topic.audience
        if audience is None:
            audience = topic.rebuild()
        if not audience:
            return
        turn = self._turn
        if topic not in turn:
            turn[topic] = n - 1
        replaced = False
        for codec, offers in audience:
            body = codec.body(payload)
            replaced = replaced or body is not payload
            piece = topic.newest[codec] = codec.quote(topic.symbol_text, n, t, body)
            for offer in offers:
                offer(piece)
        if replaced:
            self._counters.payloads_not_json += 1

    def flush(self) -> None:
        """Send every client what this turn brought."""
        turn = self._turn
        self._turn_t = None
        if not turn:
            return
        self._turn = {}
        dirty: set[Outbox] = set().union(*[topic.listeners for topic in turn])
        share = wire.Share()
        failures: list[tuple[Outbox, Exception]] = []
        for outbox in dirty:
            try:
                outbox.flush(turn, share)
            except Exception as failure:  # noqa: BLE001 - one client's fault must not stop the others
                failures.append((outbox, failure))
        self._end_of_turn(share)
        self._counters.frames_out += share.frames
        self._counters.events_out += share.pieces
        self._counters.bytes_out += share.bytes
        self._report(failures)

    # -- interest --------------------------------------------------------------------------------

    def enter(self, outbox: Outbox) -> None:
        """A client has connected: it gets heartbeats from now on."""
        outbox.group = self._group_of_next
        self._groups[outbox.group][outbox] = None
        self._group_of_next = (self._group_of_next + 1) % len(self._groups)

    def leave(self, outbox: Outbox) -> None:
        """A client is going: nothing of it stays. May be called twice."""
        if outbox.closed:
            return
        self._groups[outbox.group].pop(outbox, None)
        for topic in list(outbox.topics):
            self.unsubscribe(outbox, topic)
        self._counters.merged += outbox.merged
        outbox.shut()

    def topic(self, symbol: str) -> Topic | None:
        """The topic of `symbol` if it was ever quoted or is watched."""
        return self._topics.get(symbol)

    def subscribe(self, outbox: Outbox, symbol: str) -> Topic:
        """Add `outbox` to the audience of `symbol`, which must be well-formed."""
        topic = self._topics.get(symbol)
        if topic is None:
            topic = self._topics[symbol] = Topic(symbol)
        topic.members[outbox] = None
        topic.interest_changed()
        outbox.topics[topic] = None
        return topic

    def unsubscribe(self, outbox: Outbox, topic: Topic) -> None:
        """Take `outbox` out of the audience of `topic`; a symbol never quoted is forgotten."""
        topic.members.pop(outbox, None)
        topic.interest_changed()
        outbox.forget(topic)
        if not topic.members:
            topic.newest.clear()
            if topic.n == 0:
                self._topics.pop(topic.symbol, None)

    # -- the feed's state, heartbeats ------------------------------------------------------------

    def feed_changed(self, up: bool) -> None:
        """Remember whether the feed's link is up; heartbeats say so."""
        self.feed_up = up

    def beat(self) -> None:
        """Send a heartbeat to one group of connections, the next one each time.

        Called evenly, once per heartbeat interval and group, so that no call serves them all.
        """
        group = self._groups[self._next_beat]
        self._next_beat = (self._next_beat + 1) % len(self._groups)
        t = self.now()
        age = None if self._last_message_t is None else t - self._last_message_t
        shared = wire.JSON.frames([wire.heartbeat(t, self.feed_up, age, 0)])
        failures: list[tuple[Outbox, Exception]] = []
        for outbox in list(group):
            try:
                if not outbox.codec.converses or outbox.behind:
                    continue
                if outbox.merged:
                    event = wire.heartbeat(t, self.feed_up, age, outbox.merged)
                    outbox.send(outbox.codec.frames([event]))
                else:
                    outbox.send(shared)
            except Exception as failure:  # noqa: BLE001 - one client's fault must not stop the others
                failures.append((outbox, failure))
        self._report(failures)

    def dismiss(self, code: CloseCode, retry_ms: Callable[[], int | None]) -> None:
        """Say goodbye to every client and begin to close it; `retry_ms` is asked for each."""
        for outbox in self.outboxes():
            if outbox.codec.converses:
                outbox.send(outbox.codec.frames([wire.bye(code, retry_ms())]))
            outbox.outlet.close(code)

    def _report(self, failures: list[tuple[Outbox, Exception]]) -> None:
        for outbox, failure in failures:
            self._counters.client_failures += 1
            self._failed(outbox, failure)

    def now(self) -> int:
        """Milliseconds since the epoch."""
        return int(self._clock.seconds() * 1000)

    # -- what there is ---------------------------------------------------------------------------

    @property
    def groups(self) -> int:
        """How many calls of `beat` serve every connection once."""
        return len(self._groups)

    def outboxes(self) -> Iterator[Outbox]:
        """Every connected client's outbox."""
        for group in self._groups:
            yield from list(group)

    def count_outboxes(self) -> int:
        """How many clients are connected."""
        return sum(map(len, self._groups))

    def count_topics(self) -> int:
        """How many symbols are known: quoted at least once, or watched."""
        return len(self._topics)

    def recent_symbols(self, limit: int) -> list[str]:
        """Up to `limit` symbols that were quoted, the most recently quoted first."""
        quoted = (topic for topic in self._topics.values() if topic.n)
        newest_first = sorted(quoted, key=lambda topic: topic.t, reverse=True)
        return [topic.symbol for topic in islice(newest_first, limit)]
