"""How a connection's bytes leave: several ways behind one interface; the room of private names.

Must not know: quotes, symbols, or who is subscribed. An outlet takes whole frames and tells the
outbox when it is full and when it has drained.

`PortableOutlet` uses what Twisted promises. It costs a buffer and two `epoll_ctl` calls around each
`send`. The direct ones send at once where nothing waits before, and hand what the kernel did not
take to Twisted; for that they read names of Twisted and pyOpenSSL that may change, so `choose`
looks at start whether they are what they were, and falls back. The batched ones do the same for a
whole turn in one call of a small C extension, where that was built.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from typing import Protocol as Structure

from OpenSSL import SSL
from OpenSSL._util import ffi, lib
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, IPushProducer
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.tcp import Connection
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from zope.interface import implementer

from pushservice.fanout.interfaces import Progress
from pushservice.protocol.close_codes import CloseCode
from pushservice.protocol.wire import Codec, Share
from pushservice.server.socket_info import bytes_held, progress

if TYPE_CHECKING:
    from pushservice.fanout.outbox import Outbox


@implementer(IPushProducer)
class PortableOutlet:
    """An outlet over any Twisted transport, through its public `write` and producer interface.

    The transport asks a pause once it holds more than its buffer size (64 KiB), and a resume when
    all of it is with the kernel: that is what makes an outbox fall behind and catch up.
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
        """Tell nobody any more; the connection is going, and the answer to its close is read."""
        self._outbox = None
        self.resume_reading()

    # -- Outlet ----------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def post(self, pieces: list[bytes], codec: Codec, share: Share) -> None:
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
        return held + _bytes_buffered(self._transport)

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


def _bytes_buffered(transport: Any) -> int:
    """Bytes that Twisted holds, by names of its own; those that are not there count as nothing.

    Under TLS that is what waits for encryption too; the TLS layer passes on what it does not know
    itself to the transport below.
    """
    size = len(getattr(transport, "dataBuffer", b"")) - getattr(transport, "offset", 0)
    size += getattr(transport, "_tempDataLen", 0)
    aggregator = getattr(transport, "_aggregator", None)
    for waiting in (getattr(transport, "_appSendBuffer", ()), getattr(aggregator, "_buffer", ())):
        size += sum(map(len, waiting))
    return size


#: Bytes of a client's messages in one turn of the reactor; then it is the others' turn.
_READ_SIZE: Final = 8 * 1024


class DirectOutlet(PortableOutlet):
    """An outlet over a TCP or Unix connection that sends at once.

    What the kernel does not take goes to Twisted, which sends it when it can, and the outbox is
    behind from then on: nothing is buffered here, and a client that is slow is known at once.
    """

    __slots__ = ("_send", "_tcp")

    def __init__(self, transport: Any, close: Callable[[CloseCode], None]) -> None:
        super().__init__(transport, close)
        self._tcp: Any = transport
        self._send: Callable[[Any], int] = transport.socket.send
        # How much is read at a time. Nothing else depends on it here: no pause waits for it.
        transport.bufferSize = _READ_SIZE

    def write(self, data: bytes) -> None:
        self._send_now(data)

    def _send_now(self, data: bytes | memoryview) -> None:
        tcp = self._tcp
        # Nothing may overtake what Twisted still holds.
        if tcp.dataBuffer or tcp._tempDataBuffer:
            tcp.write(bytes(data))
            return
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            # The connection is broken: Twisted finds the same, and reports it as it always does.
            tcp.write(bytes(data))
            return
        if sent < len(data):
            tcp.write(bytes(data[sent:]))
            self._wait_for_drain()

    def _wait_for_drain(self) -> None:
        """Be paused as if the buffer were full, so that Twisted resumes when it is empty."""
        tcp = self._tcp
        if tcp.producer is not None:
            tcp.producerPaused = True
            tcp.producer.pauseProducing()


#: Where ciphertext is put between OpenSSL and the socket; one for the process, used within a call.
_CIPHERTEXT_SIZE: Final = 128 * 1024
_ciphertext: Final = ffi.new("char[]", _CIPHERTEXT_SIZE)
_ciphertext_view: Final = memoryview(ffi.buffer(_ciphertext))
#: Bytes encrypted before they are sent: with what TLS adds they fit into the above.
_ENCRYPTED_AT_ONCE: Final = 96 * 1024


