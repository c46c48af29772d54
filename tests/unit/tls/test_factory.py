"""Certificates: the development pair, what is refused and how, and TLS on real sockets."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import ipaddress
import os
import socket
import ssl
import stat
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_twisted
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL
from twisted.internet import defer, protocol, reactor
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from waiting import until
from zope.interface.verify import verifyObject

from pushservice.tls.factory import NeverNone, TLSFactory, development_pair, server_options

NOW = datetime.datetime.now(datetime.UTC)


def make_certificate(key, name="test", days=30.0, issuer=None, issuer_key=None):
    """A certificate for `key` that ends in `days`, signed by itself or by an issuer."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - datetime.timedelta(days=400))
        .not_valid_after(NOW + datetime.timedelta(days=days))
        .sign(issuer_key or key, hashes.SHA256())
    )


def write_pair(directory: Path, key, *certificates, password: bytes | None = None):
    """Put a key and certificates where the development pair would be."""
    certificate_file, key_file = directory / "dev.crt", directory / "dev.key"
    pem = serialization.Encoding.PEM
    locked = (
        serialization.NoEncryption()
        if password is None
        else serialization.BestAvailableEncryption(password)
    )
    key_file.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, locked))
    certificate_file.write_bytes(b"".join(cert.public_bytes(pem) for cert in certificates))
    return certificate_file, key_file


@pytest.fixture
def key():
    return ec.generate_private_key(ec.SECP256R1())


# -- the development pair --------------------------------------------------------------------------


def test_the_pair_is_made_once_in_a_directory_that_need_not_be_there(tmp_path):
    made = development_pair(tmp_path / "a" / "b")
    assert made == (tmp_path / "a/b/dev.crt", tmp_path / "a/b/dev.key", True)
    contents = [path.read_bytes() for path in made[:2]]
    assert development_pair(tmp_path / "a" / "b") == (*made[:2], False)
    assert [path.read_bytes() for path in made[:2]] == contents


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_the_key_is_readable_by_its_owner_alone_whatever_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        pair = development_pair(tmp_path / "certs")
    finally:
        os.umask(before)
    assert stat.S_IMODE(pair.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(pair.certificate.stat().st_mode) == 0o644
    assert sorted(path.name for path in pair.key.parent.iterdir()) == ["dev.crt", "dev.key"]


def test_the_development_certificate_is_for_a_server_on_this_machine(tmp_path):
    pair = development_pair(tmp_path)
    certificate = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert names.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address("127.0.0.1"),
        ipaddress.ip_address("::1"),
    ]
    assert isinstance(certificate.public_key().curve, ec.SECP256R1)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert basic.ca is False, "trusting it must not mean trusting what it signs"
    assert certificate.not_valid_before_utc < NOW
    # Browsers and macOS refuse more than 398 days.
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert datetime.timedelta(days=365) < lifetime <= datetime.timedelta(days=398)
    certificate.verify_directly_issued_by(certificate)


@pytest.mark.parametrize(("days", "renewed"), [(-1, True), (6, True), (8, False)])
def test_a_pair_that_expires_within_a_week_is_made_anew(tmp_path, key, days, renewed):
    write_pair(tmp_path, key, make_certificate(key, days=days))
    pair = development_pair(tmp_path)
    assert pair.made is renewed
    certificate = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
    assert (certificate.public_key() == key.public_key()) is not renewed
    server_options(pair.certificate, pair.key)


def test_two_pairs_have_different_keys(tmp_path):
    first, second = (development_pair(tmp_path / name) for name in "ab")
    assert first.key.read_bytes() != second.key.read_bytes()


@pytest.mark.parametrize(("there", "missing"), [("dev.crt", "dev.key"), ("dev.key", "dev.crt")])
def test_one_file_without_the_other_is_refused_and_left_alone(tmp_path, there, missing):
    (tmp_path / there).write_text("precious")
    with pytest.raises(ValueError, match=rf"/{there} is there but .*/{missing} is not: delete it"):
        development_pair(tmp_path)
    assert (tmp_path / there).read_text() == "precious"
    assert not (tmp_path / missing).exists()


def test_a_directory_that_cannot_be_is_refused_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^can't make a development certificate in .*/file/c: "):
        development_pair(tmp_path / "file" / "c")


def test_a_development_certificate_that_is_none_is_refused_and_left_alone(tmp_path, key):
    certificate, _ = write_pair(tmp_path, key)
    with pytest.raises(ValueError, match=r"dev\.crt holds no certificate in PEM"):
        development_pair(tmp_path)
    assert certificate.read_bytes() == b""


# -- what is refused -------------------------------------------------------------------------------


