"""What is offered over TLS, asked for by Python's ssl and by `openssl s_client`; and certificates
of clients.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from authenticated_clients import JSON, Issuer, quotepush, welcomed
from redis_process import Authority, RedisServer, TLSFiles
from system_clients import Client
from system_harness import DEADLINE, Daemon, StartDaemon, environment
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidMessage, InvalidStatus
from websockets.typing import Subprotocol

#: Of TLS 1.2, by OpenSSL's names; those that the development certificate's kind of key can serve.
SERVED_1_2: Final = {
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
}


@pytest.fixture(scope="module")
def served(module_daemon: StartDaemon) -> Daemon:
    return module_daemon()


# -- what is offered -----------------------------------------------------------------------------


def shake(daemon: Daemon, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A TLS connection; raises ssl.SSLError where there is none to be had."""
    raw = socket.create_connection(("127.0.0.1", daemon.port), DEADLINE)
    try:
        return context.wrap_socket(raw, server_hostname="localhost")
    except BaseException:
        raw.close()
        raise


def eager(daemon: Daemon) -> ssl.SSLContext:
    """A context that would take anything that OpenSSL has, however weak."""
    context = daemon.ssl_context
    assert context is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
    context.set_ciphers("ALL:COMPLEMENTOFALL:@SECLEVEL=0")
    return context


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_tls_1_2_and_1_3_are_offered(served: Daemon, version: str) -> None:
    context = eager(served)
    context.maximum_version = context.minimum_version = ssl.TLSVersion[version]
    with shake(served, context) as connection:
        assert connection.version() == version.replace("_", ".")
        assert connection.compression() is None


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
def test_older_versions_are_refused_by_the_daemon(served: Daemon, version: str) -> None:
    context = eager(served)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.maximum_version = ssl.TLSVersion[version]
    # An alert from the daemon, and not a refusal of the client's own library.
    with pytest.raises(ssl.SSLError, match=r"(?i)alert protocol version"):
        shake(served, context)


def test_only_ciphers_with_forward_secrecy_that_authenticate_are_offered_for_tls_1_2(
    served: Daemon,
) -> None:
    every = [cipher["name"] for cipher in eager(served).get_ciphers()]
    older = [name for name in every if not name.startswith("TLS_")]
    assert len(older) > 50
    taken = set()
    for name in older:
        context = eager(served)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(f"{name}:@SECLEVEL=0")
        try:
            with shake(served, context) as connection:
                found = connection.cipher()
                assert found is not None
                taken.add(found[0])
        except (ssl.SSLError, ConnectionError):
            continue
    assert taken == SERVED_1_2


