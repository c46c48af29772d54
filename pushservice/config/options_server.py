"""Options of the daemon itself: ports, certificates, processes, logs.

Must not know: where values come from (command line, environment, file), or what the daemon does
with them.
"""

from __future__ import annotations

from typing import Final

from pushservice.config import coercers
from pushservice.config.coercers import one_of, seconds, whole_number
from pushservice.config.option import Option

GENERAL: Final[tuple[Option, ...]] = (
    Option("port", "TCP port to listen on", "8008", whole_number(1, 65535), placeholder="PORT"),
    Option("interface", "address to listen on", "0.0.0.0", placeholder="ADDRESS"),  # noqa: S104 - a server's default
    Option(
        "listen",
        "Twisted endpoint to listen on instead of --port and --interface, such as"
        " tcp:8008:interface=127.0.0.1 or unix:/run/quotepush.sock",
        placeholder="ENDPOINT",
        repeatable=True,
    ),
    Option(
        "compression",
        "compress quotes, once for all clients that offer permessage-deflate: auto does so where"
        " it saves more than it costs, off never does",
        "auto",
        one_of("auto", "off"),
        placeholder="auto|off",
    ),
    Option(
        "trusted-proxies",
        "address or network of trusted proxies, or unix for those on Unix sockets; a trusted"
        " proxy may say what a client's address is, by the PROXY protocol or in X-Forwarded-For",
        None,
        coercers.network,
        placeholder="NETWORK",
        repeatable=True,
    ),
    Option(
        "admin",
        "where the admin port listens, which serves /ready, /status, /metrics and others:"
        " HOST:PORT or unix:/path; off for no admin port",
        "127.0.0.1:8009",
        coercers.admin,
        placeholder="WHERE",
    ),
    Option("no-page", "do not serve the page and quotepush.js on the public port", flag=True),
    Option("demo", "publish a simulated market of 200 symbols through Redis", flag=True),
    Option(
        "demo-rate",
        "quotes the simulated market publishes",
        "200",
        whole_number(1, 100_000),
        "quotes a second",
        "N",
    ),
)

TLS: Final[tuple[Option, ...]] = (
    Option(
        "cert",
        "TLS certificate in PEM, followed by its chain if it has one; of several, a client gets"
        " the one for the host name that it asks for, or else the first",
        placeholder="FILE",
        repeatable=True,
        section="tls",
        path=True,
    ),
    Option(
        "key",
        "private key of --cert, in PEM; with several, in the same order as --cert",
        placeholder="FILE",
        repeatable=True,
        section="tls",
        path=True,
    ),
    Option(
        "certs",
        "directory of the development certificate, which is made when --cert is not given",
        "certs",
        placeholder="DIR",
        section="tls",
        path=True,
    ),
    Option(
        "cert-watch",
        "check every 10 seconds whether the files of --cert, --key and --client-ca have changed,"
        " and load them again if so",
        flag=True,
        section="tls",
    ),
    Option(
        "plain",
        "serve ws:// without TLS",
        flag=True,
        section="tls",
    ),
    Option(
        "client-ca",
        "CA certificates in PEM; every client must present a certificate issued by one of them,"
        " and the certificate's subject is the user",
        placeholder="FILE",
        section="tls",
        path=True,
    ),
)

WORKERS: Final[tuple[Option, ...]] = (
    Option(
        "workers",
        "processes that serve clients, or auto for one per core; 0 serves them in twistd's own"
        " process, which nothing supervises",
        "1",
        coercers.workers,
        "processes",
        "N",
        section="workers",
    ),
    Option("affinity", "pin each worker to a core of its own", flag=True, section="workers"),
    Option(
        "max-worker-age",
        "age at which a worker is replaced, one at a time; each worker's differs by up to a tenth",
        None,
        seconds(60, 31_536_000),
        "seconds",
        "SECONDS",
        section="workers",
    ),
    Option(
        "drain-timeout",
        "time a worker has to close its clients' connections when it stops or is replaced",
        "15",
        seconds(0.1, 3600),
        "seconds",
        "SECONDS",
        section="workers",
    ),
    Option(
        "drain-delay",
        "time at a stop between /ready failing and the ports closing, for load balancers to notice",
        "0",
        seconds(0, 600),
        "seconds",
        "SECONDS",
        section="workers",
    ),
)

LOG: Final[tuple[Option, ...]] = (
    Option(
        "log-format",
        "format of log lines: text, or json for one JSON object per line",
        "text",
        one_of("text", "json"),
        placeholder="text|json",
        section="log",
    ),
    Option(
        "log-level",
        "lowest level of events that are logged",
        "info",
        one_of("debug", "info", "warn", "error", "critical"),
        placeholder="LEVEL",
        section="log",
    ),
    Option(
        "log-max-size",
        "size at which twistd's --logfile is rotated; 0 for never",
        "10485760",
        whole_number(0, 1024**4),
        "bytes",
        "N",
        section="log",
    ),
    Option(
        "log-keep",
        "rotated log files that are kept",
        "10",
        whole_number(1, 10_000),
        "files",
        "N",
        section="log",
    ),
    Option(
        "client-log-rate",
        "most log lines about clients that connect and disconnect, averaged over 10 seconds;"
        " further ones are only counted; 0 for no such lines",
        "20",
        whole_number(0, 100_000),
        "lines a second",
        "N",
        section="log",
    ),
)
