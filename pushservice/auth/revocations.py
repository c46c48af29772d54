"""Revoked users and tokens, remembered as long as a token of theirs can still be valid.

Must not know: where revocations come from, Redis, or connections.
"""

from __future__ import annotations

import heapq
import math
from typing import Final, Literal, TypeAlias, get_args

from pushservice.auth.identity import Identity
from pushservice.fanout.interfaces import Clock

Kind: TypeAlias = Literal["user", "token"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

MAX_ENTRIES: Final = 100_000
#: seconds: 31 days
KEPT_FOR: Final = 31 * 86_400


class Revocations:
    """Remembers the MAX_ENTRIES latest revocations, each for KEPT_FOR seconds.

    A revoked token is refused. A revoked user's tokens are refused if they were issued up to
    the second of the revocation, or have no time of issue.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._moments: dict[tuple[Kind, str], float] = {}
        # The same, by moment; outdated entries stay, and are skipped.
        self._oldest: list[tuple[float, Kind, str]] = []

    def __len__(self) -> int:
        return len(self._moments)

    def revoke(self, kind: Kind, name: str, at: float | None = None) -> bool:
        """Revoke a user or a token from `at` on, in seconds since the epoch, or from now on.

        Returns whether this changed anything. A new revocation in the future counts as one now.
        """
        now = self._clock.seconds()
        known = self._moments.get((kind, name))
        if at is None:
            at = now
        elif at > now:
            at = now if known is None else known
        if at <= now - KEPT_FOR or (known is not None and at <= known):
            self._forget(now)
            return False
        self._moments[kind, name] = at
        heapq.heappush(self._oldest, (at, kind, name))
        self._forget(now)
        return (kind, name) in self._moments

    def revoked(self, identity: Identity) -> bool:
        """Whether `identity` was revoked."""
        if not self._moments:
            return False
        since = self._clock.seconds() - KEPT_FOR
        if identity.token_id is not None:
            moment = self._moments.get(("token", identity.token_id))
            if moment is not None and moment > since:
                return True
        if identity.user is not None:
            moment = self._moments.get(("user", identity.user))
            if moment is not None and moment > since:
                # Issuers give whole seconds: within one, the order is unknown.
                return identity.issued_at is None or math.floor(identity.issued_at) <= moment
        return False

    def _forget(self, now: float) -> None:
        """Drop entries that are too old, and the oldest ones above MAX_ENTRIES."""
        while self._oldest:
            at, kind, name = self._oldest[0]
            if self._moments.get((kind, name)) == at:
                if at > now - KEPT_FOR and len(self._moments) <= MAX_ENTRIES:
                    break
                del self._moments[kind, name]
            heapq.heappop(self._oldest)
        if len(self._oldest) > 2 * len(self._moments) + 100:
            self._oldest = [(at, *which) for which, at in self._moments.items()]
            heapq.heapify(self._oldest)
