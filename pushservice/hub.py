"""The hub: symbol to audience, numbering, last values, and who is dirty this turn.

Must not know: Twisted, sockets, Redis, or what clients say. Nothing here does I/O; bytes leave
through the outboxes when the feed has parsed a whole read and calls `flush`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice

from pushservice import wire
from pushservice.backlog import Common
from pushservice.closing import CloseCode
from pushservice.interfaces import Clock
from pushservice.limits import Limits
from pushservice.metrics import Counters
from pushservice.outbox import RAW, Kind, Outbox
from pushservice.pacing import Group, Paced, Pacing
from pushservice.topic import Topic


class NoRoom(Exception):
    """As many symbols as may be are watched: no other can be."""


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
        limits: Limits | None = None,
    ) -> None:
        """`failed` is told whose outbox raised, once all others are served.

        `end_of_turn` is called when every outbox has posted what the turn brought it, and counts
        what it sends.
        `beats` is into how many groups connections are dealt for heartbeats and pings.
        """
        limits = limits or Limits()
        self.epoch = epoch
        self._failed = failed
        self._end_of_turn = end_of_turn
        self.feed_up = False
        self._clock = clock
        self._counters = counters
        self._max_topics = limits.total_symbols
        self._topics: dict[str, Topic] = {}
        # Quoted and watched by nobody; the one whose last value is oldest comes first.
        self._unwatched: OrderedDict[Topic, None] = OrderedDict()
        # No symbol may begin below a number it had before it was forgotten.
        self._first_n = 0
        self._turn: dict[Topic, int] = {}
        self._raw_log: list[tuple[Topic, wire.Codec, bytes]] = []
        self._turn_t: int | None = None
        self._last_message_t: int | None = None
        self._groups: list[dict[Outbox, None]] = [{} for _ in range(beats)]
        self._group_of_next = 0
        self._next_beat = 0
        self._pacing = Pacing(clock, self._serve_paced)
        #: what the outboxes of this hub share
        self.common = Common(counters, limits.raw_budget, self._too_slow)

    # -- the path of a quote -------------------------------------------------------------------

    def publish(self, symbol: str, payload: bytes) -> None:  # noqa: C901 - a call more would cost every quote
        """Number one quote and offer it to its audience; `flush` sends it."""
        t = self._turn_t
        if t is None:
            t = self._turn_t = self._last_message_t = self.now()
        topic = self._topics.get(symbol) or self._new_topic(symbol)
        if topic is None:
            self._counters.symbols_dropped += 1
            return
        n = topic.n = topic.n + 1
        topic.t = t
        topic.payload = payload
        for mark in topic.marking:
            mark(topic, n - 1)
        audience = topic.audience
        if audience is None:
            audience = topic.rebuild()
        if not audience:
            topic.newest.clear()
            if not topic.marking:
                self._unwatched[topic] = None
                self._unwatched.move_to_end(topic)
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
            if topic.raw_members:
                self._raw_log.append((topic, codec, piece))
        if replaced:
            self._counters.payloads_not_json += 1

    def flush(self) -> None:
        """Send every client what this turn brought."""
        turn = self._turn
        self._turn_t = None
        if not turn:
            return
        self._turn = {}
        raw_log, self._raw_log = self._raw_log, []
        dirty: set[Outbox] = set().union(*[topic.listeners for topic in turn])
        share = wire.Share()
        failures: list[tuple[Outbox, Exception]] = []
        for outbox in dirty:
            try:
                outbox.flush(turn, raw_log, share)
            except Exception as failure:  # noqa: BLE001 - one client's fault must not stop the others
                failures.append((outbox, failure))
        self._end_turn(share, failures)

    def _serve_paced(self, group: Group) -> None:
        """Send the clients of `group` the newest update of each symbol quoted since last time."""
        turn = group.take()
        if not turn:
            return
        jumps = {topic: topic.n - before - 1 for topic, before in turn.items()}
        pieces: dict[wire.Codec, dict[Topic, bytes]] = {}
        share = wire.Share()
        failures: list[tuple[Outbox, Exception]] = []
        for paced in list(group.members):
            topics = turn.keys() & paced.topics.keys()
            if not topics:
                continue
            outbox = paced.outbox
            try:
                if outbox.behind:
                    _miss(paced, topics, turn)
                    continue
                merged = _correction(paced, topics, jumps) if paced.since else 0
                if topics and not outbox.closed:
                    codec = outbox.codec
                    if codec not in pieces:
                        pieces[codec] = {topic: topic.update(codec) for topic in turn}
                    merged += sum(map(jumps.__getitem__, topics))
                    outbox.flush_paced(topics, pieces[codec], merged, share)
            except Exception as failure:  # noqa: BLE001 - one client's fault must not stop the others
                failures.append((outbox, failure))
        self._end_turn(share, failures)

    def _end_turn(self, share: wire.Share, failures: list[tuple[Outbox, Exception]]) -> None:
        self._end_of_turn(share)
        self._counters.frames_out += share.frames
        self._counters.events_out += share.pieces
        self._counters.bytes_out += share.bytes
        self._report(failures)

    def _too_slow(self, outbox: Outbox) -> None:
        self._counters.closed_too_slow += 1
        outbox.outlet.close(CloseCode.TOO_SLOW)

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
        outbox.shut()

    def topic(self, symbol: str) -> Topic | None:
        """The topic of `symbol` if it is known: watched, or quoted and not forgotten since."""
        return self._topics.get(symbol)

    def subscribe(
        self, outbox: Outbox, symbol: str, *, raw: bool = False, interval_ms: int = 0
    ) -> Topic:
        """Have `outbox` watch `symbol`, which must be well-formed, in this way from now on.

        Raises NoRoom where no further symbol can be watched.
        """
        topic = self._topics.get(symbol) or self._new_topic(symbol)
        if topic is None:
            raise NoRoom
        if topic in outbox.topics:
            self._change(outbox, topic, raw, interval_ms)
        else:
            self._unwatched.pop(topic, None)
            self._join(outbox, topic, self._kind(outbox, raw, interval_ms), topic.n)
        return topic

    def unsubscribe(self, outbox: Outbox, topic: Topic) -> None:
        """Take `outbox` out of the audience of `topic`; a symbol never quoted is forgotten."""
        self._part(outbox, topic)
        outbox.forget(topic)
        if not topic.watched:
            topic.newest.clear()
            if topic.payload is None:
                self._topics.pop(topic.symbol, None)
            else:
                self._unwatched[topic] = None

    def _change(self, outbox: Outbox, topic: Topic, raw: bool, interval_ms: int) -> None:
        """Replace how `outbox` watches `topic`; what is pending under the old way is kept."""
        old = outbox.topics[topic]
        if isinstance(old, Paced):
            if not raw and old.group.pace.interval_ms == self._pacing.interval(interval_ms):
                return
            outbox.deliver_pending(topic, old.last(topic))
        elif old is (RAW if raw else None) and not interval_ms:
            return
        self._part(outbox, topic)
        outbox.unwatch(topic)
        self._join(outbox, topic, self._kind(outbox, raw, interval_ms), topic.n)

    def _kind(self, outbox: Outbox, raw: bool, interval_ms: int) -> Kind:
        if raw:
            return RAW
        if not interval_ms:
            return None
        interval_ms = self._pacing.interval(interval_ms)
        return outbox.paced(interval_ms) or self._pacing.paced(outbox, interval_ms)

    @staticmethod
    def _join(outbox: Outbox, topic: Topic, kind: Kind, last: int) -> None:
        if isinstance(kind, Paced):
            kind.join(topic, last)
        else:
            topic.join(outbox, raw=kind is RAW)
        outbox.watch(topic, kind)

    @staticmethod
    def _part(outbox: Outbox, topic: Topic) -> None:
        kind = outbox.topics[topic]
        if isinstance(kind, Paced):
            kind.part(topic)
        else:
            topic.part(outbox, raw=kind is RAW)

    def _new_topic(self, symbol: str) -> Topic | None:
        """A topic for `symbol`; the oldest that nobody watches makes room, None if there is none.

        The new one is watched, quoted, or taken back by the caller.
        """
        if len(self._topics) >= self._max_topics:
            if not self._unwatched:
                return None
            oldest, _ = self._unwatched.popitem(last=False)
            del self._topics[oldest.symbol]
            self._first_n = max(self._first_n, oldest.n)
        topic = self._topics[symbol] = Topic(symbol, self._first_n)
        return topic

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
                outbox.send_last(outbox.codec.frames([wire.bye(code, retry_ms())]))
            outbox.outlet.close(code)

    def _report(self, failures: list[tuple[Outbox, Exception]]) -> None:
        for outbox, failure in failures:
            self._counters.client_failures += 1
            self._failed(outbox, failure)

    def seconds(self) -> float:
        """Seconds since the epoch."""
        return self._clock.seconds()

    def now(self) -> int:
        """Milliseconds since the epoch."""
        return int(self._clock.seconds() * 1000)

    # -- what there is ---------------------------------------------------------------------------

    @property
    def groups(self) -> int:
        """How many groups connections are dealt to: so many calls of `beat` serve each once."""
        return len(self._groups)

    def group(self, at: int) -> list[Outbox]:
        """The outboxes of the clients that were dealt to group `at`."""
        return list(self._groups[at])

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
        quoted = (topic for topic in self._topics.values() if topic.payload is not None)
        newest_first = sorted(quoted, key=lambda topic: topic.t, reverse=True)
        return [topic.symbol for topic in islice(newest_first, limit)]


def _miss(paced: Paced, topics: set[Topic], turn: dict[Topic, int]) -> None:
    """Note for a client that is behind which updates would be due."""
    for topic in topics:
        before = paced.since.pop(topic, turn[topic])
        if topic.n > before:
            paced.outbox.miss(topic, before)


def _correction(paced: Paced, topics: set[Topic], jumps: dict[Topic, int]) -> int:
    """What to add to `jumps` for symbols of which the client has another `n` than its group.

    Takes out of `topics` those of which it has the newest already.
    """
    since, correction = paced.since, 0
    for topic in topics & since.keys():
        before = since.pop(topic)
        if topic.n > before:
            correction += topic.n - before - 1 - jumps[topic]
        else:
            topics.discard(topic)
    return correction