def test_http_1_1_is_agreed_on_and_nothing_else(served: Daemon) -> None:
    for offered, agreed in (
        (["http/1.1"], "http/1.1"),
        (["h2", "http/1.1"], "http/1.1"),
        (["h2"], None),
        (["nonsense"], None),
        ([], None),
    ):
        context = served.ssl_context
        assert context is not None
        if offered:
            context.set_alpn_protocols(offered)
        with shake(served, context) as connection:
            assert connection.selected_alpn_protocol() == agreed
            connection.sendall(b"HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"


def s_client(daemon: Daemon, *options: str, say: str = "") -> str:
    """What `openssl s_client` prints; `say` is typed into it."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{daemon.port}"]
    command += ["-servername", "localhost", "-CAfile", str(daemon.certs / "dev.crt"), *options]
    done = subprocess.run(
        command,
        input=say,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    return done.stdout + done.stderr


def test_openssl_finds_no_compression_no_renegotiation_and_a_certificate_that_it_trusts(
    served: Daemon,
) -> None:
    said = s_client(served, "-tls1_2", "-comp")
    assert "Verify return code: 0 (ok)" in said
    assert "Compression: NONE" in said
    assert "Secure Renegotiation IS supported" in said, "it is about attacks, RFC 5746"
    assert "Verify return code: 0 (ok)" in s_client(served, "-tls1_3")
    # An R on a line of its own asks for another handshake on the open connection.
    said = s_client(served, "-tls1_2", say="R\n")
    assert "RENEGOTIATING" in said
    assert "no renegotiation" in said
    assert "Cipher is (NONE)" in s_client(served, "-tls1_2", "-cipher", "AES128-GCM-SHA256")


# -- certificates of clients ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TLSFiles]:
    directory = tmp_path_factory.mktemp("papers")
    ours, theirs = Authority(directory, "ours"), Authority(directory, "theirs")
    lone = Authority(directory, "lone").issue("lone")
    return {
        "good": ours.issue("ann"),
        "another": ours.issue("eva"),
        "expired": ours.issue("late", days=-1),
        "of another authority": theirs.issue("mallory"),
        "self-signed": lone._replace(cert=lone.ca, key=_key_of(directory)),
    }


def _key_of(directory: Path) -> Path:
    """The self-signed one, made by other hands."""
    key, certificate = directory / "self.key", directory / "lone.crt"
    command = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=ann"]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE)
    return key


@pytest.fixture
def mutual(daemon: StartDaemon, papers: dict[str, TLSFiles]) -> Callable[..., Daemon]:
    """Starts daemons that want certificates of one authority."""
    return lambda *options, **more: daemon(
        "--client-ca", str(papers["good"].ca), "--log-level", "debug", *options, **more
    )


def showing(
    daemon: Daemon, paper: TLSFiles | None, version: str = "TLSv1_3", **options: object
) -> connect:
    """A client that shows a certificate, or none."""
    context = daemon.ssl_context
    assert context is not None
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    if paper is not None:
        context.load_cert_chain(paper.cert, paper.key)
    settings = {
        "ssl": context,
        "subprotocols": [Subprotocol(JSON)],
        "compression": None,
        "open_timeout": DEADLINE,
        "proxy": None,
    }
    return connect(daemon.url, **(settings | options))


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_only_a_certificate_of_the_authority_lets_in(
    mutual: Callable[..., Daemon], papers: dict[str, TLSFiles], version: str
) -> None:
    found = mutual()

    async def run() -> None:
        async with showing(found, papers["good"], version) as connection:
            client = await welcomed(connection)
            assert client.welcome["auth"] == "done"
            assert (await client.expect("authenticated"))["user"] == "CN=ann"
            assert (await client.subscribe("A"))["symbols"] == ["A"]
            for what in ("expired", "of another authority", "self-signed", None):
                paper = None if what is None else papers[what]
                with pytest.raises((ssl.SSLError, ConnectionError, InvalidMessage)):
                    async with showing(found, paper, version):
                        pytest.fail(f"let in with a certificate: {what}")
            # Of another user, who is not disturbed.
            async with showing(found, papers["another"], version) as other:
                await welcomed(other)
            await client.subscribe("B")

    asyncio.run(run())
    assert "as CN=ann (" in found.wait_for("connected from")
    found.wait_for("as CN=eva (")
    assert "mallory" not in found.output()


def test_a_page_is_not_served_without_a_certificate_either(
    mutual: Callable[..., Daemon], papers: dict[str, TLSFiles]
) -> None:
    found = mutual()
    said = s_client(found, "-ign_eof", say="GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert "<title" not in said
    files = papers["good"]
    shown = ["-cert", str(files.cert), "-key", str(files.key), "-ign_eof"]
    request = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert "<title" in s_client(found, *shown, say=request)


def test_the_subject_of_a_certificate_is_a_user_who_can_be_revoked(
    mutual: Callable[..., Daemon],
    papers: dict[str, TLSFiles],
    own_redis: Callable[..., RedisServer],
) -> None:
    own = own_redis()
    found = mutual(redis=own.url)

    async def run() -> None:
        async with showing(found, papers["good"]) as ann, showing(found, papers["another"]) as eva:
            clients = [await welcomed(connection) for connection in (ann, eva)]
            for client in clients:
                await client.expect("authenticated")
            env = {"QUOTEPUSH_REDIS": own.url}
            await asyncio.to_thread(quotepush, "token", "revoke", "--user", "CN=ann", env=env)
            assert "revoked" in (await clients[0].expect_token_ended())["msg"]
            assert (await clients[1].ask({"op": "ping"}))["ev"] == "pong"
            with pytest.raises(InvalidStatus) as refusal:
                await showing(found, papers["good"])
            assert refusal.value.response.status_code == 401
            # And what it says beside its certificate does not make it somebody else.
            for more in (
                {"additional_headers": {"Authorization": "Bearer let-me-in-nevertheless"}},
                {"subprotocols": [Subprotocol(JSON), Subprotocol("quotepush.auth.let-me-in")]},
            ):
                with pytest.raises(InvalidStatus) as refusal:
                    await showing(found, papers["good"], **more)
                assert refusal.value.response.status_code == 401

    asyncio.run(run())


def test_a_client_with_a_certificate_can_t_become_somebody_else(
    mutual: Callable[..., Daemon], papers: dict[str, TLSFiles]
) -> None:
    found = mutual()

    async def run() -> None:
        async with showing(found, papers["good"]) as connection:
            client = Client(connection)
            await client.expect("welcome")
            await client.expect("authenticated")
            answer = await client.ask({"op": "auth", "token": "whoever-that-may-be"})
            assert answer["code"] == 402
        headers = {"Authorization": "Bearer whoever-that-may-be"}
        with pytest.raises(InvalidStatus) as refusal:
            await showing(found, papers["good"], additional_headers=headers)
        assert refusal.value.response.status_code == 401

    asyncio.run(run())


def test_with_a_certificate_a_token_may_be_shown_too_where_tokens_are_taken(
    mutual: Callable[..., Daemon], papers: dict[str, TLSFiles], tmp_path: Path
) -> None:
    issuer = Issuer(tmp_path)
    found = mutual(*issuer.options)

    async def run() -> None:
        headers = {"Authorization": f"Bearer {issuer.token('bob', symbols=['B*'])}"}
        async with showing(found, papers["good"], additional_headers=headers) as connection:
            client = await welcomed(connection)
            assert (await client.expect("authenticated"))["user"] == "bob"
            assert (await client.subscribe("A", "B"))["symbols"] == ["B"]
        headers = {"Authorization": f"Bearer {Issuer(tmp_path, which=1).token('bob')}"}
        with pytest.raises(InvalidStatus) as refusal:
            await showing(found, papers["good"], additional_headers=headers)
        assert refusal.value.response.status_code == 401
        with pytest.raises((ssl.SSLError, ConnectionError, InvalidMessage)):
            await showing(found, None, additional_headers=headers)

    asyncio.run(run())
