"""Hub, outboxes, pacing and sessions against a model, over random schedules of all that can happen.

The model knows, for each client and symbol, only what the protocol promises.
"""

from __future__ import annotations

from core_doubles import Client, FixedClock, make_hub
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pushservice.limits import Limits

SYMBOLS = ["A", "B", "C"]
CLIENTS = range(3)
#: milliseconds; the second is dealt to eight groups of clients
INTERVALS = [100, 250]
WAYS = [{"mode": "auto"}, {"mode": "raw"}, *({"interval": interval} for interval in INTERVALS)]
#: seconds by which two moments may differ and still be one
MOMENT = 0.001


class Watched:
    """What one client must know of one symbol since it subscribed."""

    def __init__(self, last: int | None, way: dict[str, object]) -> None:
        #: the last `n` the client has, or None where the next event is its first
        self.last = last
        self.raw = way.get("mode") == "raw"
        #: seconds
        self.interval = way.get("interval", 0) / 1000
        #: the `n` from which on the client has asked for every update
        self.raw_since = 0
        #: when the last paced update came in its time, and not after the client was behind
        self.paced_at: float | None = None


class HubAgainstModel(RuleBasedStateMachine):
    """Every schedule must keep the promises of `n`, of order, and of pacing."""

    @initialize()
    def begin(self) -> None:
        self.clock = FixedClock()
        self.hub = make_hub(self.clock, limits=Limits(raw_budget=1 << 40))
        #: symbol -> the values published, and when
        self.published: dict[str, list[tuple[int, float]]] = {symbol: [] for symbol in SYMBOLS}
        self.clients = [Client(self.hub, f"t-{at}") for at in CLIENTS]
        self.watched: list[dict[str, Watched]] = [{} for _ in CLIENTS]
        self.merged = [0 for _ in CLIENTS]
        self.quotes = [0 for _ in CLIENTS]
        self.value = 0
        self.caught_up: set[int] = set()
        for client in self.clients:
            client.frames()

    # -- what can happen -------------------------------------------------------------------------

    @rule(turn=st.lists(st.sampled_from(SYMBOLS), min_size=1, max_size=6))
    def publish_a_turn(self, turn: list[str]) -> None:
        silent = self.those_behind()
        for symbol in turn:
            self.value += 1
            self.published[symbol].append((self.value, self.clock.seconds()))
            self.hub.publish(symbol, b"%d" % self.value)
        self.hub.flush()
        self.read_all(silent)

    @rule(milliseconds=st.sampled_from([1, 10, 40, 99, 100, 150, 250, 1000]))
    def let_time_pass(self, milliseconds: int) -> None:
        silent = self.those_behind()
        end = self.clock.seconds() + milliseconds / 1000
        while self.clock.calls and self.clock.calls[0].getTime() <= end:
            self.clock.pass_time(self.clock.calls[0].getTime() - self.clock.seconds())
            self.read_all(silent)
        self.clock.pass_time(end - self.clock.seconds())

    @rule(
        at=st.sampled_from(CLIENTS),
        symbols=st.sets(st.sampled_from(SYMBOLS), min_size=1),
        snapshot=st.booleans(),
        way=st.sampled_from(WAYS),
    )
    def subscribe(self, at: int, symbols: set[str], snapshot: bool, way: dict[str, object]) -> None:
        self.clients[at].say(
            {"op": "subscribe", "symbols": sorted(symbols), "snapshot": snapshot} | way
        )
        before, self.watched[at] = self.watched[at], dict(self.watched[at])
        for symbol in symbols:
            n = len(self.published[symbol])
            old = before.get(symbol)
            new = Watched(None if snapshot and n else n, way)
            if old is not None:
                new.last = old.last
            if new.raw:
                new.raw_since = old.raw_since if old is not None and old.raw else n
            self.watched[at][symbol] = new
        self.read_all()

    @rule(at=st.sampled_from(CLIENTS), symbols=st.sets(st.sampled_from(SYMBOLS), min_size=1))
    def unsubscribe(self, at: int, symbols: set[str]) -> None:
        self.clients[at].say({"op": "unsubscribe", "symbols": sorted(symbols)})
        for symbol in symbols:
            self.watched[at].pop(symbol, None)
        self.read_all()

    @rule(at=st.sampled_from(CLIENTS), room=st.sampled_from([0, 100, 300]))
    def fall_behind_soon(self, at: int, room: int) -> None:
        self.clients[at].outlet.room = room

    @rule(at=st.sampled_from(CLIENTS))
    def fall_behind(self, at: int) -> None:
        self.clients[at].outbox.blocked()

    @rule(at=st.sampled_from(CLIENTS), room=st.sampled_from([None, None, 0, 200]))
    def drain(self, at: int, room: int | None) -> None:
        self.clients[at].outlet.room = room
        self.caught_up = {at}
        self.clients[at].outbox.drained()
        self.read_all()
        self.caught_up = set()

    @rule(at=st.sampled_from(CLIENTS))
    def leave_and_come_again(self, at: int) -> None:
        self.clients[at].session.close()
        assert self.clients[at].outbox.quotes == self.quotes[at], "it knows how many it was handed"
        self.clients[at] = Client(self.hub, f"t-{at}")
        self.clients[at].frames()
        self.watched[at], self.merged[at], self.quotes[at] = {}, 0, 0

    # -- what must hold --------------------------------------------------------------------------

    def those_behind(self) -> set[int]:
        return {at for at in CLIENTS if self.clients[at].outbox.behind}

    def read_all(self, silent: set[int] = frozenset()) -> None:
        for at, client in enumerate(self.clients):
            events = client.events()
            assert not (events and at in silent), "a client that is behind is written nothing"
            for event in events:
                if event["ev"] in ("quote", "snapshot"):
                    self.read_value(at, event)

    def read_value(self, at: int, event: dict) -> None:
        symbol, n = event["s"], event["n"]
        assert symbol in self.watched[at], "only what is watched arrives"
        assert self.published[symbol][n - 1][0] == event["d"], "n names the value"
        watched = self.watched[at][symbol]
        if watched.last is None:
            assert event["ev"] == "snapshot", "the first is the snapshot"
        else:
            assert n > watched.last or (event["ev"] == "snapshot" and n == watched.last), (
                "n only grows"
            )
            jumped = max(0, n - watched.last - 1)
            assert not (watched.raw and jumped and n > watched.raw_since), "raw merges nothing"
            self.merged[at] += jumped
            self.quotes[at] += n > watched.last
        watched.last = n
        self.check_pace(at, watched, event)

    def check_pace(self, at: int, watched: Watched, event: dict) -> None:
        now = self.clock.seconds()
        if not watched.interval or event["ev"] == "snapshot" or at in self.caught_up:
            watched.paced_at = None
            return
        if watched.paced_at is not None:
            assert now - watched.paced_at >= watched.interval - MOMENT, "one update an interval"
        watched.paced_at = now

    @invariant()
    def merged_is_the_sum_of_the_jumps(self) -> None:
        if hasattr(self, "clients"):
            assert [client.outbox.merged for client in self.clients] == self.merged

    @invariant()
    def a_client_that_flows_has_the_newest_or_will_within_its_interval(self) -> None:
        if not hasattr(self, "clients"):
            return
        for at in CLIENTS:
            if self.clients[at].outbox.behind:
                continue
            for symbol, watched in self.watched[at].items():
                assert watched.last is not None, "its snapshot has come"
                pending = self.published[symbol][watched.last :]
                if pending:
                    age = self.clock.seconds() - pending[0][1]
                    assert watched.interval, "nothing is held back without an interval"
                    assert age < watched.interval + MOMENT, "no later than an interval"

    @invariant()
    def nothing_is_kept_that_nobody_needs(self) -> None:
        if hasattr(self, "clients"):
            wanted = {symbol for watched in self.watched for symbol in watched}
            quoted = {symbol for symbol, values in self.published.items() if values}
            assert self.hub.count_topics() == len(wanted | quoted)
            assert self.hub.count_outboxes() == len(self.clients)
            intervals = {each.interval for watched in self.watched for each in watched.values()}
            assert len(self.clock.calls) == len(intervals - {0}), "one timer for each interval"
            assert set(self.hub.common.behind) == {
                self.clients[at].outbox for at in self.those_behind()
            }

    def teardown(self) -> None:
        if hasattr(self, "clients"):
            for client, quotes in zip(self.clients, self.quotes, strict=True):
                client.session.close()
                assert client.outbox.quotes == quotes, "it knows how many it was handed"
            assert self.hub.count_outboxes() == 0
            assert not self.clock.calls
            assert not self.hub.common.behind
            assert set(self.hub.recent_symbols(10)) == {
                symbol for symbol, values in self.published.items() if values
            }


TestHubAgainstModel = HubAgainstModel.TestCase
