"""Certificates that serve together: chosen by name, replaced while running, watched.

Must not know: what is said over TLS, the options by which files were named, or what follows when a
watched file changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, IReactorTime
from twisted.internet.ssl import (
    AcceptableCiphers,
    Certificate,
    CertificateOptions,
    TLSVersion,
    trustRootFromCertificates,
)
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

#: Days before its end from which a certificate is warned of; those who renew begin at 30.
WARN_DAYS: Final = 14
_A_DAY: Final = timedelta(days=1)
#: Names of a certificate that a message lists.
_LISTED: Final = 3
#: Marks sessions as ours, the same in all contexts: OpenSSL compares it with the mark of the first
#: context in one handshake, and of the chosen one after a HelloRetryRequest (RFC 8446, 4.1.4).
_SESSIONS: Final = b"quotepush"
#: For TLS 1.2: keys that are made for each connection, and ciphers that authenticate what they
#: encrypt (RFC 9325, 4.2). Those of TLS 1.3 are all such.
_CIPHERS: Final = AcceptableCiphers.fromOpenSSLCipherString("ECDHE+AESGCM:ECDHE+CHACHA20")
_PEM: Final = serialization.Encoding.PEM


# -- what is in the files --------------------------------------------------------------------------


class Material(NamedTuple):
    """What the files of one pair held when they were read; the paths are for messages."""

    certificate: Path
    key: Path
    certificate_pem: bytes
    key_pem: bytes
    #: whose certificates clients must show; empty where they need none
    authorities: Path = Path()
    authorities_pem: bytes = b""

    def __repr__(self) -> str:
        # A key must not get into a log or a traceback.
        return f"<Material of {self.certificate} and {self.key}>"

    def as_texts(self) -> dict[str, str]:
        """The same as texts by field, fit for JSON; the key is among them."""
        return {
            "certificate": str(self.certificate),
            "key": str(self.key),
            # What stands around the PEM may be in any encoding; this one loses no byte.
            "certificate_pem": self.certificate_pem.decode("latin-1"),
            "key_pem": self.key_pem.decode("latin-1"),
            "authorities": str(self.authorities),
            "authorities_pem": self.authorities_pem.decode("latin-1"),
        }

    @classmethod
    def from_texts(cls, texts: Mapping[str, str]) -> Self:
        """What `as_texts` was called on; raises ValueError naming a field that is no such text."""
        for field in cls._fields:
            if not isinstance(texts.get(field), str):
                raise ValueError(f"a pair of certificate and key needs a text for {field!r}")
        try:
            return cls(
                Path(texts["certificate"]),
                Path(texts["key"]),
                texts["certificate_pem"].encode("latin-1"),
                texts["key_pem"].encode("latin-1"),
                Path(texts["authorities"]),
                texts["authorities_pem"].encode("latin-1"),
            )
        except UnicodeEncodeError:
            # Its own text would show what could not be encoded.
            raise ValueError(f"the texts for {texts['certificate']} are no bytes") from None


def read_material(certificate: Path, key: Path, authorities: Path | None = None) -> Material:
    """What these files hold now, unchecked; raises ValueError naming the file and why."""
    pair = Material(certificate, key, _read(certificate, "certificate"), _read(key, "key"))
    if authorities is None:
        return pair
    return pair._replace(authorities=authorities, authorities_pem=_read(authorities, "certificate"))


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"can't read the {what} {path}: {error.strerror}") from None


def read_certificates(path: Path) -> list[x509.Certificate]:
    """All certificates of a PEM file, in order; raises ValueError that names it and says why."""
    return _certificates_in(_read(path, "certificate"), path)


def read_key(path: Path) -> PrivateKeyTypes:
    """The unencrypted key of a PEM file; raises ValueError that names it and says why."""
    return _key_in(_read(path, "key"), path)


def _certificates_in(pem: bytes, path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ValueError(f"{path} holds no certificate in PEM: {error}") from None


def _key_in(pem: bytes, path: Path) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{path} holds no unencrypted private key in PEM: {error}") from None


def _public_bytes(key: object) -> bytes:
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]  # every public key has it, no common base declares it
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


def _names(certificate: x509.Certificate, path: Path) -> tuple[list[str], list[str]]:
    """The hosts and the addresses that a certificate is for (RFC 9525: only subjectAltName)."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [], []
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError) as error:
        raise ValueError(f"the names in the certificate {path} can't be read: {error}") from None
    addresses = found.get_values_for_type(x509.IPAddress)
    return found.get_values_for_type(x509.DNSName), [str(address) for address in addresses]


