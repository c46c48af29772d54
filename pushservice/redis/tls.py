"""TLS to Redis: which servers are trusted, the client certificate, and errors as text.

Must not know: what is said over a connection, or the options by which files were named.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL, crypto
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import (
    verify_certificate_hostname,
    verify_certificate_ip_address,
)
from twisted.internet import defer
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IProtocolFactory,
    IStreamClientEndpoint,
)
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

from pushservice.redis.url import RedisTLS
from pushservice.tls.material import read_certificates, read_key

#: Codes with which OpenSSL rejects a chain (X509_verify_cert_error_string(3)).
_UNKNOWN_AUTHORITY: Final = (18, 19, 20, 21)
_REASONS: Final = {
    9: "is not valid yet",
    10: "has expired",
    26: "is not meant for servers",
}


class NotTrusted(Exception):
    """The server's certificate is rejected; the text says why."""


def check_files(tls: RedisTLS) -> None:
    """Raise ValueError, which names the file and the fault, if TLS can't be used with `tls`."""
    _options(tls)


@implementer(IOpenSSLClientConnectionCreator)
class ClientTLS:
    """The client side of TLS for connections to `host`, which the server's certificate must name.

    That is checked here, because Twisted's own check accepts a certificate without any name, and
    does not report why OpenSSL rejects a chain. Raises ValueError as
    `check_files` does.
    """

    def __init__(self, host: str, tls: RedisTLS) -> None:
        self._context = _options(tls).getContext()
        self._host = host
        try:
            ipaddress.ip_address(host)
        except ValueError:
            self._is_name = True
        else:
            self._is_name = False

    def clientConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """A connection that rejects all servers but the intended one, with the reason."""
        connection = SSL.Connection(self._context, None)
        if self._is_name:
            connection.set_tlsext_host_name(_ascii(self._host))

        def refuse(why: str) -> bool:
            protocol.failVerification(Failure(NotTrusted(why)))
            return False

        def verify(_: SSL.Connection, cert: crypto.X509, error: int, depth: int, ok: int) -> bool:
            # OpenSSL would swallow an exception.
            try:
                return self._verify(cert.to_cryptography(), error, depth, ok, refuse)
            except Exception as unforeseen:  # noqa: BLE001 - whatever it is, the certificate is not trusted
                return refuse(f"the certificate can't be checked: {unforeseen}")

        connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verify)
        return connection

    def _verify(
        self,
        certificate: x509.Certificate,
        error: int,
        depth: int,
        ok: int,
        refuse: Callable[[str], bool],
    ) -> bool:
        leaf = f"the certificate of {self._host}"
        if not ok and error in _UNKNOWN_AUTHORITY:
            issuer = certificate.issuer.rfc4514_string()
            return refuse(f"{leaf} is signed by an authority that is not trusted: {issuer}")
        if not ok:
            whose = leaf if depth == 0 else "an authority's certificate"
            reason = _REASONS.get(error, f"is refused by OpenSSL (verify error {error})")
            return refuse(f"{whose} {reason}: {certificate.subject.rfc4514_string()}")
        if depth == 0:
            try:
                if self._is_name:
                    verify_certificate_hostname(certificate, _ascii(self._host).decode())
                else:
                    verify_certificate_ip_address(certificate, self._host)
            except (VerificationError, CertificateError):
                return refuse(f"{leaf} is not for that name but for {_names(certificate)}")
        return True


@implementer(IStreamClientEndpoint)
class TLSEndpoint:
    """Wraps the connections of another endpoint in TLS for `host`.

    The files are read for each connection, so that renewed files are used from then on.
    """

    def __init__(
        self, reactor: Any, host: str, tls: RedisTLS, endpoint: IStreamClientEndpoint
    ) -> None:
        self._reactor = reactor
        self._host = host
        self._tls = tls
        self._endpoint = endpoint

    def connect(self, protocolFactory: IProtocolFactory) -> defer.Deferred[Any]:
        try:
            creator = ClientTLS(self._host, self._tls)
        except ValueError:
            return defer.fail()
        within = wrapClientTLS(creator, self._endpoint, self._reactor)
        return within.connect(protocolFactory)


def failure_text(failure: Failure) -> str:
    """Why a connection failed; of OpenSSL's error tuples, the last item is the reason."""
    error = failure.value
    if isinstance(error, SSL.Error) and error.args and isinstance(error.args[0], list):
        return "TLS: " + ", ".join(str(entry[-1]) for entry in error.args[0])
    if isinstance(error, NotTrusted):
        return f"TLS: {error}"
    return failure.getErrorMessage()


def _options(tls: RedisTLS) -> CertificateOptions:
    trust = platformTrust() if tls.ca is None else trustRootFromCertificates(_authorities(tls.ca))
    own: dict[str, Any] = {}
    if tls.cert is not None and tls.key is not None:
        chain = read_certificates(tls.cert)
        own = {
            "privateKey": read_key(tls.key),
            "certificate": chain[0],
            "extraCertChain": chain[1:],
        }
    try:
        options = CertificateOptions(trustRoot=trust, raiseMinimumTo=TLSVersion.TLSv1_2, **own)
        options.getContext()
    except (SSL.Error, TypeError, ValueError) as error:
        raise ValueError(f"{tls.cert} with {tls.key} can't be shown to Redis: {error}") from None
    return options


def _authorities(path: Path) -> list[Certificate]:
    return [
        Certificate.loadPEM(found.public_bytes(serialization.Encoding.PEM))
        for found in read_certificates(path)
    ]


def _ascii(host: str) -> bytes:
    return host.encode("idna")


def _names(certificate: x509.Certificate) -> str:
    """The hosts that a certificate names, as text."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return "nobody: it has no subjectAltName"
    names = found.get_values_for_type(x509.DNSName)
    addresses = found.get_values_for_type(x509.IPAddress)
    return ", ".join([*names, *map(str, addresses)]) or "no host at all"
