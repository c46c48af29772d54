"""Autobahn's server protocol made lean: less memory, CPU and log a connection, same behaviour.

Must not know: sessions, quotes, pages, or why connections come and go. Only this file,
server/handshake.py and server/factory.py import Autobahn.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, ClassVar, Final

from autobahn.exception import PayloadCorruptError, PayloadExceededError
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.protocol import TrafficStats
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from pushservice.protocol.deflate import EXTENSION, Corrupt, Inflation, TooLong, agree

#: The attributes of a connection that differ between open ones.
_KEPT_WHEN_OPEN: Final = (
    "transport",
    "factory",
    "connected",
    "conn",
    "state",
    "data",
    "utf8validator",
    "websocket_version",
    "websocket_protocol_in_use",
    "_perMessageCompress",
    "_address",
    "_counted",
)


_EXTENSIONS: Final = re.compile(rb"\r\nsec-websocket-extensions[ \t]*:([^\r\n]*)", re.IGNORECASE)


class _NoLog:
    """Replaces Autobahn's logger, which formats eagerly, and names neither client nor cause."""

    @staticmethod
    def debug(*args: object, **values: object) -> None:
        """Say nothing."""

    trace = info = warn = error = failure = debug


class _NoDeferred:
    """Replaces Autobahn's Deferreds of opening and closing, which nothing here waits for."""

    @staticmethod
    def callback(result: object) -> None:
        """Tell nobody."""


class _Inflater:
    """Replaces Autobahn's deflate, which keeps an inflater for each connection."""

    __slots__ = ("_message", "_window_bits")

    EXTENSION_NAME = EXTENSION

    def __init__(self, window_bits: int) -> None:
        self._window_bits = window_bits
        self._message: Inflation | None = None

    def start_decompress_message(self) -> None:
        self._message = Inflation(self._window_bits)

    def decompress_message_data(self, data: bytes, max_output_len: int) -> bytes:
        if self._message is None:
            # The rest of a message that was refused; only its end matters.
            return b""
        try:
            return self._message.feed(data, max_output_len)
        except TooLong as error:
            self._message = None
            raise PayloadExceededError(str(error)) from None
        except Corrupt as error:
            self._message = None
            raise PayloadCorruptError(str(error)) from None

    def end_decompress_message(self) -> None:
        message, self._message = self._message, None
        if message is not None:
            try:
                message.end()
            except Corrupt as error:
                raise PayloadCorruptError(str(error)) from None


# Autobahn annotates its attributes by their first value, which forbids the defaults below.
_Untyped: Any = WebSocketServerProtocol


