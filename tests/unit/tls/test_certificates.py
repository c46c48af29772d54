"""Certificates chosen by name, replaced and watched: real TLS, real files, a clock for time."""

from __future__ import annotations

import contextlib
import datetime
import functools
import gc
import ipaddress
import json
import os
import socket
import ssl
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import pytest_twisted
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.internet import defer, protocol, reactor
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.logger import formatEvent, globalLogPublisher
from waiting import until, wait_for_line
from zope.interface.verify import verifyObject

from pushservice.tls.certificates import (
    Certificates,
    ExpiryWatch,
    FilesWatch,
    Material,
    read_material,
)
from pushservice.tls.factory import TLSFactory

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


# -- what is in the files --------------------------------------------------------------------------


def test_material_is_what_the_files_hold_and_where_they_are(tmp_path):
    certificate, key = tmp_path / "a.crt", tmp_path / "a.key"
    certificate.write_bytes(b"any")
    key.write_bytes(b"thing")
    assert read_material(certificate, key) == Material(certificate, key, b"any", b"thing")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    there, nowhere = tmp_path / "there", tmp_path / "nowhere"
    there.write_bytes(b"")
    missing = "No such file or directory"
    assert refusal_of(read_material, nowhere, there) == (
        f"can't read the certificate {nowhere}: {missing}"
    )
    assert refusal_of(read_material, there, nowhere) == f"can't read the key {nowhere}: {missing}"
    assert refusal_of(read_material, there, tmp_path) == (
        f"can't read the key {tmp_path}: Is a directory"
    )


def test_material_survives_a_journey_as_json_whatever_bytes_it_has():
    odd = Material(Path(os.fsdecode(b"/x/\xff")), Path("/y"), bytes(range(256)), b"k\xc3\xa4y")
    assert Material.from_texts(json.loads(json.dumps(odd.as_texts()))) == odd


@pytest.mark.parametrize("field", Material._fields)
def test_texts_that_are_no_material_are_refused_by_field(field):
    texts = material("a.example").as_texts()
    for wrong in ({**texts, field: 1}, {k: v for k, v in texts.items() if k != field}):
        assert refusal_of(Material.from_texts, wrong) == (
            f"a pair of certificate and key needs a text for {field!r}"
        )


def test_texts_that_are_no_bytes_are_refused_without_showing_them():
    texts = {**material("a.example").as_texts(), "key_pem": "secret€"}
    assert refusal_of(Material.from_texts, texts) == (
        "the texts for /x/a.example/chain.pem are no bytes"
    )


def test_material_never_shows_its_key():
    for text in (repr(material("a.example")), f"{material('a.example')}"):
        assert text == "<Material of /x/a.example/chain.pem and /x/a.example/key.pem>"


# -- what is refused -------------------------------------------------------------------------------


def test_every_pair_is_checked_and_the_file_at_fault_is_named():
    good = material("a.example")
    foreign = material("b.example")._replace(key_pem=key_pem(a_key(1)))
    assert refusal_of(Certificates, [good, foreign]) == (
        "the key /x/b.example/key.pem does not belong to the first certificate in"
        " /x/b.example/chain.pem"
    )
    assert "/x/b.example/chain.pem holds no certificate in PEM: " in refusal_of(
        Certificates, [good, material("b.example")._replace(certificate_pem=b"")]
    )
    assert "/x/b.example/key.pem holds no unencrypted private key in PEM: " in refusal_of(
        Certificates, [good, material("b.example")._replace(key_pem=b"-----BEGIN")]
    )
    weak = rsa.generate_private_key(65537, 1024)
    assert "/x/b.example/chain.pem with /x/b.example/key.pem can't serve TLS: " in refusal_of(
        Certificates, [good, material("b.example", key=weak)]
    )


def test_without_a_pair_nothing_can_be_served():
    assert refusal_of(Certificates, []) == "TLS needs at least one certificate with its key"