# -- what serves -----------------------------------------------------------------------------------


def options_for(
    material: Material, choose: Callable[[bytes | None], SSL.Context | None] | None = None
) -> CertificateOptions:
    """What a TLS server with this pair uses: TLS 1.2 at least, the chain sent as it is in the file.

    `choose`, where given, is asked for another context by the name that a client sends (SNI).
    Raises ValueError naming the file that can't be used, and why.
    """
    certificate, key = material.certificate, material.key
    chain = _certificates_in(material.certificate_pem, certificate)
    private = _key_in(material.key_pem, key)
    own = chain[0]
    if _public_bytes(private.public_key()) != _public_bytes(own.public_key()):
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
    """Whom clients' certificates must come from; None where they need none."""
    if not material.authorities_pem:
        return None
    # Every certificate of the file is one to trust.
    found = _certificates_in(material.authorities_pem, material.authorities)
    return trustRootFromCertificates(
        [Certificate.loadPEM(each.public_bytes(_PEM)) for each in found]
    )


def _select_protocol(_connection: SSL.Connection, offered: list[bytes]) -> Any:
    """HTTP/1.1 where the client offers it in ALPN: pages and WebSocket upgrades need it."""
    return b"http/1.1" if b"http/1.1" in offered else SSL.NO_OVERLAPPING_PROTOCOLS


class Ending(NamedTuple):
    """When the first certificate of a pair ends, and whom it names: hosts, then addresses."""

    certificate: Path
    names: tuple[str, ...]
    ends: datetime

    def days(self, now: datetime) -> int:
        """Whole days left at `now`, an aware time; negative once it has ended."""
        return (self.ends - now) // _A_DAY


class _Together:
    """Pairs that serve together. It never changes: a connection ends with those it began with.

    Each context asks for another by its callback and so keeps all the others alive; OpenSSL may
    come back to the one that a connection began with, whose callback must still be there then.
    """

    def __init__(self, materials: Sequence[Material]) -> None:
        if not materials:
            raise ValueError("TLS needs at least one certificate with its key")
        self.materials = tuple(materials)
        choose = self.context_for if len(materials) > 1 else None
        self.contexts: list[SSL.Context] = []
        self.endings: list[Ending] = []
        self._hosts: dict[bytes, int] = {}
        for index, material in enumerate(materials):
            self.contexts.append(options_for(material, choose).getContext())
            own = _certificates_in(material.certificate_pem, material.certificate)[0]
            hosts, addresses = _names(own, material.certificate)
            for host in hosts:
                self._hosts.setdefault(host.lower().encode(), index)
            self.endings.append(
                Ending(material.certificate, (*hosts, *addresses), own.not_valid_after_utc)
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
    for it: by a DNS name of its subjectAltName, in any case, where `*.` stands for one label. Who
    names none, or another, gets the first pair.

    Sessions are resumed by tickets, whichever pair serves; those from before a `replace` are not.
    Raises ValueError naming the file that can't be used, and why.
    """

    def __init__(self, materials: Sequence[Material]) -> None:
        self._serving = _Together(materials)

    def replace(self, materials: Sequence[Material]) -> bool:
        """Serve new connections with these pairs; says whether they differ from those before.

        Open connections live on with what they began with. Raises ValueError as the construction
        does; those from before go on serving then.
        """
        if tuple(materials) == self._serving.materials:
            return False
        self._serving = _Together(materials)
        return True

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """A connection that begins with the first pair."""
        return SSL.Connection(self._serving.contexts[0], None)

    @property
    def materials(self) -> tuple[Material, ...]:
        """What they were made of, for other processes."""
        return self._serving.materials

    def endings(self) -> list[Ending]:
        """Of each pair, in order, when its first certificate ends."""
        return list(self._serving.endings)

    def days_left(self, now: datetime) -> list[tuple[Path, tuple[str, ...], int]]:
        """Of each pair, in order: the certificate's file, whom it names, whole days left at `now`.

        `now` is an aware time; the days are negative once the certificate has ended.
        """
        return [(each.certificate, each.names, each.days(now)) for each in self._serving.endings]

    def status(self) -> list[dict[str, Any]]:
        """Of each pair, in order: its file, whom it names, whole days left, as JSON."""
        return [
            {"file": str(path), "names": names, "days": days}
            for path, names, days in self.days_left(_wall_clock())
        ]


# -- what is watched -------------------------------------------------------------------------------


def _wall_clock() -> datetime:
    return datetime.now(UTC)


class ExpiryWatch:
    """Logs which certificates end soon or have ended: at the start and then once a day.

    `now` says what time it is, as an aware one.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        certificates: Certificates,
        now: Callable[[], datetime] = _wall_clock,
    ) -> None:
        self._certificates = certificates
        self._now = now
        self._loop = LoopingCall(self.look)
        self._loop.clock = clock

    def start(self) -> None:
        """Look, and again every day until `stop`."""
        self._loop.start(_A_DAY.total_seconds(), now=True)

    def stop(self) -> None:
        """Look no more; does nothing where it was not started."""
        if self._loop.running:
            self._loop.stop()

    def look(self) -> None:
        """A warning for each pair with 14 days or fewer left, an error for each that has ended."""
        now = self._now()
        for ending in self._certificates.endings():
            days = ending.days(now)
            words = {
                "certificate": str(ending.certificate),
                "whom": _for_whom(ending.names),
                "ends": f"{ending.ends:%Y-%m-%d}",
            }
            if days < 0:
                self.log.error(
                    "the certificate {certificate}{whom} ended on {ends},"
                    " clients refuse it: renew it",
                    **words,
                )
            elif days <= WARN_DAYS:
                left = "less than a day" if days == 0 else "1 day" if days == 1 else f"{days} days"
                self.log.warn(
                    "the certificate {certificate}{whom} ends in {left}, on {ends}: renew it",
                    left=left,
                    **words,
                )