class DirectTLSOutlet(DirectOutlet):
    """An outlet over a Twisted TLS transport: encrypts and sends at once.

    Whatever is not the plain case (a handshake, a renegotiation, a key update that waits for the
    peer, data that Twisted still holds) goes through Twisted's own `write`.
    """

    __slots__ = ("_aggregated", "_bio", "_ssl", "_tls")

    def __init__(self, transport: Any, close: Callable[[CloseCode], None]) -> None:
        super().__init__(transport.transport, close)
        # Reading, producers and aborts are the TLS layer's business; sending is not.
        self._transport = transport
        self._tls: Any = transport
        connection = transport.getHandle()
        self._ssl = connection._ssl
        self._bio = connection._from_ssl
        # Small writes of others that Twisted holds until the next turn of the reactor.
        self._aggregated: list[bytes] = transport._aggregator._buffer

    def write(self, data: bytes) -> None:
        tls = self._tls
        if self._aggregated:
            tls._aggregator.flush()
        if tls._appSendBuffer or tls._lostTLSConnection or not tls._handshakeDone:
            tls.write(data)
            return
        whole = ffi.from_buffer(data)
        length, done, unsent = len(data), 0, 0
        while done < length:
            # Partial writes are on: one record of at most 16 KiB a call (SSL_write(3)).
            written = lib.SSL_write(self._ssl, whole + done, length - done)
            if written <= 0:
                # Twisted sees the same, and knows what to do.
                self._send_encrypted()
                tls.write(data[done:])
                return
            done += written
            unsent += written
            if unsent >= _ENCRYPTED_AT_ONCE:
                self._send_encrypted()
                unsent = 0
        self._send_encrypted()

    def _send_encrypted(self) -> None:
        """Send all that OpenSSL has encrypted."""
        size = _CIPHERTEXT_SIZE
        while size == _CIPHERTEXT_SIZE:
            size = lib.BIO_read(self._bio, _ciphertext, _CIPHERTEXT_SIZE)
            if size > 0:
                self._send_now(_ciphertext_view[:size])


# -- a turn in one call ---------------------------------------------------------------------------


class _Batched(Structure):
    """An outlet that posts to a batch."""

    def unsent(self, *rest: Any) -> None:
        """What it posted was not sent whole."""


class Batch:
    """What a turn has posted to outlets of one kind, until `send` hands it over in one call.

    `send_all` takes the ways and the turns, empties the turns, and returns counts of frames, pieces
    and bytes, and what did not go as it should: see _fanout.c.
    """

    __slots__ = ("_send_all", "outlets", "turns", "ways")

    def __init__(self, send_all: Callable[..., tuple[int, int, int, Any]]) -> None:
        self._send_all = send_all
        self.outlets: list[_Batched] = []
        self.ways: list[tuple[int, ...]] = []
        self.turns: list[list[bytes]] = []

    def send(self, share: Share) -> None:
        """Send all that was posted; outlets hear only of what the kernel did not take."""
        if not self.turns:
            return
        outlets = self.outlets
        ways, turns = self.ways, self.turns
        self.outlets, self.ways, self.turns = [], [], []
        frames, pieces, size, unsent = self._send_all(ways, turns)
        share.frames += frames
        share.pieces += pieces
        share.bytes += size
        if unsent is not None:
            for at, *rest in unsent:
                outlets[at].unsent(*rest)


class BatchedOutlet(DirectOutlet):
    """A direct outlet whose turns are framed and sent together with those of all others."""

    __slots__ = ("_batch", "_way")

    def __init__(self, transport: Any, close: Callable[[CloseCode], None], batch: Batch) -> None:
        super().__init__(transport, close)
        self._batch = batch
        self._way: tuple[int, int] = (-1, 0)

    def attach(self, outbox: Outbox) -> None:
        super().attach(outbox)
        self._way = (self._tcp.fileno(), outbox.codec.joins)

    def post(self, pieces: list[bytes], codec: Codec, share: Share) -> None:
        tcp = self._tcp
        if tcp.dataBuffer or tcp._tempDataBuffer:
            super().post(pieces, codec, share)
            return
        batch = self._batch
        batch.outlets.append(self)
        batch.ways.append(self._way)
        batch.turns.append(pieces)

    def unsent(self, rest: bytes | None) -> None:
        """The kernel did not take `rest`; None where the connection is broken."""
        if rest is None:
            self._transport.abortConnection()
        else:
            self._tcp.write(rest)
            self._wait_for_drain()


class BatchedTLSOutlet(DirectTLSOutlet):
    """The same under TLS: a turn is framed, encrypted and sent in one call."""

    __slots__ = ("_batch", "_way")

    def __init__(self, transport: Any, close: Callable[[CloseCode], None], batch: Batch) -> None:
        super().__init__(transport, close)
        self._batch = batch
        self._way: tuple[int, int, int, int] = (0, 0, -1, 0)

    def attach(self, outbox: Outbox) -> None:
        super().attach(outbox)
        joins = outbox.codec.joins
        self._way = (_address(self._ssl), _address(self._bio), self._tcp.fileno(), joins)

    def post(self, pieces: list[bytes], codec: Codec, share: Share) -> None:
        tls, tcp = self._tls, self._tcp
        if (
            tcp.dataBuffer
            or tcp._tempDataBuffer
            or self._aggregated
            or tls._appSendBuffer
            or tls._lostTLSConnection
        ):
            super().post(pieces, codec, share)
            return
        batch = self._batch
        batch.outlets.append(self)
        batch.ways.append(self._way)
        batch.turns.append(pieces)

    def unsent(self, ciphertext: bytes | None, plain: bytes) -> None:
        """Not taken: by the kernel `ciphertext`, None where it is broken; by OpenSSL `plain`."""
        if ciphertext is None:
            self._transport.abortConnection()
            return
        if ciphertext:
            self._tcp.write(ciphertext)
            self._wait_for_drain()
        if plain:
            self._tls.write(plain)


