"""What is said to the server and what it says, with no I/O, over links that come and go.

Must not know: sockets, event loops, clocks, or WebSocket libraries. A face tells what happened, and
when; then it takes the commands and events that came of it, and calls `tick` at `deadline`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import msgspec

from pushservice.client import frames
from pushservice.client.events import (
    Authenticated,
    Bye,
    Event,
    Expiring,
    Feed,
    Fresh,
    Heartbeat,
    QuoteError,
    Refused,
    Stale,
    State,
    StateName,
    Welcome,
)
from pushservice.client.options import Options, Why
from pushservice.client.wishes import Answered, Done, Wishes
from pushservice.protocol.close_codes import RECONNECT_AFTER, CloseCode, ErrorCode

#: Another token may help after these.
LOCKED_OUT: Final = frozenset({CloseCode.AUTHENTICATION_FAILED, CloseCode.AUTHENTICATION_TOO_LATE})
#: Connections in a row that end over a refused token before it is given up.
REFUSALS: Final = 3
#: Heartbeats missed before a link counts as dead.
WATCH_FACTOR: Final = 3
#: Seconds in which a link that counts as dead may still prove that only this program was late.
GRACE: Final = 1.0
#: HTTP statuses below 500 that pass by themselves; of those from 500 on, 505 does not.
_PASSING: Final = frozenset({408, 425, 429})
_BLAMING: Final = frozenset(
    {
        ErrorCode.NOT_AUTHENTICATED,
        ErrorCode.AUTHENTICATION_FAILED,
        ErrorCode.AUTHENTICATION_TOO_LATE,
    }
)
_LOST: Final = 1006


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a connection, then tell what is `received`, and how it ended."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a text message, which may hold a token."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Hangup:
    """End the connection, `politely` with a close frame, and tell nothing more of it."""

    politely: bool


@dataclass(frozen=True, slots=True)
class AskToken:
    """Call the token function, then tell `token_came` with the same number."""

    number: int
    why: Why


@dataclass(frozen=True, slots=True)
class Answer:
    """Call `done` with `outcome`, which may be a QuoteError."""

    done: Done
    outcome: Any


Command: TypeAlias = Connect | Send | Hangup | AskToken | Answer
_Alarm: TypeAlias = Callable[[], None]


class Conversation:
    """One logical connection, which is made again and again, and keeps its subscriptions.

    Each method that tells of something takes the time in seconds, of a clock that only goes on.
    `random` gives numbers from 0 up to 1.
    """

    def __init__(self, options: Options, random: Callable[[], float]) -> None:
        self._options = options
        self._random = random
        self._now = 0.0
        self._commands: list[Command] = []
        self._events: list[Event] = []
        self._alarms: dict[str, tuple[float, _Alarm]] = {}
        #: the earliest time at which `tick` has something to do; None for never
        self.deadline: float | None = None
        #: how the connection stands
        self.state: StateName = "closed"
        #: false while the face does not read: what is not heard then is no sign of a dead link
        self.listening = True
        self._link = 0
        self._heard = 0.0
        self._suspected = False
        self._served_since: float | None = None
        self._attempt = 0
        self._retry: float | None = None
        self._welcomed_once = False
        self._over: QuoteError | None = None  # why it was closed, if it was
        self._feed: bool | None = None
        self._fresh: bool | None = None
        self._next_id = 1
        self._pending: dict[int, Answered] = {}
        self._held: list[str] = []  # requests made while authenticating
        # -- tokens
        self._why: Why = "connect"
        self._asking = 0  # the number of the call that is awaited; 0 for none
        self._asked = 0
        self._ask_attempt = 0
        self._offer = ""  # a token that came while there was no connection to show it on
        self._renewing = False  # the state is "waiting" for nothing but a token
        self._refusals = 0
        self._refused_here = False  # this link's last token was
        self._blame = ""  # what the server found wrong with the last token
        self._wishes = Wishes(
            options,
            random=random,
            ask=self._request,
            tell=self._events.append,
            settle=self._settle,
            soon=self._flush_soon,
            again=self._retry_in,
        )
        self._acts: dict[type[Any], Callable[[Any], None]] = {
            frames.WelcomeEvent: self._on_welcome,
            frames.HeartbeatEvent: self._on_heartbeat,
            frames.FeedEvent: lambda event: self._set_feed(event.state, event.t),
            frames.GapEvent: lambda event: self._wishes.missed(event.s),
            frames.StaleEvent: lambda event: self._set_quiet(event, quiet=True),
            frames.FreshEvent: lambda event: self._set_quiet(event, quiet=False),
            frames.ByeEvent: self._on_bye,
            frames.ErrorEvent: self._on_error,
            frames.SubscribedEvent: self._on_answer,
            frames.UnsubscribedEvent: self._on_unsubscribed,
            frames.ListEvent: self._on_answer,
            frames.PongEvent: self._on_answer,
            frames.AuthenticatedEvent: self._on_authenticated,
            frames.ExpiringEvent: self._on_expiring,
        }

    # -- what a face takes -----------------------------------------------------------------------

    def take_commands(self) -> list[Command]:
        """What to do now, in order; each is given once."""
        commands, self._commands = self._commands, []
        return commands

    def take_events(self) -> list[Event]:
        """What to tell now, in order; each is given once."""
        events = self._events.copy()
        self._events.clear()
        return events

    # -- what a user wants -----------------------------------------------------------------------

    def open(self, now: float) -> None:
        """Connect now if the state is "waiting" or "closed"; else do nothing."""
        self._now = now
        if self.state == "closed":
            self._refusals = 0
        self._over = None
        if self.state in ("waiting", "closed"):
            self._connect()

    def close(self, now: float) -> None:
        """Close for good; the subscriptions are kept for a later `open`."""
        self._now = now
        if self.state != "closed":
            self._detach("closed by the client", politely=True)
            self._end(CloseCode.NORMAL, "closed by the client")

    @property
    def over(self) -> QuoteError | None:
        """Why it was closed, with code 1000 where the user did; None while it goes on."""
        return self._over

    @property
    def wanted(self) -> list[str]:
        """The symbols that are subscribed, or are to be."""
        return self._wishes.wanted

    def wants(self, symbol: str) -> bool:
        """Whether `symbol` is one of `wanted`."""
        return self._wishes.wants(symbol)

    @property
    def awaits_answers(self) -> bool:
        """Whether a request is on its way."""
        return bool(self._pending)

    def subscribe(self, now: float, symbols: list[str], done: Done) -> None:
        """Want `symbols`, over all links to come; see Wishes.subscribe."""
        self._now = now
        self._wishes.subscribe(symbols, done)
        if self._over is not None:
            self._wishes.ended(self._over)

    def unsubscribe(self, now: float, symbols: list[str] | None, done: Done) -> None:
        """Want `symbols`, or None for all, no more; see Wishes.unsubscribe."""
        self._now = now
        self._wishes.unsubscribe(symbols, done)

    def ping(self, now: float, done: Done) -> None:
        """Ask for a pong; `done` hears the seconds it took."""
        self._now = now

        def answered(_: object) -> float:
            return self._now - now

        self._ask_plainly("ping", done, answered)

    def served(self, now: float, done: Done) -> None:
        """Ask what is served on this link; `done` hears the symbols."""
        self._now = now
        self._ask_plainly("list", done, lambda event: list(event.symbols))

    # -- what happens ----------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Do what is due at `now`."""
        self._now = now
        while self.deadline is not None and self.deadline <= now:
            name = min(self._alarms, key=lambda name: self._alarms[name][0])
            _, act = self._alarms[name]
            self._silence(name)
            act()

    def received(self, now: float, message: bytes) -> None:
        """The server's text message."""
        self._now = self._heard = now
        if self.state in ("waiting", "closed"):
            return
        try:
            events, faults = frames.decode(message)
        except frames.BadFrame as error:
            self._tell(Refused(None, 0, f"bad message: {error}"))
            return
        link = self._link
        quoted = self._wishes.quoted
        for event in events:
            kind = type(event)
            if kind is frames.QuoteEvent:
                # A live quote proves the feed is up, unless the server said down: then it was
                # queued before.
                if self._feed is None:
                    self._set_feed("up", event.t)  # type: ignore[union-attr]  # it is a quote
                quoted(event)  # type: ignore[arg-type]  # it is a quote
            elif kind is frames.SnapshotEvent:
                quoted(event)  # type: ignore[arg-type]  # it is a snapshot
            else:
                self._acts[kind](event)
                if self._link != link or self.state in ("waiting", "closed"):
                    return
        for fault in faults:
            self._tell(Refused(None, 0, f"bad message: {fault}"))

    def heard(self, now: float) -> None:
        """The link lives, as its socket can be read again."""
        self._now = self._heard = now

    def lost(self, now: float, code: int | None, reason: str) -> None:
        """The connection was closed with `code`, or broke (1006), or could not be made (1006)."""
        self._now = now
        self._lost(_LOST if code is None else code, reason)

    def failed(self, now: float, code: int, reason: str) -> None:
        """No connection could be made, in a way that does not pass by itself.

        That ends it, unless the server was once reached: then it is somebody's mistake of the
        moment, such as a certificate that was not renewed, and connecting is tried again.
        """
        self._now = now
        if self._welcomed_once:
            self._lost(_LOST, reason, shown=code)
        elif self.state != "closed":
            self._detach(reason, politely=False)
            self._end(code, reason)

    def refused(self, now: float, status: int, text: str, retry_after: float | None) -> None:
        """The handshake was answered with an HTTP status other than 101.

        `retry_after` is the seconds that the server named.
        """
        reason = f"HTTP {status}: {text}" if text else f"HTTP {status}"
        if status in _PASSING or (status >= 500 and status != 505):
            self._now = now
            self._retry = retry_after
            self._lost(_LOST, reason, shown=status)
        else:
            self.failed(now, status, reason)

    def token_came(self, now: float, number: int, token: str | None) -> None:
        """What the token function gave; None if it failed."""
        self._now = now
        if number != self._asking:
            return  # it is not needed any more
        self._asking = 0
        if token is None:
            self._seek(self._delay(self._ask_attempt))
            self._ask_attempt += 1
        elif self._welcomed:
            self._show(token)
        else:
            self._offer = token
            if self._renewing:
                self._connect()

    # -- alarms ----------------------------------------------------------------------------------

    def _alarm(self, name: str, seconds: float, act: _Alarm) -> None:
        self._alarms[name] = (self._now + seconds, act)
        self._set_deadline()

    def _silence(self, *names: str) -> None:
        for name in names:
            self._alarms.pop(name, None)
        self._set_deadline()

    def _set_deadline(self) -> None:
        self.deadline = min((time for time, _ in self._alarms.values()), default=None)

    # -- links -----------------------------------------------------------------------------------

    @property
    def _welcomed(self) -> bool:
        return self.state in ("open", "authenticating")

    def _connect(self) -> None:
        self._link += 1
        self._renewing = False
        self._served_since = None
        self._retry = None
        self._refused_here = False
        self._blame = ""
        if self._why == "expiring":
            self._why = "connect"
        self._alarm(
            "link",
            self._options.connect_timeout,
            lambda: self._lost(_LOST, "no welcome in time"),
        )
        self._commands.append(Connect())
        self._set_state(State("connecting"))

    def _detach(self, reason: str, *, politely: bool) -> None:
        """Let go of the connection; nothing that comes from it later is heard."""
        if self.state in ("connecting", "authenticating", "open"):
            self._commands.append(Hangup(politely))
        self._silence("link", "flush", "again")
        since = self._served_since
        if since is not None and self._now - since >= self._options.stable_after:
            self._attempt = self._refusals = 0
        self._served_since = None
        self._held.clear()
        self._feed = None
        pending, self._pending = self._pending, {}
        for answered in pending.values():
            answered(None)
        self._wishes.lost()
        self._set_fresh(fresh=False, reason="link")

    def _lost(self, code: int, reason: str, shown: int | None = None) -> None:
        """`shown` is told in place of `code`, which decides what comes next."""
        if self.state in ("waiting", "closed"):
            return
        self._detach(reason or f"code {code}", politely=False)
        if code in LOCKED_OUT:
            reason = self._blame or reason
        # Who asks for another token more slowly than the server waits ends with 4004.
        if code == CloseCode.AUTHENTICATION_FAILED or (code in LOCKED_OUT and self._refused_here):
            self._why = "refused"
            self._refusals += 1
        renew = code in LOCKED_OUT and callable(self._options.token) and self._refusals < REFUSALS
        if not renew and code not in RECONNECT_AFTER:
            self._end(code, reason)
            return
        # Full jitter spreads the clients of a restarted daemon; after a bye it comes on top of
        # what the bye asked for.
        if self._retry is not None:
            delay = self._retry + self._random() * self._options.backoff
        else:
            delay = self._delay(self._attempt)
        self._attempt += 1
        self._alarm("link", delay, lambda: self._again(renew=renew))
        self._set_state(State("waiting", delay, code if shown is None else shown, reason))

    def _again(self, *, renew: bool) -> None:
        if not renew or self._offer:
            self._connect()
            return
        # The server would not wait for the token as long.
        self._renewing = True
        self._seek()

    def _delay(self, attempt: int) -> float:
        options = self._options
        # Past 2^32 the bound is reached whatever it is, and numbers stay small.
        return self._random() * min(options.backoff_max, options.backoff * 2.0 ** min(attempt, 32))

    def _end(self, code: int, reason: str) -> None:
        self._forget_tokens()
        self._silence("link", "flush", "again", "token")
        code = int(code)
        self._over = QuoteError(code, reason)
        self._wishes.ended(self._over)
        self._set_state(State("closed", None, code, reason))

    def _watch(self, limit: float, wait: float) -> None:
        """Look at times whether anything was heard, in place of a new alarm with every message."""
        self._alarm("link", wait, lambda: self._look(limit))

    def _look(self, limit: float) -> None:
        left = limit - (self._now - self._heard)
        if left > 0 or not self.listening:
            self._suspected = False
            self._watch(limit, max(left, GRACE))
        elif not self._suspected:
            # It may be this program that was held up, with messages unread: one more look.
            self._suspected = True
            self._watch(limit, GRACE)
        else:
            self._detach("no heartbeat", politely=False)
            self._connect()

    # -- requests --------------------------------------------------------------------------------

    def _request(self, message: Mapping[str, object], answered: Answered) -> int:
        """Send a request now, or once the server takes it; returns its id."""
        number = self._next_id
        self._next_id += 1
        self._pending[number] = answered
        text = msgspec.json.encode({**message, "id": number}).decode()
        if self.state == "open" or message["op"] in ("ping", "auth"):
            self._commands.append(Send(text))
        else:
            self._held.append(text)
        return number

    def _ask_plainly(self, op: str, done: Done, result: Callable[[Any], object]) -> None:
        def answered(event: Any) -> None:
            if event is None:
                self._settle(done, QuoteError(0, "the link was lost before the answer"))
            elif isinstance(event, frames.ErrorEvent):
                retry = None if event.retry is None else event.retry / 1000
                self._settle(done, QuoteError(event.code, event.msg, retry))
            else:
                self._settle(done, result(event))

        if self._welcomed:
            self._request({"op": op}, answered)
        else:
            self._settle(done, QuoteError(0, "not connected"))

    def _settle(self, done: Done, outcome: Any) -> None:
        self._commands.append(Answer(done, outcome))

    def _flush_soon(self) -> None:
        # At once, but once for all calls of one turn of the caller. Before the link is open there
        # is no need: everything is asked for when it is.
        if self.state == "open":
            self._alarm("flush", 0.0, self._wishes.flush)

    def _retry_in(self, seconds: float) -> None:
        known = self._alarms.get("again")
        if known is None or known[0] < self._now + seconds:
            self._alarm("again", seconds, self._wishes.retry)

    # -- what the server says ----------------------------------------------------------------------

    def _on_welcome(self, event: frames.WelcomeEvent) -> None:
        self._silence("link")
        self._welcomed_once = True
        self._suspected = False
        self._wishes.welcomed(event.epoch, event.limits.message)
        if event.hb > 0:
            limit = WATCH_FACTOR * event.hb / 1000
            self._watch(limit, limit)
        told = Welcome(
            event.conn,
            event.epoch,
            event.hb / 1000,
            event.limits.symbols,
            event.limits.message,
            event.auth,
        )
        if event.auth != "required":
            self._serve()
            self._tell(told)
            return
        self._set_state(State("authenticating"))
        self._tell(told)
        token = self._options.token
        if token is None:
            self._give_up("the server asks for a token: give one with token=")
            return
        offer = token if isinstance(token, str) else self._offer
        self._offer = ""
        if offer:
            self._show(offer)
        else:
            self._seek()

    def _serve(self) -> None:
        """The server takes everything from now on."""
        self._served_since = self._now
        self._refused_here = False
        self._forget_tokens()
        self._set_state(State("open"))
        self._commands += map(Send, self._held)
        self._held.clear()
        self._wishes.serve()

    def _on_answer(self, event: Any) -> None:
        answered = self._pending.pop(event.id, None)
        if answered is not None:
            answered(event)

    def _on_unsubscribed(self, event: frames.UnsubscribedEvent) -> None:
        if event.id is None:  # not our wish: the token allows less now
            self._wishes.withdrawn(event)
        else:
            self._on_answer(event)

    def _on_error(self, event: frames.ErrorEvent) -> None:
        late = event.code == ErrorCode.AUTHENTICATION_TOO_LATE
        if event.code in _BLAMING and not (late and self._refused_here):
            self._blame = event.msg
        retry = None if event.retry is None else event.retry / 1000
        self._tell(Refused(None, event.code, event.msg, retry))
        self._on_answer(event)

    def _on_heartbeat(self, event: frames.HeartbeatEvent) -> None:
        self._set_feed(event.feed, event.t)
        age = None if event.age is None else event.age / 1000
        self._tell(Heartbeat(event.t, event.feed == "up", age, event.merged))

    def _on_bye(self, event: frames.ByeEvent) -> None:
        if event.retry is not None and event.retry >= 0:
            self._retry = event.retry / 1000
        self._tell(Bye(event.code, self._retry))

    def _set_quiet(self, event: frames.StaleEvent | frames.FreshEvent, *, quiet: bool) -> None:
        # Of a feed that is down its clients know already.
        if event.all and self._feed is not False:
            self._set_fresh(fresh=not quiet, reason="quiet")
        if event.symbols:
            symbols = event.symbols
            self._tell(Stale(symbols, "quiet") if quiet else Fresh(symbols))

    def _set_feed(self, state: str, t: int) -> None:
        up = state == "up"
        if up is not self._feed:
            self._feed = up
            self._tell(Feed(up, t))
            self._set_fresh(fresh=up, reason="feed")

    def _set_fresh(self, *, fresh: bool, reason: Any) -> None:
        if fresh is not self._fresh:
            self._fresh = fresh
            self._tell(Fresh(None) if fresh else Stale(None, reason))

    def _set_state(self, state: State) -> None:
        self.state = state.name
        self._tell(state)

    def _tell(self, event: Event) -> None:
        self._events.append(event)

    # -- tokens ------------------------------------------------------------------------------------

    def _on_authenticated(self, event: frames.AuthenticatedEvent) -> None:
        self._why = "connect"
        if self.state == "authenticating":
            self._serve()
        else:
            self._forget_tokens()
            self._wishes.serve()  # what was refused before may pass now
        self._tell(Authenticated(event.user, event.expires, event.delay))
        self._on_answer(event)

    def _on_expiring(self, event: frames.ExpiringEvent) -> None:
        self._tell(Expiring(event.left / 1000))
        if callable(self._options.token):
            self._why = "expiring"
            # At some time: clients whose tokens end together would all ask for new ones at once.
            self._seek(self._random() * event.left / 2000)

    def _seek(self, seconds: float = 0.0) -> None:
        """Call the token function after so many seconds, unless its answer is awaited already."""
        if self._asking:
            return
        self._silence("token")
        if seconds > 0:
            self._alarm("token", seconds, self._ask)
        else:
            self._ask()

    def _ask(self) -> None:
        self._asked += 1
        self._asking = self._asked
        self._commands.append(AskToken(self._asking, self._why))

    def _show(self, token: str) -> None:
        def answered(event: Any) -> None:
            if isinstance(event, frames.ErrorEvent):
                self._on_refused_token(token, event)

        self._request({"op": "auth", "token": token}, answered)

    def _on_refused_token(self, token: str, error: frames.ErrorEvent) -> None:
        if error.retry is not None:  # nobody could look at it just now
            self._alarm("token", error.retry / 1000, lambda: self._show_again(token))
        elif isinstance(self._options.token, str):
            self._give_up(error.msg)
        elif error.code == ErrorCode.ALREADY_AUTHENTICATED and self.state == "open":
            # Another user's: not on this connection.
            self._detach("another user's token", politely=True)
            self._offer = token
            self._connect()
        else:
            self._refused_here = True
            self._why = "refused"
            self._seek(self._delay(self._ask_attempt))
            self._ask_attempt += 1

    def _show_again(self, token: str) -> None:
        if self._welcomed:
            self._show(token)

    def _give_up(self, reason: str) -> None:
        """Close for want of a token, with the code that the server would close with."""
        self._detach(reason, politely=True)
        self._end(CloseCode.AUTHENTICATION_FAILED, reason)

    def _forget_tokens(self) -> None:
        self._silence("token")
        self._asking = 0
        self._ask_attempt = 0
        self._offer = ""
