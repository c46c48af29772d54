"""Hub, outboxes and sessions against a model, over random schedules of all that can happen."""

from __future__ import annotations

import json

from core_doubles import Client, FixedClock, make_hub
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

SYMBOLS = ["A", "B", "C"]
CLIENTS = range(3)


class Watched:
    """What one client must know of one symbol since it subscribed."""

    def __init__(self, n: int | None) -> None:
        #: the last `n` the client has, or None where the next event is its first
        self.last = n


class HubAgainstModel(RuleBasedStateMachine):
    """The model knows, per client and symbol, only what the protocol promises."""

    @initialize()
    def begin(self) -> None:
        self.hub = make_hub(FixedClock())
        self.published: dict[str, list[int]] = {symbol: [] for symbol in SYMBOLS}
        self.clients = [Client(self.hub, f"t-{at}") for at in CLIENTS]
        self.watched: list[dict[str, Watched]] = [{} for _ in CLIENTS]
        self.behind = [False for _ in CLIENTS]
        self.merged = [0 for _ in CLIENTS]
        self.value = 0
        for client in self.clients:
            client.frames()

    # -- what can happen -------------------------------------------------------------------------

    @rule(turn=st.lists(st.sampled_from(SYMBOLS), max_size=6))
    def publish_a_turn(self, turn: list[str]) -> None:
        for symbol in turn:
            self.value += 1
            self.published[symbol].append(self.value)
            self.hub.publish(symbol, b"%d" % self.value)
        self.hub.flush()
        self.read_all()

    @rule(
        at=st.sampled_from(CLIENTS),
        symbols=st.sets(st.sampled_from(SYMBOLS)),
        snapshot=st.booleans(),
    )
    def subscribe(self, at: int, symbols: set[str], snapshot: bool) -> None:
        self.clients[at].say({"op": "subscribe", "symbols": sorted(symbols), "snapshot": snapshot})
        for symbol in symbols - self.watched[at].keys():
            n = len(self.published[symbol])
            self.watched[at][symbol] = Watched(None if snapshot and n else n)
        self.read_all()

    @rule(at=st.sampled_from(CLIENTS), symbols=st.sets(st.sampled_from(SYMBOLS)))
    def unsubscribe(self, at: int, symbols: set[str]) -> None:
        self.clients[at].say({"op": "unsubscribe", "symbols": sorted(symbols)})
        for symbol in symbols:
            self.watched[at].pop(symbol, None)
        self.read_all()

    @rule(at=st.sampled_from(CLIENTS))
    def fall_behind(self, at: int) -> None:
        self.clients[at].outbox.blocked()
        self.behind[at] = True

    @rule(at=st.sampled_from(CLIENTS))
    @precondition(lambda self: any(self.behind))
    def drain(self, at: int) -> None:
        if not self.behind[at]:
            return
        self.behind[at] = False
        self.clients[at].outbox.drained()
        self.read_all()
        for symbol, watched in self.watched[at].items():
            if watched.last is not None:
                assert watched.last == len(self.published[symbol]), "nothing stale after a drain"

    @rule(at=st.sampled_from(CLIENTS))
    def leave_and_come_again(self, at: int) -> None:
        self.clients[at].session.close()
        self.clients[at] = Client(self.hub, f"t-{at}")
        self.clients[at].frames()
        self.watched[at], self.behind[at], self.merged[at] = {}, False, 0

    # -- what must hold --------------------------------------------------------------------------

    def read_all(self) -> None:
        for at, client in enumerate(self.clients):
            events = client.events()
            assert not (events and self.behind[at]), "a client behind is written nothing"
            for event in events:
                if event["ev"] in ("quote", "snapshot"):
                    self.read_value(at, event)

    def read_value(self, at: int, event: dict) -> None:
        symbol, n = event["s"], event["n"]
        assert symbol in self.watched[at], "only what is watched arrives"
        assert self.published[symbol][n - 1] == event["d"], "n names the value"
        watched = self.watched[at][symbol]
        if watched.last is None:
            assert event["ev"] == "snapshot", "the first is the snapshot"
        elif event["ev"] == "quote":
            assert n > watched.last, "n only grows"
            self.merged[at] += n - watched.last - 1
        else:
            assert n >= watched.last, "n never falls"
            self.merged[at] += max(0, n - watched.last - 1)
        watched.last = n

    @invariant()
    def merged_is_the_sum_of_the_jumps(self) -> None:
        if hasattr(self, "clients"):
            assert [client.outbox.merged for client in self.clients] == self.merged

    @invariant()
    def a_client_that_flows_has_the_newest_of_all(self) -> None:
        if hasattr(self, "clients"):
            for at in CLIENTS:
                for symbol, watched in self.watched[at].items():
                    if not self.behind[at] and watched.last is not None:
                        assert watched.last == len(self.published[symbol])

    @invariant()
    def nothing_is_kept_that_nobody_needs(self) -> None:
        if hasattr(self, "clients"):
            wanted = {symbol for watched in self.watched for symbol in watched}
            quoted = {symbol for symbol, values in self.published.items() if values}
            assert self.hub.count_topics() == len(wanted | quoted)
            assert self.hub.count_outboxes() == len(self.clients)

    def teardown(self) -> None:
        if hasattr(self, "clients"):
            for client in self.clients:
                client.session.close()
            assert self.hub.count_outboxes() == 0
            assert json.dumps(self.hub.recent_symbols(10))


TestHubAgainstModel = HubAgainstModel.TestCase