def _for_whom(names: tuple[str, ...]) -> str:
    if not names:
        return ""
    more = len(names) - _LISTED
    return " for " + ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


#: What tells one state of a file from another, or why it can't be told.
_Sign = tuple[int, ...] | str


class FilesWatch:
    """Looks every `every` seconds whether files changed, and calls `changed` once they settled.

    They settled when they were the same at one further look, because a certificate and its key are
    not replaced in the same instant. Symbolic links are followed, since certbot and Kubernetes
    replace those. While a file is missing nothing is called; it is said once. What is looked for
    is a change since the construction: read the files after it, and none is missed.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        paths: Iterable[Path],
        changed: Callable[[], object],
        every: float = 10.0,
    ) -> None:
        self._paths = tuple(dict.fromkeys(paths))
        self._changed = changed
        self._every = every
        self._seen = self._told = self._signs()
        self._said: set[tuple[Path, str]] = set()
        self._loop = LoopingCall(self._look)
        self._loop.clock = clock

    def start(self) -> None:
        """Look from `every` seconds on until `stop`."""
        self._loop.start(self._every, now=False)

    def stop(self) -> None:
        """Look no more; does nothing where it was not started."""
        if self._loop.running:
            self._loop.stop()

    def _signs(self) -> dict[Path, _Sign]:
        return {path: _sign(path) for path in self._paths}

    def _look(self) -> None:
        before, self._seen = self._seen, self._signs()
        if self._seen != before:
            return
        faults = {(path, sign) for path, sign in self._seen.items() if isinstance(sign, str)}
        for path, reason in sorted(faults - self._said):
            self.log.warn(
                "can't look at {path}: {reason}; what was read from it before stays in use",
                path=str(path),
                reason=reason,
            )
        self._said = faults
        if faults or self._seen == self._told:
            return
        self._told = self._seen
        # A LoopingCall whose function raises ends for good.
        try:
            self._changed()
        except Exception:  # noqa: BLE001 - said; the next change is another chance
            self.log.failure("what follows from a changed file failed")


def _sign(path: Path) -> _Sign:
    try:
        status = path.stat()
    except OSError as error:
        return error.strerror or type(error).__name__
    # The time of the inode too: who gives back the right to read a file changes nothing else.
    return (
        status.st_dev,
        status.st_ino,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_size,
    )
