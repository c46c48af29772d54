"""The other side of a client's conversation: a server that says what a test tells it to."""

from __future__ import annotations

import json
from typing import Any

from pushservice.client.actions import Answer, AskToken, Connect, Hangup, Send
from pushservice.client.conversation import Conversation
from pushservice.client.events import Event, State
from pushservice.client.options import Options


class Dialogue:
    """A conversation, its clock, and what came of it so far.

    Randomness is `random`, one number for all. `sent` are the messages of the link that stands,
    `links` how many there were.
    """

    def __init__(self, *, random: float = 1.0, **settings: Any) -> None:
        self.now = 100.0
        self.random = random
        self.core = Conversation(Options("wss://test/", **settings), lambda: self.random)
        self.events: list[Event] = []
        self.sent: list[dict[str, Any]] = []
        self.links = 0
        self.hangups: list[bool] = []
        self.asked: list[AskToken] = []
        self.outcomes: dict[str, Any] = {}

    # -- what an adapter does ----------------------------------------------------------------------

    def open(self) -> None:
        self.core.open(self.now)
        self.turn()

    def close(self) -> None:
        self.core.close(self.now)
        self.turn()

    def subscribe(self, *symbols: str, name: str = "subscribe") -> None:
        self.core.subscribe(self.now, list(symbols), self._hears(name))
        self.turn()
        self.advance(0)

    def unsubscribe(self, *symbols: str, name: str = "unsubscribe") -> None:
        self.core.unsubscribe(self.now, list(symbols) or None, self._hears(name))
        self.turn()
        self.advance(0)

    def ping(self, name: str = "ping") -> None:
        self.core.ping(self.now, self._hears(name))
        self.turn()

    def _hears(self, name: str) -> Any:
        def done(outcome: object) -> None:
            assert name not in self.outcomes, f"{name} ended twice"
            self.outcomes[name] = outcome

        return done

    def turn(self) -> None:
        for command in self.core.take_commands():
            match command:
                case Connect():
                    self.links += 1
                    self.sent = []
                case Send(text):
                    self.sent.append(json.loads(text))
                case Hangup(politely):
                    self.hangups.append(politely)
                case AskToken():
                    self.asked.append(command)
                case Answer(done, outcome):
                    done(outcome)
        self.events += self.core.take_events()

    def advance(self, seconds: float) -> None:
        """Let time pass, from one deadline to the next."""
        end = self.now + seconds
        while self.core.deadline is not None and self.core.deadline <= end:
            self.now = max(self.now, self.core.deadline)
            self.core.tick(self.now)
            self.turn()
        self.now = end

    def give_token(self, token: str | None) -> None:
        self.core.token_came(self.now, self.asked[-1].number, token)
        self.turn()

    # -- what the server does ----------------------------------------------------------------------

    def say(self, *events: dict[str, Any]) -> None:
        self.say_text(json.dumps(events).encode())

    def say_text(self, text: bytes) -> None:
        self.core.received(self.now, text)
        self.turn()

    def welcome(self, epoch: str = "e1", hb: int = 5000, **more: Any) -> None:
        limits = {"symbols": 1000, "message": more.pop("message", 16384)}
        said = {"ev": "welcome", "v": 1, "conn": f"{epoch}-1", "epoch": epoch, "hb": hb}
        self.say(said | {"limits": limits} | more)

    def lose(self, code: int | None = 1006, reason: str = "") -> None:
        self.core.lost(self.now, code, reason)
        self.turn()

    def refuse(self, status: int, text: str = "", retry_after: float | None = None) -> None:
        self.core.refused(self.now, status, text, retry_after)
        self.turn()

    def grant(self, **errors: tuple[int, str]) -> None:
        """Answer the requests of this link that were not answered yet, with these errors."""
        for message in self.sent:
            if message.pop("answered", False) or message["op"] not in ("subscribe", "unsubscribe"):
                message["answered"] = True
                continue
            bad = {s: errors[s] for s in message["symbols"] if s in errors}
            said: dict[str, Any] = {"ev": f"{message['op']}d", "id": message["id"]}
            said["symbols"] = [s for s in message["symbols"] if s not in bad]
            if bad:
                said["errors"] = {s: {"code": code, "msg": msg} for s, (code, msg) in bad.items()}
            message["answered"] = True
            self.say(said)

    def served(self, *symbols: str) -> None:
        """Open a link on which `symbols` are served."""
        self.subscribe(*symbols)
        self.open()
        self.welcome()
        self.grant()

    # -- what a test looks at ----------------------------------------------------------------------

    @property
    def states(self) -> list[str]:
        return [event.name for event in self.events if isinstance(event, State)]

    def take(self, *kinds: type) -> list[Any]:
        """The events since the last time, of `kinds` if there are any."""
        events, self.events = self.events, []
        return [event for event in events if not kinds or isinstance(event, kinds)]

    def last_state(self) -> State:
        return [event for event in self.events if isinstance(event, State)][-1]

    def ops(self, op: str) -> list[list[str]]:
        """The symbols of each message `op` on this link."""
        return [message["symbols"] for message in self.sent if message["op"] == op]


def quote(symbol: str, n: int, data: Any = 1, kind: str = "quote") -> dict[str, Any]:
    return {"ev": kind, "s": symbol, "n": n, "t": 1000 + n, "d": data}


def snapshot(symbol: str, n: int, data: Any = 1) -> dict[str, Any]:
    return quote(symbol, n, data, "snapshot")
