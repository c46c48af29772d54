"""Private names of Twisted, pyOpenSSL and cryptography that outlets need, and whether they exist.

Must not know: outlets, or when anything is sent. The names may change with a version of these
libraries, so `missing_names` checks at start whether they are what they were.
"""

from __future__ import annotations

import socket
from typing import Any

from OpenSSL import SSL
from OpenSSL._util import ffi, lib
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.tcp import Connection
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

__all__ = ["address_of", "bytes_buffered", "ffi", "lib", "missing_names", "openssl_functions"]


def bytes_buffered(transport: Any) -> int:
    """Bytes that `transport`, one of Twisted's, holds; a name that does not exist counts as 0.

    Under TLS that includes what waits for encryption; the TLS layer looks up what it does not have
    itself in the transport below.
    """
    size = len(getattr(transport, "dataBuffer", b"")) - getattr(transport, "offset", 0)
    size += getattr(transport, "_tempDataLen", 0)
    aggregator = getattr(transport, "_aggregator", None)
    for waiting in (getattr(transport, "_appSendBuffer", ()), getattr(aggregator, "_buffer", ())):
        size += sum(map(len, waiting))
    return size


def address_of(pointer: Any) -> int:
    """The address that a pointer of pyOpenSSL's cffi holds."""
    return int(ffi.cast("uintptr_t", pointer))


def openssl_functions() -> list[int] | None:
    """The addresses of SSL_write and BIO_read in cryptography's OpenSSL; None where unknown."""
    try:
        from cryptography.hazmat.bindings._rust import _openssl

        return [
            address_of(_openssl.ffi.addressof(_openssl.lib, name))
            for name in ("SSL_write", "BIO_read")
        ]
    except (ImportError, AttributeError):
        return None


@implementer(IOpenSSLServerConnectionCreator)
class _Uncertified:
    """Makes TLS connections that are only inspected."""

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
