"""A client against servers that lose, merge, restart and close as they please: no silent hole.

For each symbol, what a program is told accounts for every update that was published between two
quotes: by `merged`, or there is a Gap (or the symbol was refused) between. No update comes twice.
"""

from __future__ import annotations

import random as chance
from collections import defaultdict

from client_doubles import Dialogue, quote, snapshot
from hypothesis import given
from hypothesis import strategies as st

from pushservice.client.event_queue import EventQueue
from pushservice.client.events import Event, Gap, Quote, Refused

SYMBOLS = ("A", "B", "C")


class Server:
    """A model of a daemon and its one client: it numbers, merges, forgets and hangs up."""

    def __init__(self, talk: Dialogue, seed: int) -> None:
        self.talk = talk
        self.chance = chance.Random(seed)
        self.epoch = 1
        #: every update ever published, by symbol: its number, and its serial number
        self.n: dict[str, int] = defaultdict(int)
        self.serial: dict[str, int] = defaultdict(int)
        self.sent: dict[str, int | None] = {}
        self.waiting: set[str] = set()
        self.link = 0

    @property
    def linked(self) -> bool:
        """Whether the client is there still; it leaves when it hears nothing for long."""
        return self.link == self.talk.links and self.talk.core.state == "open"

    def publish(self, symbol: str) -> None:
        self.n[symbol] += 1
        self.serial[symbol] += 1
        if symbol in self.sent:
            self.waiting.add(symbol)

    def flush(self) -> None:
        events = [quote(s, self.n[s], self.serial[s]) for s in sorted(self.waiting)]
        self.waiting.clear()
        if self.linked and events:
            self.talk.say(*events)

    def answer(self) -> None:
        if not self.linked:
            return
        for message in self.talk.sent:
            if message.get("answered") or "symbols" not in message:
                continue
            message["answered"] = True
            errors = {}
            events = []
            for symbol in message["symbols"]:
                self.sent.pop(symbol, None)
                self.waiting.discard(symbol)
                if message["op"] == "subscribe" and self.chance.random() < 0.1:
                    retry = {"retry": 100} if self.chance.random() < 0.5 else {}
                    errors[symbol] = {"code": 409, "msg": "no"} | retry
                elif message["op"] == "subscribe":
                    self.sent[symbol] = self.n[symbol]
                    if self.n[symbol] and message.get("snapshot", True):
                        events.append(snapshot(symbol, self.n[symbol], self.serial[symbol]))
            good = [s for s in message["symbols"] if s not in errors]
            kind = f"{message['op']}d"
            said = {"ev": kind, "id": message["id"], "symbols": good, "errors": errors}
            self.talk.say(said, *events)

    def connect(self) -> None:
        if self.talk.core.state == "connecting":
            self.link = self.talk.links
            self.sent.clear()
            self.waiting.clear()
            self.talk.welcome(f"e{self.epoch}")

    def back(self) -> None:
        """All that it takes for a lost client to be served again."""
        self.talk.advance(31)
        self.connect()
        self.answer()

    def drop(self) -> None:
        self.sent.clear()
        self.waiting.clear()
        self.talk.lose(self.chance.choice([1006, 1001, 1012, 4008]))

    def restart(self) -> None:
        self.drop()
        self.epoch += 1
        self.n.clear()

    def lose_feed(self) -> None:
        """Updates that the daemon never received: no number, but a gap is told."""
        self.flush()
        for symbol in SYMBOLS:
            self.serial[symbol] += self.chance.randint(0, 3)
        if self.linked:
            gaps = [{"ev": "gap", "s": symbol} for symbol in sorted(self.sent)]
            if gaps:
                self.talk.say(*gaps)

    def withdraw(self, symbol: str) -> None:
        if self.linked and symbol in self.sent:
            self.flush()
            del self.sent[symbol]
            errors = {symbol: {"code": 409, "msg": "no"}}
            self.talk.say({"ev": "unsubscribed", "symbols": [symbol], "errors": errors})

    def reauthenticate(self) -> None:
        if self.linked:
            self.talk.say({"ev": "authenticated"})