def test_a_certificate_whose_names_cannot_be_read_is_refused():
    key = a_key()
    nonsense = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, b"\x30\x03\x82\x01\xff")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + DAY)
        .add_extension(nonsense, critical=False)
        .sign(key, hashes.SHA256())
    )
    pair = material("a.example")._replace(certificate_pem=pem_of(certificate))
    assert "the names in the certificate /x/a.example/chain.pem can't be read: " in refusal_of(
        Certificates, [pair]
    )


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
    """serve(certificates): an echoing TLS server; returns its port's number."""
    served = []

    def start(certificates: Certificates) -> int:
        factory = protocol.Factory.forProtocol(Echo)
        factory.present = 0
        tls = TLSFactory(certificates, factory, reactor)
        served.append((factory, reactor.listenTCP(0, tls, interface="127.0.0.1")))
        return served[-1][1].getHost().port

    async def stop() -> None:
        for factory, port in served:
            await port.stopListening()
            await until(lambda present=factory: present.present == 0, "all connections to end")

    yield start
    pytest_twisted.blockon(defer.ensureDeferred(stop()))


@pytest.fixture
def escaped(monkeypatch):
    """The exceptions that came out of a callback of OpenSSL's."""
    found = []
    monkeypatch.setattr(sys, "excepthook", lambda *info: found.append(info))
    return found


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


def test_twisted_takes_certificates_for_what_creates_connections():
    assert verifyObject(IOpenSSLServerConnectionCreator, Certificates([material("a.example")]))


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


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
@pytest.mark.parametrize(
    ("name", "pair"),
    [
        (None, A),
        ("a.example", A),
        ("b.example", B),
        ("c.example", C),
        ("any.b.example", B),
        ("ANY.B.Example", B),
        ("capitals.example", C),
        # Of those that are for the name the first serves, exact or not.
        ("deep.b.example", B),
        ("www.a.example", A),
        # Python's client sends the A-label.
        ("müller.example", C),
        ("two.labels.b.example", A),
        ("other.example", A),
        ("xb.example", A),
        ("example", A),
    ],
)
async def test_a_client_is_shown_the_first_certificate_for_the_name_it_asks_for(
    serve, version, name, pair
):
    port = serve(Certificates([A, B, C]))
    assert await deferToThread(shown, port, name, version) == first_of(pair)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("name", ["a.example", "b.example", None])
async def test_of_one_pair_all_are_shown_that_one(serve, name):
    port = serve(Certificates([A]))
    assert await deferToThread(shown, port, name) == first_of(A)


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        (b"b.example.", B),
        (b".b.example", A),
        (b"*.b.example", B),
        (b".", A),
        (b"", A),
        (b"\xff\xfe.b.example", B),
        (b"c.example\n", A),
    ],
)
def test_odd_names_are_compared_as_the_bytes_they_are(name, pair):
    certificates = Certificates([A, B, C])
    together = certificates._serving
    expected = [A, B, C].index(pair)
    assert together.context_for(name) is (together.contexts[expected] if expected else None)


def test_a_certificate_without_names_serves_only_in_the_first_place():
    together = Certificates([material(), material("b.example"), material()])._serving
    assert together.context_for(b"nobody") is None
    assert together.context_for(b"b.example") is together.contexts[1]


@pytest_twisted.ensureDeferred
async def test_openssl_as_a_client_is_shown_the_certificate_and_the_chain_for_its_name(serve):
    issuer = certificate_for("issuer.example", key=a_key(3))
    chained = B._replace(certificate_pem=B.certificate_pem + pem_of(issuer))
    port = serve(Certificates([A, chained, C]))
    for name, subject, sent in (("x.b.example", b"*.b.example", 2), ("a.example", b"a.example", 1)):
        done = await deferToThread(
            subprocess.run,
            [
                *("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-showcerts"),
                *("-servername", name),
            ],
            input=b"",
            capture_output=True,
            timeout=30,
        )
        assert b"subject=CN = " + subject + b"\n" in done.stdout, done.stdout.decode()
        assert done.stdout.count(b"BEGIN CERTIFICATE") == sent


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("name", ["a.example", "b.example"])
async def test_older_versions_are_refused_whichever_pair_would_serve(serve, name):
    certificates = Certificates([A, B])
    for context in certificates._serving.contexts:
        # OpenSSL then allows what it can, and only what we forbid is refused.
        context.set_cipher_list(b"ALL:@SECLEVEL=0")
    port = serve(certificates)

    def dial_old() -> None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_cipher_list(b"ALL:@SECLEVEL=0")
        context.set_min_proto_version(SSL.TLS1_1_VERSION)
        context.set_max_proto_version(SSL.TLS1_1_VERSION)
        with socket.create_connection(("127.0.0.1", port), 20) as plain:
            plain.settimeout(None)
            client = SSL.Connection(context, plain)
            client.set_tlsext_host_name(name.encode())
            client.set_connect_state()
            client.do_handshake()

    with pytest.raises(SSL.Error, match="alert protocol version"):
        await deferToThread(dial_old)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
