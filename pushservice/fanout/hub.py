"""The hub: numbers quotes, offers them to their audience, and flushes the clients they reached.

Must not know: Twisted, sockets, Redis, or what clients say. Nothing here does I/O; bytes leave
through the outboxes when the feed has parsed a whole read and calls `flush`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from pushservice.fanout.interfaces import Clock, Interest
from pushservice.fanout.last_values import LastValues
from pushservice.fanout.outbox import Common, Outbox
from pushservice.fanout.pacing import Group, Pacing
from pushservice.fanout.shared_frames import SharedFrames
from pushservice.fanout.subscriptions import Subscriptions
from pushservice.fanout.topic import Topic, Topics
from pushservice.limits import Limits
from pushservice.metrics import Counters, Measures
from pushservice.protocol.close_codes import CloseCode
from pushservice.protocol.codecs import Codec


@dataclass(frozen=True, slots=True)
class TurnHooks:
    """Who is told about each turn of a hub.

    `failed` is told whose outbox raised, once all others are served. `end_of_turn` is called when
    every outbox has posted what the turn brought it, and counts what it sends. `measures` are told
    how large the turn was and how long it took.
    """

    failed: Callable[[Outbox, Exception], None]
    end_of_turn: Callable[[SharedFrames], None] = lambda _shared: None
    measures: Measures = field(default_factory=Measures)


class Hub:
    """Takes quotes from the feed and keeps who wants them; one for the process."""

    def __init__(
        self,
        clock: Clock,
        epoch: str,
        counters: Counters,
        hooks: TurnHooks,
        beats: int = 20,
        limits: Limits | None = None,
        interest: Interest | None = None,
        parent: Hub | None = None,
    ) -> None:
        """`epoch` goes to clients: numbers of two connections compare within one epoch only.

        `beats` is into how many groups connections are dealt for heartbeats and pings.
        `interest` is told who watches what, and what was quoted.
        `parent` is the hub to whose clients this one's belong, see `tier`.
        """
        limits = limits or Limits()
        self._limits = limits
        self._parent = parent
        self.epoch = epoch
        self._hooks = hooks
        self._interest = interest
        self._clock = clock
        self._counters = counters
        self.measures = hooks.measures
        self._topics = Topics(limits.total_symbols)
        self._by_symbol = self._topics.by_symbol
        self._turn: dict[Topic, int] = {}
        self._raw_log: list[tuple[Topic, Codec, bytes]] = []
        self._turn_t: int | None = None
        #: when the feed last brought anything, in milliseconds since the epoch
        self.last_message_t: int | None = None
        # Symbols whose watchers were told that they are stale, and that were quoted this turn.
        self._freshened: list[Topic] = []
        self._groups: list[dict[Outbox, None]] = (
            [{} for _ in range(beats)] if parent is None else parent._groups
        )
        self._group_of_next = 0
        #: what the outboxes of this hub share
        self.common: Common = (
            Common(counters, limits.raw_budget, self._too_slow, clock.seconds)
            if parent is None
            else parent.common
        )
        pacing = Pacing(clock, self._serve_paced)
        self._subscriptions = Subscriptions(self._topics, pacing, self.common, interest)
        self._watchers = self._subscriptions.watchers
        #: last values that the feed did not bring
        self.values = LastValues(
            self._topics, self._watchers, interest, self.now, is_late=parent is not None
        )

    def tier(self, interest: Interest | None) -> Hub:
        """A hub with symbols, numbers and last values of its own, whose clients count here.

        All that is per client, and not per symbol, is this one's: heartbeats and pings, budgets,
        who is behind. It learns no values, since those are of now and it may be late.
        """
        return Hub(
            self._clock,
            self.epoch,
            self._counters,
            self._hooks,
            limits=self._limits,
            interest=interest,
            parent=self,
        )

    # -- the path of a quote -------------------------------------------------------------------

    def receive_at(self, t: int) -> None:
        """What is published next in this turn was received at `t`, in milliseconds."""
        self._turn_t = self.last_message_t = t

    def publish(self, symbol: str, payload: bytes) -> None:  # noqa: C901, PLR0912 - a call more would cost every quote
        """Number one quote and offer it to its audience; `flush` sends it."""
        t = self._turn_t
        if t is None:
            t = self._turn_t = self.last_message_t = self.now()
        topic = self._by_symbol.get(symbol) or self._topics.new(symbol)
        if topic is None:
            if self._parent is None:
                # On a tier it is a quote that was counted when it came.
                self._counters.symbols_dropped += 1
            return
        n = topic.n = topic.n + 1
        topic.t = t
        topic.payload = payload
        if topic.stale:
            topic.stale = False
            self._freshened.append(topic)
        audience = topic.audience
        if audience is None:
            audience = self._watchers[topic].rebuild_audience()
        if not audience and not topic.marking:
            self._topics.unwatched(topic)
            return
        turn = self._turn
        if topic not in turn:
            turn[topic] = n - 1
            topic.asleep = None
        elif topic.asleep is None:
            topic.asleep = self._watchers[topic].nobody_takes()
        for mark in topic.marking:
            mark(topic, n - 1)
        if topic.asleep or not audience:
            # Whoever wants it later has it made from the payload.
            topic.newest.clear()
            return
        replaced = False
        for codec, quote, offers in audience:
            body = codec.body(payload)
            replaced = replaced or body is not payload
            piece = topic.newest[codec] = quote(topic.symbol_text, n, t, body)
            for offer in offers:
                offer(piece)
            if topic.raw_watchers:
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
        if self._freshened:
            self._tell_fresh()
        if self._interest is not None:
            self._interest.quoted(turn)
        raw_log, self._raw_log = self._raw_log, []
        watchers = self._watchers
        dirty: set[Outbox] = set().union(
            *[watchers[topic].listeners for topic in turn if topic in watchers]
        )
        shared = SharedFrames()
        failures: list[tuple[Outbox, Exception]] = []
        for outbox in dirty:
            try:
                outbox.flush(turn, raw_log, shared)
            except Exception as failure:  # noqa: BLE001 - one client's fault must not stop the others
                failures.append((outbox, failure))
        self._end_turn(shared, failures)

    def _tell_fresh(self) -> None:
        topics, self._freshened = self._freshened, []
        for outbox, symbols in self.watchers_of(topics).items():
            outbox.tell_quiet(symbols, stale=False)

    def _serve_paced(self, group: Group) -> None:
        """Send the clients of `group` the newest update of each symbol quoted since last time."""
        turn = group.changes.take()
        if not turn:
            return
        stopwatch = self.measures.stopwatch
        began = stopwatch()
        jumps = {topic: topic.n - before - 1 for topic, before in turn.items()}
        pieces: dict[Codec, dict[Topic, bytes]] = {}
        shared = SharedFrames()
        failures: list[tuple[Outbox, Exception]] = []
        for paced, outbox in list(group.members.items()):
            topics = turn.keys() & paced.topics.keys()
            if not topics:
                continue
            try:
                if outbox.behind:
                    outbox.miss_paced(paced, topics, turn)
                    continue
                merged = paced.correction(topics, jumps) if paced.since else 0
                if topics and not outbox.closed:
                    codec = outbox.codec
                    if codec not in pieces:
                        pieces[codec] = {
                            topic: topic.update(codec, self._count_members(group, topic))
                            for topic in turn
                        }
                    merged += sum(map(jumps.__getitem__, topics))
                    outbox.flush_paced(topics, pieces[codec], merged, shared)
            except Exception as failure:  # noqa: BLE001 - one client's fault must not stop the others
                failures.append((outbox, failure))
        self._end_turn(shared, failures)
        self.measures.turn_seconds.observe(stopwatch() - began)

    def _count_members(self, group: Group, topic: Topic) -> int:
        """How many clients of `group` watch `topic`; one where all have just left."""
        watchers = self._watchers.get(topic)
        return 1 if watchers is None else watchers.groups.get(group, 1)

    def _end_turn(self, shared: SharedFrames, failures: list[tuple[Outbox, Exception]]) -> None:
        self._hooks.end_of_turn(shared)
        self._counters.frames_out += shared.frames
        self._counters.events_out += shared.pieces
        self._counters.bytes_out += shared.bytes
        self.measures.turn_events.observe(shared.pieces)
        self.report(failures)

    def _too_slow(self, outbox: Outbox) -> None:
        self._counters.closed_too_slow += 1
        outbox.outlet.close(CloseCode.TOO_SLOW)

    # -- interest --------------------------------------------------------------------------------

    def enter(self, outbox: Outbox) -> None:
        """A client has connected: it gets heartbeats from now on."""
        if self._parent is not None:
            # So that all are dealt evenly.
            self._parent.enter(outbox)
            return
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

    def serves(self, outbox: Outbox) -> bool:
        """Whether `outbox` watches anything here; of several tiers it watches one alone."""
        topic = next(iter(outbox.topics), None)
        return topic is not None and self._by_symbol.get(topic.symbol) is topic

    def topic(self, symbol: str) -> Topic | None:
        """The topic of `symbol` if it is known: watched, or quoted and not forgotten since."""
        return self._by_symbol.get(symbol)

    def subscribe(
        self, outbox: Outbox, symbol: str, *, raw: bool = False, interval_ms: int = 0
    ) -> Topic:
        """Have `outbox` watch `symbol`, which must be well-formed, in this mode from now on.

        Raises NoRoom where no further symbol can be watched.
        """
        return self._subscriptions.subscribe(outbox, symbol, raw=raw, interval_ms=interval_ms)

    def unsubscribe(self, outbox: Outbox, topic: Topic) -> None:
        """Take `outbox` out of the audience of `topic`; a symbol never quoted is forgotten."""
        self.values.stop_waiting(outbox, topic)
        self._subscriptions.unsubscribe(outbox, topic)

    def watched_topics(self) -> list[Topic]:
        """Every symbol that somebody watches."""
        return [topic for topic in self._by_symbol.values() if topic.watched]

    def watchers(self, topic: Topic) -> list[Outbox]:
        """Every client that watches `topic`."""
        return list(self._watchers.get(topic, ()))

    def watchers_of(self, topics: Iterable[Topic]) -> dict[Outbox, list[Topic]]:
        """Every client that watches any of `topics`, with which of them."""
        found: dict[Outbox, list[Topic]] = {}
        for topic in topics:
            for outbox in self._watchers.get(topic, ()):
                found.setdefault(outbox, []).append(topic)
        return found

    def count_merged(self, outbox: Outbox, updates: int) -> None:
        """So many updates were merged for a client that came from another hub."""
        outbox.merged += updates
        self._counters.merged += updates

    def report(self, failures: list[tuple[Outbox, Exception]]) -> None:
        """Count and pass on whose outboxes raised, once all others are served."""
        for outbox, failure in failures:
            self._counters.client_failures += 1
            self._hooks.failed(outbox, failure)

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
        return len(self._by_symbol)

    def topics(self) -> list[Topic]:
        """Every symbol that is known."""
        return list(self._by_symbol.values())

    def room(self) -> int:
        """How many symbols may become known before any is forgotten for lack of room."""
        return max(0, self._limits.total_symbols - len(self._by_symbol))

    def recent_symbols(self, limit: int) -> list[str]:
        """Up to `limit` symbols that were quoted, the most recently quoted first."""
        quoted = (topic for topic in self._by_symbol.values() if topic.payload is not None)
        newest_first = sorted(quoted, key=lambda topic: topic.t, reverse=True)
        return [topic.symbol for topic in islice(newest_first, limit)]
