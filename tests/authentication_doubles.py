"""Access control with a small real authenticator, and clients that leave as connections do."""

from __future__ import annotations

from collections.abc import Callable

from core_doubles import Client, FixedClock, RecordingOutlet, make_hub

from pushservice.auth.identity import Identity, Refused, Rights, check_time
from pushservice.auth.revocations import Revocations
from pushservice.fanout.hub import Hub
from pushservice.fanout.outbox import Outbox
from pushservice.limits import Limits
from pushservice.metrics import Counters
from pushservice.protocol.close_codes import CloseCode
from pushservice.protocol.codecs import JSON, Codec
from pushservice.session.authentication import AccessControl
from pushservice.session.session import Session

TIMEOUT, LEEWAY, DELAY = 10.0, 5.0, 900.0
ANN = Identity(user="ann")


class FakeAuthenticator:
    """An authenticator that knows some tokens: it says so at once, or when the test has it."""

    def __init__(self, clock: FixedClock | None = None) -> None:
        self.clock = clock
        self.known: dict[str, Identity | Refused] = {"ann": ANN}
        self.later = False
        self.asked: list[tuple[str, Callable[[Identity | Refused], None]]] = []

    def outcome(self, token: str) -> Identity | Refused:
        found = self.known.get(token) or Refused("nobody knows it")
        if isinstance(found, Identity) and found.expires_at is not None and self.clock is not None:
            try:
                check_time(self.clock.seconds(), LEEWAY, expires=found.expires_at)
            except Refused as refusal:
                return refusal
        return found

    def verify(self, token: str, done: Callable[[Identity | Refused], None]) -> None:
        if self.later:
            self.asked.append((token, done))
        else:
            done(self.outcome(token))

    def answer(self) -> None:
        """Say what there is to say of the token that was asked for first."""
        token, done = self.asked.pop(0)
        done(self.outcome(token))


class ClosingOutlet(RecordingOutlet):
    """Has its session leave before a close begins, as the edge does."""

    session: Session | None = None

    def close(self, code: CloseCode) -> None:
        super().close(code)
        if self.session is not None:
            self.session.close()


class AuthenticatedHub:
    """A hub, one that is DELAY seconds late, access control, and clients."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.clock = FixedClock(1_763_800_000.0)
        self.counters = Counters()
        self.hub = make_hub(self.clock, self.counters, self.limits)
        self.late = self.hub.tier(None)
        self.authenticator = FakeAuthenticator(self.clock)
        self.revocations = Revocations(self.clock)
        self.access_control = AccessControl(
            self.clock, self.authenticator, self.revocations, TIMEOUT, LEEWAY, self.hub_for
        )

    def hub_for(self, delay: float) -> Hub | None:
        if delay > DELAY:
            return None
        return self.late if delay else self.hub

    def client(self, identity: Identity | None = None, codec: Codec = JSON) -> AuthenticatingClient:
        """A client that came, as a stranger unless the handshake told who it is."""
        return AuthenticatingClient(self, identity, codec)

    def accept_token(self, token: str, *patterns: str, **more: object) -> Identity:
        """Have `token` stand for ann, with rights."""
        rights = {name: more.pop(name) for name in list(more) if name in RIGHTS}
        made = Identity(
            **{"user": "ann", "rights": Rights(patterns or None, **rights)} | more  # type: ignore[arg-type]  # by name, in tests alone
        )
        self.authenticator.known[token] = made
        return made

    def revoke(self, user: str | None = None, token: str | None = None) -> None:
        if user is not None:
            self.revocations.revoke("user", user)
        if token is not None:
            self.revocations.revoke("token", token)
        self.access_control.end_revoked(user, token)


RIGHTS = {"max_symbols", "min_interval_ms", "delay_s"}


class AuthenticatingClient(Client):
    """A client of a served."""

    def __init__(self, served: AuthenticatedHub, identity: Identity | None, codec: Codec) -> None:
        self.outlet: ClosingOutlet = ClosingOutlet()
        self.outbox = self.outlet.outbox = Outbox(codec, self.outlet, served.hub.common, "t-1")
        self.session = self.outlet.session = Session(
            served.hub, self.outbox, served.limits, served.counters, served.access_control, identity
        )
        self.session.open()

    def authenticate(self, token: str, **more: object) -> None:
        """Say who it is."""
        self.say({"op": "auth", "token": token} | more)