@pytest.mark.parametrize("name", [None, "a.example", "x.b.example", "c.example", "other.example"])
async def test_sessions_are_resumed_whichever_pair_serves(serve, version, name):
    port = serve(Certificates([A, B, C]))
    context = client_context(version)

    def come(session) -> tuple[bool, ssl.SSLSession]:
        with dial(port, name, context, session) as client:
            say(client)  # Tickets of TLS 1.3 come with what is said next.
            return client.session_reused, client.session

    session = None
    for again in (False, True, True):
        reused, session = await deferToThread(come, session)
        assert reused is again


#: A client's groups for keys: those that the server takes at once, and those that it asks to have
#: another of first, by a HelloRetryRequest.
AT_ONCE, RETRIED = "X25519:P-256", "ffdhe2048:X25519"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("version", "groups", "hellos"),
    [
        ("-tls1_2", (AT_ONCE, AT_ONCE), (1, 1)),
        ("-tls1_3", (AT_ONCE, AT_ONCE), (1, 1)),
        ("-tls1_3", (AT_ONCE, RETRIED), (1, 2)),
        ("-tls1_3", (RETRIED, AT_ONCE), (2, 1)),
        ("-tls1_3", (RETRIED, RETRIED), (2, 2)),
    ],
)
async def test_openssl_as_a_client_resumes_a_session_of_a_pair_that_is_not_the_first(
    tmp_path, serve, version, groups, hellos
):
    port = serve(Certificates([A, B]))

    def come(*arguments: str) -> tuple[int, bool]:
        """How often the client said hello, and whether its session was resumed."""
        with subprocess.Popen(
            [
                *("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-msg", version),
                *("-servername", "x.b.example", *arguments),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as client:
            client.stdin.write(b"quote\n")
            client.stdin.flush()
            # The echo comes after the tickets.
            seen = wait_for_line(client.stdout, b"QUOTE")
            client.stdin.write(b"Q\n")
            client.stdin.close()
            seen += client.stdout.read()
        assert (b"\nNew, TLS" in seen) is not (b"\nReused, TLS" in seen)
        return seen.count(b", ClientHello\n"), b"\nReused, TLS" in seen

    kept = str(tmp_path / "session")
    first = await deferToThread(come, "-groups", groups[0], "-sess_out", kept)
    again = await deferToThread(come, "-groups", groups[1], "-sess_in", kept)
    assert (first, again) == ((hellos[0], False), (hellos[1], True))


# -- names that nobody has -------------------------------------------------------------------------


def hello_with(name: bytes) -> bytes:
    """A ClientHello that asks for `name`, whatever that is (RFC 8446, 4.1.2; RFC 6066, 3)."""
    stand_in = b"stand-in.example"
    outgoing = ssl.MemoryBIO()
    context = client_context(TLS_1_2)
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=stand_in.decode())
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = bytearray(outgoing.read())
    at = hello.index(stand_in)
    hello[at : at + len(stand_in)] = name
    more = len(name) - len(stand_in)
    # Of the record and the handshake; of all extensions after random, session, ciphers and
    # compression; then of the extension, its list and the name.
    lengths = [(3, 2), (6, 3)]
    position = 9 + 2 + 32
    position += 1 + hello[position]
    position += 2 + int.from_bytes(hello[position : position + 2])
    position += 1 + hello[position]
    lengths += [(position, 2), (at - 7, 2), (at - 5, 2), (at - 2, 2)]
    for start, size in lengths:
        value = int.from_bytes(hello[start : start + size]) + more
        hello[start : start + size] = value.to_bytes(size)
    return bytes(hello)


ALERT = 21


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("name", "pair"),
    [
        (b"x.b.example", B),
        (b"a" * 255, A),
        (b"." * 255, A),
        (bytes(range(128, 256)), A),
        ("müller.example".encode(), A),
        (b"%s{}\r\n\x1b[31m", A),
        (b"127.0.0.1", A),
        # Whether these are names at all is OpenSSL's to say.
        (b"", None),
        (b"a" * 256, None),
        (b"a.example\0.b.example", None),
    ],
)
async def test_an_absurd_name_gets_the_first_certificate_or_an_alert_and_harms_nobody(
    serve, escaped, name, pair
):
    port = serve(Certificates([A, B, C]))
    hello = hello_with(name)

    def refused(answer: bytes) -> bool:
        return pair is None and answer[:1] == bytes([ALERT])

    def send() -> bytes:
        answer = b""
        with socket.create_connection(("127.0.0.1", port), 20) as client:
            client.sendall(hello)
            # The certificate can be read in what TLS 1.2 answers.
            while not (first_of(pair or A) in answer or refused(answer)):
                part = client.recv(65536)
                assert part, answer
                answer += part
        return answer

    await deferToThread(send)
    assert await deferToThread(shown, port, "b.example") == first_of(B)
    assert escaped == []