STEPS = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from(SYMBOLS)),
    st.tuples(st.just("publish"), st.sampled_from(SYMBOLS)),
    st.tuples(st.just("withdraw"), st.sampled_from(SYMBOLS)),
    st.tuples(st.just("subscribe"), st.sampled_from(SYMBOLS)),
    st.tuples(st.just("unsubscribe"), st.sampled_from(SYMBOLS)),
    st.sampled_from([(name,) for name in ("flush", "answer", "connect", "back")]),
    st.sampled_from([(name,) for name in ("drop", "restart", "lose_feed", "wait", "read")]),
    st.just(("reauthenticate",)),
)


class Accounts:
    """What a program that keeps its books makes of what it is told."""

    def __init__(self) -> None:
        self.last: dict[str, Quote] = {}
        self.holes: set[str] = set()

    def enter(self, event: Event) -> None:
        if isinstance(event, Gap | Refused) and event.symbol is not None:
            self.holes.add(event.symbol)
        if not isinstance(event, Quote):
            return
        last = self.last.get(event.symbol)
        self.last[event.symbol] = event
        hole = event.symbol in self.holes
        self.holes.discard(event.symbol)
        if last is None or hole:
            return
        # The payload is the serial number of the update among all that were ever published.
        assert event.epoch == last.epoch, f"another epoch without a gap: {last}, {event}"
        between = event.data - last.data - 1
        assert between >= (-1 if event.snapshot else 0), f"again: {last}, {event}"
        if not event.snapshot:
            assert between == event.merged, f"a silent hole: {last}, {event}"

    def forget(self, symbol: str) -> None:
        """It was unsubscribed: what comes later starts anew."""
        self.last.pop(symbol, None)
        self.holes.discard(symbol)


@given(
    with_snapshots=st.booleans(),
    steps=st.lists(STEPS, min_size=20, max_size=120),
    seed=st.integers(0, 2**32),
    room=st.integers(1, 12),
)
def test_every_hole_is_told_and_no_update_comes_twice(with_snapshots, steps, seed, room):
    talk = Dialogue(snapshot=with_snapshots, random=0.5)
    server, queue, accounts = Server(talk, seed), EventQueue(room), Accounts()
    talk.subscribe(*SYMBOLS, name="all")
    talk.open()
    server.back()

    def read() -> None:
        while (event := queue.take()) is not None:
            accounts.enter(event)

    for calls, (name, *words) in enumerate(steps):
        if name == "subscribe":
            talk.subscribe(*words, name=f"call {calls}")
        elif name == "unsubscribe":
            talk.unsubscribe(*words, name=f"call {calls}")
            queue.put(talk.take())
            queue.forget(set(words))
            accounts.forget(*words)
        elif name == "wait":
            talk.advance(0.7)
        elif name == "read":
            read()
        else:
            getattr(server, name)(*words)
        queue.put(talk.take())
        assert len(queue) <= room + 16
    server.flush()
    queue.put(talk.take())
    read()


@given(steps=st.lists(STEPS, max_size=60), seed=st.integers(0, 2**32))
def test_after_all_that_what_is_wanted_is_served_again(steps, seed):
    talk = Dialogue(random=0.5)
    server = Server(talk, seed)
    talk.subscribe(*SYMBOLS, name="all")
    talk.open()
    for calls, (name, *words) in enumerate(steps):
        if name in ("subscribe", "unsubscribe"):
            getattr(talk, name)(*words, name=f"call {calls}")
        elif name == "wait":
            talk.advance(0.7)
        elif name != "read":
            getattr(server, name)(*words)
    # Now the server behaves.
    server.chance.random = lambda: 1.0
    talk.subscribe("A", name="last")
    for _ in range(8):
        talk.advance(31 if talk.core.state == "waiting" else 1)
        server.connect()
        server.reauthenticate()
        server.answer()
    assert talk.core.state == "open"
    assert set(server.sent) == set(talk.core.wanted)
    assert "A" in server.sent
    assert talk.outcomes["last"] == {}
