"""The WebSocket edge: Autobahn's callbacks in, bytes out.

Must not know: symbols, commands or quotes. A connection that asks for a page instead of an upgrade
is handed, whole, to the site.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import count
from typing import Any, Final

from autobahn.twisted.websocket import WebSocketServerFactory
from autobahn.websocket.types import ConnectionDeny, ConnectionRequest
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import Site

from pushservice import wire
from pushservice.closing import CLOSE_REASONS, CloseCode
from pushservice.hub import Hub
from pushservice.lean import LeanProtocol, configured
from pushservice.metrics import Counters
from pushservice.outbox import Outbox
from pushservice.outlet import PortableOutlet
from pushservice.session import Limits, Session

#: Seconds from the TCP accept to the end of the opening handshake, TLS included.
HANDSHAKE_TIMEOUT: Final = 10
#: Seconds in which a peer has to answer a close before the connection is aborted.
CLOSE_TIMEOUT: Final = 5
#: Bytes of an HTTP request's head.
MAX_REQUEST_HEAD: Final = 16 * 1024
#: Connections beyond the clients' limit, for handshakes, refusals and pages.
SPARE_CONNECTIONS: Final = 64
#: Seconds after which a client that was refused for lack of room may try again.
RETRY_AFTER: Final = 5

_UPGRADE_HEADER = re.compile(rb"\r\nupgrade[ \t]*:", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What all connections together may use, and what an opening handshake may take.

    `connections`: clients and unfinished handshakes at a time; the time-outs are in seconds.
    """

    connections: int
    handshake_timeout: float = HANDSHAKE_TIMEOUT
    close_timeout: float = CLOSE_TIMEOUT


class QuoteProtocol(LeanProtocol):
    """One connection: handshake, then a session; or a page."""

    factory: QuoteFactory

    conn = ""
    session: Session | None = None
    _outlet: PortableOutlet | None = None
    _page: IProtocol | None = None
    _deadline: IDelayedCall | None = None
    _counted = False

    # -- the connection --------------------------------------------------------------------------

    def connectionMade(self) -> None:
        factory = self.factory
        factory.connection_came(self)
        self._counted = True
        self.conn = factory.next_conn()
        super().connectionMade()
        if factory.open_connections > factory.bounds.connections + SPARE_CONNECTIONS:
            factory.counters.connections_refused += 1
            self.transport.abortConnection()
            return
        self._set_deadline(factory.bounds.handshake_timeout, self._handshake_too_slow)

    def dataReceived(self, data: bytes) -> None:
        if self._page is not None:
            self._page.dataReceived(data)
        else:
            try:
                super().dataReceived(data)
            except Exception:  # noqa: BLE001 - one client's fault closes that client alone
                self.factory.log.failure("connection {conn} failed", conn=self.conn)
                self.factory.counters.client_failures += 1
                self._leave()
                self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._leave()
        self._set_deadline(None)
        if self._page is not None:
            self._page.connectionLost(reason)
        if self._counted:
            self._counted = False
            self.factory.connection_gone(self)
        super().connectionLost(reason)

    def _set_deadline(self, seconds: float | None, call: Callable[[], None] | None = None) -> None:
        """At most one deadline runs on a connection; None ends it."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if seconds is not None and call is not None:

            def expired() -> None:
                self._deadline = None
                call()

            self._deadline = self.factory.reactor.callLater(seconds, expired)

    def _handshake_too_slow(self) -> None:
        self.factory.counters.handshakes_refused += 1
        self.transport.abortConnection()

    # -- the opening handshake -------------------------------------------------------------------

    def processHandshake(self) -> None:
        """Sort out what the client speaks as soon as its request's head is there."""
        data = self.data
        if data and not data[:1].isalpha():
            self.failHandshake("this port speaks HTTP and ws:// without TLS")
            return
        end = data.find(b"\r\n\r\n")
        if end < 0 and len(data) <= MAX_REQUEST_HEAD:
            return
        if not 0 <= end <= MAX_REQUEST_HEAD:
            self.failHandshake(f"the head of the request is over {MAX_REQUEST_HEAD} bytes", 431)
            return
        if _UPGRADE_HEADER.search(data, 0, end):
            super().processHandshake()
        elif data.startswith((b"GET ", b"HEAD ")):
            self._serve_page()
        else:
            self.failHandshake("only GET and HEAD are served here", 405)

    def _serve_page(self) -> None:
        self._set_deadline(None)
        page = self.factory.site.buildProtocol(self.transport.getPeer())
        data, self.data = self.data, b""
        self._page = page
        page.makeConnection(self.transport)
        page.dataReceived(data)

    def onConnect(self, request: ConnectionRequest) -> tuple[str | None, dict[str, str]]:
        """Accept with the first subprotocol offered that is known; none offered is fine too."""
        factory = self.factory
        if factory.draining or factory.hub.count_outboxes() >= factory.bounds.connections:
            factory.counters.connections_refused += 1
            raise ConnectionDeny(503, "restarting" if factory.draining else "full")
        offered: Sequence[str] = request.protocols
        if not offered:
            return None, {}
        for name in offered:
            if name in wire.CODECS:
                return name, {}
        raise ConnectionDeny(
            400, f"none of the subprotocols is known; known are {', '.join(wire.CODECS)}"
        )

    def failHandshake(
        self,
        reason: str,
        code: int = 400,
        responseHeaders: Sequence[tuple[str, str]] | None = None,
    ) -> None:
        """Refuse in words; 503 says when to come again."""
        self.factory.counters.handshakes_refused += 1
        headers = list(responseHeaders or ())
        if code == HTTPStatus.SERVICE_UNAVAILABLE:
            headers.append(("Retry-After", str(RETRY_AFTER)))
        elif code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers.append(("Allow", "GET, HEAD"))
        self.wasNotCleanReason = reason
        self.sendHttpErrorResponse(code, reason, headers)
        self.dropConnection(abort=False)

    # -- the open connection ---------------------------------------------------------------------

    def onOpen(self) -> None:
        self._set_deadline(None)
        self.settle()
        factory = self.factory
        codec = wire.CODECS.get(self.websocket_protocol_in_use or "", wire.JSON)
        self._outlet = factory.make_outlet(self.transport, self.close)
        outbox = Outbox(codec, self._outlet)
        self._outlet.attach(outbox)
        factory.connection_opened(self)
        self.session = Session(self.conn, factory.hub, outbox, factory.limits, factory.counters)
        self.session.open()

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self.session is None:
            return
        if isBinary:
            self.close(CloseCode.UNSUPPORTED_DATA)
        else:
            self.session.receive(payload)

    def onPing(self, payload: bytes) -> None:
        if self.session is not None:
            self.session.ping(payload)

    # -- leaving ---------------------------------------------------------------------------------

    def close(self, code: CloseCode) -> None:
        """Begin the closing handshake; without an answer it ends in an abort."""
        if self.state == self.STATE_OPEN:
            self.sendCloseFrame(code=code, reasonUtf8=CLOSE_REASONS[code].encode(), isReply=False)
        else:
            self.dropConnection(abort=True)

    def sendCloseFrame(
        self,
        code: int | None = None,
        reasonUtf8: bytes | None = None,
        isReply: bool = False,
    ) -> None:
        """Every closing handshake passes here: the client leaves the hub before it begins."""
        self._leave()
        super().sendCloseFrame(code=code, reasonUtf8=reasonUtf8, isReply=isReply)
        self._set_deadline(self.factory.bounds.close_timeout, self.transport.abortConnection)

    def dropConnection(self, abort: bool = False) -> None:
        """Every disconnect by us passes here; TLS peers that never answer are aborted in time."""
        self._leave()
        # A peer that closed by the book gets an orderly end, not a reset.
        abort = abort and not self.wasClean
        super().dropConnection(abort)
        if not abort and self._counted:
            self._set_deadline(self.factory.bounds.close_timeout, self.transport.abortConnection)

    def _leave(self) -> None:
        if self.session is not None:
            self.session.close()
            self.session = None
        if self._outlet is not None:
            self._outlet.detach()
            self._outlet = None


