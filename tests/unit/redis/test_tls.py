"""TLS to Redis: which files are refused and how, and which servers are trusted; real sockets."""

from __future__ import annotations

import pytest
import pytest_twisted
from cryptography.hazmat.primitives import serialization
from redis_process import Authority
from twisted.internet import protocol, reactor
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.ssl import Certificate, CertificateOptions, trustRootFromCertificates
from twisted.python.failure import Failure
from waiting import until

from pushservice.redis.tls import NotTrusted, TLSEndpoint, check_files, failure_text
from pushservice.redis.url import RedisTLS
from pushservice.tls.factory import server_options


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


# -- files -----------------------------------------------------------------------------------------


def test_matching_files_and_no_files_are_accepted(authority):
    own = authority.issue("own")
    check_files(RedisTLS())
    check_files(RedisTLS(ca=authority.ca))
    check_files(RedisTLS(cert=own.cert, key=own.key))
    check_files(RedisTLS(authority.ca, own.cert, own.key))


def refusal(tls: RedisTLS) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - each caller checks the text
        check_files(tls)
    return str(caught.value)


def test_missing_files_are_named(authority, tmp_path):
    own, gone = authority.issue("own"), tmp_path / "gone"
    end = f"{gone}: No such file or directory"
    assert refusal(RedisTLS(ca=gone)) == f"can't read the certificate {end}"
    assert refusal(RedisTLS(cert=gone, key=own.key)) == f"can't read the certificate {end}"
    assert refusal(RedisTLS(cert=own.cert, key=gone)) == f"can't read the key {end}"


def test_files_with_other_contents_are_named(authority, tmp_path):
    own = authority.issue("own")
    empty, junk = tmp_path / "empty", tmp_path / "junk"
    empty.write_bytes(b"")
    junk.write_bytes(
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
    )
    for wrong in (empty, junk, own.key):
        words = f"{wrong} holds no certificate in PEM: "
        assert refusal(RedisTLS(ca=wrong)).startswith(words)
        assert refusal(RedisTLS(cert=wrong, key=own.key)).startswith(words)
    for wrong in (empty, junk, own.cert):
        words = f"{wrong} holds no unencrypted private key in PEM: "
        assert refusal(RedisTLS(cert=own.cert, key=wrong)).startswith(words)


def test_an_encrypted_key_is_refused(authority):
    own = authority.issue("own")
    key = serialization.load_pem_private_key(own.key.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"x")
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    own.key.write_bytes(key.private_bytes(pem, pkcs8, locked))
    assert "holds no unencrypted private key in PEM" in refusal(RedisTLS(None, own.cert, own.key))


def test_a_key_of_another_certificate_is_refused(authority):
    own, other = authority.issue("own"), authority.issue("other")
    words = refusal(RedisTLS(cert=own.cert, key=other.key))
    assert words.startswith(f"{own.cert} with {other.key} can't be shown to Redis: ")


# -- connections -----------------------------------------------------------------------------------


class Greeter(protocol.Protocol):
    """Sends a greeting at once."""

    def connectionMade(self) -> None:
        self.transport.write(b"hello")


class Reader(protocol.Protocol):
    """Sends a greeting too, and keeps what it received and how the connection ended."""

    def __init__(self) -> None:
        self.data = b""
        self.end: Failure | None = None

    def connectionMade(self) -> None:
        self.transport.write(b"hello")

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        self.end = reason


