"""A client's WebSocket connection: Autobahn's callbacks in, bytes out, and its end.

Must not know: symbols, commands or quotes, or how a request became a WebSocket.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from pushservice.auth.identity import Identity
from pushservice.fanout.outbox import Outbox
from pushservice.protocol import events
from pushservice.protocol.close_codes import CLOSE_REASONS, CloseCode
from pushservice.protocol.codecs import CODECS, JSON
from pushservice.server.client_log import CLIENT, LOST, SERVER
from pushservice.server.client_reports import About
from pushservice.server.connections import address_of
from pushservice.server.handshake import HandshakeProtocol
from pushservice.server.outlets.portable import PortableOutlet
from pushservice.server.socket_info import bytes_sent
from pushservice.session.rate_limit import RateLimit
from pushservice.session.session import Session

#: Bytes of an unfinished frame from a client that is being closed: a close frame has 131 at most.
MAX_KEPT_WHILE_CLOSING: Final = 1024


@implementer(IPushProducer)
class QuoteProtocol(HandshakeProtocol):
    """One connection: handshake, then a session; or a page."""

    session: Session | None = None
    _outlet: PortableOutlet | None = None
    # How much a client that is being closed may still send, and whether it is not read any more.
    _closing_rate_limit: RateLimit | None = None
    _input_ignored = False
    # For the log line about a client's end: when it connected, where such lines are written; quotes
    # handed to it and merged; its user; how many bytes were sent.
    _logged_since: float | None = None
    _delivered = (0, 0)
    _user: str | None = None
    _sent: int | None = None
    # When it became a client.
    _opened_at = 0.0

    # -- what comes ------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        if self._page is not None:
            self._page_received(self._page, data)
            return
        if self._input_ignored or self.state == self.STATE_CLOSED:
            return
        if self.session is not None:
            self.session.arrived(len(data))
        elif self._closing_rate_limit is not None:
            self._closing_rate_limit.arrived(len(data), self.connections.reactor.seconds())
        try:
            super().dataReceived(data)
            if self._closing_rate_limit is not None and len(self.data) > MAX_KEPT_WHILE_CLOSING:
                self._ignore_input()
        except Exception:  # noqa: BLE001 - one client's fault closes that client alone
            self._fail(self._incident())

    def _fail(self, incident: str) -> None:
        """Tell the client of a fault of the server, and close it."""
        try:
            if self.state == self.STATE_CONNECTING and self._page is None:
                self.failHandshake(
                    events.internal_error(incident), HTTPStatus.INTERNAL_SERVER_ERROR
                )
                return
            if self.session is not None:
                self.session.failed(incident)
            self.close(CloseCode.INTERNAL_ERROR)
        except Exception:  # noqa: BLE001 - sending may be just what failed
            self._leave()
            self.transport.abortConnection()

    def onFrameBegin(self) -> None:
        if self.session is not None:
            if not self.session.frame():
                self.connections.limiter.flooded(self._address)
                self._ignore_input()
                return
        elif self._closing_rate_limit is not None:
            self._closing_rate_limit.frame()
            if self._closing_rate_limit.exhausted:
                self._ignore_input()
                return
        super().onFrameBegin()

    def processData(self) -> bool:
        if self._input_ignored:
            self.data = b""
            return False
        more: bool = super().processData()
        return more

    def _ignore_input(self) -> None:
        """Read no more until the close ends: what the client sends stays with the kernel."""
        self._input_ignored = True
        self.data = b""
        if self.state != self.STATE_CLOSED:
            self.transport.pauseProducing()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._leave()
        self._log_end()
        self._set_deadline(None)
        if self._page is not None:
            self._page.connectionLost(reason)
        if self._counted:
            self._counted = False
            self.connections.closed(self, self._address)
        super().connectionLost(reason)

    # -- the open connection ---------------------------------------------------------------------

    def succeedHandshake(self, res: tuple[str | None, dict[str, str]]) -> None:
        """Answer, open, and read what came along; called within a Deferred, which hides faults."""
        try:
            super().succeedHandshake(res)
        except Exception:  # noqa: BLE001 - one client's fault closes that client alone
            self._fail(self._incident())

    def onOpen(self) -> None:
        self._set_deadline(None)
        identity = self._identity
        self.drop_handshake_state()
        connections = self.connections
        codec = CODECS.get(self.websocket_protocol_in_use or "", JSON)
        if self.compressed:
            codec = connections.deflated[codec.name]
        self._outlet = connections.make_outlet(self.transport, self.close)
        outbox = Outbox(codec, self._outlet, connections.hub.common, self.conn)
        self._outlet.attach(outbox)
        self._opened_at = connections.reactor.seconds()
        connections.opened(self)
        if connections.client_log is not None:
            self._logged_since = connections.reactor.seconds()
            connections.client_log.connected(
                self.conn, self._shown_address(), codec.name, user_of(identity)
            )
            # In the outlet's place, because `stopProducing` counts the bytes that were sent.
            self.transport.unregisterProducer()
            self.transport.registerProducer(self, True)
        self.session = Session(
            connections.hub,
            outbox,
            connections.limits,
            connections.counters,
            connections.access_control,
            identity,
        )
        self.session.open()
        if codec.converses:
            connections.greet(outbox)
        if self.data:
            # It came along with the request, and is read next.
            self.session.arrived(len(self.data))

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self.session is None:
            return
        if self._isMessageCompressed:
            # A compressed message counts with its inflated size, too.
            self.session.arrived(len(payload))
        if isBinary:
            self.close(CloseCode.UNSUPPORTED_DATA)
        else:
            self.session.receive(payload)

    def onPing(self, payload: bytes) -> None:
        if self.session is not None:
            self.session.ping(payload)

    # -- closing ---------------------------------------------------------------------------------

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
        self._set_deadline(self.connections.limits.close_timeout, self.transport.abortConnection)

    def dropConnection(self, abort: bool = False) -> None:
        """Every disconnect by us passes here; TLS peers that never answer are aborted in time."""
        self._leave()
        self._count_sent()
        # A peer that finished the closing handshake gets an orderly end, not a reset.
        abort = abort and not self.wasClean
        super().dropConnection(abort)
        if not abort and self._counted:
            timeout = self.connections.limits.close_timeout
            self._set_deadline(timeout, self.transport.abortConnection)

    def _leave(self) -> None:
        """End the session, which leaves the hub, and take the outlet off the transport."""
        if self.session is not None:
            self.session.close()
            if self._logged_since is not None:
                self._delivered = (self.session.outbox.quotes, self.session.outbox.merged)
                self._user = user_of(self.session.identity)
            self._closing_rate_limit = self.session.rate_limit
            self.session = None
            self.connections.closing(self)
        if self._outlet is not None:
            self._outlet.detach()
            self._outlet = None

    # -- what operators are shown ----------------------------------------------------------------

    def about(self) -> About:
        """The client's address, user and age."""
        identity = None if self.session is None else self.session.identity
        seconds = self.connections.reactor.seconds() - self._opened_at
        return About(self._shown_address(), user_of(identity), seconds)

    def _shown_address(self) -> str | None:
        """The client's address, or its proxy's where that names none; None on a Unix socket."""
        return self._address or address_of(self.transport.getPeer())

    def _log_end(self) -> None:
        """Write the log line about the end of a client whose begin was logged."""
        connections, since = self.connections, self._logged_since
        if since is None or connections.client_log is None:
            return
        self._logged_since = None
        if self.closedByMe:
            by, code = SERVER, self.localCloseCode
        elif self.wasClean:
            by, code = CLIENT, self.remoteCloseCode
        else:
            by, code = LOST, None
        quotes, merged = self._delivered
        connections.client_log.disconnected(
            self.conn,
            self._shown_address(),
            self.websocket_protocol_in_use or JSON.name,
            seconds=connections.reactor.seconds() - since,
            quotes=quotes,
            merged=merged,
            sent=self._sent,
            by=by,
            code=None if code is None else int(code),
            user=self._user,
        )

    def _count_sent(self) -> None:
        """Ask the kernel how many bytes it sent, while the socket is open."""
        if self._logged_since is not None:
            sent = bytes_sent(getattr(self.transport, "socket", None))
            self._sent = self._sent if sent is None else sent

    # -- IPushProducer: what the transport calls where clients are logged ------------------------

    def pauseProducing(self) -> None:
        """The transport is full."""
        if self._outlet is not None:
            self._outlet.pauseProducing()

    def resumeProducing(self) -> None:
        """The transport has drained."""
        if self._outlet is not None:
            self._outlet.resumeProducing()

    def stopProducing(self) -> None:
        """The connection is lost, and its socket is open for the last time."""
        self._count_sent()


def user_of(identity: Identity | None) -> str | None:
    """The user that logs and reports show for a client."""
    return None if identity is None else identity.user