def refusal_of(files) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is checked by each caller
        server_options(*files)
    return str(caught.value)


def test_missing_files_are_named(tmp_path, key):
    certificate, key_file = write_pair(tmp_path, key, make_certificate(key))
    nowhere = tmp_path / "nowhere"
    missing = "No such file or directory"
    assert refusal_of((nowhere, key_file)) == f"can't read the certificate {nowhere}: {missing}"
    assert refusal_of((certificate, nowhere)) == f"can't read the key {nowhere}: {missing}"
    assert refusal_of((certificate, tmp_path)) == f"can't read the key {tmp_path}: Is a directory"


@pytest.mark.parametrize("content", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_garbage_is_named(tmp_path, key, content):
    certificate, key_file = write_pair(tmp_path, key, make_certificate(key))
    garbage = tmp_path / "garbage"
    garbage.write_bytes(content)
    assert f"{garbage} holds no certificate in PEM: " in refusal_of((garbage, key_file))
    assert f"{garbage} holds no unencrypted private key in PEM: " in refusal_of(
        (certificate, garbage)
    )


def test_a_public_key_and_a_certificate_are_no_private_key(tmp_path, key):
    certificate, key_file = write_pair(tmp_path, key, make_certificate(key))
    assert "holds no unencrypted private key" in refusal_of((certificate, certificate))
    assert "holds no certificate in PEM" in refusal_of((key_file, key_file))


def test_an_encrypted_key_is_refused_since_nobody_could_type_its_password(tmp_path, key):
    files = write_pair(tmp_path, key, make_certificate(key), password=b"secret")
    assert f"{files[1]} holds no unencrypted private key in PEM: " in refusal_of(files)


def test_a_key_of_another_certificate_is_refused(tmp_path, key):
    other = ec.generate_private_key(ec.SECP256R1())
    # The chain has a certificate of this key, but not in the first place.
    files = write_pair(tmp_path, other, make_certificate(key), make_certificate(other))
    assert refusal_of(files) == (
        f"the key {files[1]} does not belong to the first certificate in {files[0]}"
    )


def test_a_key_that_cannot_sign_is_refused(tmp_path, key):
    issuer = make_certificate(key)
    exchange = x25519.X25519PrivateKey.generate()
    certificate = make_certificate(exchange, issuer=issuer, issuer_key=key)
    files = write_pair(tmp_path, exchange, certificate)
    assert f"{files[0]} with {files[1]} can't serve TLS: " in refusal_of(files)


def test_a_key_that_openssl_takes_for_too_weak_is_refused(tmp_path):
    weak = rsa.generate_private_key(65537, 1024)
    files = write_pair(tmp_path, weak, make_certificate(weak))
    assert f"{files[0]} with {files[1]} can't serve TLS: " in refusal_of(files)


def test_a_key_of_a_curve_that_is_not_supported_is_refused(tmp_path):
    files = (tmp_path / "sm2.crt", tmp_path / "sm2.key")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:SM2 -nodes -subj /CN=x"
    subprocess.run(
        [*command.split(), "-out", files[0], "-keyout", files[1]], check=True, capture_output=True
    )
    assert str(files[1]) in refusal_of(files)


# -- on real sockets -------------------------------------------------------------------------------


class Echo(protocol.Protocol):
    """Sends back what comes, in capitals; counts who is there."""

    def connectionMade(self) -> None:
        self.factory.present += 1

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data.upper())

    def connectionLost(self, reason) -> None:
        self.factory.present -= 1


@pytest.fixture
def serve():
    """serve(certificate, key): an echoing TLS server; returns its port's number."""
    served = []

    def start(certificate: Path, key: Path, weakest: bool = False) -> int:
        factory = protocol.Factory.forProtocol(Echo)
        factory.present = 0
        options = server_options(certificate, key)
        if weakest:
            # OpenSSL then allows what it can, and only what we forbid is refused.
            options.getContext().set_cipher_list(b"ALL:@SECLEVEL=0")
        tls = TLSFactory(options, factory, reactor)
        served.append((factory, reactor.listenTCP(0, tls, interface="127.0.0.1")))
        return served[-1][1].getHost().port

    async def stop() -> None:
        for factory, port in served:
            await port.stopListening()
            await until(lambda present=factory: present.present == 0, "all connections to end")

    yield start
    pytest_twisted.blockon(defer.ensureDeferred(stop()))


class Talk(NamedTuple):
    """What a client saw of a handshake, and the answer to its `quote`."""

    version: str
    chain: list[x509.Certificate]
    alpn: bytes
    echo: bytes


