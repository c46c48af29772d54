"""All connections of one process: counted, limited, found by id, drained, and what they share.

Must not know: Autobahn, what a connection says, or how it is read; symbols or quotes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, Protocol

from twisted.internet import task
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import Site

from pushservice.auth.origins import Origins
from pushservice.fanout.hub import Hub
from pushservice.fanout.outbox import Outbox
from pushservice.limits import Limits
from pushservice.metrics import Counters
from pushservice.protocol import events
from pushservice.protocol.close_codes import CloseCode
from pushservice.protocol.codecs import Codec
from pushservice.server.balance import Balance
from pushservice.server.client_log import ClientLog
from pushservice.server.client_reports import About
from pushservice.server.connection_limits import ConnectionLimiter
from pushservice.server.outlets.choice import MakeOutlet
from pushservice.server.outlets.portable import PortableOutlet
from pushservice.server.ports import Ports
from pushservice.server.proxies import NO_PROXIES, Trusted
from pushservice.session.authentication import AccessControl

#: Seconds between two checks whether connections can be accepted again.
CROWDED_PAUSE: Final = 0.1
#: Seconds that handshakes and pages have to finish when clients are moved to other processes, and
#: seconds between two checks whether they have.
DRAIN_GRACE: Final = 2.0
DRAIN_CHECK_EVERY: Final = 0.05


class Connection(Protocol):
    """What `Connections` asks of one connection."""

    #: a stream transport that can abort
    transport: Any
    #: unique among all daemons that live at the same time
    conn: str

    @property
    def is_opening(self) -> bool:
        """Whether it is in its opening handshake, or fetches a page."""

    def about(self) -> About:
        """What operators are shown of it; called for clients alone."""


def _no_greeting(_outbox: Outbox) -> None:
    """Send nothing after the welcome."""


@dataclass(frozen=True, slots=True)
class Services:
    """What connections are served with.

    `site` answers requests for pages; `greet` is called for each client after its welcome;
    `deflated` are the codecs of clients with which compression is agreed on, by subprotocol, none
    for no compression; `client_log` is told of each client that comes and goes.
    """

    site: Site
    make_outlet: MakeOutlet = PortableOutlet
    greet: Callable[[Outbox], None] = _no_greeting
    deflated: Mapping[str, Codec] = field(default_factory=dict)
    client_log: ClientLog | None = None


class Connections:
    """The connections of one process. Clients are held here until they leave the hub."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        hub: Hub,
        limits: Limits,
        counters: Counters,
        services: Services,
        *,
        ports: Ports | None = None,
        trusted: Trusted = NO_PROXIES,
    ) -> None:
        """Peers in `trusted` are proxies, whose X-Forwarded-For is believed.

        `ports` are where connections come from; they are held while too many are pending.
        """
        self.reactor = reactor
        self.hub = hub
        self.limits = limits
        self.counters = counters
        self.site = services.site
        self.make_outlet = services.make_outlet
        self.greet = services.greet
        self.deflated = services.deflated
        log = services.client_log
        self.client_log = log if log is not None and log.rate else None
        self.ports = Ports() if ports is None else ports
        self.trusted = trusted
        #: from which pages browsers may connect
        self.origins = Origins()
        #: checks tokens and watches their expiry; None where nobody has to authenticate
        self.access_control: AccessControl | None = None
        self.token_in_url = False
        #: whether a client's certificate says who it is
        self.by_certificate = False
        #: whether new clients are refused because this process stops
        self.draining = False
        #: the connections of clients, by their ids
        self.clients: dict[str, Connection] = {}
        self.limiter = ConnectionLimiter(limits, reactor)
        #: with which other processes new connections are shared, and how many clients all
        #: processes together may have
        self.balance: Balance | None = None
        self.most_together: int | None = None
        self._crowded_check: IDelayedCall | None = None
        self._when_empty: Deferred[None] | None = None
        self._serial = count(1)
        self._incidents = count(1)

    def next_conn(self) -> str:
        """An id for a connection, unique among all daemons that live at the same time."""
        return f"{self.hub.epoch}-{next(self._serial)}"

    def incident(self) -> str:
        """An id for a fault of the server, for the log and for the client that it affects."""
        return f"{self.hub.epoch}.{next(self._incidents)}"

    def failed(self, outbox: Outbox, failure: Exception) -> None:
        """A client's outbox raised: log it and close that client."""
        incident = self.incident()
        self.log.failure(
            "delivery to {conn} failed; closing it: incident {incident}",
            Failure(failure, type(failure), failure.__traceback__),
            conn=outbox.conn,
            incident=incident,
        )
        try:
            outbox.send_last(outbox.codec.frames([events.incident(outbox.codec, incident)]))
        except Exception:  # noqa: BLE001 - sending may be just what failed
            outbox.outlet.abort()
        else:
            outbox.outlet.close(CloseCode.INTERNAL_ERROR)

    def about(self, conn: str) -> About | None:
        """What the connection of the client `conn` knows of it; None where it has left."""
        connection = self.clients.get(conn)
        return None if connection is None else connection.about()

    # -- the life of a connection ----------------------------------------------------------------

    def counted_as(self, peer: IAddress | None) -> str | None:
        """The address that limits see in `peer`; None where it has none, and for a proxy."""
        address = address_of(peer)
        return None if self.trusted.includes(address) else address

    def admits(self, peer: IAddress | None) -> bool:
        """Whether a connection from `peer` may come in at all; counts one that may not."""
        if self.limiter.admits(self.counted_as(peer)):
            return True
        self.counters.connections_refused += 1
        return False

    def accepted(self, connection: Connection, address: str | None) -> None:
        """A TCP connection was accepted."""
        self.counters.connections_accepted += 1
        self.limiter.accepted(connection, address)
        if self.balance is not None:
            self.balance.changed(self.limiter.connections)
        if self.limiter.crowded and self._crowded_check is None:
            self._end_oldest_pending()

    def opened(self, connection: Connection) -> None:
        """A connection became a client; the hub knows it from now on."""
        self.counters.handshakes += 1
        self.clients[connection.conn] = connection
        self.limiter.became_client(connection)

    def closing(self, connection: Connection) -> None:
        """A client has left the hub, and its connection is about to close."""
        self.clients.pop(connection.conn, None)
        self.limiter.closing(connection)

    def closed(self, connection: Connection, address: str | None) -> None:
        """A TCP connection is no more."""
        self.counters.connections_closed += 1
        self.limiter.closed(connection, address)
        if self.balance is not None:
            self.balance.changed(self.limiter.connections)
        if self.limiter.connections == 0 and self._when_empty is not None:
            waiting, self._when_empty = self._when_empty, None
            waiting.callback(None)

    def full(self) -> bool:
        """Whether there are as many clients as may be, here or together with other processes."""
        here = self.hub.count_outboxes()
        if here >= self.limits.connections:
            return True
        most, balance = self.most_together, self.balance
        return most is not None and balance is not None and here + balance.others() >= most

    def _end_oldest_pending(self) -> None:
        """Too many connections are pending: end the oldest; while all are new, accept nobody."""
        limiter = self.limiter
        while limiter.crowded and (oldest := limiter.oldest_pending()) is not None:
            self.counters.aborted_handshakes += 1
            oldest.transport.abortConnection()
            # At once, where the transport tells of its end only later.
            limiter.became_client(oldest)
        paused = self._crowded_check is not None
        self._crowded_check = None
        if limiter.crowded and not self.draining:
            if not paused:
                self.ports.hold("crowded")
            self._crowded_check = self.reactor.callLater(CROWDED_PAUSE, self._end_oldest_pending)
        elif paused and not self.draining:
            self.ports.release("crowded")

    # -- the end ---------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Wait until every connection is gone; pages and unfinished handshakes end at once.

        Unless new clients are refused (`draining`), these have DRAIN_GRACE seconds first. Somebody
        else closes the clients, and each closing connection has its own deadline.
        """
        if self._crowded_check is not None:
            self._crowded_check.cancel()
            self._crowded_check = None
        until = self.reactor.seconds() + DRAIN_GRACE
        while not self.draining and self._opening() and self.reactor.seconds() < until:
            await task.deferLater(self.reactor, DRAIN_CHECK_EVERY)
        for connection in self._opening():
            connection.transport.abortConnection()
        if self.limiter.connections:
            self._when_empty = Deferred()
            await self._when_empty

    def _opening(self) -> list[Connection]:
        """The connections that are no clients yet, or never will be."""
        return [connection for connection in self.limiter.pending() if connection.is_opening]

    def abort(self) -> None:
        """Drop every connection now."""
        for outbox in self.hub.outboxes():
            outbox.outlet.abort()
        for connection in self.limiter.pending():
            connection.transport.abortConnection()


def address_of(peer: IAddress | None) -> str | None:
    """The host of a connection's end as text; None where it has none, as on a Unix socket."""
    return getattr(peer, "host", None)
