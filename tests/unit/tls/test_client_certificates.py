"""Certificates that clients must show, and what TLS with them allows: real TLS."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest
import pytest_twisted
from certificate_makers import (
    DAY,
    NOW,
    TLS_1_2,
    A,
    B,
    a_key,
    client_context,
    dial,
    key_pem,
    pem_of,
    refusal_of,
    say,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.internet.threads import deferToThread

from pushservice.tls.certificates import Certificates
from pushservice.tls.material import Material, read_material


def issued(authority: str, subject: str, directory: Path) -> ssl.SSLContext:
    """A client with a certificate for `subject` of the authority whose key has this name."""
    key, by = a_key(40), a_key(sum(authority.encode()))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, authority)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - 800 * DAY)
        .not_valid_after(NOW + 3650 * DAY)
        .sign(by, hashes.SHA256())
    )
    file = directory / f"{authority}-{subject}"
    file.write_bytes(pem_of(certificate) + key_pem(key))
    context = client_context()
    context.load_cert_chain(file)
    return context


def authority(name: str) -> bytes:
    """The certificate of an authority, in PEM."""
    key = a_key(sum(name.encode()))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - 800 * DAY)
        .not_valid_after(NOW + 3650 * DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    return pem_of(builder.sign(key, hashes.SHA256()))


def asking(pair: Material, *authorities: str) -> Material:
    pem = b"".join(map(authority, authorities))
    return pair._replace(authorities=Path("/x/ca.pem"), authorities_pem=b"# ours\n" + pem)


def heard(port: int, name: str, context: ssl.SSLContext) -> bytes:
    """What the server answers; nothing where it does not want to know the client."""
    try:
        with dial(port, name, context) as client:
            return say(client)
    except (OSError, AssertionError):
        # With TLS 1.3 a client hears of it with the first byte that it reads.
        return b""


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("name", ["a.example", "b.example"])
async def test_with_authorities_only_who_has_a_certificate_of_theirs_comes_in(
    serve, tmp_path, name
):
    port = serve(Certificates([asking(A, "One", "Two"), asking(B, "One", "Two")]))
    for context, comes_in in (
        (issued("One", "ann", tmp_path), True),
        (issued("Two", "bob", tmp_path), True),
        (issued("Three", "eve", tmp_path), False),
        (client_context(), False),
    ):
        answer = await deferToThread(heard, port, name, context)
        assert answer == (b"QUOTE" if comes_in else b"")


@pytest.mark.parametrize(
    "pem",
    [
        b"hello",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        key_pem(a_key(1)),
    ],
)
def test_authorities_that_are_none_are_refused_by_the_name_of_their_file(pem):
    pair = A._replace(authorities=Path("/x/ca.pem"), authorities_pem=pem)
    assert refusal_of(Certificates, [pair]).startswith("/x/ca.pem holds no certificate in PEM")


def test_the_file_of_authorities_is_read_beside_the_pair_and_is_named_where_it_can_not_be(tmp_path):
    for name in ("chain", "key", "ca"):
        (tmp_path / name).write_bytes(name.encode())
    paths = tmp_path / "chain", tmp_path / "key"
    assert read_material(*paths, tmp_path / "ca").authorities_pem == b"ca"
    assert "nothing" in refusal_of(read_material, *paths, tmp_path / "nothing")


def test_other_authorities_are_a_change():
    certificates = Certificates([asking(A, "One")])
    assert certificates.replace([asking(A, "One", "Two")])


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("name", ["a.example", "b.example"])
async def test_with_tls_1_2_only_ciphers_that_make_keys_for_each_connection_serve(serve, name):
    port = serve(Certificates([A, B]))

    def dial_with(ciphers: str) -> str:
        context = client_context(TLS_1_2)
        context.set_ciphers(ciphers + ":@SECLEVEL=0")
        with dial(port, name, context) as client:
            return client.cipher()[0]

    for ciphers in ("ECDHE+AESGCM", "ECDHE+CHACHA20", "DEFAULT"):
        assert (await deferToThread(dial_with, ciphers)).startswith("ECDHE-")
    for ciphers in ("ECDHE+AES:!AESGCM:!AESCCM", "kRSA", "DHE"):
        with pytest.raises(ssl.SSLError):
            await deferToThread(dial_with, ciphers)


@pytest_twisted.ensureDeferred
async def test_an_open_connection_is_not_negotiated_anew(serve):
    port = serve(Certificates([A]))

    def negotiate_again() -> None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        with socket.create_connection(("127.0.0.1", port), 20) as plain:
            plain.settimeout(None)
            client = SSL.Connection(context, plain)
            client.set_connect_state()
            client.do_handshake()
            assert client.renegotiate()
            client.do_handshake()

    with pytest.raises(SSL.Error, match="no renegotiation"):
        await deferToThread(negotiate_again)
