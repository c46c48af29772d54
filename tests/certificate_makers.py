"""Certificates and keys for tests, and a TLS client that shows which certificate it gets."""

from __future__ import annotations

import datetime
import functools
import socket
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pushservice.tls.material import Material

NOW = datetime.datetime(2026, 11, 22, 12, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
PEM = serialization.Encoding.PEM
TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@functools.cache
def a_key(number: int = 0):
    """The key of this number: few tests care which."""
    return ec.generate_private_key(ec.SECP256R1())


def certificate_for(*names: str, key=None, ends=NOW + 3650 * DAY, extensions=()):
    """A self-signed certificate for these DNS names."""
    key = key or a_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0] if names else "nobody")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - 800 * DAY)
        .not_valid_after(ends)
    )
    alternatives = [*map(x509.DNSName, names), *extensions]
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(key, hashes.SHA256())


def pem_of(*certificates) -> bytes:
    return b"".join(each.public_bytes(PEM) for each in certificates)


def key_pem(key) -> bytes:
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def material(*names: str, key=None, ends=NOW + 3650 * DAY, extensions=()) -> Material:
    """A pair for these names, with paths by the first of them that nothing is at."""
    path = Path("/x") / (names[0] if names else "nobody")
    certificate = certificate_for(*names, key=key, ends=ends, extensions=extensions)
    return Material(
        path / "chain.pem", path / "key.pem", pem_of(certificate), key_pem(key or a_key())
    )


def first_of(pair: Material) -> bytes:
    """The first certificate of a pair, as clients see it."""
    certificate = x509.load_pem_x509_certificate(pair.certificate_pem)
    return certificate.public_bytes(serialization.Encoding.DER)


def refusal_of(call, *arguments) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is checked by each caller
        call(*arguments)
    return str(caught.value)


def client_context(version=None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


def dial(port: int, name: str | None, context=None, session=None) -> ssl.SSLSocket:
    """A client's connection after its handshake."""
    plain = socket.create_connection(("127.0.0.1", port), 20)
    return (context or client_context()).wrap_socket(plain, server_hostname=name, session=session)


def say(client: ssl.SSLSocket) -> bytes:
    """What the server answers to `quote`."""
    client.sendall(b"quote")
    answer = b""
    while len(answer) < 5:
        part = client.recv(5)
        assert part, "the server has gone"
        answer += part
    return answer


def shown(port: int, name: str | None, version=None) -> bytes:
    """The certificate that a client which asks for `name` is shown; the whole way is tried."""
    with dial(port, name, client_context(version)) as client:
        assert say(client) == b"QUOTE"
        assert client.selected_alpn_protocol() == "http/1.1"
        return client.getpeercert(binary_form=True)


A = material("a.example", "www.a.example", key=a_key(1))
B = material("*.b.example", "b.example", key=a_key(2))
C = material(
    "c.example",
    "deep.b.example",
    "CAPITALS.Example",
    "xn--mller-kva.example",
    "www.a.example",
    key=a_key(3),
)