class LeanProtocol(_Untyped):  # type: ignore[misc]  # the boundary to Autobahn
    """Autobahn's server protocol, for connections that are many and mostly idle.

    Autobahn gives every connection some ninety attributes, most of them options and flags that
    never change. Here all connections share them: options are attributes of the class (see
    `configured`), flags its defaults. `drop_handshake_state` removes from an open connection what
    only its handshake needed.
    """

    # Twisted declares less than a stream transport can do: this one can abort.
    transport: Any
    data: bytes
    message_data: Any
    log = _NoLog()

    #: Autobahn copies these options to each connection: none, since `configured` sets them.
    CONFIG_ATTRS: Sequence[str] = ()
    is_open = is_closed = _NoDeferred()
    #: counted for all together, and read by nobody
    trafficStats = TrafficStats()
    #: used by chopped writes alone, which are not made here
    send_queue: ClassVar[deque[Any]] = deque()
    trackedTimings = None
    #: what a client's compressed messages are inflated with; None where nothing was agreed on
    _perMessageCompress: Any = None
    websocket_extensions: Any
    _isMessageCompressed = False
    send_state = WebSocketServerProtocol.SEND_STATE_GROUND
    triggered = inside_message = False
    wasMaxFramePayloadSizeExceeded = wasMaxMessagePayloadSizeExceeded = False
    closedByMe = failedByMe = droppedByMe = wasClean = False
    wasServerConnectionDropTimeout = wasOpenHandshakeTimeout = wasCloseHandshakeTimeout = False
    wasServingFlashSocketPolicyFile = False
    wasNotCleanReason: str | None = None
    localCloseCode = localCloseReason = None
    remoteCloseCode = remoteCloseReason = current_frame = None
    openHandshakeTimeoutCall = closeHandshakeTimeoutCall = None
    autoPingTimeoutCall = autoPingPending = autoPingPendingCall = autoPingPendingSent = None
    autoPingPendingSeq = 0

    def __init__(self) -> None:
        # Autobahn's makes two Deferreds and a table of listeners.
        pass

    def connectionMade(self) -> None:
        if hasattr(self.transport, "setTcpNoDelay"):
            # Autobahn tries to, and fails silently: every burst could wait 40 ms.
            self.transport.setTcpNoDelay(1)
            self.transport.setTcpKeepAlive(1)
        # Past the adapter, which describes the transport at length for its log.
        self._connectionMade()

    def dataReceived(self, data: bytes) -> None:
        self._dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._connectionLost(reason)

    def _onOpen(self) -> None:
        # Past the adapter, which reads the TLS channel's id and the peer's certificate.
        self.onOpen()

    @property
    def compresses(self) -> bool:
        """Whether compression is agreed on with those who offer it."""
        return False

    @property
    def compressed(self) -> bool:
        """Whether compression was agreed on, in the opening handshake."""
        return self._perMessageCompress is not None

    def processHandshake(self) -> None:
        # A client may spread its offers over several headers, which are the same as one with all of
        # them (RFC 6455, section 9.1); Autobahn refuses that.
        head, end, rest = self.data.partition(b"\r\n\r\n")
        offers = _EXTENSIONS.findall(head)
        if end and len(offers) > 1:
            head = _EXTENSIONS.sub(b"", head)
            self.data = b"%b\r\nSec-WebSocket-Extensions: %b%b%b" % (
                head,
                b",".join(offers),
                end,
                rest,
            )
        super().processHandshake()

    def succeedHandshake(self, res: tuple[str | None, dict[str, str]]) -> None:
        subprotocol, headers = res
        agreed = agree(self.websocket_extensions) if self.compresses else None
        # Autobahn would refuse a client for an offer that is only to be declined.
        self.websocket_extensions = []
        if agreed is not None:
            headers = headers | {"Sec-WebSocket-Extensions": agreed.response}
            self._perMessageCompress = _Inflater(agreed.client_bits)
        super().succeedHandshake((subprotocol, headers))

    def drop_handshake_state(self) -> None:
        """Keep what an open connection needs, in a new dictionary that is as small as possible."""
        mine = self.__dict__
        if mine.get("_perMessageCompress") is None:
            mine.pop("_perMessageCompress", None)
        self.__dict__ = {name: mine[name] for name in _KEPT_WHEN_OPEN if name in mine}

    def onMessageFrameData(self, payload: bytes) -> None:
        # An empty fragment adds nothing, and a message may have any number of them.
        if payload:
            super().onMessageFrameData(payload)

    def onMessageEnd(self) -> None:
        if not self.failedByMe:
            self.onMessage(b"".join(self.message_data), self.message_is_binary)
        self.message_data = None

    def sendHttpErrorResponse(
        self,
        code: int,
        reason: str,
        responseHeaders: Sequence[tuple[str, str]] | None = None,
    ) -> None:
        """A complete response: the reason goes into the body, where no header can be forged."""
        body = f"{reason}\n".encode()
        lines = [
            f"HTTP/1.1 {code} {HTTPStatus(code).phrase}",
            "Content-Type: text/plain; charset=utf-8",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in responseHeaders or ()),
        ]
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


def configured(
    protocol: type[LeanProtocol], factory: WebSocketServerFactory, **shared: object
) -> type[LeanProtocol]:
    """A subclass of `protocol` whose attributes are the options of `factory`, and `shared`."""
    options = {name: getattr(factory, name) for name in WebSocketServerProtocol.CONFIG_ATTRS}
    functions = {name: staticmethod(value) for name, value in options.items() if callable(value)}
    return type(protocol.__name__, (protocol,), options | functions | shared)
