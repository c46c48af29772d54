"""How a connection's bytes leave, behind one interface: the only room with transports' secrets.

Must not know: quotes, symbols, or who is subscribed. An outlet takes whole frames and tells the
outbox when it is full and when it has drained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from pushservice.closing import CloseCode

if TYPE_CHECKING:
    from pushservice.outbox import Outbox


class Transport(Protocol):
    """The part of a Twisted stream transport that an outlet uses; TLS transports have it too."""

    def write(self, data: bytes) -> None: ...
    def registerProducer(self, producer: object, streaming: bool) -> None: ...
    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...
    def abortConnection(self) -> None: ...


@implementer(IPushProducer)
class PortableOutlet:
    """An outlet over any Twisted transport, through its public `write` and producer interface.

    The transport asks a pause once it holds more than its buffer size (64 KiB), and a resume when
    all of it is with the kernel: that is what makes an outbox fall behind and catch up.
    """

    __slots__ = ("_close", "_outbox", "_reading", "_transport")

    def __init__(self, transport: Transport, close: Callable[[CloseCode], None]) -> None:
        """`close` begins the closing handshake of the protocol above the transport."""
        self._transport = transport
        self._close = close
        self._outbox: Outbox | None = None
        self._reading = True

    def attach(self, outbox: Outbox) -> None:
        """Tell `outbox` from now on when the transport is full and when it has drained."""
        self._outbox = outbox
        self._transport.registerProducer(self, True)

    def detach(self) -> None:
        """Tell nobody any more; the connection is going."""
        self._outbox = None

    # -- Outlet ----------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._transport.pauseProducing()

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self._transport.resumeProducing()

    def close(self, code: CloseCode) -> None:
        self._close(code)

    def abort(self) -> None:
        self._transport.abortConnection()

    # -- IPushProducer: what the transport calls -------------------------------------------------

    def pauseProducing(self) -> None:
        """The transport's buffer is full; comes again with every write that finds it so."""
        if self._outbox is not None:
            self._outbox.blocked()

    def resumeProducing(self) -> None:
        """The transport's buffer is empty."""
        if self._outbox is not None:
            self._outbox.drained()

    def stopProducing(self) -> None:
        """The connection is lost; the protocol above hears of it by itself."""