def talk(port: int, version: int | None = None, alpn: list[bytes] | None = None) -> Talk:
    """Handshake as a client, with one TLS version and ALPN protocols if given; send and receive."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    if version is not None:
        context.set_cipher_list(b"ALL:@SECLEVEL=0")
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
    if alpn is not None:
        context.set_alpn_protos(alpn)
    with socket.create_connection(("127.0.0.1", port), 10) as plain:
        plain.settimeout(None)
        client = SSL.Connection(context, plain)
        client.set_connect_state()
        client.do_handshake()
        chain = [cert.to_cryptography() for cert in client.get_peer_cert_chain()]
        client.sendall(b"quote")
        echo = b""
        while len(echo) < 5:
            echo += client.recv(5)
        seen = Talk(
            client.get_protocol_version_name(), chain, client.get_alpn_proto_negotiated(), echo
        )
        client.shutdown()
        return seen


@pytest_twisted.ensureDeferred
async def test_the_development_pair_serves_and_is_trusted_by_who_trusts_its_certificate(
    tmp_path, serve
):
    pair = development_pair(tmp_path)
    port = serve(pair.certificate, pair.key)
    for host in ("localhost", "127.0.0.1", "::1"):
        check = "-verify_ip" if host[-1] == "1" else "-verify_hostname"
        done = await deferToThread(
            subprocess.run,
            [
                *("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-verify_return_error"),
                *("-CAfile", pair.certificate, check, host, "-quiet", "-no_ign_eof"),
            ],
            input=b"quote\n",
            capture_output=True,
            timeout=30,
        )
        assert b"verify return:1" in done.stderr, done.stderr.decode()
        assert b"verify error" not in done.stderr, done.stderr.decode()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("version", "name"), [(SSL.TLS1_2_VERSION, "TLSv1.2"), (SSL.TLS1_3_VERSION, "TLSv1.3")]
)
async def test_tls_1_2_and_1_3_are_spoken(tmp_path, serve, version, name):
    pair = development_pair(tmp_path)
    port = serve(pair.certificate, pair.key)
    seen = await deferToThread(talk, port, version)
    assert (seen.version, seen.echo) == (name, b"QUOTE")


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("version", [SSL.TLS1_VERSION, SSL.TLS1_1_VERSION])
async def test_older_versions_are_refused_by_the_server(tmp_path, serve, version):
    pair = development_pair(tmp_path)
    port = serve(pair.certificate, pair.key, weakest=True)
    with pytest.raises(SSL.Error, match="alert protocol version"):
        await deferToThread(talk, port, version)


@pytest_twisted.ensureDeferred
async def test_the_whole_chain_is_sent_as_it_is_in_the_file(tmp_path, serve):
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
    root = make_certificate(keys[2], "root")
    middle = make_certificate(keys[1], "middle", issuer=root, issuer_key=keys[2])
    leaf = make_certificate(keys[0], "leaf", issuer=middle, issuer_key=keys[1])
    port = serve(*write_pair(tmp_path, keys[0], leaf, middle, root))
    assert (await deferToThread(talk, port)).chain == [leaf, middle, root]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("offered", "chosen"),
    [([b"h2", b"http/1.1"], b"http/1.1"), ([b"h2"], b""), ([b"x", b"y"], b""), (None, b"")],
)
async def test_of_the_offered_protocols_http_1_1_is_chosen_or_none(
    tmp_path, serve, offered, chosen
):
    pair = development_pair(tmp_path)
    port = serve(pair.certificate, pair.key)
    seen = await deferToThread(talk, port, alpn=offered)
    assert (seen.alpn, seen.echo) == (chosen, b"QUOTE")


@pytest_twisted.ensureDeferred
async def test_plain_http_is_answered_in_words(tmp_path, serve):
    pair = development_pair(tmp_path)
    port = serve(pair.certificate, pair.key)

    def get() -> tuple[int, str, str | None]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/")
        with connection.getresponse() as response:
            text = response.read().decode()
        connection.close()
        return response.status, text, response.getheader("Connection")

    assert await deferToThread(get) == (
        400,
        "This port speaks TLS: use https:// or wss:// instead of http://\n",
        "close",
    )


@pytest_twisted.ensureDeferred
async def test_the_first_letter_is_enough_for_the_words_and_an_end(tmp_path, serve):
    pair = development_pair(tmp_path)
    port = serve(pair.certificate, pair.key)

    def send_one_letter() -> bytes:
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.sendall(b"P")
            answer = b""
            while part := client.recv(4096):
                answer += part
            return answer

    head, _, words = (await deferToThread(send_one_letter)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"Content-Length: %d\r\n" % len(words) in head


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("data", [b"\x00" * 20, b"\x16\x03\x01\xff\xff" + b"x" * 20, b"\xff"])
async def test_what_is_neither_tls_nor_http_gets_no_words_and_harms_nobody(tmp_path, serve, data):
    pair = development_pair(tmp_path)
    port = serve(pair.certificate, pair.key)

    def send() -> bytes:
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            answer = b""
            try:
                while chunk := client.recv(4096):
                    answer += chunk
            except ConnectionResetError:
                pass
            return answer

    assert b"HTTP" not in await deferToThread(send)
    assert (await deferToThread(talk, port)).echo == b"QUOTE"


def shake_hands(server: SSL.Connection, context: ssl.SSLContext, session: object) -> ssl.SSLObject:
    """A client's end after a whole handshake with `server`, in memory, tickets included."""
    server.set_accept_state()
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(to_client, to_server, server_hostname="localhost", session=session)
    for _ in range(6):
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        if to_server.pending:
            server.bio_write(to_server.read())
        with contextlib.suppress(SSL.WantReadError):
            server.do_handshake()
        with contextlib.suppress(SSL.WantReadError):
            while True:
                to_client.write(server.bio_read(65536))
    with contextlib.suppress(ssl.SSLWantReadError):
        client.read(1)
    return client


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_that_comes_again_resumes_its_session_by_its_ticket(tmp_path, version):
    pair = development_pair(tmp_path)
    options = server_options(pair.certificate, pair.key)
    context = ssl.create_default_context(cafile=str(pair.certificate))
    context.minimum_version = context.maximum_version = version
    session = None
    for again in (False, True):
        client = shake_hands(SSL.Connection(options.getContext(), None), context, session)
        assert client.session_reused is again
        session = client.session