# -- replaced while running ------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("name", ["a.example", "b.example"])
async def test_an_open_connection_lives_on_and_a_new_one_sees_the_new_certificate(serve, name):
    certificates = Certificates([A, B])
    port = serve(certificates)
    old = await deferToThread(dial, port, name)
    assert await deferToThread(say, old) == b"QUOTE"
    renewed = [material("a.example", key=a_key(4)), material("b.example", key=a_key(5))]
    assert certificates.replace(renewed) is True
    gc.collect()
    assert await deferToThread(say, old) == b"QUOTE"
    expected = renewed[["a.example", "b.example"].index(name)]
    assert await deferToThread(shown, port, name) == first_of(expected)
    assert await deferToThread(say, old) == b"QUOTE"
    old.close()


@pytest_twisted.ensureDeferred
async def test_a_connection_that_has_not_shaken_hands_yet_ends_with_the_pairs_it_began_with(serve):
    certificates = Certificates([A, B])
    port = serve(certificates)
    accepted = len(reactor.getReaders()) + 1
    waiting = await deferToThread(socket.create_connection, ("127.0.0.1", port), 20)
    await until(lambda: len(reactor.getReaders()) == accepted, "the connection to be accepted")
    certificates.replace([C])
    gc.collect()

    def shake() -> bytes:
        with client_context().wrap_socket(waiting, server_hostname="b.example") as client:
            assert say(client) == b"QUOTE"
            return client.getpeercert(binary_form=True)

    assert await deferToThread(shake) == first_of(B)
    assert await deferToThread(shown, port, "b.example") == first_of(C)


@pytest_twisted.ensureDeferred
async def test_from_one_pair_to_several_and_back(serve):
    certificates = Certificates([A])
    port = serve(certificates)
    for pairs, expected in (([A, B], B), ([C], C), ([B, A], B)):
        assert certificates.replace(pairs) is True
        assert await deferToThread(shown, port, "b.example") == first_of(expected)


def test_the_same_pairs_are_no_change_and_keep_what_serves():
    certificates = Certificates([A, B])
    before = certificates._serving
    assert certificates.replace([Material(*A), Material(*B)]) is False
    assert certificates._serving is before
    assert certificates.replace([B, A]) is True


@pytest_twisted.ensureDeferred
async def test_a_key_that_does_not_belong_leaves_all_as_it_was_and_is_named(serve):
    certificates = Certificates([A, B])
    port = serve(certificates)
    half = [material("a.example"), B._replace(key_pem=A.key_pem)]
    assert refusal_of(certificates.replace, half) == (
        "the key /x/*.b.example/key.pem does not belong to the first certificate in"
        " /x/*.b.example/chain.pem"
    )
    assert refusal_of(certificates.replace, []).startswith("TLS needs at least one certificate")
    assert await deferToThread(shown, port, "a.example") == first_of(A)
    assert await deferToThread(shown, port, "b.example") == first_of(B)
    assert certificates.endings()[0].names == ("a.example", "www.a.example")


@pytest_twisted.ensureDeferred
async def test_contexts_that_were_replaced_go_with_their_last_connection(serve):
    certificates = Certificates([A, B])
    port = serve(certificates)
    kept = await deferToThread(dial, port, "b.example")
    first = weakref.ref(certificates._serving.contexts[0])
    others = []
    for _ in range(20):
        certificates.replace([B, A])
        others.append(weakref.ref(certificates._serving.contexts[1]))
        await deferToThread(shown, port, "a.example")
        certificates.replace([A, B, C])
        others.append(weakref.ref(certificates._serving.contexts[0]))
    certificates.replace([C])
    await until(lambda: gc.collect() >= 0 and not any(ref() for ref in others), "all to go")
    assert first() is not None, "a connection still uses it"
    assert await deferToThread(say, kept) == b"QUOTE"
    kept.close()
    await until(lambda: gc.collect() >= 0 and first() is None, "the last one to go")


