"""Certificates chosen by name and replaced while running: real TLS."""

from __future__ import annotations

import gc
import ipaddress
import socket
import ssl
import subprocess
import weakref
from pathlib import Path

import pytest
import pytest_twisted
from certificate_makers import (
    DAY,
    NOW,
    TLS_1_2,
    TLS_1_3,
    A,
    B,
    C,
    a_key,
    certificate_for,
    client_context,
    dial,
    first_of,
    key_pem,
    material,
    pem_of,
    refusal_of,
    say,
    shown,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.threads import deferToThread
from waiting import until, wait_for_line
from zope.interface.verify import verifyObject

from pushservice.tls.certificates import Certificates
from pushservice.tls.material import Material


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


# -- on real sockets ------------------------------------------------------------------------------


def test_twisted_takes_certificates_for_what_creates_connections():
    assert verifyObject(IOpenSSLServerConnectionCreator, Certificates([material("a.example")]))


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
    assert certificates.expiries()[0].names == ("a.example", "www.a.example")


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
