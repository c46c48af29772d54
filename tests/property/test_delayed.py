"""Tiers against a model: a list of all that came and when, and what of it is old enough by now.

While nothing was dropped for lack of budget the model knows each event of each client; once
something was, it still knows that nothing is early, and that each hole is told.
"""

from __future__ import annotations

import json

from core_doubles import Client, FixedClock
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pushservice.fanout.announcements import Announcements
from pushservice.fanout.delayed import TURN_EVERY, CombinedInterest, Tiers, move
from pushservice.fanout.hub import Hub, TurnHooks
from pushservice.fanout.tape import Tape
from pushservice.metrics import Counters

SYMBOLS = ["A", "B", "C"]
#: seconds; the first is real time
DELAYS = [0, 0.7, 2.5]
#: two clients of each tier
TIER_OF = [0, 0, 1, 1, 2, 2]
CLIENTS = range(len(TIER_OF))
STEPS = [0.0, 0.0001, 0.0004, 0.0101, 0.02, 0.1, 0.6996, 0.7, 2.4999, 2.5, 4.0]


class Told:
    """Interest as its last listener hears it."""

    def __init__(self) -> None:
        self.watchers: dict[str, set[str]] = {}
        self.quotes: set[str] = set()

    def watched(self, client: str, symbol: str, first: bool) -> None:
        known = self.watchers.setdefault(symbol, set())
        assert first or known, "the first is told as such"
        known.add(client)

    def unwatched(self, client: str, symbol: str, last: bool) -> None:
        self.watchers[symbol].remove(client)
        assert last is not bool(self.watchers[symbol])

    def quoted(self, topics: dict) -> None:
        self.quotes |= {topic.symbol for topic in topics}