def test_a_pair_by_itself_has_no_callback_for_names():
    assert Certificates([A])._serving.contexts[0]._tlsext_servername_callback is None


# -- when they end ---------------------------------------------------------------------------------


def test_days_left_are_whole_ones_of_the_first_certificate_and_negative_once_it_ended():
    later = certificate_for("later.example", ends=NOW + 500 * DAY)
    first = material("a.example", "b.example", ends=NOW + 9 * DAY + 23 * DAY / 24)
    pairs = [
        first._replace(certificate_pem=first.certificate_pem + pem_of(later)),
        material(ends=NOW + DAY / 2),
        material(
            "c.example",
            ends=NOW - DAY / 2,
            extensions=[x509.IPAddress(ipaddress.ip_address("::1"))],
        ),
        material("d.example", ends=NOW - 3 * DAY),
    ]
    certificates = Certificates(pairs)
    assert certificates.days_left(NOW) == [
        (Path("/x/a.example/chain.pem"), ("a.example", "b.example"), 9),
        (Path("/x/nobody/chain.pem"), (), 0),
        (Path("/x/c.example/chain.pem"), ("c.example", "::1"), -1),
        (Path("/x/d.example/chain.pem"), ("d.example",), -3),
    ]
    assert certificates.days_left(NOW + 3 * DAY)[0][2] == 6
    certificates.replace([A])
    assert [names for _, names, _ in certificates.days_left(NOW)] == [
        ("a.example", "www.a.example")
    ]


@pytest.fixture
def logged():
    """What is logged, as (level, text)."""
    lines = []

    def observe(event) -> None:
        lines.append((event["log_level"].name, formatEvent(event)))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


def take(lines: list) -> list:
    """What was logged since the last time."""
    taken = lines[:]
    del lines[:]
    return taken


@pytest.fixture
def expiry():
    """expiry(certificates): a watch that was started, and its clock."""
    clock = Clock()
    watches = []

    def start(certificates: Certificates) -> Clock:
        seconds = datetime.timedelta(seconds=1)
        watches.append(ExpiryWatch(clock, certificates, lambda: NOW + clock.seconds() * seconds))
        watches[-1].start()
        return clock

    yield start
    for watch in watches:
        watch.stop()
        watch.stop()
    assert clock.getDelayedCalls() == []


def test_who_ends_soon_is_said_at_the_start_and_once_a_day(expiry, logged):
    pair = material("a.example", "b.example", ends=NOW + 2.5 * DAY)
    clock = expiry(Certificates([A, pair]))
    whom = "the certificate /x/a.example/chain.pem for a.example, b.example"
    last = "on 2026-11-25: renew it"
    assert take(logged) == [("warn", f"{whom} ends in 2 days, {last}")]
    clock.advance(86399)
    assert take(logged) == []
    clock.advance(1)
    assert take(logged) == [("warn", f"{whom} ends in 1 day, {last}")]
    clock.advance(86400)
    assert take(logged) == [("warn", f"{whom} ends in less than a day, {last}")]
    for _ in range(2):
        clock.advance(86400)
        assert take(logged) == [
            ("error", f"{whom} ended on 2026-11-25, clients refuse it: renew it")
        ]


@pytest.mark.parametrize(("days", "lines"), [(14.9, 1), (15, 0)])
def test_fourteen_days_are_soon_and_fifteen_are_not(expiry, logged, days, lines):
    expiry(Certificates([material("a.example", ends=NOW + days * DAY)]))
    assert len(logged) == lines


def test_a_renewed_certificate_is_not_said_any_more(expiry, logged):
    certificates = Certificates([material("a.example", ends=NOW + DAY)])
    clock = expiry(certificates)
    assert len(take(logged)) == 1
    certificates.replace([A])
    clock.advance(86400)
    assert logged == []


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], "/x/nobody/chain.pem ends in"),
        ([f"{n}.example" for n in "abc"], "for a.example, b.example, c.example ends in"),
        (
            [f"{n}.example" for n in "abcd"],
            "for a.example, b.example, c.example and 1 more ends in",
        ),
        (
            [f"{n}.example" for n in "abcde"],
            "for a.example, b.example, c.example and 2 more ends in",
        ),
    ],
)
def test_of_many_names_the_first_are_said(expiry, logged, names, text):
    expiry(Certificates([material(*names, ends=NOW + DAY)]))
    assert text in logged[0][1]