# -- connections that the factory within wants none of ---------------------------------------------


class Picky(protocol.Factory):
    """Wants a connection only while `open`."""

    protocol = Echo
    noisy = False

    def __init__(self) -> None:
        self.present = 0
        self.open = False
        self.asked: list[object] = []
        self.started = 0

    def doStart(self) -> None:
        self.started += 1

    def doStop(self) -> None:
        self.started -= 1

    def buildProtocol(self, addr) -> protocol.Protocol | None:
        self.asked.append(addr)
        return super().buildProtocol(addr) if self.open else None


ADDRESS = IPv4Address("TCP", "192.0.2.1", 54321)


def test_tls_is_not_begun_for_a_connection_that_the_factory_within_wants_none_of(tmp_path):
    pair = development_pair(tmp_path)
    within = Picky()
    factory = TLSFactory(server_options(pair.certificate, pair.key), within, reactor)
    assert factory.buildProtocol(ADDRESS) is None
    within.open = True
    built = factory.buildProtocol(ADDRESS)
    assert isinstance(built.wrappedProtocol, Echo)
    assert within.asked == [ADDRESS, ADDRESS]


def test_who_takes_no_none_gets_a_protocol_that_ends_its_connection():
    within = Picky()
    factory = NeverNone(within)
    assert verifyObject(IProtocolFactory, factory)
    refused = factory.buildProtocol(ADDRESS)
    transport = AbortableTransport()
    refused.makeConnection(transport)
    assert transport.aborted
    within.open = True
    assert isinstance(factory.buildProtocol(ADDRESS), Echo)
    assert within.asked == [ADDRESS, ADDRESS]


class AbortableTransport(StringTransport):
    """Says whether it was aborted."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


def test_a_factory_within_begins_and_ends_with_its_port():
    within = Picky()
    factory = NeverNone(within)
    factory.doStart()
    assert within.started == 1
    factory.doStop()
    assert within.started == 0


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("way", ["TLS around it", "a TLS port of Twisted's"])
async def test_a_refused_connection_is_ended_and_the_next_one_is_served(tmp_path, way):
    pair = development_pair(tmp_path)
    within = Picky()
    options = server_options(pair.certificate, pair.key)
    if way == "TLS around it":
        port = reactor.listenTCP(0, TLSFactory(options, within, reactor), interface="127.0.0.1")
    else:
        # What an ssl: endpoint listens with.
        port = reactor.listenSSL(0, NeverNone(within), options, interface="127.0.0.1")
    number = port.getHost().port

    def refused() -> bytes:
        # The reset may come before connect(2) returns.
        with (
            contextlib.suppress(ConnectionResetError),
            socket.create_connection(("127.0.0.1", number), 10) as client,
        ):
            return client.recv(100)
        return b""

    for count in (1, 2):
        assert await deferToThread(refused) == b""
        assert len(within.asked) == count
    within.open = True
    assert (await deferToThread(talk, number)).echo == b"QUOTE"
    await until(lambda: within.present == 0, "the end of the one that was served")
    await port.stopListening()
