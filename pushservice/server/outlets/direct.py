"""Outlets that send at once where nothing waits before, and leave the rest to Twisted.

Must not know: quotes, symbols, or who is subscribed. They read private names of Twisted's
transports and pyOpenSSL's connections: those that `private_names.missing_names` checks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pushservice.protocol.close_codes import CloseCode
from pushservice.server.outlets.portable import PortableOutlet
from pushservice.server.outlets.private_names import ffi, lib

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