def test_without_a_clock_for_dates_the_machines_own_counts(logged):
    real = datetime.datetime.now(datetime.UTC)
    watch = ExpiryWatch(Clock(), Certificates([material("a.example", ends=real + 5.5 * DAY)]))
    watch.look()
    assert "ends in 5 days" in logged[0][1]


# -- files that change -----------------------------------------------------------------------------


class Watched:
    """A directory with a pair of files, their watch and its clock; `calls` counts changes."""

    def __init__(self, directory: Path) -> None:
        self.certificate, self.key = directory / "live.crt", directory / "live.key"
        self.certificate.write_bytes(b"certificate")
        self.key.write_bytes(b"key")
        self.calls = 0
        self.fault: Exception | None = None
        self.clock = Clock()
        self.watch = self.start()

    def start(self) -> FilesWatch:
        paths = [self.certificate, self.key, self.certificate]
        self.watch = FilesWatch(self.clock, paths, self.changed)
        self.watch.start()
        return self.watch

    def changed(self) -> None:
        self.calls += 1
        if self.fault is not None:
            raise self.fault

    def look(self, times: int = 1) -> int:
        """Let the watch look so many times; returns how often it called since the last time."""
        before = self.calls
        for _ in range(times):
            self.clock.advance(10)
        return self.calls - before


@pytest.fixture
def watched(tmp_path):
    watched = Watched(tmp_path)
    yield watched
    watched.watch.stop()
    watched.watch.stop()
    assert watched.clock.getDelayedCalls() == []


def put(path: Path, data: bytes) -> None:
    """Replace a file in one step."""
    beside = path.with_name("beside")
    beside.write_bytes(data)
    beside.replace(path)


def test_files_that_stay_call_nothing(watched, logged):
    assert watched.look(100) == 0
    assert logged == []


def test_files_are_looked_at_every_ten_seconds(watched):
    put(watched.key, b"new")
    watched.clock.pump([0.5] * 39)
    assert watched.calls == 0
    watched.clock.advance(0.5)
    assert watched.calls == 1


def test_a_file_renamed_into_place_is_a_change_once_it_settled(watched):
    put(watched.certificate, b"certificate")
    assert watched.look() == 0
    assert watched.look() == 1
    assert watched.look(10) == 0


def test_a_file_rewritten_in_place_is_a_change(watched):
    watched.key.write_bytes(b"yek")
    os.utime(watched.key, ns=(0, 10**18))
    assert watched.look(2) == 1
    watched.key.write_bytes(b"longer")
    os.utime(watched.key, ns=(0, 10**18))
    assert watched.look(10) == 1


def test_a_symbolic_link_that_leads_elsewhere_is_a_change(watched, tmp_path):
    # What Kubernetes does: the files lead through a link to a directory, which is replaced.
    for number in "12":
        (tmp_path / number).mkdir()
        (tmp_path / number / "tls.crt").write_bytes(b"certificate")
    (tmp_path / "data").symlink_to("1")
    watched.certificate.unlink()
    watched.certificate.symlink_to("data/tls.crt")
    assert watched.look(3) == 1
    (tmp_path / "swap").symlink_to("2")
    (tmp_path / "swap").replace(tmp_path / "data")
    assert watched.look() == 0
    assert watched.look() == 1


def test_a_half_written_pair_is_waited_for(watched):
    put(watched.certificate, b"new")
    assert watched.look() == 0
    put(watched.key, b"new")
    assert watched.look() == 0
    assert watched.look() == 1
    assert watched.look(10) == 0


def test_a_second_half_that_comes_late_is_a_change_of_its_own(watched):
    put(watched.certificate, b"new")
    assert watched.look(3) == 1
    put(watched.key, b"new")
    assert watched.look(3) == 1


def test_while_files_keep_changing_nothing_is_called(watched):
    for number in range(10):
        put(watched.key, b"%d" % number)
        assert watched.look() == 0
    assert watched.look() == 1