class QuoteFactory(WebSocketServerFactory):
    """Makes connections; holds what they share, and none of them."""

    log = Logger()
    noisy = False

    def __init__(
        self,
        reactor: Any,
        hub: Hub,
        limits: Limits,
        bounds: Bounds,
        site: Site,
        counters: Counters,
        make_outlet: Callable[[Any, Callable[[CloseCode], None]], PortableOutlet] = PortableOutlet,
    ) -> None:
        super().__init__(reactor=reactor, server="")  # type: ignore[no-untyped-call]  # the library's, unannotated
        self.make_outlet = make_outlet
        self.hub = hub
        self.limits = limits
        self.bounds = bounds
        self.site = site
        self.counters = counters
        self.draining = False
        #: TCP connections that exist, whatever their state
        self.open_connections = 0
        # Handshakes and pages; a client is held by the hub alone.
        self._unfinished: set[QuoteProtocol] = set()
        self._when_empty: Deferred[None] | None = None
        self._serial = count(1)
        self.setProtocolOptions(  # type: ignore[no-untyped-call]  # the library's, unannotated
            webStatus=False,
            # A violation is answered by a close frame with its code, not by a bare disconnect.
            failByDrop=False,
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
        self.log.failure(
            "delivery to a client failed; closing it",
            Failure(failure, type(failure), failure.__traceback__),
        )
        outbox.outlet.close(CloseCode.INTERNAL_ERROR)

    def connection_came(self, connection: QuoteProtocol) -> None:
        """A TCP connection was accepted."""
        self.open_connections += 1
        self.counters.connections_accepted += 1
        self._unfinished.add(connection)

    def connection_opened(self, connection: QuoteProtocol) -> None:
        """A connection became a client; the hub knows it from now on."""
        self.counters.handshakes += 1
        self._unfinished.discard(connection)

    def connection_gone(self, connection: QuoteProtocol) -> None:
        """A TCP connection is no more."""
        self.open_connections -= 1
        self.counters.connections_closed += 1
        self._unfinished.discard(connection)
        if self.open_connections == 0 and self._when_empty is not None:
            waiting, self._when_empty = self._when_empty, None
            waiting.callback(None)

    async def drain(self) -> None:
        """Drop handshakes and pages, and wait until every client that is being closed is gone.

        Ends in time by itself: each closing connection has its own deadline.
        """
        for connection in list(self._unfinished):
            connection.transport.abortConnection()
        if self.open_connections:
            self._when_empty = Deferred()
            await self._when_empty
