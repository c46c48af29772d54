"""The outlet over any transport: it uses what Twisted promises.

Must not know: quotes, symbols, or who is subscribed. It costs a buffer and two `epoll_ctl` calls
around each `send`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from pushservice.fanout.interfaces import Progress
from pushservice.fanout.shared_frames import SharedFrames
from pushservice.protocol.close_codes import CloseCode
from pushservice.protocol.codecs import Codec
from pushservice.server.outlets.private_names import bytes_buffered
from pushservice.server.socket_info import bytes_held, progress

if TYPE_CHECKING:
    from pushservice.fanout.outbox import Outbox


@implementer(IPushProducer)
class PortableOutlet:
    """An outlet over any Twisted transport, through its public `write` and producer interface.

    The transport asks for a pause once it holds more than its buffer size (64 KiB), and for a
    resume when the kernel has taken all of it: so an outbox falls behind and catches up.
    """

    __slots__ = ("_close", "_outbox", "_reading", "_transport")

    def __init__(self, transport: Any, close: Callable[[CloseCode], None]) -> None:
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
        """Tell no outbox any more: the connection closes, and the answer to its close is read."""
        self._outbox = None
        self.resume_reading()

    # -- Outlet ----------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def post(self, pieces: list[bytes], codec: Codec, share: SharedFrames) -> None:
        data = share.wire_bytes(codec, pieces)
        pieces.clear()
        self.write(data)

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
        # Twisted's TLS raises where there is nothing left to abort.
        if not getattr(self._transport, "_lostTLSConnection", False):
            self._transport.abortConnection()

    def progress(self) -> Progress | None:
        # Twisted's TLS passes on what it does not know itself to the transport below.
        return progress(getattr(self._transport, "socket", None))

    def queued(self) -> int:
        held = bytes_held(getattr(self._transport, "socket", None))
        return held + bytes_buffered(self._transport)

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
