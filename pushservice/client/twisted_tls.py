"""TLS to a server, for Twisted: whom it trusts, and in words what is wrong with a certificate.

Must not know: what is said over a connection.

Twisted's own check, `optionsForClientTLS`, accepts a certificate that names nobody at all for every
host, and does not say what OpenSSL has against a chain.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL, crypto
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import (
    verify_certificate_hostname,
    verify_certificate_ip_address,
)
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    TLSVersion,
    platformTrust,
    trustRootFromCertificates,
)
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from pushservice.client.connection_errors import NOT_FOR_HOST, no_tls_text, untrusted_text
from pushservice.client.options import Options


class Untrusted(Exception):
    """The server's certificate is refused; the text says why."""


@implementer(IOpenSSLClientConnectionCreator)
class Trust:
    """One side of TLS for connections to the host of `options`.

    Raises ValueError if the file named by `ca` holds no certificate, and OSError if it can't be
    read.
    """

    def __init__(self, options: Options) -> None:
        self._host = options.host
        self._insecure = options.insecure
        if options.insecure:
            checks = CertificateOptions(raiseMinimumTo=TLSVersion.TLSv1_2)
        elif options.ca is None:
            checks = CertificateOptions(
                trustRoot=platformTrust(), raiseMinimumTo=TLSVersion.TLSv1_2
            )
        else:
            roots = trustRootFromCertificates(_authorities(options.ca))
            checks = CertificateOptions(trustRoot=roots, raiseMinimumTo=TLSVersion.TLSv1_2)
        self._context = checks.getContext()
        try:
            ipaddress.ip_address(self._host)
        except ValueError:
            self._is_name = True
        else:
            self._is_name = False

    def clientConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """A connection that refuses, in words, all but the server it is meant for."""
        connection = SSL.Connection(self._context, None)
        if self._is_name:
            connection.set_tlsext_host_name(self._host.encode("idna"))
        if self._insecure:
            return connection

        def refuse(error: int, why: str = "") -> bool:
            protocol.failVerification(Failure(Untrusted(untrusted_text(self._host, error, why))))
            return False

        def verify(_: SSL.Connection, cert: crypto.X509, error: int, depth: int, ok: int) -> bool:
            # An exception would get lost in OpenSSL, and the certificate with it.
            try:
                if not ok:
                    return refuse(error)
                if depth == 0:
                    self._check_name(cert.to_cryptography())
            except (VerificationError, CertificateError):
                return refuse(NOT_FOR_HOST)
            except Exception as unforeseen:  # noqa: BLE001 - whatever it is, it is no reason to trust
                return refuse(0, f"it can't be checked: {unforeseen}")
            return True

        connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verify)
        return connection

    def _check_name(self, certificate: x509.Certificate) -> None:
        if self._is_name:
            verify_certificate_hostname(certificate, self._host.encode("idna").decode())
        else:
            verify_certificate_ip_address(certificate, self._host)


class TLSFault(NamedTuple):
    """Why there is no TLS, and whether that will be so until somebody does something."""

    reason: str
    lasting: bool


def tls_fault(error: BaseException | None, place: str) -> TLSFault | None:
    """What went wrong with TLS to `place`, if that is what ended a connection."""
    if isinstance(error, Untrusted):
        return TLSFault(str(error), lasting=True)
    if not isinstance(error, SSL.Error):
        return None
    # OpenSSL's errors are tuples, of which the last part tells.
    entries = error.args[0] if error.args and isinstance(error.args[0], list) else []
    words = ", ".join(str(entry[-1]) for entry in entries) or "it broke off"
    if "wrong version number" in words:
        return TLSFault(no_tls_text(place), lasting=True)
    return TLSFault(f"{place}: TLS: {words}", lasting=False)


def _authorities(path: str | Path) -> list[Certificate]:
    try:
        found = x509.load_pem_x509_certificates(Path(path).read_bytes())
    except ValueError:
        raise ValueError(f"ca: {path} holds no certificates in PEM") from None
    except OSError as error:
        raise OSError(error.errno, f"ca: {error.strerror}", str(path)) from None
    return [Certificate.loadPEM(each.public_bytes(Encoding.PEM)) for each in found]
