"""Certificates that serve together: chosen by the name a client asks for, replaced while running.

Must not know: what is said over TLS, the options that named the files, or when files changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.ssl import (
    AcceptableCiphers,
    Certificate,
    CertificateOptions,
    TLSVersion,
    trustRootFromCertificates,
)
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from pushservice.tls.material import (
    Material,
    certificates_in,
    key_in,
    names_in,
    public_bytes_of,
)

_A_DAY: Final = timedelta(days=1)
#: Marks sessions as ours, the same in all contexts: OpenSSL compares it with the mark of the first
#: context in one handshake, and of the chosen one after a HelloRetryRequest (RFC 8446, 4.1.4).
_SESSIONS: Final = b"quotepush"
#: For TLS 1.2: keys that are made for each connection, and ciphers that authenticate what they
#: encrypt (RFC 9325, 4.2). Those of TLS 1.3 are all such.
_CIPHERS: Final = AcceptableCiphers.fromOpenSSLCipherString("ECDHE+AESGCM:ECDHE+CHACHA20")
_PEM: Final = serialization.Encoding.PEM


def wall_clock() -> datetime:
    """Now, as an aware time."""
    return datetime.now(UTC)


def options_for(
    material: Material, choose: Callable[[bytes | None], SSL.Context | None] | None = None
) -> CertificateOptions:
    """What a TLS server with this pair uses: TLS 1.2 at least, the chain sent as it is in the file.

    `choose`, where given, is asked for another context by the name that a client sends (SNI).
    Raises ValueError naming the file that can't be used, and why.
    """
    certificate, key = material.certificate, material.key
    chain = certificates_in(material.certificate_pem, certificate)
    private = key_in(material.key_pem, key)
    own = chain[0]
    if public_bytes_of(private.public_key()) != public_bytes_of(own.public_key()):
        raise ValueError(f"the key {key} does not belong to the first certificate in {certificate}")
    trust = _trust(material)
    try:
        options = CertificateOptions(
            privateKey=private,  # type: ignore[arg-type]  # declared as pyOpenSSL's deprecated types
            certificate=own,  # type: ignore[arg-type]  # as above
            extraCertChain=chain[1:],  # type: ignore[arg-type]  # as above
            raiseMinimumTo=TLSVersion.TLSv1_2,
            # Sessions are resumed by tickets that clients keep (RFC 8446, 2.2), so that many who
            # reconnect at once cost less; there is no cache here, which would cost memory.
            enableSessionTickets=True,
            contextForServerName=choose,
            acceptableCiphers=_CIPHERS,
            trustRoot=trust,
        )
        context = options.getContext()
        # A client that asks for another handshake on an open connection gets none (TLS 1.2).
        context.set_options(SSL.OP_NO_RENEGOTIATION)
        context.set_session_id(_SESSIONS)
        # Twisted's own callback answers a client whose protocols it does not know with an empty
        # one, which OpenSSL takes for an internal error; no answer at all is right (RFC 7301, 3.2).
        context.set_alpn_select_callback(_select_protocol)
    except (SSL.Error, TypeError, ValueError) as error:
        raise ValueError(f"{certificate} with {key} can't serve TLS: {error}") from None
    return options


def _trust(material: Material) -> Any:
    """The authorities that must have issued clients' certificates; None where none is needed."""
    if not material.authorities_pem:
        return None
    # Every certificate of the file is one to trust.
    found = certificates_in(material.authorities_pem, material.authorities)
    return trustRootFromCertificates(
        [Certificate.loadPEM(each.public_bytes(_PEM)) for each in found]
    )


def _select_protocol(_connection: SSL.Connection, offered: list[bytes]) -> Any:
    """HTTP/1.1 where the client offers it in ALPN: pages and WebSocket upgrades need it."""
    return b"http/1.1" if b"http/1.1" in offered else SSL.NO_OVERLAPPING_PROTOCOLS


class Expiry(NamedTuple):
    """When the first certificate of a pair expires, and its names: hosts, then addresses."""

    certificate: Path
    names: tuple[str, ...]
    ends: datetime

    def days(self, now: datetime) -> int:
        """Whole days left at `now`, an aware time; negative once it has expired."""
        return (self.ends - now) // _A_DAY


class _PairSet:
    """Pairs that serve together; never changed, since a connection ends with the set it began with.

    Each context asks for another by its callback and so keeps all the others alive; OpenSSL may
    come back to the one that a connection began with, whose callback must still be there then.
    """

    def __init__(self, materials: Sequence[Material]) -> None:
        if not materials:
            raise ValueError("TLS needs at least one certificate with its key")
        self.materials = tuple(materials)
        choose = self.context_for if len(materials) > 1 else None
        self.contexts: list[SSL.Context] = []
        self.expiries: list[Expiry] = []
        self._hosts: dict[bytes, int] = {}
        for index, material in enumerate(materials):
            self.contexts.append(options_for(material, choose).getContext())
            own = certificates_in(material.certificate_pem, material.certificate)[0]
            hosts, addresses = names_in(own, material.certificate)
            for host in hosts:
                self._hosts.setdefault(host.lower().encode(), index)
            self.expiries.append(
                Expiry(material.certificate, (*hosts, *addresses), own.not_valid_after_utc)
            )

    def context_for(self, name: bytes | None) -> SSL.Context | None:
        """The first context that is for the host `name`; None where the very first is to serve."""
        if not name:
            return None
        host = name.lower().removesuffix(b".")
        label, _, parent = host.partition(b".")
        # A wildcard stands for one whole label, the left-most (RFC 9525, 6.3).
        asked = (host, b"*." + parent) if label and parent else (host,)
        index = min((self._hosts[each] for each in asked if each in self._hosts), default=0)
        return self.contexts[index] if index else None


@implementer(IOpenSSLServerConnectionCreator)
class Certificates:
    """One side of TLS for servers that have several pairs: the first argument of a `TLSFactory`.

    A client that names a host (SNI, RFC 6066, section 3) gets the first pair whose certificate is
    for it: by a DNS name of its subjectAltName, in any case, where `*.` stands for one label. A
    client that names none, or another, gets the first pair.

    Sessions are resumed by tickets, whichever pair serves; those from before a `replace` are not.
    Raises ValueError naming the file that can't be used, and why.
    """

    def __init__(self, materials: Sequence[Material]) -> None:
        self._serving = _PairSet(materials)

    def replace(self, materials: Sequence[Material]) -> bool:
        """Serve new connections with these pairs; says whether they differ from those before.

        Open connections live on with what they began with. Raises ValueError as the construction
        does; those from before go on serving then.
        """
        if tuple(materials) == self._serving.materials:
            return False
        self._serving = _PairSet(materials)
        return True

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """A connection that begins with the first pair."""
        return SSL.Connection(self._serving.contexts[0], None)

    @property
    def materials(self) -> tuple[Material, ...]:
        """What they were made of, for other processes."""
        return self._serving.materials

    def expiries(self) -> list[Expiry]:
        """Of each pair, in order, when its first certificate expires."""
        return list(self._serving.expiries)

    def days_left(self, now: datetime) -> list[tuple[Path, tuple[str, ...], int]]:
        """Of each pair, in order: the certificate's file, its names, whole days left at `now`.

        `now` is an aware time; the days are negative once it has expired.
        """
        return [(each.certificate, each.names, each.days(now)) for each in self._serving.expiries]

    def status(self) -> list[dict[str, Any]]:
        """Of each pair, in order: its file, its names, whole days left, as JSON."""
        return [
            {"file": str(path), "names": names, "days": days}
            for path, names, days in self.days_left(wall_clock())
        ]
