"""The session against the protocol's table of states, over random sequences of what clients do."""

from __future__ import annotations

import json

from core_doubles import Client, FixedClock, make_hub, publish
from hypothesis import given
from hypothesis import strategies as st

from pushservice import wire
from pushservice.closing import CloseCode
from pushservice.limits import BURST_SECONDS, Limits

LIMITS = Limits(symbols=3, message_rate=2, byte_rate=0, total_symbols=5)
ALLOWED = LIMITS.message_rate * BURST_SECONDS

symbols = st.lists(
    st.sampled_from(["A", "B", "C", "D", "bad one", "*", "", 7, None, "X" * 65]), max_size=6
)
commands = st.one_of(
    st.fixed_dictionaries(
        {"op": st.just("subscribe"), "symbols": symbols},
        optional={
            "id": st.one_of(st.integers(), st.text(max_size=3), st.none()),
            "mode": st.sampled_from(["auto", "raw", "fast"]),
            "interval": st.sampled_from([0, 10, 250, -1, "x"]),
            "snapshot": st.sampled_from([True, False, 1]),
        },
    ),
    st.fixed_dictionaries({"op": st.just("unsubscribe")}, optional={"symbols": symbols}),
    st.fixed_dictionaries({"op": st.sampled_from(["list", "ping", "auth", "sell"])}),
    st.fixed_dictionaries({}, optional={"id": st.integers()}),
).map(lambda command: json.dumps(command).encode())

steps = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.one_of(commands, st.binary(max_size=20))),
        st.tuples(st.just("ping"), st.binary(max_size=125)),
        st.tuples(st.just("publish"), st.sampled_from("ABCDE")),
        st.tuples(st.just("wait"), st.sampled_from([0.1, 1.0, 20.0])),
        st.tuples(st.just("block"), st.none()),
        st.tuples(st.just("drain"), st.none()),
        st.tuples(st.just("flood"), st.integers(1, 30)),
        st.tuples(st.just("close"), st.none()),
    ),
    max_size=30,
)

#: what may answer each command of a client that is open and within its limits
ANSWERS = {
    "subscribe": {"subscribed", "error"},
    "unsubscribe": {"unsubscribed", "error"},
    "list": {"list"},
    "ping": {"pong"},
}
#: what comes without having been asked for
UNASKED = {"quote", "snapshot"}


class Model:
    """What the protocol says of one client: OPEN, FLOODED or CLOSED, and how much it may say."""

    def __init__(self) -> None:
        self.state = "OPEN"
        self.frames_left = float(ALLOWED)
        self.subscribed: set[str] = set()

    def frame(self) -> bool:
        """One frame came; whether it is looked at."""
        if self.state != "OPEN":
            return False
        self.frames_left -= 1
        if self.frames_left < -LIMITS.message_rate:
            self.state = "FLOODED"
            return False
        return True

    @property
    def refuses(self) -> bool:
        return self.frames_left < 0

    def wait(self, seconds: float) -> None:
        self.frames_left = min(ALLOWED, self.frames_left + seconds * LIMITS.message_rate)


def say(client: Client, text: bytes) -> None:
    client.session.arrived(len(text))
    if client.session.frame():
        client.session.receive(text)


def check_answers(model: Model, text: bytes, events: list[dict]) -> None:
    """One message, looked at by an open client that is not behind: one answer, and what follows."""
    answers = [event for event in events if event["ev"] not in UNASKED]
    assert len(answers) == 1, "each message has exactly one answer"
    [answer] = answers
    if model.refuses:
        assert (answer["ev"], answer["code"]) == ("error", 429)
        return
    try:
        command = wire.JSON.parse(text)
    except ValueError:
        assert (answer["ev"], answer["code"]) == ("error", 400)
        return
    op = json.loads(text)["op"]
    assert answer["ev"] in ANSWERS[op]
    if op == "subscribe":
        model.subscribed |= set(answer["symbols"])
        named = {each for each in command.symbols if isinstance(each, str)}
        assert set(answer["symbols"]) | answer.get("errors", {}).keys() >= named
        assert {error["code"] for error in answer.get("errors", {}).values()} <= {405, 411}
    elif op == "unsubscribe":
        model.subscribed -= set(answer["symbols"])
    elif op == "list":
        assert set(answer["symbols"]) == model.subscribed
    if "total" in answer:
        assert answer["total"] == len(model.subscribed) <= LIMITS.symbols


class Run:
    """One client of a hub beside its model; each step is a method."""

    def __init__(self) -> None:
        self.clock = FixedClock()
        self.hub = make_hub(self.clock, limits=LIMITS)
        self.client = Client(self.hub, limits=LIMITS)
        self.client.frames()
        self.model = Model()
        self.behind = False
        # The purses are made, full, when the first byte comes.
        self.client.session.arrived(0)

    def say(self, text: bytes) -> None:
        looked_at = self.model.frame()
        say(self.client, text)
        if looked_at and not self.behind:
            check_answers(self.model, text, self.client.events())
        elif looked_at:
            # It is answered when it drains; what it watches is read from there.
            self.model.subscribed = {topic.symbol for topic in self.client.outbox.topics}

    def flood(self, frames: int) -> None:
        for _ in range(frames):
            self.model.frame()
            self.client.session.frame()

    def ping(self, payload: bytes) -> None:
        self.client.session.ping(payload)

    def publish(self, symbol: str) -> None:
        publish(self.hub, (symbol, b"1"))

    def wait(self, seconds: float) -> None:
        self.clock.pass_time(seconds)
        if self.model.state == "OPEN":
            self.client.session.arrived(0)
            self.model.wait(seconds)

    def block(self, _: None) -> None:
        self.behind = self.behind or self.model.state == "OPEN"
        self.client.outbox.blocked()

    def drain(self, _: None) -> None:
        self.behind = False
        self.client.outbox.drained()

    def close(self, _: None) -> None:
        if self.model.state == "OPEN":
            self.model.state = "CLOSED"
        self.client.session.close()

    def check(self) -> None:
        """What must hold after each step."""
        if self.model.state == "FLOODED":
            assert self.client.outlet.closed_with is CloseCode.FLOODING
            # The edge lets a client leave before it begins the close.
            self.client.session.close()
        else:
            assert self.client.outlet.closed_with is None
        if not self.behind:
            assert all(first in (0x81, 0x8A) for first, _ in self.client.frames())
        if self.model.state != "OPEN":
            self.behind = False
            assert not self.client.outbox.topics
            assert self.hub.count_outboxes() == 0
            assert self.client.outlet.written == [], "a client that left is told nothing"


@given(steps)
def test_every_sequence_of_a_client_is_answered_as_the_table_of_states_says(sequence):
    run = Run()
    for step, value in sequence:
        getattr(run, step)(value)
        run.check()
    run.client.session.close()
    assert not run.clock.calls
