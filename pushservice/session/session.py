"""One client's state machine: commands in, events out, limits, and what it may see.

Must not know: sockets, Twisted, WebSocket frames beyond asking the codec for them. What it says to
the client goes through the outbox, what it wants goes to the hub.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from pushservice.auth.identity import Identity, Refused
from pushservice.fanout.delayed import move
from pushservice.limits import BURST_SECONDS, SYMBOLS_A_MESSAGE, Limits
from pushservice.protocol import commands, wire
from pushservice.protocol.close_codes import CloseCode, ErrorCode
from pushservice.session.rate_limit import Allowance
from pushservice.session.subscriptions import review, subscribe, unsubscribe

if TYPE_CHECKING:
    from pushservice.fanout.hub import Hub
    from pushservice.fanout.outbox import Outbox
    from pushservice.metrics import Counters
    from pushservice.session.authentication import Doorkeeper


#: Tokens that one client may show in vain.
_TRIES: Final = 3
#: Milliseconds after which a token may be shown again that nobody could look at.
RETRY_MS: Final = 2000


class _Asking:
    """A token of this client is being looked at: what else it says waits."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: list[bytes] = []


class Session:
    """One connected client: OPEN from construction until `close`, then for ever closed.

    With a doorkeeper it is a STRANGER first, unless it came with an `identity`, and may do nothing
    but authenticate; each further token replaces the one before.
    """

    __slots__ = (
        "_allowance",
        "_asking",
        "_counters",
        "_doorkeeper",
        "_hub",
        "_limits",
        "_refusals",
        "closed",
        "identity",
        "outbox",
    )

    def __init__(
        self,
        hub: Hub,
        outbox: Outbox,
        limits: Limits,
        counters: Counters,
        doorkeeper: Doorkeeper | None = None,
        identity: Identity | None = None,
    ) -> None:
        self.outbox = outbox
        self.closed = False
        #: who it is; None for a stranger, and where nobody asks
        self.identity = identity
        # Made when something comes; many clients say little.
        self._allowance: Allowance | None = None
        self._asking: _Asking | None = None
        self._refusals = 0
        self._doorkeeper = doorkeeper
        self._hub = hub
        self._limits = limits
        self._counters = counters

    def open(self) -> None:
        """The handshake is done: greet the client."""
        self._hub.enter(self.outbox)
        doorkeeper, identity, limits = self._doorkeeper, self.identity, self._limits
        if identity is not None:
            self._hub = self._late_enough(identity)
        self._answer(
            wire.welcome(
                self.outbox.conn,
                self._hub.epoch,
                limits.heartbeat_ms,
                self._most_symbols(),
                limits.message,
                None if doorkeeper is None else "required" if identity is None else "done",
            )
        )
        if doorkeeper is not None:
            doorkeeper.came(self)
            if identity is not None:
                self._answer(self._recognized(None, identity))

    def arrived(self, size: int) -> None:
        """Bytes came from the client, whatever they are: it lives, and they count."""
        self.outbox.unanswered = None
        self.allowance.arrived(size, self._hub.seconds())

    @property
    def allowance(self) -> Allowance:
        """What the client may still send."""
        if self._allowance is None:
            self._allowance = Allowance(self._limits, self._hub.seconds())
        return self._allowance

    def frame(self) -> bool:
        """One of the frames in what arrived; False once the client is closed for flooding."""
        allowance = self._allowance
        if allowance is not None:
            allowance.frame()
            if allowance.exhausted and not self.closed:
                self._counters.closed_flooding += 1
                self.outbox.outlet.close(CloseCode.FLOODING)
        return not self.closed

    def receive(self, text: bytes) -> None:
        """One text message from the client; whatever is wrong with it is answered, not raised."""
        if self.closed:
            return
        if self._asking is not None:
            self._asking.waiting.append(text)
            # Again: where it was behind and has caught up meanwhile it is read.
            self.outbox.outlet.pause_reading()
            return
        self._counters.commands += 1
        overdrawn = self._allowance is not None and self._allowance.overdrawn
        try:
            command = self.outbox.codec.parse(text)
        except commands.BadCommand as fault:
            if overdrawn:
                self._refuse_flood(fault.id)
            else:
                self._refuse(fault.id, fault.code, str(fault))
            return
        if overdrawn:
            self._refuse_flood(command.id)
        else:
            self._carry_out(command)

    def _carry_out(self, command: commands.Command) -> None:
        codec = self.outbox.codec
        if isinstance(command, commands.Authenticate):
            self._authenticate(command)
        elif self._stranger and not isinstance(command, commands.Ping):
            self._refuse(
                command.id,
                ErrorCode.NOT_AUTHENTICATED,
                'authenticate first: {"op":"auth","token":"…"}',
            )
        elif isinstance(command, commands.Subscribe):
            self._subscribe(command)
        elif isinstance(command, commands.Unsubscribe):
            self._unsubscribe(command)
        elif not codec.converses:
            self._refuse(command.id, ErrorCode.MALFORMED, f"{codec.name} has no answers but errors")
        elif isinstance(command, commands.ListSymbols):
            self._list(command)
        else:
            self._pong(command)

    def ping(self, payload: bytes) -> None:
        """A ping frame came (RFC 6455, 5.5.2)."""
        self.outbox.send_pong(payload)

    def failed(self, incident: str) -> None:
        """Something failed here, and the client is about to be closed for it."""
        codec = self.outbox.codec
        self.outbox.send_last(codec.frames([wire.incident(codec, incident)]))

    def close(self) -> None:
        """The client is going, or about to be closed: leave the hub first. May be called twice."""
        if not self.closed:
            self.closed = True
            self._hub.leave(self.outbox)
            if self._doorkeeper is not None:
                self._doorkeeper.left(self)

    # -- who it is -------------------------------------------------------------------------------

    @property
    def _stranger(self) -> bool:
        return self._doorkeeper is not None and self.identity is None

    def _authenticate(self, command: commands.Authenticate) -> None:
        if self._doorkeeper is None:
            self._refuse(
                command.id,
                ErrorCode.ALREADY_AUTHENTICATED,
                "nobody has to authenticate here: you are served as you are",
            )
            return
        # Looking at a token is work, like so many symbols.
        self._charge(SYMBOLS_A_MESSAGE)
        asking = self._asking = _Asking()
        self.outbox.outlet.pause_reading()
        at_once = True

        def done(outcome: Identity | Refused) -> None:
            if self.closed or self._asking is not asking:
                return
            self._asking = None
            try:
                self._decided(command.id, outcome, asking)
            except Exception as failure:
                if at_once:
                    raise
                # Nobody else would close a client whose rights may be half changed.
                self._hub.report([(self.outbox, failure)])

        self._doorkeeper.verify(command.token, done)
        at_once = False

    def _decided(
        self, id: commands.CommandId | None, outcome: Identity | Refused, asking: _Asking
    ) -> None:
        """A token was looked at: what it brings, then what was said meanwhile."""
        if not self.outbox.behind:
            # First of all: if this closes the client, its answer to the close is to be read.
            self.outbox.outlet.resume_reading()
        if isinstance(outcome, Identity):
            self._known_as(id, outcome)
        else:
            self._turned_away(id, outcome)
        for text in asking.waiting:
            self.receive(text)

    def _turned_away(self, id: commands.CommandId | None, why: Refused) -> None:
        self._counters.auth_failures += 1
        retry = RETRY_MS if why.temporary else None
        self._refuse(id, ErrorCode.AUTHENTICATION_FAILED, f"the token is refused: {why}", retry)
        if not why.temporary:
            self._refusals += 1
            if self._refusals >= _TRIES:
                self._end(CloseCode.AUTHENTICATION_FAILED)

    def _known_as(self, id: commands.CommandId | None, identity: Identity) -> None:
        doorkeeper, before = self._doorkeeper, self.identity
        assert doorkeeper is not None, "or nobody would have been asked"
        if before is not None and before.user != identity.user:
            self._refuse(
                id,
                ErrorCode.ALREADY_AUTHENTICATED,
                "this connection is another user's: open a new one",
            )
            return
        hub = self._late_enough(identity)
        if hub is not self._hub and identity.rights.delay_s > self._delay:
            # What was sent is newer than what it may see from now on: it begins anew.
            self._answer(self._recognized(id, identity))
            self._end(CloseCode.RESTARTING, retry_ms=0)
            return
        doorkeeper.let_in(self, identity)
        self._refusals = 0
        self._answer(self._recognized(id, identity))
        if before is not None:
            # Before it moves, or else it would be shown a value of what it may not see any more.
            errors = review(self._hub, self.outbox, identity.rights, self._most_symbols())
            if errors:
                self._acknowledge(wire.unsubscribed, None, list(errors), errors)
        if hub is not self._hub:
            # Who watches nothing has nothing to move, however far behind it is.
            if self.outbox.topics and not move(self.outbox, self._hub, hub):
                self._end(CloseCode.RESTARTING, retry_ms=0)
                return
            self._hub = hub

    @property
    def _delay(self) -> float:
        """By how many seconds what it was sent so far was late at least."""
        if self.identity is None:
            # Nothing was sent to a stranger.
            return math.inf
        return self.identity.rights.delay_s

    def _late_enough(self, identity: Identity) -> Hub:
        if self._doorkeeper is None:
            return self._hub
        hub = self._doorkeeper.hub_for(identity.rights.delay_s)
        assert hub is not None, "the doorkeeper accepts nobody for whom there is none"
        return hub

    @staticmethod
    def _recognized(id: commands.CommandId | None, identity: Identity) -> bytes:
        expires = identity.expires_at
        return wire.authenticated(
            id,
            identity.user,
            None if expires is None else int(expires * 1000),
            identity.rights.delay_s,
        )

    def _most_symbols(self) -> int:
        most = None if self.identity is None else self.identity.rights.max_symbols
        return self._limits.symbols if most is None else min(most, self._limits.symbols)

    # -- what the doorkeeper does ----------------------------------------------------------------

    def came_too_late(self) -> None:
        """It has not authenticated in time."""
        self._counters.auth_too_late += 1
        self._dismiss(
            ErrorCode.AUTHENTICATION_TOO_LATE,
            "the time to authenticate is over",
            CloseCode.AUTHENTICATION_TOO_LATE,
        )

    def tell_expiring(self, left_ms: int) -> None:
        """Its token ends in so many milliseconds."""
        try:
            self._answer(wire.expiring(left_ms))
        except Exception as failure:  # noqa: BLE001 - one client's fault must not stop the others
            self._hub.report([(self.outbox, failure)])

    def shut_out(self, reason: str) -> None:
        """Its token has ended, or was revoked."""
        self._counters.shut_out += 1
        self._dismiss(ErrorCode.NOT_AUTHENTICATED, reason, CloseCode.AUTHENTICATION_FAILED)

    def _dismiss(self, error: ErrorCode, reason: str, code: CloseCode) -> None:
        codec = self.outbox.codec
        try:
            told = wire.error(None, error, reason)
            self.outbox.send_last(codec.frames([codec.failure(told)]))
            self._end(code)
        except Exception as failure:  # noqa: BLE001 - one client's fault must not stop the others
            self._hub.report([(self.outbox, failure)])

    def _end(self, code: CloseCode, retry_ms: int | None = None) -> None:
        codec = self.outbox.codec
        if codec.converses:
            self.outbox.send_last(codec.frames([codec.event(wire.bye(code, retry_ms))]))
        self.outbox.outlet.close(code)

    # -- commands --------------------------------------------------------------------------------

    def _subscribe(self, command: commands.Subscribe) -> None:
        outbox, hub = self.outbox, self._hub
        self._charge(len(command.symbols))
        rights = None if self.identity is None else self.identity.rights
        accepted, errors = subscribe(hub, outbox, command, rights, self._most_symbols())
        symbols = [topic.symbol for topic in accepted]
        self._acknowledge(wire.subscribed, command.id, symbols, errors)
        if command.snapshot:
            outbox.send_snapshots(accepted.items())
            hub.await_values(outbox, accepted)
        outbox.tell_quiet([topic for topic in accepted if topic.stale], stale=True)

    def _unsubscribe(self, command: commands.Unsubscribe) -> None:
        asked = self.outbox.topics if command.symbols is None else command.symbols
        self._charge(len(asked))
        gone, errors = unsubscribe(self._hub, self.outbox, command.symbols)
        self._acknowledge(wire.unsubscribed, command.id, gone, errors)

    def _list(self, command: commands.ListSymbols) -> None:
        symbols = [topic.symbol for topic in self.outbox.topics]
        self._answer(wire.listing(command.id, symbols))

    def _pong(self, command: commands.Ping) -> None:
        self._answer(wire.pong(command.id))

    def _charge(self, symbols: int) -> None:
        if self._allowance is not None:
            self._allowance.spend(symbols / SYMBOLS_A_MESSAGE)

    # -- what goes to the client -----------------------------------------------------------------

    def _acknowledge(
        self,
        event: Callable[
            [commands.CommandId | None, Sequence[str], Mapping[str, tuple[ErrorCode, str]], int],
            bytes,
        ],
        id: commands.CommandId | None,
        symbols: Sequence[str],
        errors: Mapping[str, tuple[ErrorCode, str]],
    ) -> None:
        """Answer a command about symbols; a codec without answers gets the errors alone."""
        if self.outbox.codec.converses:
            self._answer(event(id, symbols, errors, len(self.outbox.topics)))
            self._counters.command_errors += len(errors)
        else:
            for symbol, (code, message) in errors.items():
                self._refuse(id, code, f"{symbol}: {message}")

    def _answer(self, event: bytes) -> None:
        codec = self.outbox.codec
        if codec.converses:
            self.outbox.send(codec.frames([codec.event(event)]))

    def _refuse(
        self,
        id: commands.CommandId | None,
        code: ErrorCode,
        message: str,
        retry_ms: int | None = None,
    ) -> None:
        self._counters.command_errors += 1
        codec = self.outbox.codec
        self.outbox.send(codec.frames([codec.failure(wire.error(id, code, message, retry_ms))]))

    def _refuse_flood(self, id: commands.CommandId | None) -> None:
        self._counters.messages_refused += 1
        rates = (self._limits.message_rate, "messages"), (self._limits.byte_rate, "bytes")
        allowed = " and ".join(f"{rate} {what} a second" for rate, what in rates if rate)
        self._refuse(
            id,
            ErrorCode.TOO_MANY_MESSAGES,
            f"refused, and not carried out: over {BURST_SECONDS} seconds at most {allowed} are;"
            " who goes on like this is closed",
        )
