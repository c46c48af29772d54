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
        "compress quotes for clients that offer permessage-deflate, once for all of them: auto,"
        " where that saves more than it costs, or off",
        "auto",
        one_of("auto", "off"),
        placeholder="auto|off",
    ),
    Option(
        "trusted-proxies",
        "address or network of proxies, or unix for those on Unix sockets, which are believed when"
        " they name a client's address: by the PROXY protocol, or in X-Forwarded-For",
        None,
        coercers.network,
        placeholder="NETWORK",
        repeatable=True,
    ),
    Option(
        "admin",
        "where operators ask how it is (/ready, /status, /metrics and others), as HOST:PORT or"
        " unix:/path; off for nowhere",
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
        "TLS certificate in PEM, followed by its chain if it has one; of several the one for the"
        " name that a client asks for is used, or else the first",
        placeholder="FILE",
        repeatable=True,
        section="tls",
        path=True,
    ),
    Option(
        "key",
        "private key of --cert, in PEM; of the first --cert, the second, and so on",
        placeholder="FILE",
        repeatable=True,
        section="tls",
        path=True,
    ),
    Option(
        "certs",
        "directory in which a development certificate is made when --cert is not given",
        "certs",
        placeholder="DIR",
        section="tls",
        path=True,
    ),
    Option(
        "cert-watch",
        "look every 10 seconds whether the files of --cert, --key and --client-ca have changed, and"
        " use them",
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
        "certificates of authorities, in PEM; whoever connects must show a certificate of theirs,"
        " whose subject is the user",
        placeholder="FILE",
        section="tls",
        path=True,
    ),
)

WORKERS: Final[tuple[Option, ...]] = (
    Option(
        "workers",
        "processes that serve clients, or auto for one a core; 0 serves them in twistd's own"
        " process, without one that watches over it",
        "1",
        coercers.workers,
        "processes",
        "N",
        section="workers",
    ),
    Option("affinity", "keep each worker on a core of its own", flag=True, section="workers"),
    Option(
        "max-worker-age",
        "time after which a worker is replaced, one at a time, a tenth sooner or later",
        None,
        seconds(60, 31_536_000),
        "seconds",
        "SECONDS",
        section="workers",
    ),
    Option(
        "drain-timeout",
        "time a worker that stops or is replaced has to say goodbye to its clients",
        "15",
        seconds(0.1, 3600),
        "seconds",
        "SECONDS",
        section="workers",
    ),
    Option(
        "drain-delay",
        "time at a stop between /ready turning red and the ports closing, for load balancers",
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
        "lines for people, or JSON objects",
        "text",
        one_of("text", "json"),
        placeholder="text|json",
        section="log",
    ),
    Option(
        "log-level",
        "how important an event must be to be logged",
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
        "rotated logs that are kept",
        "10",
        whole_number(1, 10_000),
        "files",
        "N",
        section="log",
    ),
    Option(
        "client-log-rate",
        "lines about clients that come and go, averaged over 10 seconds; what is over is counted;"
        " 0 for no such lines",
        "20",
        whole_number(0, 100_000),
        "lines a second",
        "N",
        section="log",
    ),
)