class Played:
    """What one tier has played, by the model."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        #: how much of the log, and until when nothing more is
        self.until = 0
        self.rests_until = 0.0
        #: symbol -> number, moment and value of the last one
        self.last: dict[str, tuple[int, float, int]] = {}


class Seen:
    """What a client knows of a symbol: the last value, or what was due when it subscribed."""

    def __init__(self, value: int) -> None:
        self.value = value
        self.n: int | None = None
        self.told_of_gap = False


class TiersAgainstModel(RuleBasedStateMachine):
    """Whatever happens when: nothing comes early, nothing is lost in silence."""

    @initialize(budget=st.sampled_from([0, 600, 3000, 20_000, 1 << 20]))
    def begin(self, budget: int) -> None:
        def failed(outbox: object, failure: Exception) -> None:
            raise failure

        self.clock = FixedClock()
        self.told = Told()
        together = CombinedInterest(self.told)
        self.tape = Tape(budget)
        self.hub = Hub(self.clock, "k7f3", Counters(), TurnHooks(failed), interest=together)
        self.announcements = Announcements(self.hub, lambda share: None)
        self.tiers = Tiers(
            self.clock, self.hub, self.tape, DELAYS[1:], together, lambda share: None
        )
        self.feed_up = True
        self.announcements.feed_changed(True)
        #: (moment, symbol, value); a gap has no symbol, and a loss no value either
        self.log: list[tuple[float, str | None, int | None]] = []
        self.played = [Played(delay) for delay in DELAYS]
        self.tier_of = list(TIER_OF)
        self.hubs = [self.hub, *self.tiers.hubs]
        self.clients = [Client(self.hubs[tier], f"t-{at}") for at, tier in enumerate(TIER_OF)]
        self.watched: list[dict[str, Seen]] = [{} for _ in CLIENTS]
        self.jumps = [0 for _ in CLIENTS]
        self.expected: list[list[tuple]] = [[] for _ in CLIENTS]
        self.tiers.feed_changed(True)
        self.log.append((self.clock.seconds(), None, 0))
        self.real_time()
        for client in self.clients:
            client.frames()
        self.expected = [[] for _ in CLIENTS]

    # -- what can happen -------------------------------------------------------------------------

    @rule(turn=st.lists(st.sampled_from(SYMBOLS), min_size=1, max_size=6))
    def publish_a_turn(self, turn: list[str]) -> None:
        for symbol in turn:
            value = len(self.log) + 1
            self.log.append((self.clock.seconds(), symbol, value))
            self.tiers.publish(symbol, json.dumps([value, "x" * 80]).encode())
        self.tiers.flush()
        self.real_time()
        self.read_all()

    @rule(seconds=st.sampled_from(STEPS) | st.floats(0, 1))
    def let_time_pass(self, seconds: float) -> None:
        end = self.clock.seconds() + seconds
        while self.clock.calls and self.clock.calls[0].getTime() <= end:
            self.clock.pass_time(self.clock.calls[0].getTime() - self.clock.seconds())
            self.play()
            self.read_all()
        self.clock.pass_time(end - self.clock.seconds())
        self.play()
        self.read_all()

    @rule()
    def the_feed_comes_or_goes(self) -> None:
        self.feed_up = not self.feed_up
        # In this order, as clients are told of the state at once.
        self.announcements.feed_changed(self.feed_up)
        self.tiers.feed_changed(self.feed_up)
        for expected in self.expected:
            expected.append(("feed", "up" if self.feed_up else "down"))
        self.log.append((self.clock.seconds(), None, 0 if self.feed_up else None))
        self.real_time()
        self.read_all()

    @rule(at=st.sampled_from(CLIENTS), symbols=st.sets(st.sampled_from(SYMBOLS), min_size=1))
    def subscribe(self, at: int, symbols: set[str]) -> None:
        self.clients[at].say({"op": "subscribe", "symbols": sorted(symbols)})
        played = self.played[self.tier_of[at]]
        for symbol in sorted(symbols):
            if symbol not in self.watched[at]:
                self.watched[at][symbol] = Seen(self.due(symbol, played.delay))
            if symbol in played.last:
                self.expected[at].append(("snapshot", symbol, *played.last[symbol]))
        self.read_all()

    @rule(at=st.sampled_from(CLIENTS), symbols=st.sets(st.sampled_from(SYMBOLS), min_size=1))
    def unsubscribe(self, at: int, symbols: set[str]) -> None:
        self.clients[at].say({"op": "unsubscribe", "symbols": sorted(symbols)})
        for symbol in symbols:
            self.watched[at].pop(symbol, None)
        self.read_all()

    @rule(at=st.sampled_from(CLIENTS), tier=st.sampled_from(range(len(DELAYS) - 1)))
    def raise_rights(self, at: int, tier: int) -> None:
        if tier >= self.tier_of[at]:
            return
        assert move(self.clients[at].outbox, self.hubs[self.tier_of[at]], self.hubs[tier])
        self.clients[at].session._hub = self.hubs[tier]
        self.tier_of[at] = tier
        played = self.played[tier]
        self.expected[at] += [("gap", symbol) for symbol in self.watched[at]]
        for symbol in self.watched[at]:
            if symbol in played.last:
                self.expected[at].append(("snapshot", symbol, *played.last[symbol]))
        self.read_all()
        for symbol, seen in self.watched[at].items():
            seen.value = max(seen.value, self.due(symbol, played.delay))

    # -- the model -------------------------------------------------------------------------------

    def due(self, symbol: str, delay: float) -> int:
        """The newest value of `symbol` that may be seen now; 0 where there is none."""
        now = self.clock.seconds()
        return max(
            (value for at, each, value in self.log if each == symbol and at + delay <= now),
            default=0,
        )

    def real_time(self) -> None:
        self.enter(0, self.clock.seconds())

    def play(self) -> None:
        """Each tier is where its timer has brought it by now."""
        now = self.clock.seconds()
        for tier, played in enumerate(self.played[1:], 1):
            while played.until < len(self.log):
                turn = max(self.log[played.until][0] + played.delay, played.rests_until)
                if turn > now:
                    break
                self.enter(tier, turn)
                played.rests_until = turn + TURN_EVERY

    def enter(self, tier: int, now: float) -> None:
        played = self.played[tier]
        watching = [at for at in CLIENTS if self.tier_of[at] == tier]
        while played.until < len(self.log):
            at, symbol, value = self.log[played.until]
            if at + played.delay > now:
                break
            played.until += 1
            if symbol is not None:
                n = played.last.get(symbol, (0,))[0] + 1
                played.last[symbol] = (n, at, value)
            for client in watching:
                if symbol is None and value is not None:
                    self.expected[client] += [("gap", each) for each in self.watched[client]]
                elif symbol in self.watched[client]:
                    self.expected[client].append(("quote", symbol, n, at, value))

    # -- what must hold --------------------------------------------------------------------------

    def read_all(self) -> None:
        for at, client in enumerate(self.clients):
            got = []
            for event in client.events():
                if event["ev"] in ("quote", "snapshot"):
                    got.append(self.read_value(at, event))
                elif event["ev"] == "gap":
                    if event["s"] in self.watched[at]:
                        self.watched[at][event["s"]].told_of_gap = True
                    got.append(("gap", event["s"]))
                elif event["ev"] == "feed":
                    got.append(("feed", event["state"]))
            if not self.tape.dropped_bytes or not self.tier_of[at]:
                assert got == self.expected[at]
            self.expected[at] = []

    def read_value(self, at: int, event: dict) -> tuple:
        symbol, n, value = event["s"], event["n"], event["d"][0]
        moment, its_symbol, _ = self.log[value - 1]
        assert its_symbol == symbol
        # The promise that all this is for, to the last bit.
        assert moment + DELAYS[self.tier_of[at]] <= self.clock.seconds()
        assert event["t"] == int(moment * 1000), "as it was received"
        seen = self.watched[at][symbol]
        if event["ev"] == "quote":
            between = [
                each
                for _, other, each in self.log
                if other == symbol and each is not None and seen.value < each < value
            ]
            assert seen.told_of_gap or not between, "what is missing is announced"
            seen.told_of_gap = False
            seen.value = value
        if seen.n is not None:
            assert n > seen.n or (event["ev"] == "snapshot" and n == seen.n), "n only grows"
            self.jumps[at] += max(0, n - seen.n - 1)
        elif event["ev"] == "quote":
            assert n == 1 or self.tape.dropped_bytes, "without a snapshot it is the first"
        seen.n = n
        return event["ev"], symbol, n, moment, value

    @invariant()
    def merged_is_the_sum_of_the_jumps(self) -> None:
        if hasattr(self, "clients"):
            assert [client.outbox.merged for client in self.clients] == self.jumps

    @invariant()
    def interest_is_that_of_all_tiers(self) -> None:
        if hasattr(self, "clients"):
            for symbol in SYMBOLS:
                watching = {f"t-{at}" for at in CLIENTS if symbol in self.watched[at]}
                assert self.told.watchers.get(symbol, set()) == watching

    @invariant()
    def a_tier_has_one_timer_at_most(self) -> None:
        if hasattr(self, "clients"):
            assert len(self.clock.calls) <= len(DELAYS) - 1

    def teardown(self) -> None:
        if not hasattr(self, "clients"):
            return
        self.let_time_pass(2 * max(DELAYS))
        assert not self.clock.calls, "all is played"
        for at in CLIENTS:
            for symbol, seen in self.watched[at].items():
                newest = self.due(symbol, 0)
                assert seen.value >= newest or seen.told_of_gap, "each hole is announced"
        assert self.tape.used_bytes <= 2 * self.tape._segment_bytes + 200
        self.tiers.publish("A", b"[0]")
        self.tiers.flush()
        self.tiers.stop()
        assert not self.clock.calls
        for client in self.clients:
            client.session.close()
        assert self.hub.count_outboxes() == 0
        assert not any(self.told.watchers.values())


TestTiersAgainstModel = TiersAgainstModel.TestCase
