"""A connection until it is a client: the TCP accept, the request, then an upgrade, refusal or page.

Must not know: symbols, commands or quotes, or what follows once a client's connection is open. A
connection that asks for a page instead of an upgrade is handed, whole, to the site.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Final

from autobahn.websocket.types import ConnectionDeny, ConnectionRequest
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IHandshakeListener, IProtocol, ISSLTransport
from zope.interface import implementer

from pushservice.auth.identity import Identity, Refused, is_name
from pushservice.protocol import events
from pushservice.protocol.codecs import CODECS
from pushservice.protocol.credentials import BadCredentials, offer, without_token, without_tokens
from pushservice.server.connections import Connections, address_of
from pushservice.server.lean_autobahn import LeanProtocol
from pushservice.server.socket_info import bound_send_buffer
from pushservice.session.authentication import AccessControl

#: Bytes of an HTTP request's head.
MAX_REQUEST_HEAD: Final = 16 * 1024
#: Seconds and bytes of requests after which a connection that fetches pages is ended.
PAGE_TIMEOUT: Final = 60
MAX_PAGE_REQUESTS: Final = 64 * 1024
#: Seconds after which a client that was refused for lack of room may try again.
RETRY_AFTER: Final = 5

_UPGRADE_HEADER = re.compile(rb"\r\nupgrade[ \t]*:", re.IGNORECASE)
# What Autobahn takes for the end of a line beside CR LF and LF. HTTP does not (RFC 9112, 2.2): a
# cookie may have it.
_NO_LINE_END = re.compile(rb"\r(?!\n)|[\x0b\x0c\x1c-\x1e\x85]")
# No space before the colon, which proxies may take for another header and pass on.
_FORWARDED_FOR = re.compile(rb"\r\nx-forwarded-for:([^\r\n]*)", re.IGNORECASE)


@implementer(IHandshakeListener)
class HandshakeProtocol(LeanProtocol):
    """One connection up to its opening; what follows is a subclass's."""

    #: what all connections of a factory share
    connections: Connections

    conn = ""
    _page: IProtocol | None = None
    _page_bytes = 0
    _deadline: IDelayedCall | None = None
    _address: str | None = None
    _counted = False
    # Whether a token is being verified; and who the client is, once the handshake tells.
    _verifying = False
    _identity: Identity | None = None

    # -- the connection --------------------------------------------------------------------------

    def connectionMade(self) -> None:
        connections = self.connections
        self._address = connections.counted_as(self.transport.getPeer())
        connections.accepted(self, self._address)
        self._counted = True
        self.conn = connections.next_conn()
        super().connectionMade()
        limits = connections.limits
        if address_of(self.transport.getHost()) is None:
            bound_send_buffer(getattr(self.transport, "socket", None), limits.send_buffer)
        secure = ISSLTransport.providedBy(self.transport)
        timeout = limits.tls_timeout if secure else limits.upgrade_timeout
        self._set_deadline(timeout, self._handshake_too_slow)

    def handshakeCompleted(self) -> None:
        """The TLS handshake is done; called by Twisted."""
        if self.state == self.STATE_CONNECTING and self._page is None:
            self._set_deadline(self.connections.limits.upgrade_timeout, self._handshake_too_slow)

    @property
    def is_opening(self) -> bool:
        """Whether it is in its opening handshake, or fetches a page."""
        return bool(self.state == self.STATE_CONNECTING)

    def _set_deadline(self, seconds: float | None, call: Callable[[], None] | None = None) -> None:
        """At most one deadline runs on a connection; None ends it."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if seconds is not None and call is not None:

            def expired() -> None:
                self._deadline = None
                call()

            self._deadline = self.connections.reactor.callLater(seconds, expired)

    def _handshake_too_slow(self) -> None:
        self.connections.counters.aborted_handshakes += 1
        self.transport.abortConnection()

    def _incident(self) -> str:
        """Log the exception that is being handled; the id by which the client is told of it."""
        self.connections.counters.client_failures += 1
        incident = self.connections.incident()
        self.connections.log.failure(
            "connection {conn} failed: incident {incident}", conn=self.conn, incident=incident
        )
        return incident

    # -- the request -----------------------------------------------------------------------------

    def processHandshake(self) -> None:
        """Find out what the client speaks as soon as the head of its request is complete."""
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
        # A trusted proxy has no address that counts, and names that of its client.
        if self._address is None and not self._forwarded_address_admitted(end):
            self.connections.counters.connections_refused += 1
            self.failHandshake("too many connections from your address", 429)
        elif _UPGRADE_HEADER.search(data, 0, end):
            self.data = _NO_LINE_END.sub(b" ", data[:end]) + data[end:]
            super().processHandshake()
        elif data.startswith((b"GET ", b"HEAD ")):
            self._serve_page()
        else:
            self.failHandshake("only GET and HEAD are served here", 405)

    def _forwarded_address_admitted(self, end: int) -> bool:
        """Take the address that a proxy names in the head; False where it may not come in."""
        connections = self.connections
        if not connections.trusted.includes(address_of(self.transport.getPeer())):
            return True
        values = [value.decode("latin-1") for value in _FORWARDED_FOR.findall(self.data, 0, end)]
        self._address = connections.trusted.forwarded(values)
        return connections.limiter.address_changed(None, self._address)

    def _serve_page(self) -> None:
        self._set_deadline(PAGE_TIMEOUT, self.transport.abortConnection)
        page = self.connections.site.buildProtocol(self.transport.getPeer())
        data, self.data = self.data, b""
        self._page = page
        page.makeConnection(self.transport)
        self.dataReceived(data)

    def _page_received(self, page: IProtocol, data: bytes) -> None:
        self._page_bytes += len(data)
        if self._page_bytes > MAX_PAGE_REQUESTS:
            self.transport.abortConnection()
        else:
            page.dataReceived(data)

    # -- whether it becomes a client -------------------------------------------------------------

    def onConnect(self, request: ConnectionRequest) -> Any:
        """Accept with the first subprotocol offered that is known; none offered is fine too.

        Returns that and no headers, or a Deferred of it; raises ConnectionDeny and nothing else:
        Autobahn would send the text of any other exception to the client, and log nothing.
        """
        try:
            return self._decide(request)
        except ConnectionDeny:
            raise
        except Exception:  # noqa: BLE001 - it is logged, and the client gets the incident's id
            raise self._denial_of_fault() from None

    def _denial_of_fault(self) -> ConnectionDeny:
        reason = events.internal_error(self._incident())
        return ConnectionDeny(HTTPStatus.INTERNAL_SERVER_ERROR.value, reason)

    def _decide(self, request: ConnectionRequest) -> Any:
        connections = self.connections
        self._check_room()
        if connections.limiter.over_address_limit(self._address):
            connections.counters.connections_refused += 1
            raise ConnectionDeny(
                429, f"more than {connections.limits.per_address} connections from your address"
            )
        headers = request.headers
        fault = connections.origins.fault(headers.get("origin"), headers.get("host"))
        if fault is not None:
            connections.counters.origins_refused += 1
            raise ConnectionDeny(403, fault)
        access_control = connections.access_control
        if access_control is None:
            # Credentials are not looked at: a proxy, or somebody else, may have put them there.
            return _choose(without_tokens(request.protocols)), {}
        try:
            offered = offer(headers, request.protocols, request.params, connections.token_in_url)
        except BadCredentials as error:
            raise ConnectionDeny(401, str(error)) from None
        chosen = _choose(offered.subprotocols)
        if offered.token is not None:
            return self._verify(access_control, offered.token, chosen)
        if connections.by_certificate:
            shown = identity_of(self.transport.getPeerCertificate())
            self._accept(access_control.check(shown) if isinstance(shown, Identity) else shown)
        return chosen, {}

    def _verify(self, access_control: AccessControl, token: str, chosen: str | None) -> Any:
        """What `onConnect` answers once `token` is verified."""
        verdict: Deferred[tuple[str | None, dict[str, str]]] = Deferred()
        at_once: list[Identity | Refused] = []
        waiting = False

        def done(outcome: Identity | Refused) -> None:
            if not waiting:
                at_once.append(outcome)
                return
            if not self._counted:
                # The connection is lost, and Autobahn would open it.
                return
            self._verifying = False
            self.transport.resumeProducing()
            try:
                self._accept(outcome)
                # Other clients may have connected meanwhile.
                self._check_room()
            except ConnectionDeny as denial:
                verdict.errback(denial)
            except Exception:  # noqa: BLE001 - as in `onConnect`
                verdict.errback(self._denial_of_fault())
            else:
                verdict.callback((chosen, {}))

        access_control.verify(token, done)
        if at_once:
            self._accept(at_once[0])
            return chosen, {}
        # Autobahn would take what comes meanwhile for a part of the request.
        waiting = self._verifying = True
        self.transport.pauseProducing()
        return verdict

    @property
    def compresses(self) -> bool:
        """Whether compression is agreed on with clients that offer it."""
        return bool(self.connections.deflated)

    def _check_room(self) -> None:
        """Raises ConnectionDeny where there is no room for one more client."""
        connections = self.connections
        if connections.draining or connections.full():
            connections.counters.connections_refused += 1
            raise ConnectionDeny(503, "restarting" if connections.draining else "full")

    def _accept(self, outcome: Identity | Refused) -> None:
        """Keep the client's identity. Raises ConnectionDeny for a refusal."""
        if isinstance(outcome, Identity):
            self._identity = outcome
            return
        self.connections.counters.auth_failures += 1
        raise ConnectionDeny(503 if outcome.temporary else 401, f"the token is refused: {outcome}")

    def failHandshake(
        self,
        reason: str,
        code: int = 400,
        responseHeaders: Sequence[tuple[str, str]] | None = None,
    ) -> None:
        """Refuse with a reason; 503 and 429 say when to try again."""
        self.connections.counters.handshakes_refused += 1
        # Autobahn quotes parts of the request in its reasons.
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
        if name in CODECS:
            return name
    raise ConnectionDeny(400, f"none of the subprotocols is known; known are {', '.join(CODECS)}")
