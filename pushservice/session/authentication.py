"""Who is in: checks tokens, watches when they end or are revoked, and how long strangers take.

Must not know: sockets, how tokens are checked, or what clients say. It keeps the time of all
clients with one call at a time.
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
#: Times a second at which anything is due.
_GRAIN: Final = 4
_LONGEST_CALL: Final = 86_400.0
#: Times at which nothing is due any more that are kept.
_SLACK: Final = 100


class Client(Protocol):
    """What a client is to the doorkeeper. Nothing here raises: others are waiting."""

    #: None for a stranger
    identity: Identity | None

    def came_too_late(self) -> None:
        """It has not authenticated in time."""

    def tell_expiring(self, left_ms: int) -> None:
        """Its token ends in so many milliseconds."""

    def shut_out(self, reason: str) -> None:
        """Its token has ended, or was revoked."""


class Doorkeeper:
    """Lets clients in, and out again, for one process."""

    def __init__(
        self,
        clock: Clock,
        authenticator: Authenticator,
        revocations: Revocations,
        timeout: float,
        leeway: float,
        hub_for: Callable[[float], Hub | None],
    ) -> None:
        """`timeout` is how many seconds a stranger has, `leeway` how many past its end a token.

        `hub_for` gives the hub whose quotes are so many seconds late, or None where there is none
        that is late enough.
        """
        self._clock = clock
        self._authenticator = authenticator
        self._revocations = revocations
        self._timeout = timeout
        self._leeway = leeway
        self.hub_for = hub_for
        # What is due when, in quarters of a second; and when for each client something is.
        self._due: dict[int, dict[Client, None]] = {}
        self._when: dict[Client, int] = {}
        self._times: list[int] = []
        self._call: DelayedCall | None = None
        self._told: set[Client] = set()
        self._by_user: dict[str, dict[Client, None]] = {}
        self._by_token: dict[str, dict[Client, None]] = {}

    def verify(self, token: str, done: Callable[[Identity | Refused], None]) -> None:
        """Check a token: `done` is called once, at once or later, with whose it is or why not."""

        def checked(outcome: Identity | Refused) -> None:
            if isinstance(outcome, Identity):
                done(self.accepted(outcome))
            else:
                done(outcome)

        self._authenticator.verify(token, checked)

    def accepted(self, identity: Identity) -> Identity | Refused:
        """`identity` itself, unless it was revoked or asks for what there is not."""
        if self._revocations.revoked(identity):
            return Refused("it was revoked")
        if self.hub_for(identity.rights.delay_s) is None:
            delay = identity.rights.delay_s
            return Refused(f"it asks for a delay of {delay:g} s, which is not offered here")
        return identity

    # -- clients ---------------------------------------------------------------------------------

    def came(self, client: Client) -> None:
        """A client is there; a stranger has its time from now."""
        if client.identity is None:
            self._set(client, self._clock.seconds() + self._timeout)
        else:
            self.let_in(client, client.identity)

    def let_in(self, client: Client, identity: Identity) -> None:
        """A client is known from now on as `identity`, or again with another token."""
        self.left(client)
        if identity.user is not None:
            self._by_user.setdefault(identity.user, {})[client] = None
        if identity.token_id is not None:
            self._by_token.setdefault(identity.token_id, {})[client] = None
        client.identity = identity
        if identity.expires_at is not None:
            self._set(client, identity.expires_at - TOLD_AHEAD)

    def left(self, client: Client) -> None:
        """A client is gone, or is to be known anew."""
        self._unset(client)
        self._told.discard(client)
        identity = client.identity
        if identity is not None:
            _forget(self._by_user, identity.user, client)
            _forget(self._by_token, identity.token_id, client)

    def look_for_revoked(
        self, user: str | None, token_id: str | None, *, just_now: bool = False
    ) -> None:
        """A user, or a token, was revoked: shut out whom that concerns.

        `just_now`: that is everybody of that name then. Whoever is in came with what was issued
        before, whatever clocks say.
        """
        found = [
            *(self._by_user.get(user, ()) if user is not None else ()),
            *(self._by_token.get(token_id, ()) if token_id is not None else ()),
        ]
        for client in found:
            identity = client.identity
            if identity is not None and (just_now or self._revocations.revoked(identity)):
                client.shut_out("the token was revoked")

    def stop(self) -> None:
        """Watch no more."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    # -- time ------------------------------------------------------------------------------------

    def _set(self, client: Client, at: float) -> None:
        """Something is due for `client` at `at`, or a moment later; nothing else is any more."""
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
            # Of clients that come and go with tokens for months nothing stays.
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
            # Whatever is due in years is looked at once in a while: timers have their limits.
            self._call = self._clock.callLater(min(delay, _LONGEST_CALL), self._look)

    def _look(self) -> None:
        self._call = None
        now = self._clock.seconds()
        try:
            while self._times and self._times[0] / _GRAIN <= now:
                when = heappop(self._times)
                for client in self._due.pop(when, ()):
                    # What is done to one may make another leave.
                    if self._when.get(client) == when:
                        self._unset(client)
                        self._is_due(client, now)
        finally:
            self._plan()

    def _is_due(self, client: Client, now: float) -> None:
        identity = client.identity
        if identity is None:
            client.came_too_late()
        elif identity.expires_at is None or now >= identity.expires_at + self._leeway:
            client.shut_out("the token has expired")
        else:
            if client not in self._told:
                self._told.add(client)
                client.tell_expiring(max(0, int((identity.expires_at - now) * 1000)))
            self._set(client, identity.expires_at + self._leeway)


def _forget(index: dict[str, dict[Client, None]], name: str | None, client: Client) -> None:
    if name is not None and client in index.get(name, ()):
        del index[name][client]
        if not index[name]:
            del index[name]
