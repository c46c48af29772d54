"""The session against the protocol's table of states, over random sequences of client actions."""

from __future__ import annotations

import json

from authentication_doubles import DELAY, LEEWAY, TIMEOUT, AuthenticatedHub
from core_doubles import Client, FixedClock, make_hub, publish
from hypothesis import given, settings
from hypothesis import strategies as st

from pushservice.auth.identity import Refused
from pushservice.limits import BURST_SECONDS, SYMBOLS_A_MESSAGE, Limits
from pushservice.protocol.close_codes import CloseCode
from pushservice.protocol.codecs import JSON
from pushservice.protocol.commands import Subscribe, Unsubscribe

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
    st.just({"op": "auth", "token": "t"}),
    st.fixed_dictionaries({}, optional={"id": st.integers()}),
).map(lambda command: json.dumps(command).encode())

steps = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.one_of(commands, st.binary(max_size=20))),
        st.tuples(st.just("ping"), st.binary(max_size=125)),
        st.tuples(st.just("publish"), st.sampled_from("ABCDE")),
        st.tuples(st.just("wait"), st.sampled_from([0.125, 1.0, 20.0])),
        st.tuples(st.just("block"), st.none()),
        st.tuples(st.just("drain"), st.none()),
        st.tuples(st.just("flood"), st.integers(1, 30)),
        st.tuples(st.just("close"), st.none()),
    ),
    max_size=30,
)

#: the possible answers to each command of an open client within its limits
ANSWERS = {
    "subscribe": {"subscribed", "error"},
    "unsubscribe": {"unsubscribed", "error"},
    "list": {"list"},
    "ping": {"pong"},
    "auth": {"error"},
}
#: events that are no answers
UNSOLICITED = {"quote", "snapshot"}


class Model:
    """The protocol's state of one client: OPEN, FLOODED or CLOSED, and how much it may send."""

    def __init__(self) -> None:
        self.state = "OPEN"
        self.frames_left = float(ALLOWED)
        self.subscribed: set[str] = set()

    def frame(self) -> bool:
        """A frame arrives; returns whether it is processed."""
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
    """Check the events after one message of an open client: one answer and its consequences."""
    answers = [event for event in events if event["ev"] not in UNSOLICITED]
    assert len(answers) == 1, "each message has exactly one answer"
    [answer] = answers
    if model.refuses:
        assert (answer["ev"], answer["code"]) == ("error", 429)
        return
    try:
        command = JSON.parse(text)
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
    """One client of a hub with its model; each step is a method."""

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
        work = self.work_of(text) if looked_at and not self.model.refuses else 0
        say(self.client, text)
        if looked_at and not self.behind:
            check_answers(self.model, text, self.client.events())
        elif looked_at:
            # It is answered when it drains; what it watches is read from there.
            self.model.subscribed = {topic.symbol for topic in self.client.outbox.topics}
        self.model.frames_left -= work

    def work_of(self, text: bytes) -> float:
        """How many frames the symbols of a command count as, beside its own."""
        try:
            command = JSON.parse(text)
        except ValueError:
            return 0
        if not isinstance(command, Subscribe | Unsubscribe):
            return 0
        named = self.client.outbox.topics if command.symbols is None else command.symbols
        return len(named) / SYMBOLS_A_MESSAGE

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
        """Check what must hold after each step."""
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
def test_every_sequence_is_answered_as_the_table_of_states_says(sequence):
    run = Run()
    for step, value in sequence:
        getattr(run, step)(value)
        run.check()
    run.client.session.close()
    assert not run.clock.calls


# -- authentication -------------------------------------------------------------------------------

#: the rights of each token: symbols, real time or delayed, and for how many seconds
TOKENS = {
    "all": ("ABC", "now", None),
    "some": ("A", "now", None),
    "other": ("BC", "now", 30),
    "late": ("ABC", "late", None),
    "late-some": ("B", "late", 100),
    "slow": ("AB", "now", None),
    "none": ("", "now", None),
    # Another user's, while all others are ann's.
    "bob": ("C", "now", None),
}
REFUSED_TOKENS = ["bad", "busy", "too-late"]