def test_a_missing_file_is_said_once_and_calls_nothing_until_it_is_back(watched, logged):
    watched.key.unlink()
    assert watched.look(20) == 0
    missing = "No such file or directory"
    assert take(logged) == [
        (
            "warn",
            f"can't look at {watched.key}: {missing}; what was read from it before stays in use",
        )
    ]
    put(watched.certificate, b"new")
    assert watched.look(5) == 0, "the pair is not whole"
    watched.key.write_bytes(b"new")
    assert watched.look() == 0
    assert watched.look() == 1
    assert take(logged) == []
    watched.key.unlink()
    assert watched.look(2) == 0
    assert len(take(logged)) == 1, "a new fault is said again"


def test_a_file_missing_at_one_look_alone_is_not_worth_a_word(watched, logged):
    watched.key.unlink()
    assert watched.look() == 0
    watched.key.write_bytes(b"new")
    assert watched.look(2) == 1
    assert logged == []


def test_another_missing_file_is_said_by_itself(watched, logged):
    watched.key.unlink()
    watched.look(3)
    assert len(take(logged)) == 1
    watched.certificate.unlink()
    watched.look(3)
    assert [str(watched.certificate) in text for _, text in logged] == [True]


def test_files_that_come_after_the_watch_are_a_change(watched):
    watched.watch.stop()
    watched.key.unlink()
    watched.start()
    assert watched.look(3) == 0
    watched.key.write_bytes(b"key")
    assert watched.look(3) == 1


def test_a_change_before_the_first_look_is_not_missed(watched):
    watched.watch.stop()
    watched.watch = FilesWatch(watched.clock, [watched.key], watched.changed)
    put(watched.key, b"new")
    watched.watch.start()
    assert watched.look(2) == 1


@contextlib.contextmanager
def as_nobody():
    """Without the rights that root has to all files."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_rights_that_are_taken_away_are_said_and_their_return_calls_only_for_a_change(
    watched, logged, tmp_path
):
    tmp_path.chmod(0)
    with as_nobody():
        assert watched.look(5) == 0
    tmp_path.chmod(0o700)
    assert [text.partition(";")[0] for _, text in take(logged)] == [
        f"can't look at {path}: Permission denied" for path in (watched.certificate, watched.key)
    ]
    assert watched.look(5) == 0
    watched.key.chmod(0)
    assert watched.look(5) == 1
    watched.key.chmod(0o600)
    assert watched.look(5) == 1, "what could not be read can be read now"
    assert logged == []


@pytest.mark.parametrize("target", ["live.key", "live.crt/below"])
def test_a_path_that_leads_nowhere_is_one_more_fault(watched, logged, target):
    watched.key.unlink()
    watched.key.symlink_to(target)
    assert watched.look(5) == 0
    assert len(logged) == 1


def test_what_goes_wrong_with_a_change_is_logged_and_the_watch_goes_on(watched, logged_failures):
    watched.fault = RuntimeError("on purpose")
    put(watched.key, b"new")
    assert watched.look(10) == 1
    assert len(logged_failures.flush(RuntimeError)) == 1
    watched.fault = None
    put(watched.key, b"newer")
    assert watched.look(10) == 1


def test_a_watch_that_was_stopped_looks_no_more(watched):
    put(watched.key, b"new")
    watched.look()
    watched.watch.stop()
    assert watched.look(5) == 0


def test_a_renewed_pair_is_served_once_both_files_are_there(tmp_path):
    files = tmp_path / "chain.pem", tmp_path / "key.pem"
    for path, data in zip(files, (A.certificate_pem, A.key_pem), strict=True):
        path.write_bytes(data)
    clock = Clock()
    refused = []

    def reload() -> None:
        try:
            certificates.replace([read_material(*files)])
        except ValueError as error:
            refused.append(str(error))

    watch = FilesWatch(clock, files, reload, every=1.0)
    certificates = Certificates([read_material(*files)])
    watch.start()
    put(files[0], B.certificate_pem)
    clock.pump([1.0] * 3)
    assert refused == [f"the key {files[1]} does not belong to the first certificate in {files[0]}"]
    assert certificates.endings()[0].names == ("a.example", "www.a.example")
    put(files[1], B.key_pem)
    clock.pump([1.0] * 3)
    assert len(refused) == 1
    assert certificates.endings()[0].names == ("*.b.example", "b.example")
    watch.stop()


# -- certificates of clients -----------------------------------------------------------------------


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
