"""The client's state machine, with no I/O: connects, subscribes, renews tokens, reconnects.

Must not know: sockets, event loops, clocks, or WebSocket libraries. An adapter tells what happened,
and when; then it takes the commands and events that came of it, and calls `tick` at `deadline`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pushservice.client import frames
from pushservice.client.actions import Command, Connect, Done, Hangup
from pushservice.client.backoff import Backoff
from pushservice.client.connection_errors import BROKEN
from pushservice.client.events import (
    Authenticated,
    Bye,
    Event,
    Expiring,
    Heartbeat,
    QuoteError,
    Refused,
    State,
    StateName,
    Welcome,
)
from pushservice.client.freshness import Freshness
from pushservice.client.options import Options
from pushservice.client.requests import Requests
from pushservice.client.subscriptions import Subscriptions
from pushservice.client.timers import Timers
from pushservice.client.token_renewal import TokenRenewal
from pushservice.client.watchdog import Watchdog
from pushservice.protocol.close_codes import RECONNECT_AFTER, CloseCode, ErrorCode

#: Close codes after which another token may help.
AUTHENTICATION_CODES: Final = frozenset(
    {CloseCode.AUTHENTICATION_FAILED, CloseCode.AUTHENTICATION_TOO_LATE}
)
#: HTTP statuses below 500 that pass by themselves; of those from 500 on, 505 does not.
_TRANSIENT: Final = frozenset({408, 425, 429})
_TOKEN_FAULTS: Final = frozenset(
    {
        ErrorCode.NOT_AUTHENTICATED,
        ErrorCode.AUTHENTICATION_FAILED,
        ErrorCode.AUTHENTICATION_TOO_LATE,
    }
)


class Conversation:
    """One logical connection, which is made again and again, and keeps its subscriptions.

    Each method that tells of something takes the time in seconds, of a clock that only goes on.
    `random` gives numbers from 0 up to 1.
    """

    def __init__(self, options: Options, random: Callable[[], float]) -> None:
        self._options = options
        self._random = random
        self._commands: list[Command] = []
        self._events: list[Event] = []
        self._timers = Timers()
        #: how the connection stands
        self.state: StateName = "closed"
        #: says whether the link is dead; `listening` is for the adapter to set
        self.watchdog = Watchdog(self._timers, self._dead)
        self._backoff = Backoff(options, random)
        self._link = 0
        self._served_since: float | None = None
        self._welcomed_once = False
        self._over: QuoteError | None = None  # why it was closed, if it was
        self._renewing = False  # the state is "waiting" for nothing but a token
        self._freshness = Freshness(self._tell)
        self._requests = Requests(
            self._carry_out, lambda op: self.state == "open" or op in ("ping", "auth")
        )
        self._tokens = TokenRenewal(options, self._timers, self._backoff.delay, self._carry_out)
        self._subscriptions = Subscriptions(
            options,
            random=random,
            ask=self._requests.send,
            tell=self._tell,
            settle=self._requests.settle,
            soon=self._flush_soon,
            again=self._retry_in,
        )
        self._event_handlers: dict[type[Any], Callable[[Any], None]] = {
            frames.WelcomeEvent: self._on_welcome,
            frames.HeartbeatEvent: self._on_heartbeat,
            frames.FeedEvent: lambda event: self._freshness.set_feed(event.state, event.t),
            frames.GapEvent: lambda event: self._subscriptions.missed(event.s),
            frames.StaleEvent: self._freshness.set_quiet,
            frames.FreshEvent: self._freshness.set_quiet,
            frames.ByeEvent: self._on_bye,
            frames.ErrorEvent: self._on_error,
            frames.SubscribedEvent: self._requests.on_answer,
            frames.UnsubscribedEvent: self._on_unsubscribed,
            frames.ListEvent: self._requests.on_answer,
            frames.PongEvent: self._requests.on_answer,
            frames.AuthenticatedEvent: self._on_authenticated,
            frames.ExpiringEvent: self._on_expiring,
        }

    # -- what an adapter takes -------------------------------------------------------------------

    def take_commands(self) -> list[Command]:
        """What to do now, in order; each is given once."""
        commands = self._commands.copy()
        self._commands.clear()
        return commands

    def take_events(self) -> list[Event]:
        """What to tell now, in order; each is given once."""
        events = self._events.copy()
        self._events.clear()
        return events

    @property
    def deadline(self) -> float | None:
        """The earliest time at which `tick` has something to do; None for never."""
        return self._timers.deadline

    # -- what a user wants -----------------------------------------------------------------------

    def open(self, now: float) -> None:
        """Connect now if the state is "waiting" or "closed"; else do nothing."""
        self._timers.now = now
        if self.state == "closed":
            self._tokens.refusals = 0
        self._over = None
        if self.state in ("waiting", "closed"):
            self._connect()

    def close(self, now: float) -> None:
        """Close for good; the subscriptions are kept for a later `open`."""
        self._timers.now = now
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
        return self._subscriptions.wanted

    def wants(self, symbol: str) -> bool:
        """Whether `symbol` is one of `wanted`."""
        return self._subscriptions.wants(symbol)

    @property
    def awaits_answers(self) -> bool:
        """Whether a request is on its way."""
        return bool(self._requests)

    def subscribe(self, now: float, symbols: list[str], done: Done) -> None:
        """Want `symbols`, over all links to come; see Subscriptions.subscribe."""
        self._timers.now = now
        self._subscriptions.subscribe(symbols, done)
        if self._over is not None:
            self._subscriptions.ended(self._over)

    def unsubscribe(self, now: float, symbols: list[str] | None, done: Done) -> None:
        """Want `symbols`, or None for all, no more; see Subscriptions.unsubscribe."""
        self._timers.now = now
        self._subscriptions.unsubscribe(symbols, done)

    def ping(self, now: float, done: Done) -> None:
        """Ask for a pong; `done` hears the seconds it took."""
        self._timers.now = now

        self._ask("ping", done, lambda _: self._timers.now - now)

    def served(self, now: float, done: Done) -> None:
        """Ask what is served on this link; `done` hears the symbols."""
        self._timers.now = now
        self._ask("list", done, lambda event: list(event.symbols))

    def _ask(self, op: str, done: Done, result: Callable[[Any], object]) -> None:
        if self._welcomed:
            self._requests.ask(op, done, result)
        else:
            self._requests.settle(done, QuoteError(0, "not connected"))

    # -- what happens ----------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Do what is due at `now`."""
        self._timers.now = now
        self._timers.run_due()

    def received(self, now: float, message: bytes) -> None:
        """The server's text message."""
        self._timers.now = now
        self.watchdog.heard()
        if self.state in ("waiting", "closed"):
            return
        try:
            events, faults = frames.decode(message)
        except frames.BadFrame as error:
            self._tell(Refused(None, 0, f"bad message: {error}"))
            return
        link = self._link
        quoted = self._subscriptions.quoted
        for event in events:
            kind = type(event)
            if kind is frames.QuoteEvent:
                # A live quote proves the feed is up, unless the server said down: then it was
                # queued before.
                if self._freshness.feed_up is None:
                    self._freshness.set_feed("up", event.t)  # type: ignore[union-attr]  # it is a quote
                quoted(event)  # type: ignore[arg-type]  # it is a quote
            elif kind is frames.SnapshotEvent:
                quoted(event)  # type: ignore[arg-type]  # it is a snapshot
            else:
                self._event_handlers[kind](event)
                if self._link != link or self.state in ("waiting", "closed"):
                    return
        for fault in faults:
            self._tell(Refused(None, 0, f"bad message: {fault}"))

    def heard(self, now: float) -> None:
        """The link lives, as its socket can be read again."""
        self._timers.now = now
        self.watchdog.heard()

    def lost(self, now: float, code: int | None, reason: str) -> None:
        """The connection was closed with `code`, or broke (1006), or could not be made (1006)."""
        self._timers.now = now
        self._lost(BROKEN if code is None else code, reason)

    def failed(self, now: float, code: int, reason: str) -> None:
        """No connection could be made, in a way that does not pass by itself.

        The conversation ends, unless the server was reached before: then the cause may be a passing
        mistake, such as a certificate that was not renewed, and it connects again.
        """
        self._timers.now = now
        if self._welcomed_once:
            self._lost(BROKEN, reason, shown=code)
        elif self.state != "closed":
            self._detach(reason, politely=False)
            self._end(code, reason)

    def refused(self, now: float, status: int, text: str, retry_after: float | None) -> None:
        """The handshake was answered with an HTTP status other than 101.

        `retry_after` is the seconds that the server named.
        """
        reason = f"HTTP {status}: {text}" if text else f"HTTP {status}"
        if status in _TRANSIENT or (status >= 500 and status != 505):
            self._timers.now = now
            self._backoff.asked = retry_after
            self._lost(BROKEN, reason, shown=status)
        else:
            self.failed(now, status, reason)

    def token_came(self, now: float, number: int, token: str | None) -> None:
        """What the token function gave; None if it failed."""
        self._timers.now = now
        if not self._tokens.answered(number):
            return  # it is not needed any more
        if token is None:
            self._tokens.seek_again()
        elif self._welcomed:
            self._show(token)
        else:
            self._tokens.keep(token)
            if self._renewing:
                self._connect()

    # -- links -----------------------------------------------------------------------------------

    @property
    def _welcomed(self) -> bool:
        return self.state in ("open", "authenticating")

    def _connect(self) -> None:
        self._link += 1
        self._renewing = False
        self._served_since = None
        self._backoff.asked = None
        self._tokens.begin_link()
        self._timers.set(
            "link",
            self._options.connect_timeout,
            lambda: self._lost(BROKEN, "no welcome in time"),
        )
        self._commands.append(Connect())
        self._set_state(State("connecting"))

    def _detach(self, reason: str, *, politely: bool) -> None:
        """Drop the connection; whatever comes from it later is ignored."""
        if self.state in ("connecting", "authenticating", "open"):
            self._commands.append(Hangup(politely))
        self._timers.cancel("link", "flush", "again")
        since = self._served_since
        if since is not None and self._timers.now - since >= self._options.stable_after:
            self._backoff.reset()
            self._tokens.refusals = 0
        self._served_since = None
        self._requests.link_lost()
        self._subscriptions.lost()
        self._freshness.link_lost()

    def _lost(self, code: int, reason: str, shown: int | None = None) -> None:
        """Wait or close, as `code` demands; `shown`, if given, is reported in its place."""
        if self.state in ("waiting", "closed"):
            return
        self._detach(reason or f"code {code}", politely=False)
        tokens = self._tokens
        if code in AUTHENTICATION_CODES:
            reason = tokens.fault or reason
            # A client that asks for another token more slowly than the server waits ends with 4004.
            if code == CloseCode.AUTHENTICATION_FAILED or tokens.refused_here:
                tokens.refused()
        renew = code in AUTHENTICATION_CODES and tokens.may_renew
        if not renew and code not in RECONNECT_AFTER:
            self._end(code, reason)
            return
        delay = self._backoff.next()
        self._timers.set("link", delay, lambda: self._again(renew=renew))
        self._set_state(State("waiting", delay, code if shown is None else shown, reason))

    def _again(self, *, renew: bool) -> None:
        if not renew or self._tokens.kept:
            self._connect()
            return
        # Get the token before connecting: the server would close while it is awaited.
        self._renewing = True
        self._tokens.seek()

    def _end(self, code: int, reason: str) -> None:
        self._tokens.forget()
        self._timers.cancel("link", "flush", "again", "token")
        code = int(code)
        self._over = QuoteError(code, reason)
        self._subscriptions.ended(self._over)
        self._set_state(State("closed", None, code, reason))

    def _dead(self) -> None:
        self._detach("no heartbeat", politely=False)
        self._connect()

    # -- subscriptions ---------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        # At once, but once for all calls of one turn of the caller. Before the link is open there
        # is no need: everything is asked for when it is.
        if self.state == "open":
            self._timers.set("flush", 0.0, self._subscriptions.flush)

    def _retry_in(self, seconds: float) -> None:
        left = self._timers.left("again")
        if left is None or left < seconds:
            self._timers.set("again", seconds, self._subscriptions.retry)

    # -- what the server says ----------------------------------------------------------------------

    def _on_welcome(self, event: frames.WelcomeEvent) -> None:
        self._timers.cancel("link")
        self._welcomed_once = True
        self._subscriptions.welcomed(event.epoch, event.limits.message)
        self.watchdog.begin(event.hb / 1000)
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
        if self._options.token is None:
            self._give_up("the server asks for a token: give one with token=")
            return
        token = self._tokens.take()
        if token:
            self._show(token)
        else:
            self._tokens.seek()

    def _serve(self) -> None:
        """The server takes everything from now on."""
        self._served_since = self._timers.now
        self._tokens.refused_here = False
        self._tokens.forget()
        self._set_state(State("open"))
        self._requests.release()
        self._subscriptions.serve()

    def _on_unsubscribed(self, event: frames.UnsubscribedEvent) -> None:
        if event.id is None:  # nobody asked for it: the token allows less now
            self._subscriptions.withdrawn(event)
        else:
            self._requests.on_answer(event)

    def _on_error(self, event: frames.ErrorEvent) -> None:
        late = event.code == ErrorCode.AUTHENTICATION_TOO_LATE
        if event.code in _TOKEN_FAULTS and not (late and self._tokens.refused_here):
            self._tokens.fault = event.msg
        retry = None if event.retry is None else event.retry / 1000
        self._tell(Refused(None, event.code, event.msg, retry))
        self._requests.on_answer(event)

    def _on_heartbeat(self, event: frames.HeartbeatEvent) -> None:
        self._freshness.set_feed(event.feed, event.t)
        age = None if event.age is None else event.age / 1000
        self._tell(Heartbeat(event.t, event.feed == "up", age, event.merged))

    def _on_bye(self, event: frames.ByeEvent) -> None:
        if event.retry is not None and event.retry >= 0:
            self._backoff.asked = event.retry / 1000
        self._tell(Bye(event.code, self._backoff.asked))

    def _set_state(self, state: State) -> None:
        self.state = state.name
        self._tell(state)

    def _tell(self, event: Event) -> None:
        self._events.append(event)

    def _carry_out(self, command: Command) -> None:
        self._commands.append(command)

    # -- tokens ------------------------------------------------------------------------------------

    def _on_authenticated(self, event: frames.AuthenticatedEvent) -> None:
        self._tokens.why = "connect"
        if self.state == "authenticating":
            self._serve()
        else:
            self._tokens.forget()
            self._subscriptions.serve()  # what was refused before may pass now
        self._tell(Authenticated(event.user, event.expires, event.delay))
        self._requests.on_answer(event)

    def _on_expiring(self, event: frames.ExpiringEvent) -> None:
        self._tell(Expiring(event.left / 1000))
        if callable(self._options.token):
            self._tokens.why = "expiring"
            # At a random time, so that clients whose tokens end together do not all ask at once.
            self._tokens.seek(self._random() * event.left / 2000)

    def _show(self, token: str) -> None:
        def answered(event: Any) -> None:
            if isinstance(event, frames.ErrorEvent):
                self._on_refused_token(token, event)

        self._requests.send({"op": "auth", "token": token}, answered)

    def _on_refused_token(self, token: str, error: frames.ErrorEvent) -> None:
        if error.retry is not None:  # the server could not verify it just now
            self._timers.set("token", error.retry / 1000, lambda: self._show_again(token))
        elif isinstance(self._options.token, str):
            self._give_up(error.msg)
        elif error.code == ErrorCode.ALREADY_AUTHENTICATED and self.state == "open":
            # Another user's: not on this connection.
            self._detach("another user's token", politely=True)
            self._tokens.keep(token)
            self._connect()
        else:
            self._tokens.refused_here = True
            self._tokens.why = "refused"
            self._tokens.seek_again()

    def _show_again(self, token: str) -> None:
        if self._welcomed:
            self._show(token)

    def _give_up(self, reason: str) -> None:
        """Close because there is no valid token, with the code that the server would use."""
        self._detach(reason, politely=True)
        self._end(CloseCode.AUTHENTICATION_FAILED, reason)