wanted = st.lists(st.sampled_from("ABC"), min_size=1, max_size=3)
authentication_steps = st.lists(
    st.one_of(
        *[st.tuples(st.just("authenticate"), st.sampled_from([*TOKENS, *REFUSED_TOKENS]))] * 3,
        st.tuples(st.just("subscribe"), st.tuples(wanted, st.sampled_from([None, "raw", 10, 250]))),
        st.tuples(st.just("unsubscribe"), wanted),
        st.tuples(st.just("list"), st.none()),
        st.tuples(st.just("publish"), st.tuples(st.sampled_from("ABC"), st.booleans())),
        st.tuples(st.just("later"), st.booleans()),
        *[st.tuples(st.just("verdict"), st.none())] * 2,
        st.tuples(st.just("wait"), st.sampled_from([0.1, 5.0, 20.0, 60.0])),
        st.tuples(st.just("revoke"), st.sampled_from(["user", *TOKENS])),
        st.tuples(st.just("block"), st.none()),
        st.tuples(st.just("drain"), st.none()),
        st.tuples(st.just("close"), st.none()),
    ),
    max_size=40,
)


class AuthenticatedRun:
    """One client of a hub with authentication, and what it may see by its tokens.

    A table of states: an ANONYMOUS client becomes AUTHENTICATED by a token, and again by each
    further one of the same user. A revocation, an expiry, a third bad token or the deadline makes
    it CLOSED.
    """

    def __init__(self, token_at_connect: str | None) -> None:
        self.served = AuthenticatedHub()
        for name, (symbols, pace, seconds) in TOKENS.items():
            self.served.accept_token(
                name,
                *(symbols or ["!*"]),
                token_id=name,
                user="bob" if name == "bob" else "ann",
                issued_at=self.served.clock.seconds() - 1,
                expires_at=None if seconds is None else self.served.clock.seconds() + seconds,
                delay_s=DELAY if pace == "late" else 0.0,
                min_interval_ms=100 if name == "slow" else 0,
            )
        self.served.authenticator.known["busy"] = Refused("try again", temporary=True)
        self.served.accept_token("too-late", delay_s=DELAY + 1)
        self.began = self.served.clock.seconds()
        known = (
            None if token_at_connect is None else self.served.authenticator.known[token_at_connect]
        )
        assert not isinstance(known, Refused)
        self.client = self.served.client(known)
        self.state = "ANONYMOUS" if token_at_connect is None else "AUTHENTICATED"
        self.token = token_at_connect
        self.watched: set[str] = set()
        self.revoked: set[str] = set()
        self.said: list[tuple[int, str]] = []
        self.answered = 0
        self.behind = False
        self.read()

    # -- steps -----------------------------------------------------------------------------------

    def say(self, what: str, **command: object) -> None:
        if not self.client.session.closed:
            self.said.append((len(self.said), what))
            self.client.say({"id": len(self.said) - 1} | command)

    def authenticate(self, token: str) -> None:
        self.say(token, op="auth", token=token)

    def subscribe(self, asked: tuple[list[str], object]) -> None:
        symbols, how = asked
        more = {"mode": how} if how == "raw" else {"interval": how or 0}
        self.say("subscribe", op="subscribe", symbols=symbols, **more)

    def unsubscribe(self, symbols: list[str]) -> None:
        self.say("unsubscribe", op="unsubscribe", symbols=symbols)

    def list(self, _: None) -> None:
        self.say("list", op="list")

    def publish(self, what: tuple[str, bool]) -> None:
        symbol, late = what
        hub, payload = (self.served.late, b'"late"') if late else (self.served.hub, b'"now"')
        publish(hub, (symbol, payload))

    def later(self, later: bool) -> None:
        self.served.authenticator.later = later

    def verdict(self, _: None) -> None:
        if self.served.authenticator.asked:
            self.served.authenticator.answer()

    def wait(self, seconds: float) -> None:
        self.served.clock.pass_time(seconds)

    def revoke(self, what: str) -> None:
        if what == "user":
            self.revoked |= TOKENS.keys() - {"bob"}
            self.served.revoke(user="ann")
        else:
            self.revoked.add(what)
            self.served.revoke(token=what)

    def block(self, _: None) -> None:
        self.behind = not self.client.session.closed
        self.client.outbox.blocked()

    def drain(self, _: None) -> None:
        self.behind = False
        self.client.outbox.drained()

    def close(self, _: None) -> None:
        self.client.session.close()

    # -- invariants -----------------------------------------------------------------------------

    def check(self) -> None:
        before = self.state
        self.read()
        client, now = self.client, self.served.clock.seconds()
        if before == "CLOSED":
            assert client.session.closed
        if client.session.closed:
            self.state, self.behind = "CLOSED", False
            assert not client.outbox.topics
            assert self.served.hub.count_outboxes() == 0
            return
        identity = client.session.identity
        if identity is None:
            assert now <= self.began + TIMEOUT + 0.25
            assert not client.outbox.topics
            return
        assert identity.token_id not in self.revoked
        assert identity.expires_at is None or now <= identity.expires_at + LEEWAY + 0.25
        symbols, pace, _ = TOKENS[identity.token_id or ""]
        hub = self.served.late if pace == "late" else self.served.hub
        for topic in client.outbox.topics:
            assert topic.symbol in symbols
            assert hub.topic(topic.symbol) is topic

    def read(self) -> None:
        """Read the events since: each quote is one that the client may see."""
        closed = self.state == "CLOSED"
        events = self.client.events()
        assert not (closed and events), "nothing is sent after the close"
        for event in events:
            self.take(event)
        code = self.client.outlet.closed_with
        if code is not None and not closed:
            assert (events[-1]["ev"], events[-1]["code"]) == ("bye", code)

    def take(self, event: dict) -> None:
        kind = event["ev"]
        if "id" in event:
            number, what = self.said[self.answered]
            assert event["id"] == number, "answers come in the order of the commands"
            self.answered += 1
            if kind == "authenticated":
                assert what in TOKENS
                assert self.token is None or (what == "bob") is (self.token == "bob")
                self.token, self.state = what, "AUTHENTICATED"
            elif what in (*TOKENS, *REFUSED_TOKENS):
                assert (kind, event["code"]) in {("error", 402), ("error", 403)}
            elif self.state == "ANONYMOUS":
                assert (kind, event["code"]) == ("error", 401)
        if kind == "subscribed":
            self.watched |= set(event["symbols"])
            assert set(event["symbols"]) <= set(TOKENS[self.token or ""][0])
        elif kind == "unsubscribed":
            self.watched -= set(event["symbols"])
        elif kind == "list":
            assert set(event["symbols"]) == self.watched
        elif kind in ("quote", "snapshot", "gap"):
            symbols, pace, _ = TOKENS[self.token or ""]
            assert event["s"] in self.watched
            assert event["s"] in symbols
            assert kind == "gap" or event["d"] == pace

    def finish(self) -> None:
        """Check that every command is answered in the end, unless the client was closed."""
        self.served.clock.pass_time(0)
        self.drain(None)
        self.served.authenticator.later = False
        while self.served.authenticator.asked:
            self.verdict(None)
        self.check()
        if self.state != "CLOSED":
            assert self.answered == len(self.said)
        self.client.session.close()
        assert not self.served.clock.calls


@settings(max_examples=4 * settings.default.max_examples)
@given(st.sampled_from([None, None, "all", "late", "other"]), st.booleans(), authentication_steps)
def test_clients_get_only_what_they_may_see_and_answers_in_order(token_at_connect, later, sequence):
    run = AuthenticatedRun(token_at_connect)
    run.later(later)
    for step, value in sequence:
        getattr(run, step)(value)
        run.check()
    run.finish()
