"""TLS around a protocol factory, and a self-signed certificate for development.

Must not know: WebSockets, quotes, or the options by which files were named.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from pathlib import Path
from typing import Any, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from twisted.internet.interfaces import (
    IAddress,
    IOpenSSLServerConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
)
from twisted.internet.protocol import Protocol
from twisted.internet.ssl import CertificateOptions
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from zope.interface import implementer

from pushservice.tls.certificates import options_for
from pushservice.tls.material import read_certificates, read_material

CERTIFICATE_NAME: Final = "dev.crt"
KEY_NAME: Final = "dev.key"
_LIFETIME: Final = datetime.timedelta(days=397)
_RENEW_BEFORE: Final = datetime.timedelta(days=7)


class Pair(NamedTuple):
    """The files of a certificate and its key; `made` says that they are new."""

    certificate: Path
    key: Path
    made: bool


def development_pair(directory: Path) -> Pair:
    """The development pair of `directory`, made there when missing or about to expire.

    Self-signed, ECDSA P-256, for localhost, 127.0.0.1 and ::1; the key is readable by its owner
    alone. Raises ValueError when only one of the two files is there, or they can't be written.
    """
    certificate, key = directory / CERTIFICATE_NAME, directory / KEY_NAME
    if certificate.exists() != key.exists():
        there, missing = (certificate, key) if certificate.exists() else (key, certificate)
        raise ValueError(f"{there} is there but {missing} is not: delete it, or bring the other")
    if certificate.exists() and not _expires_soon(certificate):
        return Pair(certificate, key, made=False)
    try:
        _make_pair(certificate, key)
    except OSError as error:
        raise ValueError(f"can't make a development certificate in {directory}: {error}") from None
    return Pair(certificate, key, made=True)


def _expires_soon(certificate: Path) -> bool:
    now = datetime.datetime.now(datetime.UTC)
    chain = read_certificates(certificate)
    return any(cert.not_valid_after_utc < now + _RENEW_BEFORE for cert in chain)


def _make_pair(certificate: Path, key: Path) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "quotepush development")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + _LIFETIME)
        .add_extension(
            x509.SubjectAlternativeName(
                [
                    x509.DNSName("localhost"),
                    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
                    x509.IPAddress(ipaddress.ip_address("::1")),
                ]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(private, hashes.SHA256())
    )
    certificate.parent.mkdir(parents=True, exist_ok=True)
    secret = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    # The key first and each file whole, so that no crash leaves a certificate without its key.
    _write_whole(key, secret, 0o600)
    _write_whole(certificate, signed.public_bytes(serialization.Encoding.PEM), 0o644)


def _write_whole(path: Path, data: bytes, mode: int) -> None:
    """Put `data` at `path` in one step, never readable by more than `mode` allows."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(data)
    beside.replace(path)


def server_options(certificate: Path, key: Path) -> CertificateOptions:
    """What a TLS server with this pair alone uses; raises ValueError as `options_for` does."""
    return options_for(read_material(certificate, key))


_PLAIN_HTTP_ANSWER: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: 64\r\nConnection: close\r\n\r\n"
    b"This port speaks TLS: use https:// or wss:// instead of http://\n"
)


class _TLSTransport(BufferingTLSTransport):
    """TLS that answers a plain HTTP request with a text instead of an alert."""

    _began = False

    def dataReceived(self, bytes: bytes) -> None:
        if not self._began:
            self._began = True
            # A TLS connection begins with a handshake record, type 22 (RFC 8446, section 5.1).
            if bytes[:1].isalpha():
                assert self.transport is not None, "data comes from a transport"
                self.transport.write(_PLAIN_HTTP_ANSWER)
                self.transport.loseConnection()
                return
        super().dataReceived(bytes)  # type: ignore[no-untyped-call]  # the library's, unannotated


class TLSFactory(TLSMemoryBIOFactory):
    """Puts TLS between a listening port and a protocol factory, which may refuse a connection."""

    protocol = _TLSTransport

    def __init__(
        self,
        options: CertificateOptions | IOpenSSLServerConnectionCreator,
        factory: IProtocolFactory,
        clock: IReactorTime,
    ) -> None:
        super().__init__(options, False, factory, clock)

    def buildProtocol(  # type: ignore[override]  # a factory may refuse; Twisted's declares that it never does
        self, addr: IAddress | None
    ) -> TLSMemoryBIOProtocol | None:
        """None where the inner factory refuses a connection from `addr`, before TLS begins."""
        inner = self.wrappedFactory.buildProtocol(addr)
        return None if inner is None else self.protocol(self, inner)


class _Refused(Protocol):
    """Ends its connection."""

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()


@implementer(IProtocolFactory)
class NeverNone:
    """Ends connections that the inner factory refuses.

    For endpoints that can't handle a factory's None, such as Twisted's own `ssl:`.
    """

    def __init__(self, factory: IProtocolFactory) -> None:
        self.doStart = factory.doStart
        self.doStop = factory.doStop
        self._inner = factory

    def buildProtocol(self, addr: IAddress) -> IProtocol:
        """The inner factory's protocol, or one that ends the connection."""
        return self._inner.buildProtocol(addr) or _Refused()