async def reach(files, tls: RedisTLS, host: str = "localhost", demanded=None) -> str:
    """The greeting of a server with that certificate, or why connecting failed."""
    options = server_options(files.cert, files.key)
    if demanded is not None:
        root = trustRootFromCertificates([Certificate.loadPEM(demanded.read_bytes())])
        given = {"privateKey": options.privateKey, "certificate": options.certificate}
        options = CertificateOptions(**given, trustRoot=root)
    server = protocol.Factory.forProtocol(Greeter)
    server.noisy = False
    port = reactor.listenSSL(0, server, options, interface="127.0.0.1")
    within = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
    client = protocol.Factory.forProtocol(Reader)
    client.noisy = False
    try:
        reader = await TLSEndpoint(reactor, host, tls, within).connect(client)
        await until(lambda: reader.data or reader.end, "what comes of it")
        words = reader.data.decode() or failure_text(reader.end)
        if reader.end is None:
            reader.transport.abortConnection()
        await until(lambda: reader.end, "the end")
    finally:
        await port.stopListening()
    return words


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("host", "named"),
    [
        ("localhost", "localhost"),
        ("LocalHost", "localhost"),
        ("a.example.com", "*.example.com"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("bücher.example", "xn--bcher-kva.example"),
    ],
)
async def test_a_certificate_for_the_host_is_accepted(authority, host, named):
    files = authority.issue("server", named)
    assert await reach(files, RedisTLS(ca=authority.ca), host) == "hello"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("host", "named", "words"),
    [
        ("localhost", ["elsewhere"], "elsewhere"),
        ("localhost", ["127.0.0.1", "a.example"], "a.example, 127.0.0.1"),
        ("127.0.0.1", ["localhost"], "localhost"),
        ("127.0.0.1", ["127.0.0.2"], "127.0.0.2"),
        ("a.b.example.com", ["*.example.com"], "*.example.com"),
        ("localhost", [], "nobody: it has no subjectAltName"),
        ("127.0.0.1", [], "nobody: it has no subjectAltName"),
    ],
)
async def test_a_certificate_for_another_host_or_for_none_is_refused(authority, host, named, words):
    files = authority.issue("server", *named)
    assert await reach(files, RedisTLS(ca=authority.ca), host) == (
        f"TLS: the certificate of {host} is not for that name but for {words}"
    )


@pytest_twisted.ensureDeferred
async def test_an_unknown_authority_is_not_trusted_by_file_or_system(authority, tmp_path):
    files = authority.issue("server", "localhost")
    for tls in (RedisTLS(ca=Authority(tmp_path, "other").ca), RedisTLS()):
        assert await reach(files, tls) == (
            "TLS: the certificate of localhost is signed by an authority that is not trusted:"
            " CN=authority"
        )


@pytest_twisted.ensureDeferred
async def test_a_file_may_hold_several_authorities(authority, tmp_path):
    both = tmp_path / "both"
    other = Authority(tmp_path, "other")
    both.write_bytes(other.ca.read_bytes() + authority.ca.read_bytes())
    for each in (authority, other):
        files = each.issue(f"server-of-{each.ca.stem}", "localhost")
        assert await reach(files, RedisTLS(ca=both)) == "hello"


@pytest_twisted.ensureDeferred
async def test_an_expired_certificate_is_refused(authority):
    files = authority.issue("server", "localhost", days=-1)
    assert await reach(files, RedisTLS(ca=authority.ca)) == (
        "TLS: the certificate of localhost has expired: CN=server"
    )


@pytest_twisted.ensureDeferred
async def test_a_client_certificate_is_sent_and_reported_missing(authority):
    files, own = authority.issue("server", "localhost"), authority.issue("own")
    shown = RedisTLS(authority.ca, own.cert, own.key)
    assert await reach(files, shown, demanded=authority.ca) == "hello"
    words = await reach(files, RedisTLS(authority.ca), demanded=authority.ca)
    assert words == "TLS: tlsv13 alert certificate required"


@pytest_twisted.ensureDeferred
async def test_files_are_read_for_each_connection(authority, tmp_path):
    files = authority.issue("server", "localhost")
    trusted = tmp_path / "trusted"
    tls = RedisTLS(ca=trusted)
    with pytest.raises(ValueError, match="can't read the certificate"):
        await reach(files, tls)
    trusted.write_bytes(authority.ca.read_bytes())
    assert await reach(files, tls) == "hello"


def test_failures_have_a_text():
    assert failure_text(Failure(NotTrusted("no"))) == "TLS: no"
    assert failure_text(Failure(ValueError("as it is"))) == "as it is"
