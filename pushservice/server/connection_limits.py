"""Who may connect, counted from the TCP accept on: in all, per address, and how fast.

Must not know: sockets, handshakes, or what a connection is; connections are told apart by identity.

A *pending* connection is not a client: it is in its handshake, fetches a page, or closes. Pending
connections are few and short-lived. When there are too many, the oldest must go; when even the
oldest was accepted a moment ago, further ones wait in the kernel's queue.
"""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import Any, Final

from pushservice.fanout.interfaces import Clock
from pushservice.limits import BURST_SECONDS, Limits

#: Connections of one address beyond its limit that are accepted to be told of the limit.
_TOLD: Final = 16
#: Pending connections beyond their limit that a burst of accepts may bring before more are dropped
#: without an answer.
PENDING_BURST: Final = 128
#: Seconds for which a pending connection is not ended, however many there are.
PENDING_GRACE: Final = 2.0
#: Addresses kept before those that do not matter any more are looked for and forgotten.
_PRUNE_AT: Final = 1024


class _Address:
    """One address: its connections now, and how many more it may open."""

    __slots__ = ("at", "connections", "left")

    def __init__(self, left: float, at: float) -> None:
        self.connections = 0
        self.left = left
        self.at = at


class ConnectionLimiter:
    """Counts connections and says which may stay."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._addresses: dict[str, _Address] = {}
        self._prune_at = _PRUNE_AT
        # Oldest first, with the time at which each became pending.
        self._pending: dict[Any, float] = {}
        #: TCP connections that exist, whatever their state
        self.connections = 0

    # -- before there is a connection ------------------------------------------------------------

    def admits(self, address: str | None) -> bool:
        """Whether a connection from `address` may come in at all; None is an address of no limit.

        Each call counts as an attempt.
        """
        if len(self._pending) >= self._limits.handshakes + PENDING_BURST:
            return False
        return self._may_connect(address)

    def _may_connect(self, address: str | None) -> bool:
        """Whether `address` keeps to its limits; counts as an attempt."""
        if address is None:
            return True
        known = self._known(network(address))
        limits = self._limits
        if limits.connect_rate:
            # Refused attempts count too, down to nothing left: a flood gets no connection at all.
            if known.left < 1:
                known.left = min(known.left, max(0.0, known.left - 1))
                return False
            known.left -= 1
        return not limits.per_address or known.connections < limits.per_address + _TOLD

    # -- the life of a connection ----------------------------------------------------------------

    def accepted(self, connection: object, address: str | None) -> None:
        """A connection was accepted, and is pending."""
        self.connections += 1
        self._pending[connection] = self._clock.seconds()
        if address is not None:
            self._known(network(address)).connections += 1

    def address_changed(self, old: str | None, new: str | None) -> bool:
        """A connection accepted from `old` turned out to be from `new`, and counts as that now.

        False where it would not have come in from there; it is counted until it is gone even so.
        """
        allowed = self._may_connect(new)
        for address, change in ((old, -1), (new, 1)):
            if address is not None:
                self._known(network(address)).connections += change
        return allowed

    def became_client(self, connection: object) -> None:
        """A pending connection has finished its handshake."""
        self._pending.pop(connection, None)

    def closing(self, connection: object) -> None:
        """A client is about to close: pending again, if it is not yet."""
        self._pending.setdefault(connection, self._clock.seconds())

    def closed(self, connection: object, address: str | None) -> None:
        """A connection is no more."""
        self.connections -= 1
        self._pending.pop(connection, None)
        if address is not None:
            self._known(network(address)).connections -= 1

    def over_address_limit(self, address: str | None) -> bool:
        """Whether `address` has more connections than it may; the handshake of each asks this."""
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

    # -- pending connections ---------------------------------------------------------------------

    @property
    def crowded(self) -> bool:
        """Whether as many connections are pending as may be."""
        return len(self._pending) >= self._limits.handshakes

    def oldest_pending(self) -> Any | None:
        """The connection that has been pending longest; None while even that one is new."""
        for connection, since in self._pending.items():
            return connection if self._clock.seconds() - since >= PENDING_GRACE else None
        return None

    def pending(self) -> list[Any]:
        """All connections that are no clients."""
        return list(self._pending)

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
        # The next time with twice as many: not each new address may cost a pass over all.
        self._prune_at = max(_PRUNE_AT, 2 * len(self._addresses))


def network(host: str) -> str:
    """What `host` is counted as: an IPv4 address as itself, an IPv6 one as its /64 network.

    An IPv6 customer commonly has a whole /64 (RFC 6177). IPv4 addresses in IPv6 form are IPv4.
    """
    if ":" not in host:
        return host
    address = IPv6Address(host)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"
