"""Where connections arrive: makes them, counts them, and keeps what they share.

Must not know: what a connection says, or how it is read; symbols or quotes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, Final

from autobahn.twisted.websocket import WebSocketServerFactory
from twisted.internet import task
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import Site

from pushservice.auth.origins import Origins
from pushservice.fanout.hub import Hub
from pushservice.fanout.outbox import Outbox
from pushservice.limits import Limits
from pushservice.metrics import Counters
from pushservice.protocol import wire
from pushservice.protocol.close_codes import CloseCode
from pushservice.server.balance import Balance
from pushservice.server.client_log import ClientLog
from pushservice.server.client_reports import About
from pushservice.server.connection_limits import Admission
from pushservice.server.lean_autobahn import configured
from pushservice.server.outlet import PortableOutlet
from pushservice.server.ports import Ports
from pushservice.server.proxies import NOBODY, Trusted
from pushservice.server.websocket import QuoteProtocol, address_of
from pushservice.session.authentication import Doorkeeper

#: Seconds between looks at whether there is room again for newcomers.
CROWDED_PAUSE: Final = 0.1
#: Seconds that handshakes and pages have when clients are sent elsewhere, and between two looks.
GUESTS_GRACE: Final = 2.0
LOOK_EVERY: Final = 0.05


class QuoteFactory(WebSocketServerFactory):
    """Makes connections; holds what they share. Clients are held until they leave the hub."""

    log = Logger()
    noisy = False

    def __init__(
        self,
        reactor: Any,
        hub: Hub,
        limits: Limits,
        site: Site,
        counters: Counters,
        make_outlet: Callable[[Any, Callable[[CloseCode], None]], PortableOutlet] = PortableOutlet,
        greet: Callable[[Outbox], None] = lambda _outbox: None,
        *,
        ports: Ports | None = None,
        trusted: Trusted = NOBODY,
        client_log: ClientLog | None = None,
    ) -> None:
        """`greet` is called for each client after its welcome.

        Peers in `trusted` are proxies, whose X-Forwarded-For is believed. `client_log` is told of
        each client that comes and goes.
        """
        super().__init__(reactor=reactor, server="")  # type: ignore[no-untyped-call]  # the library's, unannotated
        self.make_outlet = make_outlet
        self.greet = greet
        self.hub = hub
        self.limits = limits
        self.site = site
        self.counters = counters
        self.trusted = trusted
        #: who may connect: from which pages, and who of whom; None where nobody is asked
        self.origins = Origins()
        self.doorkeeper: Doorkeeper | None = None
        self.token_in_url = False
        #: whether a client's certificate says who it is
        self.by_certificate = False
        self.client_log = client_log if client_log is not None and client_log.rate else None
        #: codecs of clients that compression is agreed on with, by subprotocol; none for none
        self.deflated: Mapping[str, wire.Codec] = {}
        self.draining = False
        #: the connections of clients, by their ids
        self.clients: dict[str, QuoteProtocol] = {}
        self.admission = Admission(limits, reactor)
        #: where connections come from; held while there are too many guests
        self.ports = Ports() if ports is None else ports
        #: other processes with which newcomers are shared, and clients of all that may be
        self.balance: Balance | None = None
        self.most_together: int | None = None
        self._relief: IDelayedCall | None = None
        self._when_empty: Deferred[None] | None = None
        self._serial = count(1)
        self._incidents = count(1)
        self.setProtocolOptions(  # type: ignore[no-untyped-call]  # the library's, unannotated
            webStatus=False,
            # A violation is answered by a close frame with its code, not by a bare disconnect.
            failByDrop=False,
            # Pages without an origin are a matter of `origins`, like all others.
            allowNullOrigin=True,
            # The time-outs are ours, exact and to the end of the TCP connection.
            openHandshakeTimeout=0,
            closeHandshakeTimeout=0,
            maxFramePayloadSize=limits.message,
            maxMessagePayloadSize=limits.message,
        )
        self.protocol = configured(QuoteProtocol, self)

    def next_conn(self) -> str:
        """An id for a connection, unique among all daemons that live at the same time."""
        return f"{self.hub.epoch}-{next(self._serial)}"

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
            outbox.send_last(outbox.codec.frames([wire.incident(outbox.codec, incident)]))
        except Exception:  # noqa: BLE001 - what failed may be just what tells it
            outbox.outlet.abort()
        else:
            outbox.outlet.close(CloseCode.INTERNAL_ERROR)

    def about(self, conn: str) -> About | None:
        """What its connection knows of the client `conn`; None where it has left."""
        connection = self.clients.get(conn)
        return None if connection is None else connection.about()

    def incident(self) -> str:
        """An id for a fault of ours, for the log and for the client that it hit."""
        return f"{self.hub.epoch}.{next(self._incidents)}"

    # -- who is there ----------------------------------------------------------------------------

    def counted_as(self, peer: IAddress | None) -> str | None:
        """The address that limits see in `peer`; None where it has none, and for a proxy."""
        address = address_of(peer)
        return None if self.trusted.includes(address) else address

    def buildProtocol(self, addr: IAddress | None) -> QuoteProtocol | None:
        """A connection was accepted from `addr`; None where it may not come in at all."""
        if not self.admission.admits(self.counted_as(addr)):
            self.counters.connections_refused += 1
            return None
        connection = super().buildProtocol(addr)
        assert isinstance(connection, QuoteProtocol)
        return connection

    def connection_came(self, connection: QuoteProtocol, address: str | None) -> None:
        """A TCP connection is there."""
        self.counters.connections_accepted += 1
        self.admission.came(connection, address)
        if self.balance is not None:
            self.balance.changed(self.admission.connections)
        if self.admission.crowded and self._relief is None:
            self._relieve()

    def connection_opened(self, connection: QuoteProtocol) -> None:
        """A connection became a client; the hub knows it from now on."""
        self.counters.handshakes += 1
        self.clients[connection.conn] = connection
        self.admission.became_client(connection)

    def connection_gone(self, connection: QuoteProtocol, address: str | None) -> None:
        """A TCP connection is no more."""
        self.counters.connections_closed += 1
        self.admission.gone(connection, address)
        if self.balance is not None:
            self.balance.changed(self.admission.connections)
        if self.admission.connections == 0 and self._when_empty is not None:
            waiting, self._when_empty = self._when_empty, None
            waiting.callback(None)

    def _relieve(self) -> None:
        """Too many guests: end the oldest; while they are all new, accept nobody."""
        admission = self.admission
        while admission.crowded and (oldest := admission.oldest_guest()) is not None:
            assert isinstance(oldest, QuoteProtocol)
            self.counters.aborted_handshakes += 1
            oldest.transport.abortConnection()
            # At once, where the transport tells of its end only later.
            admission.became_client(oldest)
        paused = self._relief is not None
        self._relief = None
        if admission.crowded and not self.draining:
            if not paused:
                self.ports.hold("crowded")
            self._relief = self.reactor.callLater(CROWDED_PAUSE, self._relieve)
        elif paused and not self.draining:
            self.ports.release("crowded")

    def full(self) -> bool:
        """Whether there are as many clients as may be, here or together with other processes."""
        here = self.hub.count_outboxes()
        if here >= self.limits.connections:
            return True
        most, balance = self.most_together, self.balance
        return most is not None and balance is not None and here + balance.others() >= most

    async def drain(self) -> None:
        """Wait until every connection is gone; pages and what is in its handshake end at once.

        If newcomers are not refused (`draining`), these have GUESTS_GRACE seconds first. Clients
        are sent away by others, and each closing connection has its own deadline.
        """
        if self._relief is not None:
            self._relief.cancel()
            self._relief = None
        until = self.reactor.seconds() + GUESTS_GRACE
        while not self.draining and self._newcomers() and self.reactor.seconds() < until:
            await task.deferLater(self.reactor, LOOK_EVERY)
        for guest in self._newcomers():
            guest.transport.abortConnection()
        if self.admission.connections:
            self._when_empty = Deferred()
            await self._when_empty

    def _newcomers(self) -> list[QuoteProtocol]:
        """The connections that are no clients yet, or never will be."""
        return [
            guest
            for guest in self.admission.guests()
            if isinstance(guest, QuoteProtocol) and guest.state == guest.STATE_CONNECTING
        ]

    def abort(self) -> None:
        """Drop every connection now."""
        for outbox in self.hub.outboxes():
            outbox.outlet.abort()
        for guest in self.admission.guests():
            assert isinstance(guest, QuoteProtocol)
            guest.transport.abortConnection()
