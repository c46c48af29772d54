"""The WebSocket edge: Autobahn's callbacks in, bytes out.

Must not know: symbols, commands or quotes. A connection that asks for a page instead of an upgrade
is handed, whole, to the site.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from autobahn.websocket.types import ConnectionDeny, ConnectionRequest
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHandshakeListener,
    IProtocol,
    IPushProducer,
    ISSLTransport,
)
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from pushservice.auth.identity import Identity, Refused, is_name
from pushservice.fanout.outbox import Outbox
from pushservice.protocol import wire
from pushservice.protocol.close_codes import CLOSE_REASONS, CloseCode
from pushservice.protocol.credentials import BadCredentials, offer, without_token, without_tokens
from pushservice.server.client_log import CLIENT, LOST, SERVER
from pushservice.server.client_reports import About
from pushservice.server.lean_autobahn import LeanProtocol
from pushservice.server.outlet import PortableOutlet
from pushservice.server.socket_info import bound_send_buffer, bytes_sent
from pushservice.session.authentication import Doorkeeper
from pushservice.session.rate_limit import Allowance
from pushservice.session.session import Session

if TYPE_CHECKING:
    from pushservice.server.factory import QuoteFactory

#: Bytes of an HTTP request's head.
MAX_REQUEST_HEAD: Final = 16 * 1024
#: Seconds and bytes of requests after which a connection that fetches pages is ended.
PAGE_TIMEOUT: Final = 60
MAX_PAGE_REQUESTS: Final = 64 * 1024
#: Bytes of an unfinished frame from a client that is being closed: a close frame has 131 at most.
MAX_KEPT_WHILE_CLOSING: Final = 1024
#: Seconds after which a client that was refused for lack of room may try again.
RETRY_AFTER: Final = 5

_UPGRADE_HEADER = re.compile(rb"\r\nupgrade[ \t]*:", re.IGNORECASE)
# What Autobahn takes for the end of a line beside CR LF and LF. HTTP does not (RFC 9112, 2.2): a
# cookie may have it.
_NO_LINE_END = re.compile(rb"\r(?!\n)|[\x0b\x0c\x1c-\x1e\x85]")
# No space before the colon, which proxies may take for another header and pass on.
_FORWARDED_FOR = re.compile(rb"\r\nx-forwarded-for:([^\r\n]*)", re.IGNORECASE)


@implementer(IHandshakeListener, IPushProducer)
class QuoteProtocol(LeanProtocol):
    """One connection: handshake, then a session; or a page."""

    factory: QuoteFactory

    conn = ""
    session: Session | None = None
    _outlet: PortableOutlet | None = None
    _page: IProtocol | None = None
    _page_bytes = 0
    _deadline: IDelayedCall | None = None
    _address: str | None = None
    _counted = False
    # What a client that is being closed may still send, and that it is not listened to any more.
    _parting: Allowance | None = None
    _deaf = False
    # A token is being looked at; and who it is, once that is known by the handshake.
    _verifying = False
    _identity: Identity | None = None
    # For the line about a client that goes: when it came, where such lines are written; what it was
    # handed and what was merged; how many bytes were sent.
    _came_at: float | None = None
    _handed = (0, 0)
    _user: str | None = None
    _sent: int | None = None
    # When it became a client.
    _opened_at = 0.0

    # -- the connection --------------------------------------------------------------------------

    def connectionMade(self) -> None:
        factory = self.factory
        self._address = factory.counted_as(self.transport.getPeer())
        factory.connection_came(self, self._address)
        self._counted = True
        self.conn = factory.next_conn()
        super().connectionMade()
        limits = factory.limits
        if address_of(self.transport.getHost()) is None:
            bound_send_buffer(getattr(self.transport, "socket", None), limits.send_buffer)
        secure = ISSLTransport.providedBy(self.transport)
        timeout = limits.tls_timeout if secure else limits.upgrade_timeout
        self._set_deadline(timeout, self._handshake_too_slow)

    def handshakeCompleted(self) -> None:
        """TLS is up; called by Twisted."""
        if self.state == self.STATE_CONNECTING and self._page is None:
            self._set_deadline(self.factory.limits.upgrade_timeout, self._handshake_too_slow)

    def dataReceived(self, data: bytes) -> None:
        if self._page is not None:
            self._page_bytes += len(data)
            if self._page_bytes > MAX_PAGE_REQUESTS:
                self.transport.abortConnection()
            else:
                self._page.dataReceived(data)
            return
        if self._deaf or self.state == self.STATE_CLOSED:
            return
        if self.session is not None:
            self.session.arrived(len(data))
        elif self._parting is not None:
            self._parting.arrived(len(data), self.factory.reactor.seconds())
        try:
            super().dataReceived(data)
            if self._parting is not None and len(self.data) > MAX_KEPT_WHILE_CLOSING:
                self._listen_no_more()
        except Exception:  # noqa: BLE001 - one client's fault closes that client alone
            self._fail(self._incident())

    def _incident(self) -> str:
        """Log the fault of ours that is being handled; the id by which the client is told of it."""
        self.factory.counters.client_failures += 1
        incident = self.factory.incident()
        self.factory.log.failure(
            "connection {conn} failed: incident {incident}", conn=self.conn, incident=incident
        )
        return incident

    def _fail(self, incident: str) -> None:
        """Tell the client of a fault of ours, and close it."""
        try:
            if self.state == self.STATE_CONNECTING and self._page is None:
                self.failHandshake(wire.internal_error(incident), HTTPStatus.INTERNAL_SERVER_ERROR)
                return
            if self.session is not None:
                self.session.failed(incident)
            self.close(CloseCode.INTERNAL_ERROR)
        except Exception:  # noqa: BLE001 - what failed may be just what tells it
            self._leave()
            self.transport.abortConnection()

    def onFrameBegin(self) -> None:
        if self.session is not None:
            if not self.session.frame():
                self.factory.admission.flooded(self._address)
                self._listen_no_more()
                return
        elif self._parting is not None:
            self._parting.frame()
            if self._parting.exhausted:
                self._listen_no_more()
                return
        super().onFrameBegin()

    def processData(self) -> bool:
        if self._deaf:
            self.data = b""
            return False
        more: bool = super().processData()
        return more

    def _listen_no_more(self) -> None:
        """What the client sends waits with the kernel, and costs nothing, until the close ends."""
        self._deaf = True
        self.data = b""
        if self.state != self.STATE_CLOSED:
            self.transport.pauseProducing()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._leave()
        self._say_gone()
        self._set_deadline(None)
        if self._page is not None:
            self._page.connectionLost(reason)
        if self._counted:
            self._counted = False
            self.factory.connection_gone(self, self._address)
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
        self.factory.counters.aborted_handshakes += 1
        self.transport.abortConnection()

    # -- the opening handshake -------------------------------------------------------------------

    def processHandshake(self) -> None:
        """Sort out what the client speaks as soon as its request's head is there."""
        if self._verifying:
            return
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
        # Trusted proxies have no address that counts, and say whose they come with.
        if self._address is None and not self._identified(end):
            self.factory.counters.connections_refused += 1
            self.failHandshake("too many connections from your address", 429)
        elif _UPGRADE_HEADER.search(data, 0, end):
            self.data = _NO_LINE_END.sub(b" ", data[:end]) + data[end:]
            super().processHandshake()
        elif data.startswith((b"GET ", b"HEAD ")):
            self._serve_page()
        else:
            self.failHandshake("only GET and HEAD are served here", 405)

    def _identified(self, end: int) -> bool:
        """Find out whom a proxy names in a request's head; False where they may not come in."""
        factory = self.factory
        if not factory.trusted.includes(address_of(self.transport.getPeer())):
            return True
        values = [value.decode("latin-1") for value in _FORWARDED_FOR.findall(self.data, 0, end)]
        self._address = factory.trusted.forwarded(values)
        return factory.admission.known_as(None, self._address)

    def _serve_page(self) -> None:
        self._set_deadline(PAGE_TIMEOUT, self.transport.abortConnection)
        page = self.factory.site.buildProtocol(self.transport.getPeer())
        data, self.data = self.data, b""
        self._page = page
        page.makeConnection(self.transport)
        self.dataReceived(data)

    def onConnect(self, request: ConnectionRequest) -> Any:
        """Accept with the first subprotocol offered that is known; none offered is fine too.

        Returns that and no headers, or a Deferred of it; raises ConnectionDeny, and nothing else:
        Autobahn would show the client the text of any other exception, and nobody else.
        """
        try:
            return self._decide(request)
        except ConnectionDeny:
            raise
        except Exception:  # noqa: BLE001 - said in the log, and to the client by an id
            raise self._denial_of_fault() from None

    def _denial_of_fault(self) -> ConnectionDeny:
        said = wire.internal_error(self._incident())
        return ConnectionDeny(HTTPStatus.INTERNAL_SERVER_ERROR.value, said)

    def _decide(self, request: ConnectionRequest) -> Any:
        factory = self.factory
        self._need_room()
        if factory.admission.crowded_out(self._address):
            factory.counters.connections_refused += 1
            raise ConnectionDeny(
                429, f"more than {factory.limits.per_address} connections from your address"
            )
        headers = request.headers
        fault = factory.origins.fault(headers.get("origin"), headers.get("host"))
        if fault is not None:
            factory.counters.origins_refused += 1
            raise ConnectionDeny(403, fault)
        doorkeeper = factory.doorkeeper
        if doorkeeper is None:
            # What a proxy, or somebody else, made of the headers is no concern here.
            return _choose(without_tokens(request.protocols)), {}
        try:
            offered = offer(headers, request.protocols, request.params, factory.token_in_url)
        except BadCredentials as error:
            raise ConnectionDeny(401, str(error)) from None
        chosen = _choose(offered.subprotocols)
        if offered.token is not None:
            return self._verify(doorkeeper, offered.token, chosen)
        if factory.by_certificate:
            shown = identity_of(self.transport.getPeerCertificate())
            self._accept(doorkeeper.accepted(shown) if isinstance(shown, Identity) else shown)
        return chosen, {}

    def _verify(self, doorkeeper: Doorkeeper, token: str, chosen: str | None) -> Any:
        """What `onConnect` answers once it is known who sent `token`."""
        verdict: Deferred[tuple[str | None, dict[str, str]]] = Deferred()
        at_once: list[Identity | Refused] = []
        waiting = False

        def done(outcome: Identity | Refused) -> None:
            if not waiting:
                at_once.append(outcome)
                return
            if not self._counted:
                # It did not wait, and Autobahn would open what is closed.
                return
            self._verifying = False
            self.transport.resumeProducing()
            try:
                self._accept(outcome)
                # Others may have come in meanwhile.
                self._need_room()
            except ConnectionDeny as denial:
                verdict.errback(denial)
            except Exception:  # noqa: BLE001 - as in `onConnect`
                verdict.errback(self._denial_of_fault())
            else:
                verdict.callback((chosen, {}))

        doorkeeper.verify(token, done)
        if at_once:
            self._accept(at_once[0])
            return chosen, {}
        # What comes along would be taken for a part of the request.
        waiting = self._verifying = True
        self.transport.pauseProducing()
        return verdict

    @property
    def compresses(self) -> bool:
        """Whether compression is agreed on with those who offer it."""
        return bool(self.factory.deflated)

    def _need_room(self) -> None:
        """Raises ConnectionDeny where there is no room for one more client."""
        factory = self.factory
        if factory.draining or factory.full():
            factory.counters.connections_refused += 1
            raise ConnectionDeny(503, "restarting" if factory.draining else "full")

    def _accept(self, outcome: Identity | Refused) -> None:
        """Keep who it is. Raises ConnectionDeny for who is refused."""
        if isinstance(outcome, Identity):
            self._identity = outcome
            return
        self.factory.counters.auth_failures += 1
        raise ConnectionDeny(503 if outcome.temporary else 401, f"the token is refused: {outcome}")

    def failHandshake(
        self,
        reason: str,
        code: int = 400,
        responseHeaders: Sequence[tuple[str, str]] | None = None,
    ) -> None:
        """Refuse in words; 503 and 429 say when to come again."""
        self.factory.counters.handshakes_refused += 1
        # Autobahn shows what it did not like.
        reason = without_token(reason)
        headers = list(responseHeaders or ())
        if code in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
            headers.append(("Retry-After", str(RETRY_AFTER)))
        elif code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers.append(("Allow", "GET, HEAD"))
        elif code == HTTPStatus.UNAUTHORIZED:
            headers.append(("WWW-Authenticate", "Bearer"))
        self.wasNotCleanReason = reason
        self.sendHttpErrorResponse(code, reason, headers)
        self.dropConnection(abort=False)

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
        self.settle()
        factory = self.factory
        codec = wire.CODECS.get(self.websocket_protocol_in_use or "", wire.JSON)
        if self.compressed:
            codec = factory.deflated[codec.name]
        self._outlet = factory.make_outlet(self.transport, self.close)
        outbox = Outbox(codec, self._outlet, factory.hub.common, self.conn)
        self._outlet.attach(outbox)
        self._opened_at = factory.reactor.seconds()
        factory.connection_opened(self)
        if factory.client_log is not None:
            self._came_at = factory.reactor.seconds()
            factory.client_log.came(self.conn, self._shown(), codec.name, user_of(identity))
            # In the outlet's place, for what `stopProducing` does.
            self.transport.unregisterProducer()
            self.transport.registerProducer(self, True)
        self.session = Session(
            factory.hub, outbox, factory.limits, factory.counters, factory.doorkeeper, identity
        )
        self.session.open()
        if codec.converses:
            factory.greet(outbox)
        if self.data:
            # It came along with the request, and is read next.
            self.session.arrived(len(self.data))

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self.session is None:
            return
        if self._isMessageCompressed:
            # What it became of is as much work as if it had come so.
            self.session.arrived(len(payload))
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
        self._set_deadline(self.factory.limits.close_timeout, self.transport.abortConnection)

    def dropConnection(self, abort: bool = False) -> None:
        """Every disconnect by us passes here; TLS peers that never answer are aborted in time."""
        self._leave()
        self._count_sent()
        # A peer that closed by the book gets an orderly end, not a reset.
        abort = abort and not self.wasClean
        super().dropConnection(abort)
        if not abort and self._counted:
            self._set_deadline(self.factory.limits.close_timeout, self.transport.abortConnection)

    def _leave(self) -> None:
        if self.session is not None:
            self.session.close()
            if self._came_at is not None:
                self._handed = (self.session.outbox.quotes, self.session.outbox.merged)
                self._user = user_of(self.session.identity)
            self._parting = self.session.allowance
            self.session = None
            self.factory.clients.pop(self.conn, None)
            self.factory.admission.closing(self)
        if self._outlet is not None:
            self._outlet.detach()
            self._outlet = None

    def about(self) -> About:
        """What is known of the client here."""
        identity = None if self.session is None else self.session.identity
        seconds = self.factory.reactor.seconds() - self._opened_at
        return About(self._shown(), user_of(identity), seconds)

    def _shown(self) -> str | None:
        """The address for people: the client's, or the proxy's that does not tell it.

        None on a Unix socket where nobody told.
        """
        return self._address or address_of(self.transport.getPeer())

    def _say_gone(self) -> None:
        """The log is told how it was, if it was told of a client."""
        factory, came_at = self.factory, self._came_at
        if came_at is None or factory.client_log is None:
            return
        self._came_at = None
        if self.closedByMe:
            by, code = SERVER, self.localCloseCode
        elif self.wasClean:
            by, code = CLIENT, self.remoteCloseCode
        else:
            by, code = LOST, None
        quotes, merged = self._handed
        factory.client_log.went(
            self.conn,
            self._shown(),
            self.websocket_protocol_in_use or wire.JSON.name,
            seconds=factory.reactor.seconds() - came_at,
            quotes=quotes,
            merged=merged,
            sent=self._sent,
            by=by,
            code=None if code is None else int(code),
            user=self._user,
        )

    def _count_sent(self) -> None:
        if self._came_at is not None:
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


def address_of(peer: IAddress | None) -> str | None:
    """The host of a connection's end as text; None where it has none, as on a Unix socket."""
    return getattr(peer, "host", None)


def user_of(identity: Identity | None) -> str | None:
    """Whom logs show for a client."""
    return None if identity is None else identity.user


def identity_of(certificate: Any) -> Identity | Refused:
    """Who shows this certificate, a pyOpenSSL X509: its subject, as RFC 4514 writes it."""
    if certificate is None:
        return Refused("no certificate was shown")
    subject = certificate.to_cryptography().subject.rfc4514_string()
    if is_name(subject):
        return Identity(user=subject)
    return Refused("the certificate's subject is no text of 1 to 128 printable characters")


def _choose(offered: Sequence[str]) -> str | None:
    """The first subprotocol that is known; None where none is offered. Raises ConnectionDeny."""
    if not offered:
        return None
    for name in offered:
        if name in wire.CODECS:
            return name
    raise ConnectionDeny(
        400, f"none of the subprotocols is known; known are {', '.join(wire.CODECS)}"
    )
