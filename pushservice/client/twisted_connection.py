"""One WebSocket connection of the client for Twisted, by Autobahn.

Must not know: subscriptions, tokens, or when to connect. The client's only user of Autobahn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from autobahn.websocket.compress import (
    PerMessageDeflateOffer,
    PerMessageDeflateResponse,
    PerMessageDeflateResponseAccept,
)
from twisted.internet import defer
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory, connectionDone
from twisted.python.failure import Failure

from pushservice.client.connection_errors import (
    BROKEN,
    CLOSE_TIMEOUT,
    MAX_MESSAGE,
    TLS_FAILED,
    refusal_text,
    retry_after,
)
from pushservice.client.conversation import Conversation
from pushservice.client.options import Options
from pushservice.client.twisted_tls import tls_fault
from pushservice.protocol.codecs import JSON_SUBPROTOCOL

#: bytes of a refusal's body that are waited for
_MAX_BODY: Final = 4096


class LinkObserver(Protocol):
    """Opens links, and receives their messages and how they ended."""

    @property
    def clock(self) -> IReactorTime:
        """What links take their time-outs from."""
        ...

    @property
    def place(self) -> str:
        """The address, for people."""
        ...

    def heard(self, link: Link, message: bytes) -> None:
        """A message came."""
        ...

    def ended(self, link: Link, tell: Callable[[Conversation, float], None]) -> None:
        """A connection is gone, or was never made; `tell` says how."""
        ...


class Link:
    """One connection, or the attempt to make it."""

    def __init__(self, service: LinkObserver) -> None:
        self.service = service
        self._attempt: defer.Deferred[Any] | None = None
        self._protocol: ClientProtocol | None = None

    def open(self, endpoint: IStreamClientEndpoint, factory: AutobahnFactory) -> None:
        """Begin to connect."""
        self._attempt = endpoint.connect(_LinkFactory(self, factory))
        self._attempt.addErrback(self._could_not_connect)

    def made(self, protocol: ClientProtocol) -> None:
        """TCP stands; TLS and the handshake follow."""
        self._protocol = protocol

    def say(self, text: str) -> None:
        """Send a message, where there is a connection."""
        if self._protocol is not None:
            self._protocol.say(text)

    def hang_up(self, *, politely: bool) -> None:
        """End the connection, or give up the attempt."""
        if self._protocol is not None:
            self._protocol.leave(politely=politely)
        elif self._attempt is not None:
            self._attempt.cancel()

    def _could_not_connect(self, failure: Failure) -> None:
        if self._protocol is None:
            reason = f"{self.service.place}: {failure.getErrorMessage()}"
            self.service.ended(self, lambda core, now: core.lost(now, BROKEN, reason))


class _Silent:
    """Replaces Autobahn's logger, which at debug level writes all that is sent, tokens too."""

    @staticmethod
    def debug(*args: object, **values: object) -> None:
        """Say nothing."""

    trace = info = warn = error = failure = debug


# Autobahn annotates its attributes by their first value, which forbids the defaults below.
_UntypedProtocol: Any = WebSocketClientProtocol
_UntypedFactory: Any = WebSocketClientFactory


