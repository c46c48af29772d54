"""What certificate and key files hold: read, parsed, and handed to other processes.

Must not know: connections, which certificate a client gets, or the options that named the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes


class Material(NamedTuple):
    """What the files of one certificate and its key held; the paths are for messages."""

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
        """The reverse of `as_texts`; raises ValueError naming a field that is no such text."""
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
    return certificates_in(_read(path, "certificate"), path)


def read_key(path: Path) -> PrivateKeyTypes:
    """The unencrypted key of a PEM file; raises ValueError that names it and says why."""
    return key_in(_read(path, "key"), path)


def certificates_in(pem: bytes, path: Path) -> list[x509.Certificate]:
    """All certificates of a PEM text, in order; raises ValueError that names `path`."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ValueError(f"{path} holds no certificate in PEM: {error}") from None


def key_in(pem: bytes, path: Path) -> PrivateKeyTypes:
    """The unencrypted key of a PEM text; raises ValueError that names `path`."""
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{path} holds no unencrypted private key in PEM: {error}") from None


def public_bytes_of(key: object) -> bytes:
    """A public key in DER, to compare it with another."""
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]  # every public key has it, no common base declares it
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


def names_in(certificate: x509.Certificate, path: Path) -> tuple[list[str], list[str]]:
    """The hosts and the addresses that a certificate is for (RFC 9525: only subjectAltName)."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [], []
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError) as error:
        raise ValueError(f"the names in the certificate {path} can't be read: {error}") from None
    addresses = found.get_values_for_type(x509.IPAddress)
    return found.get_values_for_type(x509.DNSName), [str(address) for address in addresses]
