"""Authenticated clients: their tokens are checked, and end in time or by revocation.

Must not know: sockets, how tokens are verified, or what clients say. One pending timer call serves
all clients.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from math import ceil
from typing import TYPE_CHECKING, Final, Protocol

from pushservice.auth.identity import Authenticator, Identity, Refused
from pushservice.auth.revocations import Revocations
from pushservice.fanout.interfaces import Clock, DelayedCall

if TYPE_CHECKING:
    from pushservice.fanout.hub import Hub

#: Seconds before a token's end at which its client is told.
TOLD_AHEAD: Final = 60.0
#: Deadlines are rounded up to so many parts of a second.
_GRAIN: Final = 4
_LONGEST_CALL: Final = 86_400.0
#: Times without a deadline that the heap may hold before it is made anew.
_SLACK: Final = 100


class Client(Protocol):
    """What `AccessControl` asks of a client. No method raises: other clients' turns follow."""

    #: None until it has authenticated
    identity: Identity | None

    def authentication_timed_out(self) -> None:
        """It has not authenticated in time."""

    def token_expiring(self, left_ms: int) -> None:
        """Its token ends in so many milliseconds."""

    def token_ended(self, reason: str) -> None:
        """Its token has expired, or was revoked."""


class AccessControl:
    """Checks the tokens of one process's clients, and closes clients whose tokens end."""

    def __init__(
        self,
        clock: Clock,
        authenticator: Authenticator,
        revocations: Revocations,
        timeout: float,
        leeway: float,
        hub_for: Callable[[float], Hub | None],
    ) -> None:
        """A client has `timeout` seconds to authenticate; a token serves `leeway` past its end.

        `hub_for` gives the hub whose quotes are so many seconds late, or None where there is none
        that is late enough. All times are in seconds.
        """
        self._clock = clock
        self._authenticator = authenticator
        self._revocations = revocations
        self._timeout = timeout
        self._leeway = leeway
        self.hub_for = hub_for
        # The clients of each deadline, in quarters of a second, and the deadline of each client.
        self._due: dict[int, dict[Client, None]] = {}
        self._when: dict[Client, int] = {}
        self._times: list[int] = []
        self._call: DelayedCall | None = None
        self._told: set[Client] = set()
        self._by_user: dict[str, dict[Client, None]] = {}
        self._by_token: dict[str, dict[Client, None]] = {}

    def verify(self, token: str, done: Callable[[Identity | Refused], None]) -> None:
        """Check a token: `done` is called once, now or later, with its identity or the refusal."""

        def checked(outcome: Identity | Refused) -> None:
            if isinstance(outcome, Identity):
                done(self.check(outcome))
            else:
                done(outcome)

        self._authenticator.verify(token, checked)

    def check(self, identity: Identity) -> Identity | Refused:
        """`identity` itself, unless it was revoked or asks for a delay that is not offered."""
        if self._revocations.revoked(identity):
            return Refused("it was revoked")
        if self.hub_for(identity.rights.delay_s) is None:
            delay = identity.rights.delay_s
            return Refused(f"it asks for a delay of {delay:g} s, which is not offered here")
        return identity

    # -- clients ---------------------------------------------------------------------------------

    def connected(self, client: Client) -> None:
        """A client connected; without an identity, its time to authenticate begins."""
        if client.identity is None:
            self._set(client, self._clock.seconds() + self._timeout)
        else:
            self.authenticated(client, client.identity)

    def authenticated(self, client: Client, identity: Identity) -> None:
        """A client has proven `identity`; this replaces its identity before, and its deadline."""
        self.left(client)
        if identity.user is not None:
            self._by_user.setdefault(identity.user, {})[client] = None
        if identity.token_id is not None:
            self._by_token.setdefault(identity.token_id, {})[client] = None
        client.identity = identity
        if identity.expires_at is not None:
            self._set(client, identity.expires_at - TOLD_AHEAD)

    def left(self, client: Client) -> None:
        """A client has left, or is about to get another identity."""
        self._unset(client)
        self._told.discard(client)
        identity = client.identity
        if identity is not None:
            _forget(self._by_user, identity.user, client)
            _forget(self._by_token, identity.token_id, client)

    def end_revoked(
        self, user: str | None, token_id: str | None, *, just_now: bool = False
    ) -> None:
        """A user, or a token, was revoked: end the access of the clients that this affects.

        `just_now` affects every client of that user or token: all of their tokens were issued
        before this moment, whatever the clocks of different machines say.
        """
        found = [
            *(self._by_user.get(user, ()) if user is not None else ()),
            *(self._by_token.get(token_id, ()) if token_id is not None else ()),
        ]
        for client in found:
            identity = client.identity
            if identity is not None and (just_now or self._revocations.revoked(identity)):
                client.token_ended("the token was revoked")

    def stop(self) -> None:
        """Cancel the pending timer call."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    # -- time ------------------------------------------------------------------------------------

    def _set(self, client: Client, at: float) -> None:
        """Set the deadline of `client` to `at`, or a moment later; it replaces the one before."""
        self._unset(client)
        when = ceil(at * _GRAIN)
        there = self._due.get(when)
        if there is None:
            there = self._due[when] = {}
            heappush(self._times, when)
            if self._times[0] == when:
                self._plan()
        there[client] = None
        self._when[client] = when

    def _unset(self, client: Client) -> None:
        when = self._when.pop(client, None)
        there = None if when is None else self._due.get(when)
        if when is None or there is None:
            return
        there.pop(client, None)
        if not there:
            # Nothing stays of a client that left, even if its token was valid for months.
            del self._due[when]
            if not self._due:
                self._times.clear()
                self.stop()
            elif len(self._times) > 2 * len(self._due) + _SLACK:
                self._times = sorted(self._due)

    def _plan(self) -> None:
        self.stop()
        if self._times:
            delay = max(0.0, self._times[0] / _GRAIN - self._clock.seconds())
            # A timer has a greatest delay: a deadline in years is checked once a day.
            self._call = self._clock.callLater(min(delay, _LONGEST_CALL), self._run_due)

    def _run_due(self) -> None:
        self._call = None
        now = self._clock.seconds()
        try:
            while self._times and self._times[0] / _GRAIN <= now:
                when = heappop(self._times)
                for client in self._due.pop(when, ()):
                    # What happens to one client may make another leave.
                    if self._when.get(client) == when:
                        self._unset(client)
                        self._is_due(client, now)
        finally:
            self._plan()

    def _is_due(self, client: Client, now: float) -> None:
        identity = client.identity
        if identity is None:
            client.authentication_timed_out()
        elif identity.expires_at is None or now >= identity.expires_at + self._leeway:
            client.token_ended("the token has expired")
        else:
            if client not in self._told:
                self._told.add(client)
                client.token_expiring(max(0, int((identity.expires_at - now) * 1000)))
            self._set(client, identity.expires_at + self._leeway)


def _forget(index: dict[str, dict[Client, None]], name: str | None, client: Client) -> None:
    if name is not None and client in index.get(name, ()):
        del index[name][client]
        if not index[name]:
            del index[name]