class ClientProtocol(_UntypedProtocol):  # type: ignore[misc]  # the boundary to Autobahn
    """Autobahn's client protocol, which tells its link what a conversation wants to know."""

    transport: Any
    data: bytes
    log = _Silent()
    # Autobahn's reads it before it is set, and hides the error.
    tcpNoDelay = True

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link
        self._goodbye: IDelayedCall | None = None
        self._refusal: tuple[int, str | None] | None = None
        self._body = b""
        self._fault = ""

    def connectionMade(self) -> None:
        self._link.made(self)
        super().connectionMade()

    def dataReceived(self, data: bytes) -> None:
        if self._refusal is None:
            self._dataReceived(data)
        else:
            self._take_body(data)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self._link.service.heard(self._link, payload)

    def onCloseFrame(self, code: int | None, reasonRaw: bytes | None) -> Any:
        self._limit_goodbye()
        return super().onCloseFrame(code, reasonRaw)

    def say(self, text: str) -> None:
        """Send a message; one to a server that closes already is for the next link to repeat."""
        if self.state == self.STATE_OPEN:
            self.sendMessage(text.encode())

    def leave(self, *, politely: bool) -> None:
        """End the connection."""
        if politely and self.state == self.STATE_OPEN:
            self.sendClose(1000)
            self._limit_goodbye()
        elif self.transport is not None:
            self.transport.abortConnection()

    def _limit_goodbye(self) -> None:
        # Autobahn's own time-outs are kept by the global reactor, and outlive the connection.
        if self._goodbye is None:
            self._goodbye = self._link.service.clock.callLater(
                CLOSE_TIMEOUT, self.transport.abortConnection
            )

    def failHandshake(self, reason: str) -> None:
        """The server refused the handshake, or answered with something else than HTTP."""
        words = self.http_status_line.split()
        if len(words) > 1 and words[1].isdecimal() and words[1] != "101":
            self._refusal = (int(words[1]), self.http_headers.get("retry-after"))
            self._take_body(self.data.partition(b"\r\n\r\n")[2])
        else:
            self._fault = reason
            self.transport.abortConnection()

    def _take_body(self, data: bytes) -> None:
        # The body ends with the connection: the request did not ask for keep-alive.
        self._body += data
        length = self.http_headers.get("content-length", "")
        whole = int(length) if length.isdecimal() else _MAX_BODY
        if len(self._body) >= min(whole, _MAX_BODY):
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._goodbye is not None and self._goodbye.active():
            self._goodbye.cancel()
        self._connectionLost(reason)
        self._link.service.ended(self._link, self._how_it_ended(reason))

    def _how_it_ended(self, reason: Failure) -> Callable[[Conversation, float], None]:
        if self._refusal is not None:
            status, header = self._refusal
            text, wait = refusal_text(self._body), retry_after(header)
            return lambda core, now: core.refused(now, status, text, wait)
        fault = tls_fault(reason.value, self._link.service.place)
        if fault is not None and fault.lasting:
            return lambda core, now: core.failed(now, TLS_FAILED, fault.reason)
        if fault is not None:
            return lambda core, now: core.lost(now, BROKEN, fault.reason)
        code = self.remoteCloseCode
        text = (
            self.remoteCloseReason
            or self._fault
            or (self.wasNotCleanReason if code is None else "")
        )
        return lambda core, now: core.lost(now, code, text or "")


class AutobahnFactory(_UntypedFactory):  # type: ignore[misc]  # the boundary to Autobahn
    """Autobahn's factory, for the options it holds."""

    log = _Silent()


class _LinkFactory(Factory):
    """Makes the one protocol of a link."""

    noisy = False

    def __init__(self, link: Link, options: AutobahnFactory) -> None:
        self._link = link
        self._options = options

    def buildProtocol(self, addr: object) -> Any:
        protocol = ClientProtocol(self._link)
        protocol.factory = self._options
        return protocol


def autobahn_factory(options: Options, reactor: Any) -> AutobahnFactory:
    """Autobahn's settings for connections by these options."""
    factory = AutobahnFactory(options.url, protocols=[JSON_SUBPROTOCOL], reactor=reactor)
    factory.setProtocolOptions(
        # The conversation has its own limits of time.
        openHandshakeTimeout=0,
        closeHandshakeTimeout=0,
        serverConnectionDropTimeout=0,
        autoPingInterval=0,
        # msgspec finds what is no UTF-8, in no time of its own.
        utf8validateIncoming=False,
        maxFramePayloadSize=MAX_MESSAGE,
        maxMessagePayloadSize=MAX_MESSAGE,
    )
    if options.compression:
        factory.setProtocolOptions(
            perMessageCompressionOffers=[PerMessageDeflateOffer()],
            perMessageCompressionAccept=_accept_compression,
        )
    return factory


def _accept_compression(response: Any) -> Any:
    if isinstance(response, PerMessageDeflateResponse):
        return PerMessageDeflateResponseAccept(response)
    return None
