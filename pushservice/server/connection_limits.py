"""Who may connect, counted from the TCP accept on: in all, per address, and how fast.

Must not know: sockets, handshakes, or what a connection is; they are told apart by identity.

A *guest* is a connection that is not a client: in its handshake, fetching a page, or closing.
Guests are few and short-lived. When there are too many, the oldest must go; when even the oldest
has only just come, newcomers wait in the kernel's queue.
"""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import Final

from pushservice.fanout.interfaces import Clock
from pushservice.limits import BURST_SECONDS, Limits

#: Connections of one address beyond its limit that are let in to be told so.
_TOLD: Final = 16
#: Guests beyond their limit that a burst of accepts may bring before they are dropped unheard.
GUESTS_BEYOND: Final = 128
#: Seconds that a guest is left in peace, however many there are.
GRACE: Final = 2.0
#: Addresses remembered before those that are of no interest any more are looked for.
_PRUNE_AT: Final = 1024


class _Address:
    """What is known of one address: its connections now, and how many it may yet open."""

    __slots__ = ("at", "connections", "left")

    def __init__(self, left: float, at: float) -> None:
        self.connections = 0
        self.left = left
        self.at = at


class Admission:
    """Counts connections and says which may stay."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._addresses: dict[str, _Address] = {}
        self._prune_at = _PRUNE_AT
        # Oldest first, with when they became guests.
        self._guests: dict[object, float] = {}
        #: TCP connections that exist, whatever their state
        self.connections = 0

    # -- before there is a connection ------------------------------------------------------------

    def admits(self, address: str | None) -> bool:
        """Whether a connection from `address` may come in at all; None is an address of no limit.

        Each call counts as an attempt.
        """
        if len(self._guests) >= self._limits.handshakes + GUESTS_BEYOND:
            return False
        return self._may_come(address)

    def _may_come(self, address: str | None) -> bool:
        """Whether `address` keeps to its limits; counts as an attempt."""
        if address is None:
            return True
        known = self._known(network(address))
        limits = self._limits
        if limits.connect_rate:
            # Attempts that are refused count too, down to nothing left: a flood gets no share.
            if known.left < 1:
                known.left = min(known.left, max(0.0, known.left - 1))
                return False
            known.left -= 1
        return not limits.per_address or known.connections < limits.per_address + _TOLD

    # -- the life of a connection ----------------------------------------------------------------

    def came(self, connection: object, address: str | None) -> None:
        """A connection was accepted: a guest."""
        self.connections += 1
        self._guests[connection] = self._clock.seconds()
        if address is not None:
            self._known(network(address)).connections += 1

    def known_as(self, old: str | None, new: str | None) -> bool:
        """A connection that came from `old` turned out to be from `new`, and counts as that now.

        False where it would not have come in from there; it is counted until it is gone even so.
        """
        welcome = self._may_come(new)
        for address, change in ((old, -1), (new, 1)):
            if address is not None:
                self._known(network(address)).connections += change
        return welcome

    def became_client(self, connection: object) -> None:
        """A guest has finished its handshake."""
        self._guests.pop(connection, None)

    def closing(self, connection: object) -> None:
        """A client is about to go: a guest again. Says nothing new of one that is a guest."""
        self._guests.setdefault(connection, self._clock.seconds())

    def gone(self, connection: object, address: str | None) -> None:
        """A connection is no more."""
        self.connections -= 1
        self._guests.pop(connection, None)
        if address is not None:
            self._known(network(address)).connections -= 1

    def crowded_out(self, address: str | None) -> bool:
        """Whether `address` has more connections than it may; to be asked for one of them."""
        limit = self._limits.per_address
        if address is None or not limit:
            return False
        return self._known(network(address)).connections > limit

    def flooded(self, address: str | None) -> None:
        """A client from `address` was closed for flooding: that costs a second's connections.

        Otherwise each connection would bring another burst.
        """
        rate = self._limits.connect_rate
        if address is not None and rate:
            known = self._known(network(address))
            known.left = max(-float(rate), known.left - rate)

    # -- guests ----------------------------------------------------------------------------------

    @property
    def crowded(self) -> bool:
        """Whether there are as many guests as may be."""
        return len(self._guests) >= self._limits.handshakes

    def oldest_guest(self) -> object | None:
        """The guest that has been there longest, unless it has only just come."""
        for connection, since in self._guests.items():
            return connection if self._clock.seconds() - since >= GRACE else None
        return None

    def guests(self) -> list[object]:
        """All connections that are no clients."""
        return list(self._guests)

    # -- addresses -------------------------------------------------------------------------------

    def _known(self, address: str) -> _Address:
        now = self._clock.seconds()
        rate = self._limits.connect_rate
        known = self._addresses.get(address)
        if known is None:
            if len(self._addresses) >= self._prune_at:
                self._prune(now)
            known = self._addresses[address] = _Address(rate * BURST_SECONDS, now)
        elif rate:
            refilled = known.left + max(0.0, now - known.at) * rate
            known.left, known.at = min(rate * BURST_SECONDS, refilled), now
        return known

    def _prune(self, now: float) -> None:
        """Forget addresses without a connection whose rate is refilled by now."""
        for address, known in list(self._addresses.items()):
            if not known.connections and now - known.at >= BURST_SECONDS:
                del self._addresses[address]
        # Only when there are twice as many again: looking at all must not cost each newcomer.
        self._prune_at = max(_PRUNE_AT, 2 * len(self._addresses))


def network(host: str) -> str:
    """Whom `host` is counted as: an IPv4 address as itself, an IPv6 one as its /64 network.

    An IPv6 customer commonly has a whole /64 (RFC 6177). IPv4 addresses in IPv6 form are IPv4.
    """
    if ":" not in host:
        return host
    address = IPv6Address(host)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"