def _address(pointer: Any) -> int:
    return int(ffi.cast("uintptr_t", pointer))


# -- the choice ----------------------------------------------------------------------------------

#: The values of the environment's QUOTEPUSH_OUTLET.
MODES: Final = ("auto", "portable", "direct", "batched")


class Outlets(NamedTuple):
    """What makes the outlet of each connection, and what ends a turn."""

    name: str
    make: Callable[[Any, Callable[[CloseCode], None]], PortableOutlet]
    end_of_turn: Callable[[Share], None]


@implementer(IOpenSSLServerConnectionCreator)
class _Uncertified:
    """Makes TLS connections to look at and never to use."""

    def serverConnectionForTLS(self, tlsProtocol: object) -> SSL.Connection:
        connection = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
        connection.set_accept_state()
        return connection


def missing_names(reactor: Any) -> list[str]:
    """The private names that direct outlets need and these versions of the libraries lack."""
    here, there = socket.socketpair()
    with here, there:
        tcp = Connection(here, Protocol(), reactor)
        factory = TLSMemoryBIOFactory(_Uncertified(), False, Factory.forProtocol(Protocol), reactor)
        tls = factory.buildProtocol(None)
        tls.makeConnection(tcp)
        wanted = (
            (tcp, "tcp", ("socket", "dataBuffer", "_tempDataBuffer", "producer", "producerPaused")),
            (tls, "tls", ("_appSendBuffer", "_lostTLSConnection", "_handshakeDone")),
            (getattr(tls, "_aggregator", None), "tls._aggregator", ("_buffer", "flush")),
            (tls.getHandle(), "SSL.Connection", ("_ssl", "_from_ssl")),
            (lib, "OpenSSL._util.lib", ("SSL_write", "BIO_read")),
        )
        return [
            f"{label}.{name}"
            for owner, label, names in wanted
            for name in names
            if not hasattr(owner, name)
        ]


def _nothing(_share: Share) -> None:
    """End a turn of outlets that send at once."""


def _by_kind(
    plain: Callable[[Any, Callable[[CloseCode], None]], PortableOutlet],
    tls: Callable[[Any, Callable[[CloseCode], None]], PortableOutlet],
) -> Callable[[Any, Callable[[CloseCode], None]], PortableOutlet]:
    """Makes the outlet for the transport's kind, and the portable one for any other kind."""

    def make(transport: Any, close: Callable[[CloseCode], None]) -> PortableOutlet:
        if isinstance(transport, Connection):
            return plain(transport, close)
        below: Any = getattr(transport, "transport", None)
        if isinstance(transport, BufferingTLSTransport) and isinstance(below, Connection):
            return tls(transport, close)
        return PortableOutlet(transport, close)

    return make


PORTABLE: Final = Outlets("portable", PortableOutlet, _nothing)
DIRECT: Final = Outlets("direct", _by_kind(DirectOutlet, DirectTLSOutlet), _nothing)


def _batched() -> Outlets | None:
    """Outlets by the C extension, or None where it was not built."""
    try:
        from cryptography.hazmat.bindings._rust import _openssl

        from pushservice.fanout import _fanout

        addresses = [
            _address(_openssl.ffi.addressof(_openssl.lib, name))
            for name in ("SSL_write", "BIO_read")
        ]
    except (ImportError, AttributeError):
        return None
    _fanout.use_openssl(*addresses)
    plain, tls = Batch(_fanout.send_plain), Batch(_fanout.send_tls)

    def end_of_turn(share: Share) -> None:
        plain.send(share)
        tls.send(share)

    make = _by_kind(
        lambda transport, close: BatchedOutlet(transport, close, plain),
        lambda transport, close: BatchedTLSOutlet(transport, close, tls),
    )
    return Outlets("batched", make, end_of_turn)


def choose(mode: str, reactor: Any) -> Outlets:
    """The outlets of `mode`; `auto` is batched where that works, else direct, else portable.

    Raises ValueError for a mode that is none, and for one that does not work here.
    """
    if mode not in MODES:
        raise ValueError(f"{mode!r} is no outlet; there are {', '.join(MODES)}")
    if mode == "portable":
        return PORTABLE
    missing = missing_names(reactor)
    if missing:
        if mode == "auto":
            return PORTABLE
        raise ValueError(f"{mode} outlets need what is not there: {', '.join(missing)}")
    if mode == "direct":
        return DIRECT
    batched = _batched()
    if batched is None and mode == "batched":
        raise ValueError(
            "batched outlets need the C extension pushservice.fanout._fanout, not built here"
        )
    return batched or DIRECT
