"""One client's state machine: commands in, events out, limits, and what it may see.

Must not know: sockets, Twisted, WebSocket frames beyond asking the codec for them. What it sends to
the client goes through the outbox; what the client watches, the hub is told.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from pushservice.auth.identity import Identity, Refused
from pushservice.fanout.delayed import move
from pushservice.limits import SYMBOLS_A_MESSAGE, Limits
from pushservice.protocol import commands, events
from pushservice.protocol.close_codes import CloseCode, ErrorCode
from pushservice.session import replies
from pushservice.session.rate_limit import RateLimit
from pushservice.session.subscriptions import review, subscribe, unsubscribe

if TYPE_CHECKING:
    from pushservice.fanout.hub import Hub
    from pushservice.fanout.outbox import Outbox
    from pushservice.metrics import Counters
    from pushservice.session.authentication import AccessControl


#: Refused tokens after which a client is closed.
_MAX_REFUSALS: Final = 3
#: Milliseconds after which a token may be sent again that could not be verified for the moment.
RETRY_MS: Final = 2000


class _Verification:
    """A token of this client is being verified; what else the client sends waits."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: list[bytes] = []


class Session:
    """One connected client: OPEN from construction until `close`, then for ever closed.

    With access control and no `identity` from the handshake it is unauthenticated first, and may do
    nothing but authenticate; each further token replaces the one before.
    """

    __slots__ = (
        "_access_control",
        "_counters",
        "_hub",
        "_limits",
        "_rate_limit",
        "_refusals",
        "_verification",
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
        access_control: AccessControl | None = None,
        identity: Identity | None = None,
    ) -> None:
        self.outbox = outbox
        self.closed = False
        #: who it is; None until it has authenticated, and where nobody has to
        self.identity = identity
        # Made with the first bytes that come; many clients send little.
        self._rate_limit: RateLimit | None = None
        self._verification: _Verification | None = None
        self._refusals = 0
        self._access_control = access_control
        self._hub = hub
        self._limits = limits
        self._counters = counters

    def open(self) -> None:
        """The handshake is done: greet the client."""
        self._hub.enter(self.outbox)
        access_control, identity, limits = self._access_control, self.identity, self._limits
        if identity is not None:
            self._hub = self._hub_for(identity)
        replies.answer(
            self.outbox,
            events.welcome(
                self.outbox.conn,
                self._hub.epoch,
                limits.heartbeat_ms,
                self._most_symbols(),
                limits.message,
                None if access_control is None else "required" if identity is None else "done",
            ),
        )
        if access_control is not None:
            access_control.connected(self)
            if identity is not None:
                self._tell_identity(None, identity)

    def arrived(self, size: int) -> None:
        """Bytes came from the client, whatever they are: it lives, and they count."""
        self.outbox.unanswered = None
        self.rate_limit.arrived(size, self._hub.seconds())

    @property
    def rate_limit(self) -> RateLimit:
        """What the client may still send."""
        if self._rate_limit is None:
            self._rate_limit = RateLimit(self._limits, self._hub.seconds())
        return self._rate_limit

    def frame(self) -> bool:
        """One of the frames in what arrived; False once the client is closed for flooding."""
        rate_limit = self._rate_limit
        if rate_limit is not None:
            rate_limit.frame()
            if rate_limit.exhausted and not self.closed:
                self._counters.closed_flooding += 1
                self.outbox.outlet.close(CloseCode.FLOODING)
        return not self.closed

    def receive(self, text: bytes) -> None:
        """One text message from the client; whatever is wrong with it is answered, not raised."""
        if self.closed:
            return
        if self._verification is not None:
            self._verification.waiting.append(text)
            # Once more: a client that was behind and has caught up meanwhile is read again.
            self.outbox.outlet.pause_reading()
            return
        self._counters.commands += 1
        overdrawn = self._rate_limit is not None and self._rate_limit.overdrawn
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
        elif self._unauthenticated and not isinstance(command, commands.Ping):
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
            replies.answer(self.outbox, events.pong(command.id))

    def ping(self, payload: bytes) -> None:
        """A ping frame came (RFC 6455, 5.5.2)."""
        self.outbox.send_pong(payload)

    def failed(self, incident: str) -> None:
        """Something failed here, and the client is about to be closed for it."""
        codec = self.outbox.codec
        self.outbox.send_last(codec.frames([events.incident(codec, incident)]))

    def close(self) -> None:
        """The client is about to close, or has: leave the hub first. May be called twice."""
        if not self.closed:
            self.closed = True
            self._hub.leave(self.outbox)
            if self._access_control is not None:
                self._access_control.left(self)

    # -- who it is -------------------------------------------------------------------------------

    @property
    def _unauthenticated(self) -> bool:
        return self._access_control is not None and self.identity is None

    def _authenticate(self, command: commands.Authenticate) -> None:
        if self._access_control is None:
            self._refuse(
                command.id,
                ErrorCode.ALREADY_AUTHENTICATED,
                "nobody has to authenticate here: you are served as you are",
            )
            return
        # Verifying a token is as much work as so many symbols.
        self._charge(SYMBOLS_A_MESSAGE)
        verification = self._verification = _Verification()
        self.outbox.outlet.pause_reading()
        at_once = True

        def done(outcome: Identity | Refused) -> None:
            if self.closed or self._verification is not verification:
                return
            self._verification = None
            try:
                self._verified(command.id, outcome, verification)
            except Exception as failure:
                if at_once:
                    raise
                # Nobody else would close a client whose rights may have changed by half.
                self._hub.report([(self.outbox, failure)])

        self._access_control.verify(command.token, done)
        at_once = False

    def _verified(
        self, id: commands.CommandId | None, outcome: Identity | Refused, after: _Verification
    ) -> None:
        """A token was verified or refused: act on that, then on what the client sent meanwhile."""
        if not self.outbox.behind:
            # First of all: if this closes the client, its answer to the close is to be read.
            self.outbox.outlet.resume_reading()
        if isinstance(outcome, Identity):
            self._set_identity(id, outcome)
        else:
            self._token_refused(id, outcome)
        for text in after.waiting:
            self.receive(text)

    def _token_refused(self, id: commands.CommandId | None, why: Refused) -> None:
        self._counters.auth_failures += 1
        retry = RETRY_MS if why.temporary else None
        self._refuse(id, ErrorCode.AUTHENTICATION_FAILED, f"the token is refused: {why}", retry)
        if not why.temporary:
            self._refusals += 1
            if self._refusals >= _MAX_REFUSALS:
                replies.close(self.outbox, CloseCode.AUTHENTICATION_FAILED)

    def _set_identity(self, id: commands.CommandId | None, identity: Identity) -> None:
        access_control, before = self._access_control, self.identity
        assert access_control is not None, "without it no token is verified"
        if before is not None and before.user != identity.user:
            self._refuse(
                id,
                ErrorCode.ALREADY_AUTHENTICATED,
                "this connection is another user's: open a new one",
            )
            return
        hub = self._hub_for(identity)
        if hub is not self._hub and identity.rights.delay_s > self._delay:
            # It has been sent quotes that are newer than it may see now, so it starts over.
            self._tell_identity(id, identity)
            replies.close(self.outbox, CloseCode.RESTARTING, retry_ms=0)
            return
        access_control.authenticated(self, identity)
        self._refusals = 0
        self._tell_identity(id, identity)
        if before is not None:
            # Before it moves: a move may show it values, also of symbols that it may no longer see.
            errors = review(self._hub, self.outbox, identity.rights, self._most_symbols())
            if errors:
                replies.acknowledge(
                    self.outbox, self._counters, events.unsubscribed, None, list(errors), errors
                )
        if hub is not self._hub:
            # A client without subscriptions has nothing to move, even if it is behind.
            if self.outbox.topics and not move(self.outbox, self._hub, hub):
                replies.close(self.outbox, CloseCode.RESTARTING, retry_ms=0)
                return
            self._hub = hub

    @property
    def _delay(self) -> float:
        """By how many seconds quotes sent to it so far were late at least."""
        if self.identity is None:
            # An unauthenticated client was sent none.
            return math.inf
        return self.identity.rights.delay_s

    def _hub_for(self, identity: Identity) -> Hub:
        """The hub whose quotes are as late as `identity` has to see them."""
        if self._access_control is None:
            return self._hub
        hub = self._access_control.hub_for(identity.rights.delay_s)
        assert hub is not None, "access control refuses an identity for whose delay there is no hub"
        return hub

    def _tell_identity(self, id: commands.CommandId | None, identity: Identity) -> None:
        replies.authenticated(
            self.outbox, id, identity.user, identity.expires_at, identity.rights.delay_s
        )

    def _most_symbols(self) -> int:
        most = None if self.identity is None else self.identity.rights.max_symbols
        return self._limits.symbols if most is None else min(most, self._limits.symbols)

    # -- what access control calls ---------------------------------------------------------------

    def authentication_timed_out(self) -> None:
        """It has not authenticated in time."""
        self._counters.auth_too_late += 1
        self._close_for(
            ErrorCode.AUTHENTICATION_TOO_LATE,
            "the time to authenticate is over",
            CloseCode.AUTHENTICATION_TOO_LATE,
        )

    def token_expiring(self, left_ms: int) -> None:
        """Its token ends in so many milliseconds."""
        try:
            replies.answer(self.outbox, events.expiring(left_ms))
        except Exception as failure:  # noqa: BLE001 - one client's fault must not stop the others
            self._hub.report([(self.outbox, failure)])

    def token_ended(self, reason: str) -> None:
        """Its token has expired, or was revoked."""
        self._counters.shut_out += 1
        self._close_for(ErrorCode.NOT_AUTHENTICATED, reason, CloseCode.AUTHENTICATION_FAILED)

    def _close_for(self, error: ErrorCode, reason: str, code: CloseCode) -> None:
        try:
            replies.close_for(self.outbox, error, reason, code)
        except Exception as failure:  # noqa: BLE001 - one client's fault must not stop the others
            self._hub.report([(self.outbox, failure)])

    # -- commands --------------------------------------------------------------------------------

    def _subscribe(self, command: commands.Subscribe) -> None:
        outbox, hub = self.outbox, self._hub
        self._charge(len(command.symbols))
        rights = None if self.identity is None else self.identity.rights
        accepted, errors = subscribe(hub, outbox, command, rights, self._most_symbols())
        symbols = [topic.symbol for topic in accepted]
        replies.acknowledge(outbox, self._counters, events.subscribed, command.id, symbols, errors)
        if command.snapshot:
            outbox.send_snapshots(accepted.items())
            hub.values.wait_for(outbox, accepted)
        outbox.tell_quiet([topic for topic in accepted if topic.stale], stale=True)

    def _unsubscribe(self, command: commands.Unsubscribe) -> None:
        outbox = self.outbox
        named = outbox.topics if command.symbols is None else command.symbols
        self._charge(len(named))
        gone, errors = unsubscribe(self._hub, outbox, command.symbols)
        replies.acknowledge(outbox, self._counters, events.unsubscribed, command.id, gone, errors)

    def _list(self, command: commands.ListSymbols) -> None:
        symbols = [topic.symbol for topic in self.outbox.topics]
        replies.answer(self.outbox, events.listing(command.id, symbols))

    def _charge(self, symbols: int) -> None:
        if self._rate_limit is not None:
            self._rate_limit.spend(symbols / SYMBOLS_A_MESSAGE)

    def _refuse(
        self,
        id: commands.CommandId | None,
        code: ErrorCode,
        message: str,
        retry_ms: int | None = None,
    ) -> None:
        replies.refuse(self.outbox, self._counters, id, code, message, retry_ms)

    def _refuse_flood(self, id: commands.CommandId | None) -> None:
        replies.refuse_flood(self.outbox, self._counters, id, self._limits)
